r"""Squared error of linear predictors by environment, from sums over rows, and its L1 minimum.

.. math::
    \frac{1}{n} \sum_{i, q} (y_{iq} - \phi_i^\top v_{e(i) q})^2 + \lambda \sum_a |\delta_a|_1,
    \quad v_e = \mathrm{root} + \sum_{a \in \mathrm{path}(e)} \delta_a

The error needs ``phi' phi``, ``phi' y`` and ``y' y`` of each environment only, so no step of an
optimiser touches a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.evaluation.baselines.ridge import grams, groups_sum
from pyro_tbr.tree import Tree, descendant_sum, path_sum

_TOLERANCE = 1e-7  # of a step's largest change of a weight, for standardised outcomes


class Squares(NamedTuple):
    """Sums over the rows of each environment.

    Attributes:
        nodes: Node of each environment, (E,).
        gram: ``phi' phi``, (E, Q, P, P), or (E, 1, P, P) where nothing is missing.
        cross: ``phi' y``, (E, P, Q).
        square: ``y' y``, (Q,), over all environments.
        number: Observed outcomes, (Q,), likewise.
    """

    nodes: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    number: Tensor

    @classmethod
    def of(cls, design: Tensor, y: Tensor, env_index: Tensor) -> Squares:
        """Of rows: design (N, P), outcomes (N, Q) with NaN, nodes (N,)."""
        nodes, group = env_index.unique(return_inverse=True)
        size = len(nodes)
        seen = ~y.isnan()
        known = torch.where(seen, y, 0.0)
        cross = groups_sum(design[:, :, None] * known[:, None], group, size)
        masks = seen.T[:1] if seen.all() else seen.T
        gram = torch.stack([grams(design * one[:, None], group, size) for one in masks], 1)
        return cls(nodes, gram, cross, known.square().sum(0), seen.sum(0))

    def errors(self, predictors: Tensor) -> Tensor:
        """Mean squared error by outcome, (B, Q), of predictors (B, E, P, Q)."""
        fitted = self.times_gram(predictors)
        total = (predictors * (fitted - 2 * self.cross)).sum((-3, -2)) + self.square
        return total / self.number

    def error(self, predictors: Tensor) -> Tensor:
        """Mean squared error of all observed outcomes, (B,)."""
        return (self.errors(predictors) * self.number).sum(-1) / self.number.sum()

    def times_gram(self, predictors: Tensor) -> Tensor:
        """``gram @ predictors``, (B, E, P, Q)."""
        if self.gram.shape[1] == 1:
            return self.gram[:, 0] @ predictors
        return torch.einsum("eqij,...ejq->...eiq", self.gram, predictors)

    def to(self, dtype: torch.dtype) -> Squares:
        """Sums in another precision."""
        gram, cross, square = (part.to(dtype) for part in (self.gram, self.cross, self.square))
        return self._replace(gram=gram, cross=cross, square=square)

    def strength(self, threshold: float) -> float:
        """The lambda that shrinks a change confined to one environment of mean size so much."""
        return 2 / len(self.nodes) * threshold


class Weights(NamedTuple):
    """Weights at the root (P, Q) and changes along the arcs (A, P, Q)."""

    root: Tensor
    deltas: Tensor

    def at_nodes(self, tree: Tree) -> Tensor:
        """Weights of every node, (V, P, Q)."""
        return path_sum(tree, self.root, self.deltas, event_dim=2)


@torch.no_grad()
def l1_weights(
    tree: Tree, squares: Squares, penalty: float, start: Weights | None = None, steps: int = 3000
) -> Weights:
    """Minimises error and L1 penalty of the changes: a convex problem, changes exactly 0 or not.

    Accelerated proximal gradient with restarts where the momentum points uphill.

    Args:
        tree: The environments.
        squares: In double precision.
        penalty: Lambda.
        start: Where to start; ``None``: at 0.
        steps: At most.

    Source:
        Beck & Teboulle, SIAM J. Imaging Sci. 2 (2009) 183; restarts: O'Donoghue & Candes, Found.
        Comput. Math. 15 (2015) 715.
    """
    _, num_features, num_outcomes = squares.cross.shape
    total = squares.number.sum()
    if start is None:
        root = torch.zeros(num_features, num_outcomes, dtype=torch.float64)
        start = Weights(root, root.new_zeros(tree.num_arcs, num_features, num_outcomes))

    def slope(at: Tensor, cross: Tensor | float) -> Tensor:
        """Gradient of the error; root first, then arcs, (V, P, Q)."""
        nodes = path_sum(tree, at[0], at[1:], event_dim=2)
        own = torch.zeros_like(nodes)
        own[squares.nodes] = 2 * (squares.times_gram(nodes[squares.nodes]) - cross) / total
        return descendant_sum(tree, own, event_dim=2)

    value = torch.cat([start.root[None], start.deltas])
    step = 1 / _largest_curvature(slope, value.shape)
    point, momentum = value, 1.0
    for _ in range(steps):
        moved = point - step * slope(point, squares.cross)
        size = moved[1:].abs() - step * penalty
        moved[1:] = moved[1:].sign() * size.clamp(min=0)
        if ((point - moved) * (moved - value)).sum() > 0:
            momentum = 1.0
        after = 0.5 * (1 + (1 + 4 * momentum**2) ** 0.5)
        point = moved + (momentum - 1) / after * (moved - value)
        change = (moved - value).abs().max()
        value, momentum = moved, after
        if change < _TOLERANCE:
            break
    return Weights(value[0], value[1:])


def _largest_curvature(slope: Callable[[Tensor, float], Tensor], shape: torch.Size) -> Tensor:
    """Of the error's second derivative, by the power method, a little too large."""
    at = torch.ones(shape, dtype=torch.float64)
    for _ in range(50):
        at = slope(at / at.norm(), 0.0)
    return 1.05 * at.norm().clamp(min=1e-12)
