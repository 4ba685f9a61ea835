"""Finds the latents: the basis of the encoder's output in which the arcs' changes are sparse.

1. ``search``: a penalised fit proposes bases, on a likelihood that is blunted so that starts move.
2. ``basis``: contrasts between nodes propose single rows of bases; all rows are judged by their
   evidence along the tree, and bases put together from them.
3. ``climb`` and ``polish``: all these climb their evidence, from the blunt likelihood to that of
   the rows, so that the best and its rivals are compared at their tops.
4. ``reference``: each basis's latents are counted from where the intercept changes most sparsely.
5. ``finals``: where several are close, their ELBO decides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.basis import (
    leaf_estimates,
    node_estimates,
    null_directions,
    rows_of,
)
from pyro_tbr.inference.rotation.climb import climb, promising, telling_curvature
from pyro_tbr.inference.rotation.reference import reference_point
from pyro_tbr.inference.rotation.search import (
    BLUNT_CURVATURE,
    Candidates,
    RotationProblem,
    capped,
    expand_basis,
    search,
    sparse_weights,
)

_NUM_CLIMBING = 24  # of the search's bases climb their evidence
_SHARE_FOR_WEIGHTS = 3  # one in so many steps goes to the weights of the bases found
_NUM_DIRECTIONS = 1500  # directions proposed by contrasts, fewer where outcomes are many
CLOSE = 20.0  # log evidence behind the best up to which a candidate may still be chosen
MOST_CLOSE = 6  # candidates of which that is taken into account
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
        steps: Of Adam in all: of the search, and of the weights of the bases found.
        generator: Randomness.
    """
    blunt = capped(problem, BLUNT_CURVATURE)
    for_weights = max(1, steps // _SHARE_FOR_WEIGHTS)
    found = search(blunt, restarts, max(1, steps - for_weights), generator)
    rows = rows_of(found.take(torch.isfinite(found.loss)).basis)
    directions = _directions(problem, rows.flatten(0, 1), generator)
    arrived = climb(problem, rows[:_NUM_CLIMBING], directions)

    inverse = torch.linalg.inv(arrived.rows)
    basis = inverse / inverse.norm(dim=1, keepdim=True)
    weights = sparse_weights(blunt, basis, for_weights)
    close = torch.nonzero(arrived.evidence > arrived.evidence.max() - CLOSE)[:MOST_CLOSE, 0]
    offset = weights.offset * problem.offset_scale
    if problem.root.shape[0] > problem.latent_dim:  # an intercept takes up the offset
        offset[close] = torch.stack([_offset(problem, one) for one in basis[close]])
    # Each start counts where it has arrived; bases that none of them reached count once.
    every = torch.arange(len(basis), device=basis.device)
    place = torch.cat([arrived.place, every[~torch.isin(every, arrived.place)]])
    everything = weights._replace(offset=offset).take(place)
    scaled = everything._replace(
        root=everything.root * problem.unit,
        deltas=everything.deltas * problem.unit,
    )
    return ranked(scaled, arrived.evidence[place])


def _directions(problem: RotationProblem, found: Tensor, generator: torch.Generator) -> Tensor:
    """Rows that bases may take up: the search's (R, K) and the most promising ones, (P, K)."""
    judged = capped(problem, telling_curvature(problem))
    mean, _ = leaf_estimates(judged)
    num = max(200, _NUM_DIRECTIONS // mean.shape[1])
    contrasts = null_directions(problem, mean, num, generator)
    return torch.cat([found, promising(judged, torch.cat([found, contrasts]))])


def _offset(problem: RotationProblem, basis: Tensor) -> Tensor:
    """Offset (K,) of the latents ``z @ basis`` at which the intercept changes most sparsely."""
    mean, cov = node_estimates(problem)
    zero = basis.new_zeros(problem.latent_dim)
    turn = torch.linalg.inv(expand_basis(basis, zero, mean.shape[-1]))
    turned = (turn @ mean.unsqueeze(-1)).squeeze(-1), turn @ cov @ turn.mT
    return reference_point(*turned, problem.nodes, problem.tree, problem.offset_scale)


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
