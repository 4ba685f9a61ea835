"""The order in which messages run on a tree: folded to at most two children a node, by level.

Only the part of the tree at or above data is folded: below, weights follow without messages. A node
with many children is folded into a balanced binary tree of helpers, joined by arcs on which
nothing can change. So every product of messages has two factors, and a star of 20,000 leaves has
16 levels. Levels are small arrays of indices: the passes loop over levels, never over nodes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_tbr.tree.tree import Tree

_KEPT = 8  # folded trees that are remembered for one tree and device

MANY = 1 << 10
_STEPS = (1, 2, 3)  # larger numbers of arcs are MANY: few runs a level
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
_Runs = tuple[tuple[slice, int, int], ...]


class FoldedLevel(NamedTuple):
    """One level of a folded tree: nodes with two children, then with one, then without.

    Attributes:
        children: Places of the children in the level below: of the nodes with two first all larger
            ones, then all smaller ones, then those of the nodes with one;
            ``(2 * num_pairs + num_singles,)``.
        pair_runs: Runs of nodes with two children, and how many arcs each child has at or below
            its own at most: a message has a component for each pattern of classes on them, at most.
            ``MANY`` where there is no use in counting.
    """

    node: Tensor  # index in tree.nodes, V for a helper, (n,)
    arc: Tensor  # index of the arc that leads here, A for a helper and the root, (n,)
    parent: Tensor  # place in the level above, (n,); zero at the root
    slot: Tensor  # place among the children of the level above, (n,); zero at the root
    children: Tensor
    pair_runs: _Runs
    num_pairs: int  # nodes with two children
    num_singles: int  # nodes with one child
    num_inner: int  # both
    has_arcs: bool  # some arc into this level is one of the tree's
    has_helpers: bool


class FoldedTree(NamedTuple):
    """The levels, root first, and how to put per-level results back in the tree's order."""

    levels: tuple[FoldedLevel, ...]
    nodes: Tensor  # those of the tree that stand in the levels, in order, (M,)
    node_order: Tensor  # where each of them stands in the levels laid end to end, (M,)
    anchor: Tensor  # for each node the place in nodes of itself, or of the nearest above, (V,)

    @property
    def is_whole(self) -> bool:
        """Whether all nodes of the tree stand in the levels."""
        return len(self.nodes) == len(self.anchor)


def fold(tree: Tree, has_data: Tensor) -> FoldedTree:
    """Folds the part of a tree that is at or above data, ``(V,)``; the result stays with the tree.

    Polytomies and nodes with a single child are fine. Without any data the first arc stays.
    """
    data, device = has_data.cpu().numpy(), has_data.device
    kept: dict[bytes, FoldedTree] = tree._derived.setdefault(("folded", device), {})
    key = data.tobytes()
    if key not in kept:
        if len(kept) == _KEPT:
            kept.pop(next(iter(kept)))
        with torch.inference_mode(False):
            kept[key] = _fold(tree, data, device)
    return kept[key]


def _fold(tree: Tree, data: _Bools, device: torch.device) -> FoldedTree:
    above = np.concatenate([[0], tree.arc_parent.numpy()])  # the root is its own parent
    keep = data.copy()
    keep[:2] = True
    for level in reversed(tree.levels[1:]):
        np.logical_or.at(keep, above[level], keep[level])
    kept = np.flatnonzero(keep)
    place = np.cumsum(keep) - 1
    anchor = np.where(keep, place, 0)
    for level in tree.levels[1:]:
        anchor[level] = np.where(keep[level], anchor[level], anchor[above[level]])

    num_nodes, parents = len(kept), place[above[kept[1:]]]
    counts = np.bincount(parents, minlength=num_nodes)
    # Siblings are contiguous and in order of their parents, so children are runs of nodes.
    starts = 1 + np.concatenate([[0], np.cumsum(counts)[:-1]])
    levels = [slice(*np.searchsorted(kept, [level.start, level.stop])) for level in tree.levels]
    sizes_before = np.concatenate([[0], np.cumsum(_arcs_below(parents, levels))])

    # Every item of a level is a run [start, stop) of nodes: the children it has yet to split.
    node, parent, slot = (np.zeros(1, dtype=np.int64) for _ in range(3))
    start, stop = starts[:1], starts[:1] + counts[:1]
    items: list[dict[str, Any]] = []
    while len(node):
        middle = (start + stop) // 2
        middle = np.where(stop - start > 1, middle, stop)  # one child: it is the first one's half
        before, between, after = (sizes_before[edge] for edge in (start, middle, stop))
        large = _rounded(np.maximum(between - before, after - between))
        small = _rounded(np.minimum(between - before, after - between))
        # Nodes with two children, with one, with none; those with two by how much is below them.
        order = np.lexsort([large, small, -np.minimum(stop - start, 2)])
        node, parent, slot, start, middle, stop, large, small = (
            part[order] for part in (node, parent, slot, start, middle, stop, large, small)
        )
        pairs, inner = int((stop - start >= 2).sum()), int((stop - start >= 1).sum())
        items.append(
            {
                "node": node,
                "parent": parent,
                "slot": slot,
                "pair_runs": _runs(large[:pairs], small[:pairs]),
                "num_pairs": pairs,
                "num_singles": inner - pairs,
                "num_inner": inner,
            }
        )
        swap = (
            sizes_before[middle] - sizes_before[start] < sizes_before[stop] - sizes_before[middle]
        )
        # Where the larger half starts and stops, and the smaller one.
        halves = np.where(swap, [middle, stop, start, middle], [start, middle, middle, stop])
        parent, start, stop = (
            np.concatenate([one[:pairs], two[:pairs], one[pairs:inner]])
            for one, two in (
                (np.arange(len(node)), np.arange(len(node))),
                (halves[0], halves[2]),
                (halves[1], halves[3]),
            )
        )
        # A run of one is that node itself; a longer one is a helper.
        helper = stop - start > 1
        node = np.where(helper, num_nodes, start)
        slot = np.arange(len(node))
        real = np.where(helper, 0, node)
        start = np.where(helper, start, starts[real])
        stop = np.where(helper, stop, starts[real] + counts[real])
    return _as_levels(items, kept, anchor, device)


def _arcs_below(parents: _Ints, levels: list[slice]) -> _Ints:
    """Number of arcs at or below every node, its own included, ``(M,)``."""
    sizes = np.ones(len(parents) + 1, dtype=np.int64)
    for level in reversed(levels[1:]):
        np.add.at(sizes, parents[level.start - 1 : level.stop - 1], sizes[level])
    return sizes


def _rounded(sizes: _Ints) -> _Ints:
    """Numbers of arcs, or ``MANY``; never a larger one that is not, so that what lives leads."""
    return np.array([*_STEPS, MANY])[np.searchsorted(_STEPS, sizes)]


def _runs(large: _Ints, small: _Ints) -> _Runs:
    """Runs of nodes whose smaller children have the same number of arcs, and their largest."""
    edges = np.flatnonzero(np.diff(small)) + 1
    bounds = [0, *edges.tolist(), len(small)]
    return tuple(
        (slice(start, stop), int(large[start:stop].max()), int(small[start]))
        for start, stop in zip(bounds, bounds[1:], strict=False)
        if stop > start
    )


def _as_levels(
    items: list[dict[str, Any]], kept: _Ints, anchor: _Ints, device: torch.device
) -> FoldedTree:
    """The levels with the numbers of the whole tree's nodes and arcs, ``kept`` being those used."""
    num_nodes = len(anchor)
    number = np.concatenate([kept, [num_nodes]])  # of a helper: the last one
    all_nodes = np.concatenate([item["node"] for item in items])
    place = np.zeros(len(number), dtype=np.int64)
    place[all_nodes] = np.arange(len(all_nodes))

    def tensor(array: _Ints) -> Tensor:
        return torch.as_tensor(array, dtype=torch.int64, device=device)

    levels = []
    slots_below = [item["slot"] for item in items[1:]] + [np.zeros(0, dtype=np.int64)]
    for item, below in zip(items, slots_below, strict=True):
        item["node"] = node = number[item["node"]]
        item["arc"] = arc = np.where((node == 0) | (node == num_nodes), num_nodes - 1, node - 1)
        item["children"] = np.argsort(below)
        item["has_arcs"] = bool((arc < num_nodes - 1).any())
        item["has_helpers"] = bool((node == num_nodes).any())
        for name in ("node", "arc", "parent", "slot", "children"):
            item[name] = tensor(item[name])
        levels.append(FoldedLevel(**item))
    return FoldedTree(tuple(levels), tensor(kept), tensor(place[:-1]), tensor(anchor))
