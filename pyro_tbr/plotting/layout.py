"""Where the nodes of a drawn tree lie; no drawing here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_tbr.tree import Tree


class Layout(NamedTuple):
    """A rectangular drawing: depth to the right, leaves one below the other, one apart.

    Attributes:
        x: Depth of every node in ``tree.nodes`` order: sum of arc lengths, or level, (V,).
        y: Its height, (V,): leaves at 0, 1, ..., inner nodes halfway between their outer children.
        order: Nodes (indices) as a walk through the drawing meets them, parents first, (V,).
        leaf_order: The leaves of it, so the leaf at height i, (L,).
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    order: NDArray[np.int64]
    leaf_order: NDArray[np.int64]


def tree_layout(tree: Tree, use_lengths: bool | None = None) -> Layout:
    """Lays a tree out, in time linear in its nodes and without recursion.

    Args:
        tree: The tree.
        use_lengths: Depth by arc lengths; ``None``: where every arc has one.

    Raises:
        TreeError: Lengths are asked for and missing.
    """
    parents = tree.arc_parent.tolist()
    by_length = tree.has_lengths if use_lengths is None else use_lengths
    steps = tree.require_lengths() if by_length else (1.0,) * tree.num_arcs
    x, y = np.zeros(tree.num_nodes), np.zeros(tree.num_nodes)
    children: list[list[int]] = [[] for _ in range(tree.num_nodes)]
    for arc, parent in enumerate(parents):
        x[arc + 1] = x[parent] + steps[arc]
        children[parent].append(arc + 1)
    order, stack = [], [0]
    while stack:
        node = stack.pop()
        order.append(node)
        stack += reversed(children[node])
    leaf_order = [node for node in order if not children[node]]
    y[leaf_order] = np.arange(len(leaf_order))
    for node in range(tree.num_nodes - 1, -1, -1):  # children stand behind their parents
        if children[node]:
            y[node] = (y[children[node][0]] + y[children[node][-1]]) / 2
    return Layout(x, y, np.array(order), np.array(leaf_order))
