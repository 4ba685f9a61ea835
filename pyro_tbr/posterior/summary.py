"""A fit in a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.heads.hyper import HyperFactor, ScaleFactor
from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.posterior.identification import identify
from pyro_tbr.posterior.latent_choice import LatentDimChoice
from pyro_tbr.posterior.tables import changes, names_index, noise_table
from pyro_tbr.posterior.view import PosteriorView

_NUM_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """What ``Posterior.summary`` gives; ``str`` of it reads well.

    Attributes:
        num_rows: Rows of the fit.
        num_environments: Nodes with rows.
        num_arcs: Arcs of the tree.
        noise_scale: Noise standard deviation by outcome, in its unit; empty where a
            likelihood has none.
        noise_range: Its ``least`` and ``most`` over environments with rows, by outcome; likewise.
        latents: By latent: share of the predictor's variance, expected number of changes (sum of
            PIPs over arcs and outcomes), prior and posterior mean of the inclusion rate, that of
            the sharing where gates of outcomes hang together, whether it is used.
        changes: The surest changes, as in ``Posterior.deltas``, without log odds.
        folds: Folds of the cross-fit.
        optimism: Share by which held-out rows fit worse than rows of training.
        likelihood: Of the outcomes.
        latent_choice: How the number of latents was chosen; ``None``: it was given.
    """

    num_rows: int
    num_environments: int
    num_arcs: int
    noise_scale: pd.Series
    noise_range: pd.DataFrame
    latents: pd.DataFrame
    changes: pd.DataFrame
    folds: int
    optimism: float
    likelihood: str
    latent_choice: LatentDimChoice | None = None

    def __str__(self) -> str:
        ranges = [
            "" if least == most else f" ({least:.4g} to {most:.4g} by environment)"
            for least, most in self.noise_range.to_numpy()
        ]
        pairs = zip(self.noise_scale.items(), ranges, strict=True)
        noise = ", ".join(f"{name} {value:.4g}{ends}" for (name, value), ends in pairs)
        how = f"{self.folds}-fold cross-fit" if self.folds else "the one encoder"
        lines = [
            f"{self.num_rows} rows in {self.num_environments} environments, {self.num_arcs} arcs",
            self.likelihood + (f", noise {noise}" if noise else ""),
            f"latents of the rows by {how} (held-out rows fit {self.optimism:+.1%} worse than "
            "rows of training)",
            *self._chosen(),
            "",
            self.latents.to_string(float_format=lambda v: f"{v:.3f}"),
            "",
            f"surest changes (first {len(self.changes)}; PIP beside its prior):",
            self.changes.to_string(index=False, float_format=lambda v: f"{v:.3f}"),
        ]
        return "\n".join(lines)

    def _chosen(self) -> list[str]:
        """A line on the number of latents, where it was not given."""
        choice = self.latent_choice
        if choice is None:
            return []
        tried = choice.tried
        return [f"{choice.best} latents, chosen of {min(tried)} to {max(tried)}"]


@torch.no_grad()
def summarise(view: PosteriorView) -> Summary:
    """See ``Posterior.summary``."""
    guide, model = view.guide, view.model
    moments, informed = guide.delta_moments(), guide.informed_arcs
    weights = guide.node_moments().mean[view.stats.nodes].double()
    power = view.stats.gram.diagonal(dim1=-2, dim2=-1).transpose(-1, -2)
    share = (power * weights.square()).sum((0, 2))
    columns = {"variance_share": share / share.sum().clamp(min=1e-300)}
    if guide.has_gates:
        columns |= _prior_rate(model.prior)
        columns["posterior_rate"] = moments.prior_inclusion.mean((0, 2))
        if "sharing" in guide.hyper:
            sharing, weights = cast(HyperFactor, guide.hyper["sharing"]).points()
            columns["sharing"] = torch.einsum("t,twq->w", weights, sharing)
        columns["expected_changes"] = moments.inclusion[informed].sum((0, 2))
    names = names_index(view.latent_names, "latent")
    latents = pd.DataFrame({name: v.cpu().numpy() for name, v in columns.items()}, index=names)
    used = identify(view).latents["used"].to_numpy()
    latents["used"] = np.append(used, np.ones(len(names) - len(used), dtype=bool))
    sure = moments.inclusion if guide.has_gates else (moments.mean.double().square() / moments.var)
    order = sure.flatten().cpu().argsort(descending=True, stable=True)[:_NUM_SHOWN]
    return Summary(
        num_rows=int(view.row_counts.sum()),
        num_environments=int((view.row_counts > 0).sum()),
        num_arcs=view.tree.num_arcs,
        noise_scale=_noise_scale(view),
        noise_range=_noise_range(view),
        latents=latents,
        changes=changes(view, 0.9, order.numpy()),
        folds=view.report.folds,
        optimism=view.report.optimism,
        likelihood=repr(view.model.likelihood),
        latent_choice=view.report.latent_choice,
    )


def _prior_rate(prior: ArcPrior) -> dict[str, Tensor]:
    """Mean inclusion rate by latent before any row, (W,), where the prior has such a site."""
    rates = [hyper for hyper in prior.hyperparameters() if hyper.name == "inclusion_rate"]
    values = [rate.middle() if rate.fixed is None else rate.fixed for rate in rates]
    return {"prior_rate": values[0].mean(-1)} if values else {}


def _noise_scale(view: PosteriorView) -> pd.Series:
    """Posterior mean by outcome in its unit; empty where the likelihood has no such scale."""
    found, unit = view.model.likelihood.noises(view.guide.nuisance), view.scaling.outcome_scale()
    values: dict[int, float] = {}
    for factor, columns in found:
        mean = cast(ScaleFactor, factor).mean_power(1.0).detach().cpu().double()
        values |= dict(zip(columns.tolist(), (mean * unit[columns.cpu()]).tolist(), strict=True))
    if not found:
        return pd.Series(dtype=float)
    names = tuple(view.outcome_names[q] for q in sorted(values))
    return pd.Series([values[q] for q in sorted(values)], index=names_index(names, None))


def _noise_range(view: PosteriorView) -> pd.DataFrame:
    """Of the posterior means at environments with rows, by outcome."""
    if not view.model.likelihood.noises(view.guide.nuisance):
        return pd.DataFrame({"least": [], "most": []})
    table = noise_table(view, 0.9)
    mean = table["mean"].to_numpy().reshape(view.tree.num_nodes, -1)
    index = names_index(tuple(table["outcome"].head(mean.shape[1])), None)
    mean = mean[view.stats.nodes.cpu().numpy()]
    return pd.DataFrame({"least": mean.min(0), "most": mean.max(0)}, index=index)
