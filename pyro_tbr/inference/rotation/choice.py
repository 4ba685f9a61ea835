"""Finds the latents: runs the steps of the rotation to sparsity and chooses among the results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.basis import (
    ascend,
    best_basis,
    evidence,
    leaf_estimates,
    null_directions,
    rows_of,
)
from pyro_tbr.inference.rotation.search import (
    Candidates,
    RotationProblem,
    refine,
    search,
    start_from,
)
from pyro_tbr.posterior.identification import latent_match

_NUM_REFINED = 24
_NUM_ASSEMBLED = 6
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
    """Searches for the basis in which the changes are sparse; see the module ``rotation``."""
    found = search(problem, restarts, steps, generator)
    best = refine(problem, found.take(torch.arange(min(_NUM_REFINED, restarts))), steps // 3)
    mean, cov = leaf_estimates(problem)
    # Assembled bases are fitted like any other, but the penalised fit can also lose what the
    # evidence has found, so they stand for themselves too, and so do those they were made from.
    rows = _assemble(problem, [best, found], mean, cov, generator)
    rows = torch.cat([rows, ascend(problem, rows, mean, cov)])
    inverse = torch.linalg.inv(rows)
    assembled = start_from(problem, inverse / inverse.norm(dim=1, keepdim=True))
    again = refine(problem, assembled, steps // 3)
    return _choose(problem, [again._replace(basis=assembled.basis), again, best], mean, cov)


def _assemble(
    problem: RotationProblem,
    candidates: list[Candidates],
    mean: Tensor,
    cov: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Rows of bases put together from all candidates' rows and from contrasts, (S, K, K)."""
    k = problem.latent_dim
    num_directions = max(200, _NUM_DIRECTIONS // mean.shape[1])
    pool = torch.cat(
        [rows_of(c.basis).reshape(-1, k) for c in candidates]
        + [null_directions(problem, mean, num_directions, generator)]
    )
    scores = evidence(problem, pool, mean, cov)
    num_estimates = mean.shape[0] * mean.shape[1]
    starts = range(0, len(candidates[0].basis) * k, k)
    bases = [
        best_basis(pool, scores, pool[s : s + k], scores[s : s + k], num_estimates) for s in starts
    ]
    bases.sort(key=lambda basis: -basis.evidence)
    kept = bases[:1]
    for basis in bases[1:]:
        if len(kept) == _NUM_ASSEMBLED:
            break
        if all(latent_match(basis.basis, other.basis) < SAME_BASIS for other in kept):
            kept.append(basis)
    return torch.stack([basis.rows for basis in kept])


def _choose(
    problem: RotationProblem, candidates: list[Candidates], mean: Tensor, cov: Tensor
) -> RotationResult:
    """The candidate with the largest evidence along the tree."""
    everything = Candidates(*(torch.cat(parts) for parts in zip(*candidates, strict=True)))
    rows = rows_of(everything.basis)
    scores = evidence(problem, rows.reshape(-1, problem.latent_dim), mean, cov)
    total = scores.reshape(len(rows), -1).sum(-1)
    total = total + mean.shape[0] * mean.shape[1] * torch.linalg.slogdet(rows)[1]
    total = torch.where(torch.isfinite(everything.loss), total, -torch.inf)
    scaled = everything._replace(
        offset=everything.offset * problem.offset_scale,
        root=everything.root * problem.unit,
        deltas=everything.deltas * problem.unit,
    )
    return ranked(scaled, total)


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
