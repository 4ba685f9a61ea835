"""Assembles a basis of latents from directions, each judged by its evidence along the tree.

A new latent's weights at the leaves are ``v @ w`` with v a row of the basis's inverse, so they can
be judged without knowing the other latents: the log evidence that the estimates ``v @ w_leaf``,
with their standard errors, come from sparse changes on the tree. For a whole basis V the evidence
of the leaves' estimates is the sum over its rows plus ``E Q log|det V|``, the Jacobian, up to the
correlation of the errors. So the best basis out of a pool of rows is found by exchanging rows, at
the cost of a small matrix product a move.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.rotation import RotationProblem
from pyro_tbr.tree.sum_product import inside_pass

_RATES = (0.05, 0.15, 0.4)  # inclusion rates tried for a direction; its best counts
_NUM_COMPONENTS = 8  # a ranking, not a posterior


class Basis(NamedTuple):
    """A basis and its evidence.

    Attributes:
        rows: Rows v of the inverse, unit length, (K, K).
        evidence: Sum of the rows' log evidence plus the Jacobian's; comparable within a problem.
    """

    rows: Tensor
    evidence: float

    @property
    def basis(self) -> Tensor:
        """New latents are ``z @ basis``; unit columns, (K, K)."""
        inverse = torch.linalg.inv(self.rows)
        return inverse / inverse.norm(dim=0)


def rows_of(basis: Tensor) -> Tensor:
    """Rows of the inverses, unit length, (S, K, K)."""
    rows = torch.linalg.inv(basis.double())
    return rows / rows.norm(dim=-1, keepdim=True)


def leaf_estimates(problem: RotationProblem) -> tuple[Tensor, Tensor]:
    """Estimates (E, Q, K) and covariances (E, Q, K, K) of the latents' weights at each node.

    The intercept and the other latents are integrated out, under a prior ten typical differences
    wide, so nodes with fewer rows than weights have wide but finite estimates.
    """
    k, width = problem.latent_dim, problem.precision.shape[-1]
    ridge = 1e-2 * torch.eye(width, dtype=torch.float64, device=problem.precision.device)
    cov = torch.linalg.inv(problem.precision + ridge)
    linear = (problem.precision @ problem.target.unsqueeze(-1)).squeeze(-1)
    mean = (cov @ linear.unsqueeze(-1)).squeeze(-1)[..., :k]
    return mean, cov[..., :k, :k].expand(*mean.shape, k)


def evidence(
    problem: RotationProblem, rows: Tensor, mean: Tensor, cov: Tensor, rates: tuple = _RATES
) -> Tensor:
    """Log evidence of the estimates along each direction, summed over outcomes, (P,).

    Args:
        problem: The tree and its nodes with rows.
        rows: Directions v, (P, K).
        mean: See :func:`leaf_estimates`.
        cov: Likewise.
        rates: Inclusion rates to try.
    """
    value = torch.einsum("pk,eqk->pqe", rows, mean)
    var = torch.einsum("pk,eqkl,pl->pqe", rows, cov, rows)
    num_nodes = problem.tree.num_nodes
    index = problem.nodes.expand_as(value)
    empty = value.new_zeros(*value.shape[:2], num_nodes)
    lam = empty.scatter(-1, index, 1 / var)
    eta = empty.scatter(-1, index, value / var)
    spread = (value - value.mean(-1, keepdim=True)).square().mean(-1).sqrt().clamp(min=1e-6)
    at_peak = -0.5 * (value.square() / var + torch.log(2 * math.pi * var)).sum(-1)
    tried = [
        inside_pass(
            problem.tree,
            eta,
            lam,
            inclusion_prob=rate,
            slab_scale=spread.detach(),
            root_scale=3 * spread.detach() + value.detach().abs().mean(-1),
            num_components=_NUM_COMPONENTS,
        ).log_evidence
        for rate in rates
    ]
    return (torch.stack(tried).amax(0) + at_peak).sum(-1)


def best_basis(
    pool: Tensor, scores: Tensor, start: Tensor, start_scores: Tensor, num_estimates: int
) -> Basis:
    """Exchanges rows of a basis for rows of a pool while the evidence grows.

    Args:
        pool: Directions, (P, K), unit length.
        scores: Their log evidence, (P,).
        start: Rows to start from, (K, K).
        start_scores: Their log evidence, (K,).
        num_estimates: E Q, the power of the Jacobian.
    """
    rows, held = start.clone(), start_scores.clone()
    for _ in range(20 * len(rows)):  # each exchange gains, so this is a guard, not a limit
        cofactor = (pool @ torch.linalg.inv(rows)).abs().clamp(min=1e-12).log()
        gain = scores[:, None] - held[None, :] + num_estimates * cofactor
        best = int(gain.argmax())
        if gain.flatten()[best] < 1e-6:
            break
        new, old = divmod(best, len(rows))
        rows[old], held[old] = pool[new], scores[new]
    total = held.sum() + num_estimates * torch.linalg.slogdet(rows)[1]
    return Basis(rows, total.item())
