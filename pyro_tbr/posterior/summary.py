"""A fit in a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from pyro_tbr.heads.hyper.factors import ScaleFactor
from pyro_tbr.heads.priors import SpikeSlabPrior

if TYPE_CHECKING:
    from pyro_tbr.posterior.posterior import Posterior

_NUM_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """What ``Posterior.summary`` gives; ``str`` of it reads well.

    Attributes:
        num_rows: Rows of the fit.
        num_environments: Nodes with rows.
        num_arcs: Arcs of the tree.
        noise_scale: Noise standard deviation by outcome, in its unit; empty for binary outcomes.
        latents: By latent: share of the predictor's variance, expected number of changes (sum of
            PIPs over arcs and outcomes), prior and posterior mean of the inclusion rate, whether
            it is used.
        changes: The surest changes, as in ``Posterior.deltas``, without log odds.
        folds: Folds of the cross-fit.
        optimism: Share by which held-out rows fit worse than rows of training.
    """

    num_rows: int
    num_environments: int
    num_arcs: int
    noise_scale: pd.Series
    latents: pd.DataFrame
    changes: pd.DataFrame
    folds: int
    optimism: float

    def __str__(self) -> str:
        noise = ", ".join(f"{name} {value:.4g}" for name, value in self.noise_scale.items())
        honest = (
            f"latents of the rows by {self.folds}-fold cross-fit"
            if self.folds
            else "latents of the rows by the one encoder"
        )
        lines = [
            f"{self.num_rows} rows in {self.num_environments} environments, {self.num_arcs} arcs",
            f"noise sd: {noise}" if noise else "binary outcomes",
            f"{honest} (held-out rows fit {self.optimism:+.1%} worse than rows of training)",
            "",
            self.latents.to_string(float_format=lambda v: f"{v:.3f}"),
            "",
            f"surest changes (first {len(self.changes)}; PIP beside its prior):",
            self.changes.to_string(index=False, float_format=lambda v: f"{v:.3f}"),
        ]
        return "\n".join(lines)


@torch.no_grad()
def summarise(posterior: Posterior) -> Summary:
    """The summary of a posterior."""
    guide, model = posterior.guide, posterior.model
    moments = guide.delta_moments()
    weights = guide.node_moments().mean[posterior.stats.nodes].double()
    power = posterior.stats.gram.diagonal(dim1=-2, dim2=-1).transpose(-1, -2)
    share = (power * weights.square()).sum((0, 2))
    share = share / share.sum().clamp(min=1e-300)
    names = pd.Index(posterior.latent_names, name="latent")
    prior_spec = model.prior
    rate = prior_spec.inclusion_rate if isinstance(prior_spec, SpikeSlabPrior) else None
    informed = guide.informed_arcs
    used = [k < posterior.report.rank or k >= model.latent_dim for k in range(len(names))]
    columns: dict[str, object] = {"variance_share": share.cpu().numpy()}
    if rate is not None:
        prior = rate.middle() if rate.fixed is None else rate.fixed
        columns["prior_rate"] = prior.mean(-1).cpu().numpy()
        columns["posterior_rate"] = moments.prior_inclusion.mean((0, 2)).cpu().numpy()
        columns["expected_changes"] = moments.inclusion[informed].sum((0, 2)).cpu().numpy()
    columns["used"] = used
    noise = pd.Series(dtype=float)
    if guide.noise is not None:
        assert isinstance(guide.noise, ScaleFactor)
        scale = guide.noise.mean_power(1.0).cpu().double() * posterior.scaling.scale
        noise = pd.Series(scale.numpy(), index=list(posterior.outcome_names))
    deltas = posterior.deltas().drop(columns="log_odds")
    if rate is not None:
        changes = deltas.sort_values("pip", ascending=False, kind="stable").head(_NUM_SHOWN)
    else:
        order = (deltas["mean"] / deltas["sd"]).abs().sort_values(ascending=False).index
        changes = deltas.loc[order].head(_NUM_SHOWN)
    return Summary(
        num_rows=int(posterior.row_counts.sum()),
        num_environments=int((posterior.row_counts > 0).sum()),
        num_arcs=posterior.tree.num_arcs,
        noise_scale=noise,
        latents=pd.DataFrame(columns, index=names),
        changes=changes.reset_index(drop=True),
        folds=posterior.report.folds,
        optimism=posterior.report.optimism,
    )
