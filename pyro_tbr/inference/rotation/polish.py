"""Polishes bases: second-order steps up the evidence of one likelihood, blunt or the rows' own.

The evidence of a row of a basis has a narrow ridge for each pattern of changes: along the row, the
estimates of all nodes between which nothing changes must agree within their standard errors. With
many rows a node these ridges are far narrower than any step of a fixed size. But the curvature
across a ridge is known in closed form once the pattern is (the scatter of the estimates within each
set of nodes between which nothing changes), so a step is scaled by it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.basis import RATES, Estimates, log_evidence, spread_of
from pyro_tbr.progress import beat

_GAIN = 0.02  # of log evidence: a step that gains less is the last one
TRIES = 4  # sizes of a step, each a quarter of the one before, until one gains
FASTER = 2.0  # step of a basis over the one before, if that gained
_CHANGED = 0.3  # inclusion probability above which an arc may have changed


def polish(estimates: Estimates, rows: Tensor, steps: int) -> Tensor:
    """Moves bases to the tops of their evidence in at most so many steps; none gets worse.

    Bases are given and returned as the rows of their inverses, unit length, (S, K, K), double
    precision.
    """
    if not len(rows):
        return rows
    return torch.cat([_polish(estimates, some, steps) for some in estimates.parts(rows)])


def sharpened(estimates: Estimates, directions: Tensor) -> Tensor:
    """Directions along which estimates agree best, given where changes are along these, (P, K).

    Agreement is the scatter within the sets of nodes between which nothing changes, over that
    between all nodes.
    """
    if not len(directions):
        return directions
    within = []
    for some in estimates.parts(directions):
        _, _, inclusion = slope(estimates, some, _best_rates(estimates, some))
        within.append(scatter_within(estimates, some, inclusion))
    inside = torch.cat(within)
    centred = (estimates.mean - estimates.mean.mean(0)).flatten(0, 1)
    overall = centred.mT @ centred
    ridge = (1e-9 * overall.diagonal().mean()).clamp(min=1e-12)
    ridge = ridge * torch.eye(len(overall)).to(overall)
    root = torch.linalg.inv(torch.linalg.cholesky(overall + ridge))
    size = inside.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)[:, None, None]
    least = torch.linalg.eigh(root @ (inside / size) @ root.mT)[1][..., 0] @ root
    return least / least.norm(dim=-1, keepdim=True)


def _polish(estimates: Estimates, rows: Tensor, steps: int) -> Tensor:
    rows, rates = rows.clone(), _best_rates(estimates, rows)
    moving = torch.arange(len(rows), device=rows.device)
    pace = rows.new_ones(len(rows))  # of each basis: by how much of a step it goes first
    for _ in range(steps):
        here = rows[moving]
        total, gradient, inclusion = slope(estimates, here, rates[moving])
        beat()
        step = _newton_step(estimates, here, gradient, inclusion)
        total = total.sum(-1) + estimates.jacobian(here)
        gain = torch.zeros_like(total)
        left, size = torch.arange(len(moving), device=rows.device), 1.0
        for _ in range(TRIES):
            length = (size * pace[moving[left]])[:, None, None]
            trial = here[left] + length * step[left]
            trial = trial / trial.norm(dim=-1, keepdim=True)
            reached = of_rows(estimates, trial, rates[moving[left]].unsqueeze(-1))
            gained = reached.sum(-1) + estimates.jacobian(trial) - total[left]
            better = gained > 0
            rows[moving[left[better]]] = trial[better]
            gain[left[better]] = gained[better]
            # The curvature is an upper bound, often a high one: who gains dares more next time.
            pace[moving[left]] *= torch.where(better, FASTER, 1.0) if size == 1.0 else size
            left, size = left[~better], size / 4
            if not len(left):
                break
        moving = moving[gain > _GAIN]
        if not len(moving):
            break
    return rows


@torch.no_grad()
def _best_rates(estimates: Estimates, rows: Tensor) -> Tensor:
    """The inclusion rate under which each row's evidence is largest, (*S, Q)."""
    value, var = estimates.along(rows)
    spread = spread_of(value)
    rates = torch.tensor(RATES, dtype=rows.dtype, device=rows.device)
    tried = torch.stack([log_evidence(estimates, value, var, rate, spread) for rate in rates])
    return rates[tried.argmax(0)]


def of_rows(estimates: Estimates, rows: Tensor, rates: Tensor) -> Tensor:
    """Log evidence of rows (*S, K) at inclusion rates (*S, Q, A or 1), (*S,)."""
    value, var = estimates.along(rows)
    return log_evidence(estimates, value, var, rates, spread_of(value)).sum(-1)


def slope(estimates: Estimates, rows: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence of rows (*S,), its gradient (*S, K), and arcs' inclusion (*S, Q, A).

    The derivative of a log evidence in the log odds of a gate is the posterior probability of the
    gate less the prior one.
    """
    with torch.enable_grad():
        rows = rows.detach().requires_grad_()
        by_arc = rates.unsqueeze(-1).expand(*rates.shape, estimates.tree.num_arcs)
        log_odds = torch.logit(by_arc).requires_grad_()
        total = of_rows(estimates, rows, torch.sigmoid(log_odds))
        gradient, change = torch.autograd.grad(total.sum(), [rows, log_odds])
    return total.detach(), gradient, by_arc + change


def _newton_step(estimates: Estimates, rows: Tensor, gradient: Tensor, inclusion: Tensor) -> Tensor:
    """The gradient over the curvature of each row's evidence and Jacobian, (S, K, K)."""
    cofactor = torch.linalg.inv(rows).transpose(-1, -2)  # the gradient of log|det|, row by row
    curvature = scatter_within(estimates, rows, inclusion)
    # And where all nodes differ as they do.
    centred = (estimates.mean - estimates.mean.mean(0)).transpose(0, 1)  # (Q, E, K)
    spread = spread_of(estimates.along(rows)[0])
    curvature = curvature + (centred.mT @ centred / spread.square()[..., None, None]).sum(-3)
    curvature = curvature + estimates.number * cofactor.unsqueeze(-1) * cofactor.unsqueeze(-2)
    size = curvature.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    curvature = curvature + 1e-10 * size * torch.eye(rows.shape[-1]).to(rows)
    return torch.linalg.solve(curvature, gradient + estimates.number * cofactor)


def scatter_within(estimates: Estimates, rows: Tensor, inclusion: Tensor) -> Tensor:
    """Curvature of each row's log evidence given the arcs' inclusion, (*S, K, K).

    Estimates of nodes without a change between them agree within their errors.
    """
    weight = 1 / estimates.along(rows)[1]
    block = _blocks(estimates, inclusion > _CHANGED)  # (*S, Q, E)
    centred = (estimates.mean - estimates.mean.mean(0)).transpose(0, 1)  # (Q, E, K)
    parts = weight.unsqueeze(-1) * centred
    empty = weight.new_zeros(*weight.shape[:-1], estimates.tree.num_nodes)
    mass = empty.scatter_add(-1, block, weight)
    index = block.unsqueeze(-1).expand_as(parts)
    sums = empty.unsqueeze(-1).expand(*empty.shape, parts.shape[-1]).scatter_add(-2, index, parts)
    within = parts.mT @ centred - (sums / mass.clamp(min=1e-300).unsqueeze(-1)).mT @ sums
    return within.sum(-3)


def _blocks(where: Estimates, changed: Tensor) -> Tensor:
    """For every node with rows, the highest node with no change from there to it, (*B, E)."""
    tree = where.tree
    own = torch.arange(tree.num_nodes, device=changed.device)
    parent = torch.cat([own[:1], tree.arc_parent.to(changed.device)])
    root = changed.new_ones(*changed.shape[:-1], 1)
    top = torch.where(torch.cat([root, changed], -1), own, parent)
    for _ in range(max(1, tree.depth).bit_length()):  # each time twice as far up
        top = top.gather(-1, top)
    return top[..., where.nodes]
