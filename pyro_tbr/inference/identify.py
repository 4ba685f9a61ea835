"""Finds the latents: runs the steps of the rotation to sparsity and chooses among the results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.basis import Basis, best_basis, evidence, leaf_estimates, rows_of
from pyro_tbr.inference.rotation import (
    Candidates,
    RotationProblem,
    refine,
    search,
    start_from,
)

_NUM_REFINED = 24
_NUM_ASSEMBLED = 8


class RotationResult(NamedTuple):
    """The chosen basis and what else was found.

    Attributes:
        basis: New latents are ``z @ basis - offset``, (K, K); the latents before are white.
        offset: (K,).
        root: Root weights of the new latents, (W, Q), in the model's units.
        deltas: (A, W, Q), likewise.
        evidence: Log evidence of the chosen basis, up to a constant of the problem.
        alternatives: Other bases found, best first, (T, K, K).
        alternative_evidence: Theirs, (T,).
    """

    basis: Tensor
    offset: Tensor
    root: Tensor
    deltas: Tensor
    evidence: float
    alternatives: Tensor
    alternative_evidence: Tensor


def rotate_to_sparsity(
    problem: RotationProblem, restarts: int, steps: int, generator: torch.Generator
) -> RotationResult:
    """Searches for the basis in which the changes are sparse; see the module ``rotation``."""
    found = search(problem, restarts, steps, generator)
    best = refine(problem, found.take(torch.arange(min(_NUM_REFINED, restarts))), steps // 3)
    bases = _assemble(problem, found, best)
    # The assembled bases are fitted like any other, but the penalised fit can also lose what the
    # evidence has found, so they stand for themselves too, and so do those they were made from.
    assembled = start_from(problem, torch.stack([b.basis for b in bases]))
    again = refine(problem, assembled, steps // 3)
    return _choose(problem, [again, again._replace(basis=assembled.basis), best])


def _assemble(problem: RotationProblem, found: Candidates, best: Candidates) -> list[Basis]:
    """Bases put together from the rows of all candidates, best first."""
    k = problem.latent_dim
    mean, cov = leaf_estimates(problem)
    pool = torch.cat([rows_of(best.basis), rows_of(found.basis)]).reshape(-1, k)
    scores = evidence(problem, pool, mean, cov)
    num_estimates = mean.shape[0] * mean.shape[1]
    bases = [
        best_basis(pool, scores, pool[s : s + k], scores[s : s + k], num_estimates)
        for s in range(0, len(best.basis) * k, k)
    ]
    bases.sort(key=lambda b: -b.evidence)
    return bases[:_NUM_ASSEMBLED]


def _choose(problem: RotationProblem, candidates: list[Candidates]) -> RotationResult:
    """The candidate with the largest evidence along the tree."""
    everything = Candidates(*(torch.cat(parts) for parts in zip(*candidates, strict=True)))
    mean, cov = leaf_estimates(problem)
    rows = rows_of(everything.basis)
    scores = evidence(problem, rows.reshape(-1, problem.latent_dim), mean, cov)
    total = scores.reshape(len(rows), -1).sum(-1)
    total = total + mean.shape[0] * mean.shape[1] * torch.linalg.slogdet(rows)[1]
    total = torch.where(torch.isfinite(everything.loss), total, -torch.inf)
    order = total.argsort(descending=True)
    first = order[0]
    return RotationResult(
        everything.basis[first],
        everything.offset[first] * problem.offset_scale,
        everything.root[first] * problem.unit,
        everything.deltas[first] * problem.unit,
        total[first].item(),
        everything.basis[order[1:]],
        total[order[1:]],
    )
