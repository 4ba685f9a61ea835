"""What an inner node without a name of its own is, said by the leaves below it."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from pyro_tbr.tree.readers.arrange import TreeParts

# Names that readers and other programs give to nodes that have none.
_NUMBERED = re.compile(
    r"(inner|internal|cluster|clade|node|anc|n)?[\s_#.-]*[0-9]+(\.[0-9]+)?", re.IGNORECASE
)
_FEW = 3  # leaves that are all named


def clade_text(parts: TreeParts, place: int) -> str:
    """See ``Tree.describe``; the node by its place."""
    node = parts.nodes[place]
    written = parts.labels.get(node, str(node))
    first, last = (_end(parts.parents, place, side) for side in (0, -1))
    if place in (0, first) or not (
        node in parts.support or not written or _NUMBERED.fullmatch(written)
    ):
        return written or str(node)
    number, few = _leaves_below(parts.parents, place)
    names = [_name(parts, leaf) for leaf in (few if number <= _FEW else [first, last])]
    which = ", ".join(names) if number <= _FEW else f"{number} leaves: {names[0]} to {names[1]}"
    return f"{node} ({which})"


def _children(parents: Sequence[int], place: int) -> range:
    """Places of the nodes right below: a run, as parents never decrease."""
    return range(bisect_left(parents, place) + 1, bisect_right(parents, place) + 1)


def _end(parents: Sequence[int], place: int, side: int) -> int:
    """The leaf that is first (side 0) or last (-1) in a drawing of the clade."""
    while below := _children(parents, place):
        place = below[side]
    return place


def _leaves_below(parents: Sequence[int], place: int) -> tuple[int, list[int]]:
    """How many leaves a clade has, and its first few in the order of a drawing."""
    number, few, open_nodes = 0, list[int](), [place]
    while open_nodes:
        node = open_nodes.pop()
        if below := _children(parents, node):
            open_nodes += reversed(below)
        else:
            number += 1
            few += [node] if len(few) < _FEW else []
    return number, few


def _name(parts: TreeParts, place: int) -> str:
    node: Any = parts.nodes[place]
    return parts.labels.get(node) or str(node)
