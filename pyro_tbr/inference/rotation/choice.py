"""Finds the latents: runs the steps of the rotation to sparsity and chooses among the results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.basis import (
    leaf_estimates,
    null_directions,
    rows_of,
)
from pyro_tbr.inference.rotation.climb import climb, promising, telling_curvature
from pyro_tbr.inference.rotation.search import (
    BLUNT_CURVATURE,
    Candidates,
    RotationProblem,
    capped,
    search,
    sparse_weights,
)

_NUM_CLIMBING = 24  # of the search's bases climb their evidence
_SHARE_FOR_WEIGHTS = 3  # of the search's steps go to the weights of the bases found
_NUM_DIRECTIONS = 1500  # directions proposed by contrasts, fewer where outcomes are many
SAME_BASIS = 0.98  # mean correlation of latents above which two bases count as one


class RotationResult(NamedTuple):
    """The chosen basis and what else was found.

    Attributes:
        basis: New latents are ``z @ basis - offset``, (K, K); the latents before are white.
        offset: (K,).
        root: Root weights of the new latents, (W, Q), in the model's units.
        deltas: (A, W, Q), likewise.
        evidence: Log evidence of the chosen basis, up to a constant of the problem.
        others: Other candidates found, best first, T of them, in the same units.
        other_evidence: Theirs, (T,).
    """

    basis: Tensor
    offset: Tensor
    root: Tensor
    deltas: Tensor
    evidence: float
    others: Candidates
    other_evidence: Tensor

    def everything(self) -> tuple[Candidates, Tensor]:
        """All candidates, best first, and their evidence."""
        best = Candidates(self.basis, self.offset, self.root, self.deltas, self.root.new_zeros(()))
        parts = zip(best, self.others, strict=True)
        evidence = torch.cat([self.other_evidence.new_tensor([self.evidence]), self.other_evidence])
        return Candidates(*(torch.cat([one[None], rest]) for one, rest in parts)), evidence


def rotate_to_sparsity(
    problem: RotationProblem, restarts: int, steps: int, generator: torch.Generator
) -> RotationResult:
    """The basis in which changes are sparse, and its rivals.

    A search proposes bases on a blunted problem, more are put together from their rows and from
    contrasts between nodes, and all climb their evidence to the rows' own likelihood. The best of
    those wins.

    Args:
        problem: Statistics of the white latents.
        restarts: Random starts of the search.
        steps: Of the search.
        generator: Randomness.
    """
    blunt = capped(problem, BLUNT_CURVATURE)
    found = search(blunt, restarts, steps, generator)
    rows = rows_of(found.take(torch.isfinite(found.loss)).basis)
    directions = _directions(problem, rows.flatten(0, 1), generator)
    arrived = climb(problem, rows[:_NUM_CLIMBING], directions)

    inverse = torch.linalg.inv(arrived.rows)
    basis = inverse / inverse.norm(dim=1, keepdim=True)
    weights = sparse_weights(blunt, basis, steps // _SHARE_FOR_WEIGHTS)
    everything = weights.take(arrived.place)
    scaled = everything._replace(
        offset=everything.offset * problem.offset_scale,
        root=everything.root * problem.unit,
        deltas=everything.deltas * problem.unit,
    )
    return ranked(scaled, arrived.evidence[arrived.place])


def _directions(problem: RotationProblem, found: Tensor, generator: torch.Generator) -> Tensor:
    """Rows that bases may take up: the search's (R, K) and the most promising ones, (P, K)."""
    judged = capped(problem, telling_curvature(problem))
    mean, _ = leaf_estimates(judged)
    num = max(200, _NUM_DIRECTIONS // mean.shape[1])
    contrasts = null_directions(problem, mean, num, generator)
    return torch.cat([found, promising(judged, torch.cat([found, contrasts]))])


def ranked(candidates: Candidates, evidence: Tensor) -> RotationResult:
    """The candidate of the largest evidence (S,), and the others in order."""
    order = evidence.argsort(descending=True)
    first, rest = candidates.take(order[0]), order[1:]
    return RotationResult(
        first.basis,
        first.offset,
        first.root,
        first.deltas,
        evidence[order[0]].item(),
        candidates.take(rest),
        evidence[rest],
    )
