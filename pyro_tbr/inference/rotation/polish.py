"""Polishes bases: second-order steps up the evidence, from a blunt likelihood to the rows' own.

The evidence of a row of a basis has a narrow ridge for each pattern of changes: along the row, the
estimates of all nodes between which nothing changes must agree within their standard errors. With
many rows a node these ridges are far narrower than any step of a fixed size. Two things find their
tops. The curvature across a ridge is known in closed form once the pattern is (the scatter of the
estimates within each set of nodes between which nothing changes), so a step is scaled by it. And
the likelihood is sharpened by degrees, so that the top at one degree is within reach of the top at
the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.basis import (
    MOST_POTENTIALS,
    RATES,
    along,
    log_evidence,
    spread_of,
)
from pyro_tbr.inference.rotation.search import OnTree

_GAIN = 0.02  # of log evidence: a step that gains less is the last one
TRIES = 4  # sizes of a step, each a quarter of the one before, until one gains
CHANGED = 0.3  # inclusion probability above which an arc may have changed


def polish(problem: OnTree, rows: Tensor, mean: Tensor, cov: Tensor, steps: int) -> Tensor:
    """Moves bases to the tops of their evidence; none gets worse.

    Args:
        problem: The tree and its nodes with rows.
        rows: Rows of the bases' inverses, unit length, (S, K, K), double precision.
        mean: See :func:`~pyro_tbr.inference.rotation.basis.leaf_estimates`.
        cov: Likewise.
        steps: At most so many.

    Returns:
        Rows, unit length, (S, K, K).
    """
    if not len(rows):
        return rows
    few = max(1, MOST_POTENTIALS // (problem.tree.num_nodes * rows.shape[-1] * mean.shape[1]))
    return torch.cat([_polish(problem, some, mean, cov, steps) for some in rows.split(few)])


def sharpened(problem: OnTree, directions: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """Directions along which estimates agree best, given where changes are along these, (P, K).

    Arguments as for :func:`polish`; directions (P, K) that belong to no basis yet. Agreement is the
    scatter within the sets of nodes between which nothing changes, over that between all nodes.
    """
    if not len(directions):
        return directions
    few = max(1, MOST_POTENTIALS // (problem.tree.num_nodes * mean.shape[1]))
    within = []
    for some in directions.split(few):
        _, _, inclusion = slope(problem, some, best_rates(problem, some, mean, cov), mean, cov)
        within.append(scatter_within(problem, some, inclusion > CHANGED, mean, cov))
    inside = torch.cat(within)
    centred = (mean - mean.mean(0)).flatten(0, 1)
    overall = centred.mT @ centred
    ridge = (1e-9 * overall.diagonal().mean()).clamp(min=1e-12) * torch.eye(len(overall)).to(
        overall
    )
    root = torch.linalg.inv(torch.linalg.cholesky(overall + ridge))
    size = inside.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)[:, None, None]
    least = torch.linalg.eigh(root @ (inside / size) @ root.mT)[1][..., 0] @ root
    return least / least.norm(dim=-1, keepdim=True)


def _polish(problem: OnTree, rows: Tensor, mean: Tensor, cov: Tensor, steps: int) -> Tensor:
    rows = rows.clone()
    rates = best_rates(problem, rows, mean, cov)
    moving = torch.arange(len(rows), device=rows.device)
    for _ in range(steps):
        here = rows[moving]
        total, gradient, inclusion = slope(problem, here, rates[moving], mean, cov)
        step = _newton_step(problem, here, gradient, inclusion, mean, cov)
        total = total.sum(-1) + _jacobian(here, mean)
        gain = torch.zeros_like(total)
        left, size = torch.arange(len(moving), device=rows.device), 1.0
        for _ in range(TRIES):
            trial = here[left] + size * step[left]
            trial = trial / trial.norm(dim=-1, keepdim=True)
            reached = of_rows(problem, trial, rates[moving[left]].unsqueeze(-1), mean, cov)
            gained = reached.sum(-1) + _jacobian(trial, mean) - total[left]
            better = gained > 0
            rows[moving[left[better]]] = trial[better]
            gain[left[better]] = gained[better]
            left, size = left[~better], size / 4
            if not len(left):
                break
        moving = moving[gain > _GAIN]
        if not len(moving):
            break
    return rows


@torch.no_grad()
def best_rates(problem: OnTree, rows: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """The inclusion rate under which each row's evidence is largest, (*S, Q)."""
    value, var = along(rows, mean, cov)
    spread = spread_of(value)
    rates = torch.tensor(RATES, dtype=rows.dtype, device=rows.device)
    tried = torch.stack([log_evidence(problem, value, var, rate, spread) for rate in rates])
    return rates[tried.argmax(0)]


def of_rows(problem: OnTree, rows: Tensor, rates: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """Log evidence of rows (*S, K) at inclusion rates (*S, Q, A or 1), (*S,)."""
    value, var = along(rows, mean, cov)
    return log_evidence(problem, value, var, rates, spread_of(value)).sum(-1)


def _jacobian(rows: Tensor, mean: Tensor) -> Tensor:
    """What the evidence of bases (S, K, K) has beyond that of their rows, (S,)."""
    return mean.shape[0] * mean.shape[1] * torch.linalg.slogdet(rows)[1]


def slope(
    problem: OnTree, rows: Tensor, rates: Tensor, mean: Tensor, cov: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence of rows (*S,), its gradient (*S, K), and where changes are (*S, Q, A).

    The derivative of a log evidence in the log odds of a gate is the posterior probability of the
    gate less the prior one.
    """
    with torch.enable_grad():
        rows = rows.detach().requires_grad_()
        by_arc = rates.unsqueeze(-1).expand(*rates.shape, problem.tree.num_arcs)
        log_odds = torch.logit(by_arc).requires_grad_()
        total = of_rows(problem, rows, torch.sigmoid(log_odds), mean, cov)
        gradient, change = torch.autograd.grad(total.sum(), [rows, log_odds])
    return total.detach(), gradient, by_arc + change


def _newton_step(
    problem: OnTree,
    rows: Tensor,
    gradient: Tensor,
    inclusion: Tensor,
    mean: Tensor,
    cov: Tensor,
) -> Tensor:
    """The gradient over the curvature of each row's evidence and Jacobian, (S, K, K)."""
    num_estimates = mean.shape[0] * mean.shape[1]
    cofactor = torch.linalg.inv(rows).transpose(-1, -2)  # the gradient of log|det|, row by row
    curvature = scatter_within(problem, rows, inclusion > CHANGED, mean, cov)
    curvature = curvature + _overall(rows, mean)
    curvature = curvature + num_estimates * cofactor.unsqueeze(-1) * cofactor.unsqueeze(-2)
    size = curvature.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    curvature = curvature + 1e-10 * size * torch.eye(rows.shape[-1]).to(rows)
    gradient = gradient + num_estimates * cofactor
    return torch.linalg.solve(curvature, gradient)


def _overall(rows: Tensor, mean: Tensor) -> Tensor:
    """Curvature of each row's log evidence if all nodes differ as they do, (*S, K, K)."""
    centred = (mean - mean.mean(0)).transpose(0, 1)  # (Q, E, K)
    spread = spread_of(torch.einsum("...k,eqk->...qe", rows, mean))
    return (centred.mT @ centred / spread.square()[..., None, None]).sum(-3)


def scatter_within(
    problem: OnTree, rows: Tensor, changed: Tensor, mean: Tensor, cov: Tensor
) -> Tensor:
    """Curvature of each row's log evidence given where changes are, (*S, K, K).

    Estimates of nodes without a change between them agree within their errors.
    """
    weight = 1 / along(rows, mean, cov)[1]
    block = _blocks(problem, changed)  # (*S, Q, E)
    centred = (mean - mean.mean(0)).transpose(0, 1)  # (Q, E, K)
    parts = weight.unsqueeze(-1) * centred
    empty = weight.new_zeros(*weight.shape[:-1], problem.tree.num_nodes)
    mass = empty.scatter_add(-1, block, weight)
    index = block.unsqueeze(-1).expand_as(parts)
    sums = empty.unsqueeze(-1).expand(*empty.shape, parts.shape[-1]).scatter_add(-2, index, parts)
    within = parts.mT @ centred - (sums / mass.clamp(min=1e-300).unsqueeze(-1)).mT @ sums
    return within.sum(-3)


def _blocks(problem: OnTree, changed: Tensor) -> Tensor:
    """For every node with rows, the highest node with no change from there to it, (*B, E)."""
    tree = problem.tree
    own = torch.arange(tree.num_nodes, device=changed.device)
    parent = torch.cat([own[:1], tree.arc_parent.to(changed.device)])
    root = changed.new_ones(*changed.shape[:-1], 1)
    top = torch.where(torch.cat([root, changed], -1), own, parent)
    for _ in range(max(1, tree.depth).bit_length()):  # each time twice as far up
        top = top.gather(-1, top)
    return top[..., problem.nodes]
