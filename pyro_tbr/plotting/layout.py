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


def even_clades(tree: Tree, nodes: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Cuts a tree into clades of which the one with most of some nodes has as few as possible.

    A clade is split into those right below its top; a node that is asked for itself and has others
    below it is a part of its own then.

    Args:
        tree: The tree.
        nodes: Those to spread over the clades, distinct indices, (n,).
        most: How many clades there may be at most.

    Returns:
        Indices of the nodes of each clade, in drawn order. A single one where the first split
        makes too many.
    """
    parents, place = tree.arc_parent.tolist(), np.argsort(tree_layout(tree).order)
    asked = np.zeros(tree.num_nodes, dtype=np.int64)
    asked[nodes] = 1
    inside = asked.copy()
    for node in range(tree.num_nodes - 1, 0, -1):  # children stand behind their parents
        inside[parents[node - 1]] += inside[node]

    def parts(largest: int) -> list[NDArray[np.int64]]:
        """The clades, where none may have more."""
        top = np.arange(tree.num_nodes)
        for node in range(1, tree.num_nodes):
            if inside[top[parents[node - 1]]] <= largest:
                top[node] = top[parents[node - 1]]
        top = top[nodes]
        return [nodes[top == one] for one in np.unique(top)]

    low, high = 1, len(nodes)  # the smallest bound on sizes that makes few enough
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(parts(middle)) <= most else (middle + 1, high)
    found = [part[np.argsort(place[part])] for part in parts(low)]
    return sorted(found, key=lambda part: place[part[0]])


def lowest_common(tree: Tree, nodes: NDArray[np.int64]) -> int:
    """The deepest node with all of some nodes at or below it, by index."""
    parents, found = tree.arc_parent.tolist(), set(nodes.tolist())
    while len(found) > 1:
        deepest = max(found)  # a parent has the smaller index
        found = (found - {deepest}) | {parents[deepest - 1]}
    return found.pop()
