r"""Sets of arcs that hold a change, though it may not be known which arc of the set it is on.

Arcs in series and the arcs under a root share the evidence for one change, so its inclusion
probability is split among them. A *credible set* of coverage c is a set of arcs, for one latent
and outcome, some arc of which changed with posterior probability c or more: where the posterior is
right, so is this statement, whatever rule picks the sets from the data. The rule here looks for
sets that stand for one change each:

- *Purity*: for every arc of the set, the probability that none of the others changed, given that
  it did; the smallest of these. Arcs that stand for one change exclude one another, though not
  wholly: two changes in a row are never ruled out, so a chain of n arcs under a prior rate r has
  about :math:`(1 - r)^{n - 1}`. Arcs that change independently and reach coverage c together have
  at most :math:`\sqrt{1 - c}`, and a nearly sure arc filled up with uninformative ones far less:
  so the least purity is a little more than that, 0.25 at 0.95, unless said otherwise.
- *Search*, on joint draws of the gates: from the arc with the largest PIP, add the arc that is most
  correlated with "nothing in the set changed" among those that keep the set pure, until coverage is
  reached; then take out arcs that are not needed. Arcs no more correlated than chance (two standard
  errors) are never added, and the likeliest arc of a set has a PIP of 0.04 at least. Where coverage
  is not reached the next arc is tried. Arcs of a set are taken out before the search goes on, so
  sets do not overlap and several changes of one latent give several sets.

Mean field guides draw arcs independently, so their sets are single arcs.

Source: credible sets and purity as in susieR (Wang, Sarkar, Carbonetto & Stephens, JRSS B 82 (2020)
1273), where purity is the least correlation of a set's variables, which arcs do not have; sets of
shifts from joint draws as in BAMMtools (Rabosky et al., Methods Ecol. Evol. 5 (2014) 701).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_tbr.errors import DataError
from pyro_tbr.posterior.view import PosteriorView, check_number, is_real, require_gates
from pyro_tbr.progress import beat, stage, step

_SEED = 577_215
_LEAST_PIP = 0.002  # arcs below are in no set
_LEAST_START = 0.04  # of the likeliest arc of a set; 25 arcs in series may share a change
_NOISE = 2.0  # correlations below so many standard errors are no sign of an alternative
_MARGIN = 0.03  # of purity, for the noise of draws


class CredibleSet(NamedTuple):
    """One set.

    Attributes:
        arcs: Positions of the arcs, likeliest first.
        coverage: Probability that some arc of the set changed.
        purity: Least probability that an arc of the set that changed is the only one of it.
    """

    arcs: tuple[int, ...]
    coverage: float
    purity: float


@torch.no_grad()
def credible_set_table(
    view: PosteriorView, coverage: float, min_purity: float | None, num_draws: int
) -> pd.DataFrame:
    """See ``Posterior.credible_sets``."""
    require_gates(view, "credible_sets()")
    if not (is_real(coverage) and 0 < coverage < 1):
        raise DataError(f"coverage={coverage!r} must be a number above 0 and below 1, such as 0.95")
    if min_purity is not None and not (is_real(min_purity) and 0 <= min_purity <= 1):
        raise DataError(f"min_purity={min_purity!r} must be from 0 to 1, such as 0.25, or None")
    check_number(num_draws, "num_draws")
    informed = torch.from_numpy(view.informed_changes)[..., None]
    pips = torch.where(informed, view.guide.delta_moments().inclusion.cpu(), 0.0).flatten(1)
    arcs = (pips.amax(1) > _LEAST_PIP).nonzero()[:, 0]
    # Of the other trees all arcs together do not reach the coverage.
    trees = (pips[arcs].sum(0) > coverage - _MARGIN).nonzero()[:, 0]
    gates: dict[int, NDArray[np.bool_]] = {}
    if len(trees):
        generator = torch.Generator().manual_seed(_SEED)
        blocks = view.guide.sample_some("gates", arcs, trees, num_draws, generator)
        parts = []
        with stage("draws", total=num_draws, unit="draw"):
            for block in blocks:
                parts.append(block.cpu() > 0.5)
                step(len(block), unit="draw")
        drawn = torch.cat(parts).numpy()
        gates = {int(tree): drawn[..., place] for place, tree in enumerate(trees)}
    labels = [view.tree.arcs[arc] for arc in arcs.tolist()]
    rows = []
    for k in view.gate_places:
        latent = view.latent_names[k]
        for q, outcome in enumerate(view.outcome_names):
            tree = k * len(view.outcome_names) + q
            found = []
            if tree in gates:
                found = find_credible_sets(gates[tree], coverage, min_purity)
                beat()
            for number, one in enumerate(found, start=1):
                named = tuple(labels[arc] for arc in one.arcs)
                rows.append((latent, outcome, number, named, one.coverage, one.purity))
    table = pd.DataFrame(rows, columns=["latent", "outcome", "set", "arcs", "coverage", "purity"])
    return table.astype({"set": np.int64, "coverage": np.float64, "purity": np.float64})


def find_credible_sets(
    gates: NDArray[np.bool_], coverage: float = 0.95, min_purity: float | None = None
) -> list[CredibleSet]:
    """Disjoint sets of arcs that each hold a change; see the module's docstring.

    Args:
        gates: Joint draws, (S, A).
        coverage: Least probability that some arc of a set changed.
        min_purity: Least purity; ``None``: what independent arcs do not reach.

    Returns:
        Sets in the order they were found: by the largest PIP in them.

    Example:
        >>> left = np.arange(100) < 60
        >>> find_credible_sets(np.stack([~left, left, np.arange(100) < 50], axis=1))
        [CredibleSet(arcs=(1, 0), coverage=1.0, purity=1.0)]
    """
    if min_purity is None:
        min_purity = min(math.sqrt(1 - coverage) + _MARGIN, 0.9)
    num_draws, number = len(gates), gates.sum(0, dtype=np.int64)
    # Likeliest first: the first arc of a set comes before the others.
    order = np.argsort(-number, kind="stable")
    order = order[number[order] > _LEAST_PIP * num_draws]
    by_arc = np.ascontiguousarray(gates[:, order].T)  # (A', S)
    together = by_arc.astype(np.float32) @ by_arc.astype(np.float32).T  # counts, which are exact
    pips = number[order] / max(1, num_draws)
    free = np.ones(len(order), dtype=bool)
    left = by_arc.sum(0)  # changes of arcs that are in no set yet, (S,)
    found = []
    for start in np.flatnonzero(pips >= _LEAST_START):
        if not free[start]:
            continue
        if (left > 0).mean() < coverage:
            break
        members = _grow(by_arc, together, pips, int(start), free, coverage, min_purity)
        if members:
            members = _pruned(by_arc, members, coverage)
            chosen = by_arc[members]
            arcs = tuple(order[members].tolist())
            share, purity = float(chosen.any(0).mean()), float(_alone(chosen).min())
            found.append(CredibleSet(arcs, share, purity))
            free[members] = False
            left -= chosen.sum(0)
    return found


def _grow(
    gates: NDArray[np.bool_],
    together: NDArray[np.float32],
    pip: NDArray[np.float64],
    start: int,
    free: NDArray[np.bool_],
    coverage: float,
    min_purity: float,
) -> list[int]:
    """A set around an arc that reaches the coverage and stays pure; empty if there is none.

    Gates are (A, S); ``together`` in how many draws two arcs changed, (A, A); PIPs (A,); ``free``
    arcs (A,) are in no set yet.
    """
    num_draws = gates.shape[1]
    members, off = [start], ~gates[start]
    rest = free.copy()
    rest[start] = False
    silent_too = together.diagonal() - together[start]  # changes while the set is off, (A,)
    while 1 - off.mean() < coverage:
        # How often each arc changes while the set is off, against what chance would have.
        gain = silent_too / num_draws
        silent = off.mean()
        spread = np.sqrt(np.maximum(pip * (1 - pip) * silent * (1 - silent), 1e-300))
        correlation = (gain - pip * silent) / spread
        rest &= gain >= min_purity * pip
        rest &= correlation > _NOISE / math.sqrt(num_draws)
        candidates = np.flatnonzero(rest)
        for place in candidates[np.argsort(-correlation[candidates], kind="stable")]:
            if _alone(gates[[*members, place]]).min() >= min_purity:
                break
            rest[place] = False  # a larger set is no purer
        else:
            return []
        members.append(int(place))
        rest[place] = False
        new = off & gates[place]
        silent_too = silent_too - gates[:, new].sum(1, dtype=np.float32)
        off &= ~gates[place]
    return members


def _alone(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each arc (n, S) the share of its changes in which no other of them changed, (n,)."""
    single = chosen.sum(0) == 1
    return (chosen & single).sum(1) / np.maximum(chosen.sum(1), 1)


def _pruned(gates: NDArray[np.bool_], members: list[int], coverage: float) -> list[int]:
    """Without arcs the coverage does not need, the unlikeliest first; likeliest first."""
    kept = sorted(members, key=lambda arc: -gates[arc].mean())
    for arc in reversed(kept[1:]):
        without = [other for other in kept if other != arc]
        if gates[without].any(0).mean() >= coverage:
            kept = without
    return kept
