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

from pyro_tbr.inference.rotation.search import OnTree, RotationProblem
from pyro_tbr.tree.messages import ArcLaw, inside_pass

RATES = (0.05, 0.15, 0.4)  # inclusion rates tried for a direction; its best counts
_NUM_COMPONENTS = 8  # a ranking, not a posterior
MOST_POTENTIALS = 1 << 19  # in one pass: of all directions at once a large tree takes many GB


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

    The intercept and the other latents are integrated out, see :func:`node_estimates`.
    """
    mean, cov = node_estimates(problem)
    k = problem.latent_dim
    return mean[..., :k], cov[..., :k, :k]


def node_estimates(problem: RotationProblem) -> tuple[Tensor, Tensor]:
    """Estimates (E, Q, W) and covariances (E, Q, W, W) of all weights at each node.

    They are under a prior ten typical differences wide, so nodes with fewer rows than weights have
    wide but finite estimates.
    """
    width = problem.precision.shape[-1]
    ridge = 1e-2 * torch.eye(width, dtype=torch.float64, device=problem.precision.device)
    cov = torch.linalg.inv(problem.precision + ridge)
    linear = (problem.precision @ problem.target.unsqueeze(-1)).squeeze(-1)
    mean = (cov @ linear.unsqueeze(-1)).squeeze(-1)
    return mean, cov.expand(*mean.shape, width)


def evidence(
    problem: OnTree, rows: Tensor, mean: Tensor, cov: Tensor, rates: tuple = RATES
) -> Tensor:
    """Log evidence of the estimates along each direction, summed over outcomes, (P,).

    Args:
        problem: The tree and its nodes with rows.
        rows: Directions v, (P, K).
        mean: See :func:`leaf_estimates`.
        cov: Likewise.
        rates: Inclusion rates to try.
    """
    if not len(rows):
        return rows.new_zeros(0)
    few = max(1, MOST_POTENTIALS // (problem.tree.num_nodes * mean.shape[1]))
    found = []
    for some in rows.split(few):
        value, var = along(some, mean, cov)
        spread = spread_of(value)
        tried = [log_evidence(problem, value, var, torch.tensor(rate), spread) for rate in rates]
        found.append(torch.stack(tried).amax(0).sum(-1))
    return torch.cat(found)


def along(rows: Tensor, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates along directions (*P, K) and their variances, each (*P, Q, E)."""
    value = torch.einsum("...k,eqk->...qe", rows, mean)
    var = torch.einsum("...k,eqkl,...l->...qe", rows, cov, rows)
    return value, var


def spread_of(value: Tensor) -> Tensor:
    """Standard deviation over the nodes, (*P, Q)."""
    return (value - value.mean(-1, keepdim=True)).square().mean(-1).sqrt().clamp(min=1e-6)


def log_evidence(
    problem: OnTree, value: Tensor, var: Tensor, rate: Tensor, slab_scale: Tensor
) -> Tensor:
    """Log density of estimates (*P, Q, E) under sparse changes, (*P, Q); differentiable."""
    index = problem.nodes.expand_as(value)
    empty = value.new_zeros(*value.shape[:-1], problem.tree.num_nodes)
    inside = inside_pass(
        problem.tree,
        empty.scatter(-1, index, value / var),
        empty.scatter(-1, index, 1 / var),
        ArcLaw.spike_slab(rate.to(value), slab_scale.unsqueeze(-1)),
        root_loc=0.0,
        root_scale=3 * slab_scale + value.detach().abs().mean(-1),
        num_components=_NUM_COMPONENTS,
    )
    at_peak = -0.5 * (value.square() / var + torch.log(2 * math.pi * var)).sum(-1)
    return inside.log_evidence + at_peak


def null_directions(problem: OnTree, mean: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Directions along which K - 1 random contrasts of related nodes all vanish, (P, K).

    If none of the K - 1 contrasts moved a latent, that latent's row is the one direction that is
    orthogonal to all of them; with sparse changes this is often so. Contrasts are between nodes
    under one parent where there are such, else between any two.

    Args:
        problem: The tree and its nodes with rows.
        mean: Estimates (E, Q, K).
        num: How many to draw; P is less where some are drawn twice.
        generator: Randomness.
    """
    num_nodes, num_outcomes, k = mean.shape
    if k == 1 or num_nodes < 2:
        return mean.new_ones(num, k) if k == 1 else mean.new_zeros(0, k)
    place, other = related_nodes(problem, (num, k - 1), generator)
    outcome = torch.randint(num_outcomes, place.shape, generator=generator)
    contrast = mean.cpu()[place, outcome] - mean.cpu()[other, outcome]
    # The same contrasts in another order are the same direction: one sum of random marks each.
    mark = torch.rand(num_nodes, num_nodes, num_outcomes, generator=generator, dtype=torch.float64)
    mark = (mark + mark.transpose(0, 1))[place, other, outcome].sum(1)
    first = (mark[:, None] == mark).double().argmax(1).unique()
    return torch.linalg.svd(contrast[first]).Vh[:, -1].to(mean.device)


def related_nodes(
    problem: OnTree, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random pairs of nodes with rows, by their places among these, each of a shape.

    Pairs are under one parent where a node shares its parent with others, else of any two. There
    have to be two nodes at least.
    """
    num_nodes, nodes = len(problem.nodes), problem.nodes.cpu()
    parent = torch.where(nodes > 0, problem.tree.arc_parent[(nodes - 1).clamp(min=0)], -1)
    order = parent.argsort(stable=True)  # families next to each other
    _, family, size = parent[order].unique_consecutive(return_inverse=True, return_counts=True)
    begin = size.cumsum(0) - size
    place = torch.randint(num_nodes, shape, generator=generator)
    mine, uniform = family[place], torch.rand(shape, generator=generator)
    among = 1 + (uniform * (size[mine] - 1)).long()
    sibling = begin[mine] + (place - begin[mine] + among) % size[mine]
    anyone = (place + 1 + (uniform * (num_nodes - 1)).long()) % num_nodes
    other = torch.where(size[mine] > 1, sibling, anyone)
    return order[place], order[other]


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
        gain = exchange_gains(rows, held, pool, scores, num_estimates)
        best = int(gain.argmax())
        if gain.flatten()[best] < 1e-6:
            break
        new, old = divmod(best, len(rows))
        rows[old], held[old] = pool[new], scores[new]
    total = held.sum() + num_estimates * torch.linalg.slogdet(rows)[1]
    return Basis(rows, total.item())


def exchange_gains(
    rows: Tensor, held: Tensor, pool: Tensor, scores: Tensor, num_estimates: int
) -> Tensor:
    """Gain in evidence from every row of a pool (P, K) in place of every row of a basis, (P, K)."""
    cofactor = (pool @ torch.linalg.inv(rows)).abs().clamp(min=1e-12).log()
    return scores[:, None] - held[None, :] + num_estimates * cofactor
