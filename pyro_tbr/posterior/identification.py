"""Are the latents determined by these environments and outcomes? A report that says so or not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.posterior.view import FitReport, PosteriorView

SAME_LATENTS = 0.95  # bases whose matched latents correlate more than this are one solution
LEAST_GAP = 6.0  # log evidence by which the solution has to be ahead of the best other one
# Share of the search's solutions that have to agree. Of 72 simulated fits those that found the
# latents had 0.37 or more (median 1), the one that missed them without other signs 0.16.
LEAST_AGREEMENT = 0.25
LEAST_SEPARATION = 0.9  # probability that some arc changes one latent and not the other
# Below this many environments times outcomes, beyond two a latent, the sparsest solution is often
# not the true one (8 environments, one outcome, 2 or 3 latents: in half of the simulated fits).
SPARE_ENVIRONMENTS = 5


@dataclass(frozen=True)
class Identification:
    """What ``Posterior.identification`` gives; ``str`` of it reads well.

    Attributes:
        num_environments: Nodes with rows.
        num_outcomes: Q.
        rank: Latents that exist.
        latent_dim: K.
        condition: Condition number of the environments' weights, latents scaled alike: large where
            some mixture of latents has nearly the same weights everywhere.
        separation: Probability that some arc with data below changes the row's latent and not the
            column's, for some outcome, (K, K); NaN on the diagonal. Without gates all NaN.
        agreement: Share of the search's other solutions whose latents are those of the best.
        gap: Log evidence by which the best solution is ahead of the best one with other latents;
            infinite where the search found none.
        other_match: Mean correlation of that solution's latents with ours; NaN where there is none.
        unused: Latents that are not used.
        reasons: Why the latents are not determined; empty if they are.
    """

    num_environments: int
    num_outcomes: int
    rank: int
    latent_dim: int
    condition: float
    separation: pd.DataFrame
    agreement: float
    gap: float
    other_match: float
    unused: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def determined(self) -> bool:
        """Nothing speaks against the latents being determined."""
        return not self.reasons

    def __str__(self) -> str:
        where = f"{self.num_environments} environments, {self.num_outcomes} outcome(s)"
        head = "Latents determined" if self.determined else "Latents NOT determined"
        lines = [f"{head}: {self.latent_dim} latents from {where}."]
        lines += [f"  - {reason}" for reason in self.reasons]
        if np.isfinite(self.gap):
            lines.append(
                f"  The best solution with other latents (mean correlation {self.other_match:.2f} "
                f"with these) is {self.gap:.1f} in log evidence behind."
            )
        else:
            lines.append("  The search found no solution with other latents.")
        lines.append(
            f"  {self.agreement:.0%} of the search's solutions have these latents; condition of "
            f"the environments' weights {self.condition:.1f}."
        )
        if self.unused:
            lines.append(f"  Not used: {', '.join(self.unused)}.")
        if not self.determined:
            lines.append(
                "  Read the inclusion probabilities as those of one of several solutions. What "
                "helps: more environments, more outcomes that share the latents, fewer latents."
            )
        return "\n".join(lines)


@torch.no_grad()
def identify(view: PosteriorView) -> Identification:
    """See ``Posterior.identification``."""
    report, model = view.report, view.model
    latent_dim, rank = model.latent_dim, report.rank
    names, nodes = view.latent_names[:latent_dim], view.stats.nodes
    weights = view.guide.node_moments().mean[nodes][:, :rank].double()
    separation = _separation(view, names)
    agreement, gap, other = _rivals(report)
    reasons = []
    if model.encoder.trainable and rank > 1:
        if len(nodes) * len(view.outcome_names) < 2 * rank + SPARE_ENVIRONMENTS:
            reasons.append(
                f"{len(nodes)} environments times {len(view.outcome_names)} outcomes are few "
                f"for {rank} latents"
            )
        if gap < LEAST_GAP:
            reasons.append(
                f"other latents (mean correlation {other:.2f}) explain the data nearly as well: "
                f"log evidence {gap:.1f} behind"
            )
        if agreement < LEAST_AGREEMENT:
            reasons.append(f"only {agreement:.0%} of the search's solutions have these latents")
        apart = separation.to_numpy()[:rank, :rank]
        weak = [
            f"{names[i]} from {names[j]} ({apart[i, j]:.2f})"
            for i, j in zip(*np.nonzero(apart < LEAST_SEPARATION), strict=True)
        ]
        if weak:
            shown = ", ".join(weak[:4]) + (f" and {len(weak) - 4} more" if len(weak) > 4 else "")
            reasons.append(f"no arc is sure to change one latent and not another: {shown}")
    return Identification(
        num_environments=len(nodes),
        num_outcomes=len(view.outcome_names),
        rank=rank,
        latent_dim=latent_dim,
        condition=_condition(weights.permute(0, 2, 1).reshape(-1, rank)),
        separation=separation,
        agreement=agreement,
        gap=gap,
        other_match=other,
        unused=names[rank:],
        reasons=tuple(reasons),
    )


def _condition(weights: Tensor) -> float:
    """Condition number of (E Q, K) weights, columns scaled to unit length."""
    length = weights.norm(dim=0)
    if len(weights) < weights.shape[1] or not bool((length > 0).all()):
        return math.inf
    values = torch.linalg.svdvals(weights / length)
    return (values[0] / values[-1]).item() if values[-1] > 0 else math.inf


def _separation(view: PosteriorView, names: tuple[str, ...]) -> pd.DataFrame:
    """See :class:`Identification`; latents are independent under q, arcs are taken to be."""
    table = np.full((len(names), len(names)), np.nan)
    if view.guide.has_gates:
        moments = view.guide.delta_moments()
        on = moments.inclusion[view.guide.informed_arcs, : len(names)].double()
        alone = on[:, :, None] * (1 - on[:, None])  # (A, K, K, Q)
        never = torch.log1p(-alone.clamp(max=1 - 1e-12)).sum((0, 3)).exp()
        table = (1 - never).cpu().numpy()
        np.fill_diagonal(table, np.nan)
    return pd.DataFrame(table, index=pd.Index(names, name="latent"), columns=list(names))


def _rivals(report: FitReport) -> tuple[float, float, float]:
    """Share of alternatives with the same latents; gap and match of the best with others."""
    if not len(report.alternatives) or not len(report.basis):
        return 1.0, math.inf, math.nan
    matches = torch.tensor([latent_match(report.basis, other) for other in report.alternatives])
    same = matches > SAME_LATENTS
    gap = torch.where(same, torch.inf, report.evidence - report.alternative_evidence.cpu())
    share, rival = same.double().mean().item(), int(gap.argmin())
    if not torch.isfinite(gap[rival]):
        return share, math.inf, math.nan
    return share, max(gap[rival].item(), 0.0), matches[rival].item()


def latent_match(one: Tensor, other: Tensor) -> float:
    """Mean absolute correlation of latents ``z @ one`` and ``z @ other``, z white, best pairing.

    Pairs are taken greedily: scipy's optimal matching is an optional package, and solutions that
    are the same have no ties.
    """
    correlation = (one.T @ other).abs().cpu().numpy().copy()
    total = 0.0
    for _ in range(len(correlation)):
        i, j = np.unravel_index(correlation.argmax(), correlation.shape)
        total += correlation[i, j]
        correlation[i], correlation[:, j] = -1, -1
    return total / len(correlation)
