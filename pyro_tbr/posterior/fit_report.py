"""What a fit did and found on the way, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.posterior.latent_choice import LatentDimChoice
from pyro_tbr.posterior.model_check import ModelCheck

_HISTORY = ["stage", "step", "loss", "held_out"]
_EVEN = 0.05  # share by which held-out rows may fit better or worse and count as fitting as well
_LARGE = 0.5  # from which on an encoder is told to fit its rows of training far too well


@dataclass(frozen=True, repr=False)
class FitReport:
    """What a fit did and found on the way; printed it is a few lines.

    Attributes:
        rank: Latents that exist and outcomes need; the others, last in order, are zero everywhere.
        history: Training of the encoder: stage, step, loss (negative ELBO a row) and held-out loss:
            negative expected log score a row, or, of a neural encoder of normal outcomes, the mean
            squared error of standardised ones. Stages are ``choosing``, on part of the rows, of
            the recipe that did best on the others; ``dense``, on all rows; ``sparse``.
        decay: Weight decay of the encoder that was chosen on held-out rows.
        num_components: Leading components of the features that were chosen; ``None``: all.
        folds: Folds of the cross-fit; 0: the encoder's own latents serve all rows.
        optimism: Share by which the loss on held-out rows was above that on rows of training.
        evidence: Log evidence of the basis of the latents, up to a constant of the data.
        basis: Basis of the latents that was chosen, relative to white latents, (rank, rank).
        alternatives: Other bases the search found, best first, (T, rank, rank), relative to white
            latents.
        alternative_evidence: Theirs, (T,).
        group_correlation: Correlation of two rows of a group given their predictors, (Q,); ``None``
            without groups.
        check: What the rows said of the model, see :meth:`Posterior.check`.
        feature_scale: Standard deviation of each feature over the rows, (D,); ``None`` in files of
            earlier versions.
        reference_cov: Of known latents: covariance of the error of the values they count from, at
            which intercepts are judged, in units of the latents, (K, K). ``None``: they are learnt,
            or it is a file of an earlier version.
        small_changes: Whether changes may be small where gates are off: asked of the rows where
            latents are known and the prior leaves the width of these open (``False``: they speak
            clearly against any, so the fit's prior has ``spike_scale=0``); ``None``: not asked, as
            where latents are learnt or correlate by more than 0.5 within environments.
        latent_choice: How many latents there are, see ``choose_latent_dim``, where the model was
            made with ``latent_dim=None``; else ``None``.
        seed: The seed.
        options: The options, as a dict.
    """

    rank: int
    history: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=_HISTORY))
    decay: float = 0.0
    num_components: int | None = None
    folds: int = 0
    optimism: float = 0.0
    evidence: float = 0.0
    basis: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    alternatives: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    alternative_evidence: Tensor = field(default_factory=lambda: torch.zeros(0))
    group_correlation: Tensor | None = None
    check: ModelCheck | None = None
    feature_scale: Tensor | None = None
    reference_cov: Tensor | None = None
    small_changes: bool | None = None
    latent_choice: LatentDimChoice | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def how_latents(self) -> str:
        """Where the latents of the rows come from, and whether that was needed, in a sentence."""
        how = f"a cross-fit of {self.folds} folds" if self.folds else "the one encoder"
        off = self.optimism
        if abs(off) <= _EVEN:
            found = "rows held out from training fit as well as rows of training"
        elif off < 0:
            found = f"rows held out from training fit {-off:.0%} better than rows of training"
        else:
            found = f"rows held out from training fit {off:.0%} worse than rows of training"
        text = f"latents of the rows by {how}: {found}"
        if off > _EVEN and self.options.get("cross_fit") == 0:
            return text + ", and so noise and PIPs are too sure: leave options.cross_fit to the fit"
        if off > _LARGE:
            return text + "; the encoder learns its rows by heart: more rows, fewer features"
        return text

    def __repr__(self) -> str:
        rows = [
            f"seed {self.seed}, {_changed(self.options)}",
            f"{self.rank} latents that exist",
            self.how_latents,
        ]
        if len(self.history):
            stages = self.history.groupby("stage", sort=False)["step"].max()
            steps = ", ".join(f"{stage} {step}" for stage, step in stages.items())
            rows.append(f"steps that trained the encoder: {steps}; weight decay {self.decay:.3g}")
        else:
            rows.append("encoder in closed form, or none to train: no history")
        if self.num_components is not None:
            rows.append(f"leading components of the features: {self.num_components}")
        rows.append(
            f"search: {len(self.alternatives)} other solutions kept, best log evidence "
            f"{self.evidence:.1f}"
        )
        if self.small_changes is not None:
            found = "there may be some" if self.small_changes else "none"
            rows.append(f"small changes where gates are off, by the rows: {found}")
        if self.group_correlation is not None:
            least, most = self.group_correlation.min().item(), self.group_correlation.max().item()
            rows.append(f"rows of a group correlate by {least:.2f} to {most:.2f}, by outcome")
        if self.check is not None:
            rows.append(str(self.check).splitlines()[0])
            rows += [f"  {reason}" for reason in self.check.reasons]
        if self.latent_choice is not None:
            rows.append(repr(self.latent_choice))
        return "\n  ".join(["FitReport:", *rows])


def _changed(options: dict[str, Any]) -> str:
    """Options that are not None, in a line."""
    given = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
    return f"options {given}" if given else "options not kept"
