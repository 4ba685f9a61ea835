"""Bases in which the arcs' changes are sparse, by a penalised fit from many random starts.

Any invertible linear map of the latents fits the rows as well; what tells the true latents from
their mixtures is that their weights change on few arcs. The search sees sufficient statistics only,
so its cost does not depend on the number of rows. Basis, root weights and deltas move together, the
penalty annealed from smooth to sharp. It proposes; ``climb`` and ``choice`` judge.

Where nodes have many rows the likelihood is far sharper than the steps of any search, and starts
freeze where they are. So the search takes a problem that is blunted (:func:`capped`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_tbr.heads.guide import informed_arcs
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.inference.rotation.descent import Point, Task, descend
from pyro_tbr.jit import COMPILES
from pyro_tbr.progress import stage, step
from pyro_tbr.tree import Tree, path_sum

BLUNT_CURVATURE = 200.0  # most curvature of a node's weights while searching
_SHARP = 0.02  # width of the penalty's cusp at the end, in typical weight differences
_SMOOTH = 1.0  # and at the start
_PEAK_RATE = 0.03  # of Adam
_DIGITS = 30  # binary ones of the numbers that the search is given
_OFFSET_RATE = 5.0  # offsets move in units of their prior's spread, faster than weights


_Floats = npt.NDArray[np.float64]


class RotationProblem(NamedTuple):
    """What the search needs to know, in double precision, weights in units of ``unit``.

    Attributes:
        tree: The environments.
        nodes: Nodes with rows, (E,).
        precision: Curvature of the log likelihood in a node's weights, (E, Q or 1, W, W).
        target: Weights at which each node's likelihood peaks, (E, Q, W).
        root: Dense root weights, (W, Q).
        deltas: Dense deltas, (A, W, Q).
        unit: Typical difference of a leaf's weights from their mean, outcome by outcome, (Q,).
        latent_dim: K; weights past the first K (the intercept) are not rotated.
        offset_scale: Standard error of the latents' mean. Where latents are centred at the mean of
            the rows, an arc that changes a latent's effect changes the intercept by the error of
            that mean; so a small offset of each latent is fitted too, with this prior spread.
    """

    tree: Tree
    nodes: Tensor
    precision: Tensor
    target: Tensor
    root: Tensor
    deltas: Tensor
    unit: Tensor
    latent_dim: int
    offset_scale: float


class Candidates(NamedTuple):
    """Bases with the point estimates that belong to them, S of each.

    Attributes:
        basis: New latents are ``z @ basis - offset``; unit columns, (S, K, K).
        offset: (S, K); zero without an intercept.
        root: Root weights of the new latents, (S, W, Q), in units of ``unit``.
        deltas: (S, A, W, Q), likewise.
        loss: Penalised loss, (S,); lower is better.
    """

    basis: Tensor
    offset: Tensor
    root: Tensor
    deltas: Tensor
    loss: Tensor

    def take(self, index: Tensor) -> Candidates:
        """Some of them."""
        return Candidates(*(value[index] for value in self))


def rotation_problem(
    tree: Tree,
    stats: Statistics,
    noise_precision: Tensor,
    root: Tensor,
    deltas: Tensor,
    latent_dim: int,
    num_rows: int,
) -> RotationProblem:
    """The search's problem from statistics of whitened latents and a dense fit to them.

    ``noise_precision`` is 1 / noise variance of each node and outcome, (E, Q); root weights and
    deltas are in the model's units.
    """
    root, deltas = root.double(), deltas.double()
    weights = path_sum(tree, root, deltas, event_dim=2)[stats.nodes][:, :latent_dim]
    unit = (weights - weights.mean(0)).square().mean((0, 1)).sqrt() * latent_dim**0.5
    unit = unit.clamp(min=1e-3 * unit.max().clamp(min=1e-12))
    scale = noise_precision.double().unsqueeze(-1)
    precision = stats.gram * (scale * unit.square()[:, None]).unsqueeze(-1)
    linear = stats.cross * (scale * unit[:, None])
    # Nodes with fewer rows than weights: any peak will do, the likelihood is flat between them.
    target = torch.linalg.pinv(precision, hermitian=True, rtol=1e-10) @ linear.unsqueeze(-1)
    return RotationProblem(
        tree,
        stats.nodes,
        _rounded(precision),
        _rounded(target.squeeze(-1)),
        _rounded(root / unit),
        _rounded(deltas / unit),
        _rounded(unit),
        latent_dim,
        num_rows**-0.5,
    )


def _rounded(values: Tensor) -> Tensor:
    """Values to nine digits.

    Where the search ends hangs on all digits of what it is given. So the last ones, which differ
    with the order in which rows were summed, and from machine to machine, are dropped.
    """
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2.0**_DIGITS).round() / 2.0**_DIGITS, exponent)


def with_rows_below(problem: RotationProblem) -> tuple[RotationProblem, Tensor]:
    """The problem on the part of the tree at or above rows, and which arcs these are, (A',)."""
    tree, known = problem.tree, torch.zeros(problem.tree.num_nodes, dtype=torch.bool)
    known[problem.nodes.cpu()] = True
    informed = informed_arcs(tree, known)
    if informed.all() or not informed.any():
        return problem, torch.arange(tree.num_arcs, device=problem.nodes.device)
    kept = [arc for arc, has in zip(tree.arcs, informed.tolist(), strict=True) if has]
    small = Tree.from_parents({child: parent for parent, child in kept})
    arcs = torch.tensor([tree.index(child) - 1 for _, child in small.arcs])
    nodes = torch.tensor([small.index(tree.nodes[v]) for v in problem.nodes.tolist()])
    arcs, nodes = arcs.to(problem.nodes), nodes.to(problem.nodes)
    return problem._replace(tree=small, nodes=nodes, deltas=problem.deltas[arcs]), arcs


def start_from(problem: RotationProblem, basis: Tensor) -> Candidates:
    """Candidates with these bases (S, K, K) and the dense fit's weights; of unknown loss."""
    num, k, inverse = len(basis), problem.latent_dim, torch.linalg.inv(basis.double())
    root, deltas = problem.root.repeat(num, 1, 1), problem.deltas.repeat(num, 1, 1, 1)
    root[:, :k] = inverse @ root[:, :k]
    deltas[:, :, :k] = inverse[:, None] @ deltas[:, :, :k]
    loss = root.new_full((num,), torch.inf)
    return Candidates(basis, root.new_zeros(num, k), root, deltas, loss)


def search(
    problem: RotationProblem, restarts: int, steps: int, generator: torch.Generator
) -> Candidates:
    """Candidates from random orthogonal starts, best first; for a :func:`capped` problem."""
    k = problem.latent_dim
    drawn = torch.randn(restarts, k, k, generator=generator, dtype=torch.float64)
    start = torch.linalg.qr(drawn.to(problem.root.device))[0]
    with stage("search", total=steps):
        found = _descend(problem, start, steps)
    return found.take(found.loss.argsort())


def sparse_weights(problem: RotationProblem, basis: Tensor, steps: int) -> Candidates:
    """The bases (S, K, K) with offsets, root weights and sparse deltas fitted to them."""
    with stage("weights of bases", total=steps):
        return _descend(problem, basis, steps, hold=True)


def curvature(problem: RotationProblem) -> Tensor:
    """Mean curvature of the latents' weights at each node and outcome, (E, Q or 1)."""
    diagonal = problem.precision.diagonal(dim1=-2, dim2=-1)[..., : problem.latent_dim]
    return diagonal.mean(-1).clamp(min=1e-12)


def capped(problem: RotationProblem, most: float) -> RotationProblem:
    """The problem with the curvature of every node and outcome scaled down to at most ``most``."""
    now = curvature(problem)
    share = torch.where(now > most, most / now, 1.0)
    return problem._replace(precision=problem.precision * share[..., None, None])


def _descend(
    problem: RotationProblem, start: Tensor, steps: int, *, hold: bool = False
) -> Candidates:
    """Adam on basis (unless held), offset, root weights and deltas together, float32.

    It starts from bases (S, K, K) with the dense fit's weights. The penalty sharpens and the rate
    falls on the way.
    """
    share = np.arange(steps + 1) / max(1, steps)
    widths = _SMOOTH * (_SHARP / _SMOOTH) ** np.minimum(1.0, share / 0.8)
    rates = _PEAK_RATE * np.minimum(1.0, (1 - share[:-1]) / 0.3 + 0.01)
    begin = start_from(problem, start)[:4]
    if COMPILES and start.device.type == "cpu":
        basis, offset, root, deltas, loss = _compiled(problem, begin, widths, rates, hold)
    else:
        basis, offset, root, deltas, loss = by_torch(problem, begin, widths, rates, hold)
    loss = torch.where(torch.isfinite(loss), loss, torch.inf)
    return Candidates(start if hold else basis, offset, root, deltas, loss)


def _compiled(
    problem: RotationProblem, start: Sequence[Tensor], widths: _Floats, rates: _Floats, hold: bool
) -> list[Tensor]:
    """See :func:`by_torch`, in compiled loops."""
    task = Task(
        problem.tree.arc_parent.numpy(),
        problem.nodes.numpy(),
        problem.precision.float().contiguous().numpy(),
        problem.target.float().contiguous().numpy(),
        problem.offset_scale,
    )
    begin = Point(*(part.float().movedim(0, -1).contiguous().numpy() for part in start))
    found, loss = descend(task, begin, widths, rates, _OFFSET_RATE, hold=hold, tell=step)
    moved = [torch.from_numpy(part).movedim(-1, 0).double().contiguous() for part in found]
    return [*moved, torch.from_numpy(loss).double()]


def by_torch(
    problem: RotationProblem, start: Sequence[Tensor], widths: _Floats, rates: _Floats, hold: bool
) -> list[Tensor]:
    """Bases of unit columns, offsets, root weights, deltas and penalised losses at the end.

    The likelihood is written around each node's peak, so that its value is small where the fit is
    good and float32 resolves the differences between candidates.
    """
    precision, target = problem.precision.float(), problem.target.float()
    basis, offset, root, deltas = (part.float().clone().requires_grad_() for part in start)
    moving = [root, deltas] if hold else [basis, root, deltas]
    if root.shape[1] > problem.latent_dim:  # an intercept takes up the offset
        moving.append(offset)
    optimizer = torch.optim.Adam([{"params": [p]} for p in moving], betas=(0.9, 0.99))
    for done, width in enumerate(widths):
        unit_basis = basis / basis.norm(dim=1, keepdim=True)
        weights = path_sum(problem.tree, root, deltas, event_dim=2)[:, problem.nodes]
        shift = offset * problem.offset_scale  # in standard deviations of its prior
        error = expand_basis(unit_basis, shift, root.shape[1])[:, None] @ weights
        error = error.transpose(-1, -2) - target  # (S, E, Q, W)
        fit = 0.5 * (error * (precision @ error.unsqueeze(-1)).squeeze(-1)).sum((1, 2, 3))
        penalty = torch.log1p(deltas.abs() / width).sum((1, 2, 3))
        penalty = penalty + 0.5 * offset.square().sum(1)
        if done == len(rates):
            break
        for group in optimizer.param_groups:
            faster = _OFFSET_RATE if group["params"][0] is offset else 1.0
            group["lr"] = faster * rates[done]
        optimizer.zero_grad()
        (fit + penalty).sum().backward()
        optimizer.step()
        step()
    return [part.detach().double() for part in (unit_basis, offset, root, deltas, fit + penalty)]


def expand_basis(basis: Tensor, offset: Tensor, num_weights: int) -> Tensor:
    """The map of the whole design, (*B, W, W): new latents are ``z @ basis - offset``.

    The intercept stays 1; without one the offset (*B, K) is ignored. A basis (K, r) of fewer
    latents gives a map to their design, of ``num_weights`` columns.
    """
    k = basis.shape[-1]
    if num_weights == k:
        return basis
    last = torch.cat([-offset, torch.ones_like(offset[..., :1])], dim=-1)
    upper = torch.cat([basis, torch.zeros_like(basis[..., :1])], dim=-1)
    return torch.cat([upper, last.unsqueeze(-2)], dim=-2)
