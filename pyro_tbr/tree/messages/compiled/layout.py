"""Where the compiled passes keep what: a folded tree as flat arrays, and room for its messages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_tbr.tree.messages.folding import FoldedTree

Ints = npt.NDArray[np.int64]


class FlatTree(NamedTuple):
    """A folded tree, its levels laid end to end: parents come before their children.

    Attributes:
        node: Index in ``tree.nodes`` of each place, V for a helper, (P,).
        arc: Index of the arc that leads there, A for a helper and the root, (P,).
        first: Place of the first child, -1 without children, (P,).
        second: Place of the second child, -1 with fewer, (P,).
    """

    node: Ints
    arc: Ints
    first: Ints
    second: Ints


class Room(NamedTuple):
    """Most components of messages, and where those of each place start.

    Attributes:
        node: Start of the messages at nodes, (P + 1,).
        arc: Of those seen from the parents, through the arcs, (P + 1,).
        pairs: Of the products of the children's components, where some are merged, (P + 1,).
        crossed: Of the node's components by class, where some are merged, (P + 1,).
        most: Most components before any merging.
    """

    node: Ints
    arc: Ints
    pairs: Ints
    crossed: Ints
    most: int


def flat_tree(folded: FoldedTree) -> FlatTree:
    """The levels laid end to end."""
    sizes = [len(level.node) for level in folded.levels]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    first, second = np.full(starts[-1], -1), np.full(starts[-1], -1)
    for depth, level in enumerate(folded.levels):
        pairs, inner = level.num_pairs, level.num_inner
        place = starts[depth] + np.arange(inner)
        below = starts[depth + 1] + level.children.cpu().numpy()
        first[place] = np.concatenate([below[:pairs], below[2 * pairs :]])
        second[place[:pairs]] = below[pairs : 2 * pairs]
    node, arc = (
        np.concatenate([getattr(level, name).cpu().numpy() for level in folded.levels])
        for name in ("node", "arc")
    )
    return FlatTree(node, arc, first, second)


def room(folded: FoldedTree, flat: FlatTree, cap: int, num_classes: int) -> Room:
    """Room for messages of at most ``cap`` components, those of the root of any number.

    A message has a component for each pattern of classes on the arcs below, at most; one that comes
    from a node without children has all of its arc's classes.
    """
    num_arcs = len(folded.anchor) - 1
    node, arc = np.ones(len(flat.node), np.int64), np.ones(len(flat.node), np.int64)
    pairs, crossed = np.zeros(len(flat.node), np.int64), np.zeros(len(flat.node), np.int64)
    most = 1
    stop = len(flat.node)
    for depth in reversed(range(len(folded.levels))):
        here = np.arange(stop - len(folded.levels[depth].node), stop)
        stop = here[0]
        one, two = flat.first[here], flat.second[here]
        before = np.where(one >= 0, arc[one], 1) * np.where(two >= 0, arc[two], 1)
        node[here] = before if depth == 0 else np.minimum(before, cap)
        pairs[here] = np.where(before > node[here], before, 0)
        through = np.where(flat.arc[here] < num_arcs, num_classes, 1) * node[here]
        arc[here] = np.where(one < 0, through, np.minimum(through, cap))
        crossed[here] = np.where(through > arc[here], through, 0)
        most = max(most, int(before.max()), int(through.max()))

    def starts(sizes: Ints) -> Ints:
        return np.concatenate([[0], np.cumsum(sizes)])

    return Room(starts(node), starts(arc), starts(pairs), starts(crossed), most)
