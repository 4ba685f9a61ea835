"""Are the latents determined by these environments and outcomes? A report that says so or not.

Latents that nothing hangs on are named and left out: any mixture of them is as good. Each of the
others has a verdict of its own, so one that is not sure does not condemn those that are. Evidence
is a sum over outcomes as if their residuals were independent; where they correlate it counts for
what the outcomes are worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.posterior.rivals import Rivals, rivals_of
from pyro_tbr.posterior.view import PosteriorView
from pyro_tbr.progress import querying
from pyro_tbr.tree.readers.naming import listed

LEAST_GAP = 1.5  # log evidence by which the solution has to be ahead of the best other one
LEAST_SEPARATION = 0.9  # probability that some arc changes one latent and not the other
LEAST_EVIDENCE = 10.0  # log evidence for a latent's weights over all of them zero
# Below this many environments times outcomes, beyond two a latent, the sparsest solution is often
# not the true one (8 environments, one outcome, 2 or 3 latents: in half of the simulated fits).
SPARE_ENVIRONMENTS = 5


@dataclass(frozen=True)
class Identification:
    """What ``Posterior.identification`` gives; ``str`` of it reads well.

    Attributes:
        known: Latents are the features, or otherwise not learnt.
        num_environments: Nodes with rows.
        num_outcomes: Q.
        worth: How many independent outcomes the Q are worth, as their residuals correlate.
        rank: Latents that exist and outcomes need; the others are zero everywhere.
        latent_dim: K.
        condition: Condition number of the environments' weights, latents scaled alike: large where
            some mixture of latents has nearly the same weights everywhere. Of latents in use.
        separation: Probability that some arc with data below changes the row's latent and not the
            column's, for some outcome, (K, K); NaN on the diagonal. Without gates all NaN.
        agreement: Share of the search's other solutions whose latents are those of the best.
        gap: Log evidence by which the best solution is ahead of the best one with other latents;
            infinite where the search found none.
        other_match: Mean correlation of that solution's latents with ours; NaN where there is none.
        latents: A row a latent: ``used``, ``evidence`` (log evidence for its weights over all of
            them zero), ``gap`` (to the best solution without it), ``agreement`` (share of the
            search's other solutions that have it), ``expected`` (correlation with its partner in a
            solution drawn by evidence), ``separation`` (least, from latents in use),
            ``determined``.
        unused: Latents that are not used.
        reasons: Why latents in use are not determined; empty if they are.
    """

    known: bool
    num_environments: int
    num_outcomes: int
    worth: float
    rank: int
    latent_dim: int
    condition: float
    separation: pd.DataFrame
    agreement: float
    gap: float
    other_match: float
    latents: pd.DataFrame
    unused: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def determined(self) -> bool:
        """Nothing speaks against the latents in use being determined."""
        return not self.reasons

    @property
    def verdict(self) -> str:
        """Whether the latents are determined and how to read them, in a sentence or two."""
        sure = list(self.latents.index[self.latents["determined"]])
        if self.known:
            text = "Latents are known" if self.determined else "Latents are known, but"
            return text + ("." if self.determined else f" {self.reasons[0]}.")
        unused = f" Not used: {', '.join(self.unused)}." if self.unused else ""
        if self.determined:
            return f"Latents determined: {', '.join(sure) or 'none is used'}.{unused}"
        but = f"; {', '.join(sure)} determined all the same" if sure else ""
        return (
            f"Latents NOT determined ({self.reasons[0]}){but}.{unused} Read predictions and "
            "effects() of features, not PIPs of slopes."
        )

    def __str__(self) -> str:
        where = f"{self.num_environments} environments, {self.num_outcomes} outcome(s)"
        head = "Latents determined" if self.determined else "Latents NOT determined"
        lines = [f"{head}: {self.latent_dim} latents from {where}."]
        lines += [f"  - {reason}" for reason in self.reasons]
        table = self.latents
        sure = list(table.index[table["determined"]])
        if not self.determined and sure:
            lines.append(f"  Determined all the same: {', '.join(sure)}.")
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
            nothing = "" if self.latents["used"].any() else " Outcomes hardly depend on any latent."
            lines.append(f"  Not used: {', '.join(self.unused)}.{nothing}")
        if not self.determined:
            lines.append(
                "  Read the inclusion probabilities as those of one of several solutions. What "
                "helps: more environments, more outcomes that share the latents, fewer latents."
            )
        return "\n".join(lines)


def identify(view: PosteriorView) -> Identification:
    """See ``Posterior.identification``; kept, as a summary asks for it too."""
    with querying("identification"):
        found: Identification = view.tables_kept.get("identification", lambda: _identified(view))
    # Tables can be written to.
    return replace(found, separation=found.separation.copy(), latents=found.latents.copy())


@torch.no_grad()
def _identified(view: PosteriorView) -> Identification:
    report, model = view.report, view.model
    names, nodes = view.latent_names[: model.latent_dim], view.stats.nodes
    num_outcomes = len(view.outcome_names)
    worth = num_outcomes if report.check is None else report.check.worth
    evidence, used = _in_use(view)
    separation = _separation(view, names)
    rivals = rivals_of(report, used, share=worth / num_outcomes)
    apart = separation.to_numpy()[np.ix_(used, used)]
    weakest = np.full(len(names), np.nan)
    if used.sum() > 1:
        weakest[used] = np.nanmin(np.where(np.isnan(apart), np.inf, apart), axis=1)
        weakest[np.isinf(weakest)] = np.nan
    learnt = model.encoder.trainable and used.sum() > 1
    sure = (rivals.gaps >= LEAST_GAP) & ~rivals.rare()
    sure &= ~(weakest < LEAST_SEPARATION)
    table = pd.DataFrame(
        {
            "used": used, "evidence": evidence, "gap": rivals.gaps, "agreement": rivals.shares,
            "expected": rivals.expected, "separation": weakest,
            "determined": used & (sure | (not learnt)),
        },
        index=pd.Index(names, name="latent"),
    )  # fmt: skip
    reasons = _too_little(view, len(nodes))
    if reasons:
        table["determined"] = False
    if learnt:
        if len(nodes) * worth < 2 * used.sum() + SPARE_ENVIRONMENTS:
            reasons.append(
                f"{len(nodes)} environments times {worth:.3g} outcomes are few for "
                f"{used.sum()} latents"
            )
            table["determined"] = False
        reasons += _doubts(table, rivals, apart)
    weights = view.guide.node_moments().mean[nodes].double()
    weights = weights.permute(0, 2, 1)[..., : len(names)][..., torch.from_numpy(used)]
    return Identification(
        known=not model.encoder.trainable,
        num_environments=len(nodes),
        num_outcomes=num_outcomes,
        worth=worth,
        rank=report.rank,
        latent_dim=model.latent_dim,
        condition=_condition(weights.flatten(0, 1)),
        separation=separation,
        agreement=rivals.agreement,
        gap=rivals.gap,
        other_match=rivals.match,
        latents=table,
        unused=tuple(name for name, use in zip(names, used, strict=True) if not use),
        reasons=tuple(reasons),
    )


def _too_little(view: PosteriorView, num_environments: int) -> list[str]:
    """Why nothing could determine these latents, whatever the rows say."""
    reasons, model = [], view.model
    if num_environments == 1:
        reasons.append(
            "all rows are of one environment, so nothing tells its changes from the root's weights"
        )
    num_features = view.schema.num_features
    if model.encoder.linear_map() is not None and model.latent_dim > num_features:
        reasons.append(
            f"latent_dim={model.latent_dim} is above the number of features, {num_features}: more "
            "linear latents than features do not exist"
        )
    return reasons


def _in_use(view: PosteriorView) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence for the weights of each latent, and whether it is in use, (K,) each.

    Strong ones first: of the evidence for a weaker one only counts what those do not take up.
    """
    latent_dim, latent_of = view.model.latent_dim, view.model.latent_of
    each = view.guide.weight_evidence(view.stats).cpu().double().numpy()
    evidence = each[:latent_dim].copy()
    if latent_of is not None:  # of all functions of a latent
        evidence = np.bincount(latent_of, each, latent_dim)[:latent_dim]
    used = view.weights_that_exist[:latent_dim]
    if not view.model.encoder.trainable:
        return evidence, used
    used = used & (evidence > LEAST_EVIDENCE)
    if latent_of is not None:  # what other latents take up is known of slopes alone
        return evidence, used
    stronger: list[int] = []
    for latent in np.argsort(-evidence, kind="stable"):
        if used[latent] and stronger:
            evidence[latent] = view.guide.evidence_beyond(view.stats, int(latent), stronger)
            used[latent] = evidence[latent] > LEAST_EVIDENCE
        if used[latent]:
            stronger.append(int(latent))
    return evidence, used


def _doubts(table: pd.DataFrame, rivals: Rivals, apart: np.ndarray) -> list[str]:
    """What speaks against latents in use, by name."""
    own = table[table["used"]]
    found = []
    close = own[own["gap"] < LEAST_GAP]
    if len(close):
        found.append(
            f"other latents in place of {listed(list(close.index), 6)} explain the data nearly as "
            f"well: log evidence {close['gap'].min():.1f} behind"
        )
    rare = own[rivals.rare()[table["used"]]]
    if len(rare):
        found.append(
            f"only {rare['agreement'].min():.0%} of the search's solutions have "
            f"{listed(list(rare.index), 6)}"
        )
    weak = [
        f"{own.index[i]} from {own.index[j]} ({apart[i, j]:.2f})"
        for i, j in zip(*np.nonzero(apart < LEAST_SEPARATION), strict=True)
    ]
    if weak:
        shown = ", ".join(weak[:4]) + (f" and {len(weak) - 4} more" if len(weak) > 4 else "")
        found.append(f"no arc is sure to change one latent and not another: {shown}")
    return found


def _condition(weights: Tensor) -> float:
    """Condition number of (E Q, K) weights, columns scaled to unit length."""
    length = weights.norm(dim=0)
    if not 0 < weights.shape[1] <= len(weights) or not bool((length > 0).all()):
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
