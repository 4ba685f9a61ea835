"""What the compiled passes hold of one element of the batch."""

from __future__ import annotations

from typing import NamedTuple

from pyro_tbr.jit import jit
from pyro_tbr.tree.messages.compiled.mixtures import Array


class Law(NamedTuple):
    """A law of changes as the passes read it: see ``LawTable``."""

    prob: Array
    log_prob: Array
    mean: Array
    var: Array


class Data(NamedTuple):
    """Of one element of the batch: means and precisions of the potentials (V + 1,), root's law."""

    mean: Array
    precision: Array
    root_mean: float
    root_var: float


class Messages(NamedTuple):
    """What the inside pass leaves behind, of one element of the batch.

    Attributes:
        node: Messages at the places, (3, components).
        num_node: Components of each, (P,).
        arc: Those seen from the parents, through the arcs, (3, components).
        num_arc: Components of each, (P,).
        pairs: What each pair of the children's components was merged into.
        paired: Whether any was, (P,).
        crossed: What each component, class by class, was merged into behind the arc.
        merged: Whether any was, (P,).
        informed: Whether data are there or below, (P,).
    """

    node: Array
    num_node: Array
    arc: Array
    num_arc: Array
    pairs: Array
    paired: Array
    crossed: Array
    merged: Array
    informed: Array


class Contexts(NamedTuple):
    """What the rest of the tree may say about a weight, of one element of the batch.

    Attributes:
        wide: Means and variances of one wide Gaussian: at the node, and of its parent's weight,
            (4, P).
        node: Mixtures at the nodes: log weights, means, variances, (P, 3, most).
        num_node: Their components; 0: the wide one, (P,).
        parent: Of the parents' weights, (P, 3, most).
        num_parent: Likewise, (P,).
    """

    wide: Array
    node: Array
    num_node: Array
    parent: Array
    num_parent: Array


@jit
def row_of(law: Law, arc: int, num_arcs: int) -> int:
    """Which row of a law is an arc's: all arcs may share one, the last is the helpers'."""
    if law.var.shape[0] == 2:
        return 1 if arc == num_arcs else 0
    return arc


@jit
def finite(law: Law, column: int, data: Data) -> bool:
    """Whether all numbers of an element of the batch are."""
    total = 0.0 * data.root_mean + 0.0 * data.root_var
    for v in range(len(data.mean)):
        total += 0.0 * data.mean[v] + 0.0 * data.precision[v]
    for row in range(law.var.shape[0]):
        for j in range(law.var.shape[2]):
            total += 0.0 * law.prob[row, column, j] + 0.0 * law.mean[row, column, j]
            total += 0.0 * law.var[row, column, j]
    return total == 0.0
