"""Splits that leave whole environments out: some leaves at a time, or all of a clade."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from pyro_tbr.data import RowOrder, align_env
from pyro_tbr.errors import DataError
from pyro_tbr.tree import Tree

_Mask = NDArray[np.bool_]


class Split(NamedTuple):
    """Rows to fit and rows to predict.

    Attributes:
        train: Rows to fit, (N,) bool.
        test: Rows at the held-out leaves, (N,) bool.
        held_out: Labels of these leaves, in the tree's order.
    """

    train: _Mask
    test: _Mask
    held_out: tuple[Any, ...]


def leave_leaves_out(tree: Tree, env: Any, k: int = 1, *, seed: int = 0) -> Iterator[Split]:
    """Folds of k leaves in random order; each leaf with rows is held out once.

    Rows at inner nodes are always in the training set.

    Args:
        tree: The environments.
        env: Node label of each row, (N,).
        k: Leaves held out at a time; the last fold may have fewer.
        seed: Of the order.

    Raises:
        DataError: ``k`` is below 1 or leaves no leaf to fit.
        TreeError: A label is not in the tree.

    Example:
        >>> tree = Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r"})
        >>> for split in leave_leaves_out(tree, ["a", "a", "b", "c"]):
        ...     print(split.held_out, split.test.astype(int))
        ('b',) [0 0 1 0]
        ('c',) [0 0 0 1]
        ('a',) [1 1 0 0]
    """
    index = _indices(tree, env)
    leaves = np.intersect1d(tree.leaf_index.numpy(), index)
    if not 1 <= k < len(leaves):
        raise DataError(
            f"k is {k!r}, but {len(leaves)} leaves have rows: give 1 to {len(leaves) - 1}"
        )
    order = np.random.default_rng(seed).permutation(leaves)
    return (_split(tree, index, order[i : i + k]) for i in range(0, len(order), k))


def leave_clades_out(
    tree: Tree, env: Any, *, min_depth: int = 1, min_leaves: int = 2, max_leaves: int | None = None
) -> Iterator[Split]:
    """A split for each clade: all rows at or below an inner node are held out together.

    Clades are nested, so a leaf may be held out several times.

    Args:
        tree: The environments.
        env: Node label of each row, (N,).
        min_depth: Least number of arcs from the root to the clade's node, 1 or more.
        min_leaves: Least number of the clade's leaves that have rows.
        max_leaves: Largest number; ``None``: any that leaves rows to fit.

    Raises:
        DataError: No clade is of that size and depth, or ``min_depth`` is below 1.
        TreeError: A label is not in the tree.
    """
    if min_depth < 1:
        raise DataError(f"min_depth is {min_depth!r}: without the root's clade nothing is left")
    index, graph, splits = _indices(tree, env), tree.to_networkx(), []
    most = np.inf if max_leaves is None else max_leaves
    for node in (node for level in tree.levels[min_depth:] for node in tree.nodes[level]):
        below = nx.descendants(graph, node)
        split = _split(tree, index, np.array([tree.index(one) for one in (node, *below)]))
        size = len(np.intersect1d(index[split.test], tree.leaf_index.numpy()))
        if below and min_leaves <= size <= most and split.train.any():
            splits.append(split)
    if not splits:
        raise DataError(
            f"no clade has min_depth={min_depth}, min_leaves={min_leaves} and "
            f"max_leaves={max_leaves}: the tree has depth {tree.depth}, widen the bounds"
        )
    return iter(splits)


def _indices(tree: Tree, env: Any) -> NDArray[np.int64]:
    labels = env if hasattr(env, "__len__") else list(env)
    return align_env(tree, labels, RowOrder(len(labels))).numpy()


def _split(tree: Tree, index: NDArray[np.int64], nodes: NDArray[np.int64]) -> Split:
    test = np.isin(index, nodes)
    leaves = np.intersect1d(nodes, tree.leaf_index.numpy())  # sorted: the tree's order
    return Split(~test, test, tuple(tree.nodes[leaf] for leaf in leaves.tolist()))
