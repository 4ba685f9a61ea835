"""A tree seen from any of its nodes: the arcs by their distance, each walked away from there."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.tree.path_sum import level_parents
from pyro_tbr.tree.tree import Tree


class WalkStep(NamedTuple):
    """Arcs of one distance from the start.

    Attributes:
        near: Node of each arc that is nearer to the start, (n,).
        far: The other one, (n,).
        arc: The arcs, (n,).
        sign: 1 where the arc is walked towards its child, -1 towards its parent, (n,) double.
        first: Where in the next step the arcs begin that go on from the far node, (n,).
        count: How many these are, (n,); they stand together.
    """

    near: Tensor
    far: Tensor
    arc: Tensor
    sign: Tensor
    first: Tensor
    count: Tensor  # type: ignore[assignment]


def walk_from(tree: Tree, start: int, arcs: Tensor | None = None) -> list[WalkStep]:
    """Steps from a node to all others, nearest first.

    Args:
        tree: The environments.
        start: Index of the node in ``tree.nodes``.
        arcs: (A,) bool, the arcs to walk; with an arc all those above it, and all those above the
            start. ``None``: all.

    Example:
        >>> tree = Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r"})
        >>> [(step.far.tolist(), step.sign.tolist()) for step in walk_from(tree, 3)]
        [([1], [-1.0]), ([0, 4], [-1.0, 1.0]), ([2], [1.0])]
    """
    up = [start]
    while up[-1]:
        up.append(int(tree.arc_parent[up[-1] - 1]))
    on_path = torch.zeros(tree.num_nodes, dtype=torch.bool)
    on_path[up] = True
    distance = torch.zeros(tree.num_nodes, dtype=torch.int64)
    distance[up] = torch.arange(len(up))
    sizes, parents = level_parents(tree, torch.device("cpu"))
    parts = list(distance.split(sizes))
    for level, parent in enumerate(parents, start=1):
        known = on_path.split(sizes)[level]
        parts[level] = torch.where(known, parts[level], parts[level - 1][parent] + 1)
    distance = torch.cat(parts)
    # Above the start an arc is walked to its parent, elsewhere to its child.
    child, parent = torch.arange(1, tree.num_nodes), tree.arc_parent
    upward = on_path[1:]
    near, far = torch.where(upward, child, parent), torch.where(upward, parent, child)
    sign = torch.where(upward, -1.0, 1.0).double()
    use = torch.ones_like(upward) if arcs is None else arcs.cpu()
    chosen = use.nonzero()[:, 0]
    # Level order puts siblings together, and on a walk upward there is one arc a step, beside those
    # down from the same node: sorting by the near node keeps all that go on from it together.
    order = chosen[near[chosen].argsort(stable=True)]
    order = order[distance[far[order]].argsort(stable=True)]
    groups = order.split(torch.bincount(distance[far[order]])[1:].tolist())
    steps = []
    for some, after in zip(groups, (*groups, order[:0])[1:], strict=True):
        starts = near[after].contiguous()
        first, last = (torch.searchsorted(starts, far[some], right=end) for end in (False, True))
        steps.append(WalkStep(near[some], far[some], some, sign[some], first, last - first))
    return steps
