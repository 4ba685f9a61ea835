"""Takes many bases up their evidence together, from a blunt likelihood to the rows' own.

At each level the likelihood of every node is blunted to a curvature that is a few times that of the
level before (:func:`~pyro_tbr.inference.rotation.search.capped`). All bases are polished there,
their rows are pooled and put together anew, those that have met are counted as one, and those far
behind stay where they are. The rows' own likelihood is the last level. The level at which the best
basis has the largest evidence is the one that counts: estimates blunted that way are the same data
with larger standard errors, so the levels can be compared, and where the model is not quite true
(an encoder's errors, say) the largest evidence has errors that allow for that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.basis import (
    Estimates,
    best_basis,
    evidence,
    exchange_gains,
    leaf_estimates,
    spread_of,
)
from pyro_tbr.inference.rotation.polish import polish, sharpened
from pyro_tbr.inference.rotation.search import BLUNT_CURVATURE, RotationProblem, capped, curvature
from pyro_tbr.progress import stage, step

SHARPER = 8.0  # curvature of a level over that of the one before
_STEPS = 4  # at a level
_LAST_STEPS = 8  # at the last one
_FAR = 40.0  # log evidence behind the best at which a basis is left behind
_ALIKE = 0.99  # mean correlation of latents above which one of two bases sets out
_MET = 0.9995  # and above which two polished ones are one
_MOST_STARTS = 12  # bases whose rows are exchanged at a level
_MOST_MADE = 4  # bases that come of it
_OTHER_ROW = 0.99  # cosine below which a row is another one, not a better place for the same
_LITTLE_BEHIND = 8.0  # log evidence that polishing may make up for
_MOST_LOOKED_AT = 100  # exchanges of one row, best first
_RATE = 0.15  # inclusion rate at which many directions are compared
_SHARE_OF_CURVATURE = 1 / 64  # of the sharpest node's, at which directions are judged
_SAME_DIRECTION = 0.9998  # cosine above which one of two directions is enough
_MOST_DIRECTIONS = 100  # kept from level to level with one outcome, fewer with more
_LEAST_DIRECTIONS = 24


class Climbed(NamedTuple):
    """Polished bases.

    Attributes:
        rows: Rows of the inverses, unit length, (S, K, K).
        evidence: Their log evidence, (S,).
        place: Where among these each basis that set out has arrived, (C,).
    """

    rows: Tensor
    evidence: Tensor
    place: Tensor


def climb(problem: RotationProblem, rows: Tensor, directions: Tensor) -> Climbed:
    """Bases at the tops of their evidence.

    ``rows`` are of the bases that set out, the most likely ones first, (C, K, K), double precision;
    ``directions`` (P, K) further rows that they may take up.
    """
    place = torch.arange(len(rows), device=rows.device)
    now = _met(Climbed(rows, rows.new_zeros(len(rows)), place), _ALIKE)
    directions = _distinct(directions)
    arrived = []
    every = levels(problem)
    with stage("climb", total=len(every), unit="level"):
        for most in every:
            level, last = leaf_estimates(capped(problem, most)), most == torch.inf
            now = _level(level, now, directions, _LAST_STEPS if last else _STEPS)
            if most >= telling_curvature(problem) and not last:
                directions = promising(level, directions)
            arrived.append(now)
            step(unit="level")
    return max(arrived, key=lambda one: one.evidence.max().item())


def levels(problem: RotationProblem) -> list[float]:
    """Curvatures to which nodes are blunted in turn; the last is infinite: not at all."""
    top = curvature(problem).max().item()
    found, most = [], BLUNT_CURVATURE
    while most * SHARPER**0.5 < top:
        found.append(most)
        most *= SHARPER
    return [*found, torch.inf]


def _level(estimates: Estimates, now: Climbed, directions: Tensor, steps: int) -> Climbed:
    """One level; bases that are far behind are not touched and stay as far behind."""
    behind = now.evidence.max() - now.evidence
    near = behind < _FAR
    rows = now.rows.clone()
    rows[near] = polish(estimates, rows[near], steps)
    scores, total = _judged(estimates, rows[near])
    pool = torch.cat([rows[near].flatten(0, 1), directions])
    pool_scores = torch.cat([scores.flatten(), evidence(estimates, directions)])
    made, source = _made_anew(rows[near], scores, total, pool, pool_scores, estimates.number)
    found = (total.max() - behind).masked_scatter(near, total)
    place = now.place.clone()
    if len(made):
        made = polish(estimates, made, steps)
        reached = _judged(estimates, made)[1]
        found = torch.cat([found, reached])
        # What exchanging a basis's rows makes is where that one arrives, and a rival stays behind.
        for old, new in source.items():
            if reached[new] > total[old]:
                place[now.place == torch.nonzero(near)[old, 0]] = len(rows) + new
    return _met(Climbed(torch.cat([rows, made]), found, place))


def telling_curvature(problem: RotationProblem) -> float:
    """A curvature to which nodes are blunted that tells good directions from others.

    Directions that contrasts between nodes propose are about as exact as the rows are: the
    likelihood is blunted only as much as their errors ask for.
    """
    return max(BLUNT_CURVATURE, _SHARE_OF_CURVATURE * curvature(problem).max().item())


def promising(estimates: Estimates, directions: Tensor) -> Tensor:
    """The best directions for their spread, and next to each where estimates agree best."""
    num_nodes, num_outcomes = estimates.mean.shape[:2]
    scores = evidence(estimates, directions, rates=(_RATE,))
    spread = spread_of(estimates.along(directions)[0])  # evidence favours narrow ones
    for_spread = scores + num_nodes * spread.log().sum(-1)
    directions = _distinct(directions[for_spread.argsort(descending=True)])
    directions = directions[: max(_LEAST_DIRECTIONS, 2 * _MOST_DIRECTIONS // (1 + num_outcomes))]
    return _distinct(torch.cat([directions, sharpened(estimates, directions)]))


def _distinct(directions: Tensor) -> Tensor:
    """Directions (P, K) without those that are nearly the same as one before."""
    if not len(directions):
        return directions
    alike = (directions @ directions.mT).abs() > _SAME_DIRECTION
    first = alike.double().argmax(1)  # argmax: the first of equals
    return directions[first == torch.arange(len(directions), device=directions.device)]


def _judged(estimates: Estimates, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Log evidence of rows (S, K) and of bases (S,)."""
    scores = evidence(estimates, rows.flatten(0, 1)).reshape(-1, rows.shape[-1])
    return scores, scores.sum(-1) + estimates.jacobian(rows)


def _made_anew(
    rows: Tensor,
    scores: Tensor,
    total: Tensor,
    pool: Tensor,
    pool_scores: Tensor,
    num_estimates: int,
) -> tuple[Tensor, dict[int, int]]:
    """The best bases that exchanging rows of the best ones makes, (M, K, K), and from which.

    Rows of the pool are not at the tops of their evidence, so the best basis with one row exchanged
    for another is made too where it is a little behind.
    """
    order = total.argsort(descending=True)[:_MOST_STARTS].tolist()
    made: dict[float, Tensor] = {}  # by evidence: equal ones are one
    source: dict[int, float] = {}
    for i in order:
        basis, reached = best_basis(pool, pool_scores, rows[i], scores[i], num_estimates)
        if reached > total[i] + 1e-3:
            source[i] = round(reached, 6)
            made.setdefault(source[i], basis)
    kept = sorted(made, reverse=True)[:_MOST_MADE]
    best, held = rows[order[0]], scores[order[0]]
    tried = _one_exchanged(best, held, pool, pool_scores, num_estimates)
    places = {old: kept.index(new) for old, new in source.items() if new in kept}
    return torch.cat([*(made[key][None] for key in kept), tried]), places


def _one_exchanged(
    rows: Tensor, held: Tensor, pool: Tensor, scores: Tensor, num_estimates: int
) -> Tensor:
    """Bases with one row exchanged for a really different one, the most promising ones."""
    gain = exchange_gains(rows, held, pool, scores, num_estimates)
    gain = torch.where((pool @ rows.mT).abs() < _OTHER_ROW, gain, -torch.inf)
    made: list[Tensor] = []
    taken = pool[:0]
    for place in gain.flatten().argsort(descending=True)[:_MOST_LOOKED_AT].tolist():
        new, old = divmod(place, len(rows))
        if len(made) == _MOST_MADE or not gain[new, old] > -_LITTLE_BEHIND:
            break
        if not len(taken) or (taken @ pool[new]).abs().max() < _OTHER_ROW:
            taken = torch.cat([taken, pool[new][None]])
            basis = rows.clone()
            basis[old] = pool[new]
            made.append(basis)
    return torch.stack(made) if made else pool.new_zeros(0, *rows.shape)


def _met(now: Climbed, match: float = _MET) -> Climbed:
    """Bases that have met counted once: the one of largest evidence stands for all."""
    order = now.evidence.argsort(descending=True, stable=True)
    columns = torch.linalg.inv(now.rows[order])
    columns = columns / columns.norm(dim=-2, keepdim=True)
    matches = torch.einsum("ski,tkj->stij", columns, columns).abs().amax(-1).mean(-1)
    first = (matches > match).double().argmax(1)  # argmax: the first of equals
    # A basis goes with the best one that it has met, which may itself go with a better one.
    for _ in range(len(first).bit_length()):
        first = first[first]
    kept, place = first.unique(return_inverse=True)
    back = torch.empty_like(order)
    back[order] = place
    return Climbed(now.rows[order[kept]], now.evidence[order[kept]], back[now.place])
