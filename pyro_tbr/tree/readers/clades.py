"""What an inner node without a name of its own is, said by the leaves below it."""

import re

from pyro_tbr.tree.readers.arrange import TreeParts

# Names that readers and other programs give to nodes that have none.
_NUMBERED = re.compile(
    r"(inner|internal|cluster|clade|node|anc|n)?[\s_#.-]*[0-9]+(\.[0-9]+)?", re.IGNORECASE
)
_FEW = 3  # leaves that are all named


def clade_text(parts: TreeParts, place: int) -> str:
    """See ``Tree.describe``; the node by its place."""
    node, text = parts.nodes[place], parts.text(place)
    unwritten = node in parts.support or not parts.labels.get(node, text)
    own = not (unwritten or _NUMBERED.fullmatch(text))
    if own or place == 0 or not parts.below(place, place + 1):
        return text
    number, few = _leaves_below(parts, place)
    if number <= _FEW:
        return f"{node} ({', '.join(parts.text(leaf) for leaf in few)})"
    first, last = (parts.text(_end(parts, place, side)) for side in (0, -1))
    return f"{node} ({number} leaves: {first} to {last})"


def _end(parts: TreeParts, place: int, side: int) -> int:
    """The leaf that is first (side 0) or last (-1) in a drawing of the clade."""
    while below := parts.below(place, place + 1):
        place = below[side]
    return place


def _leaves_below(parts: TreeParts, place: int) -> tuple[int, list[int]]:
    """How many leaves a clade has, and its first few in the order of a drawing."""
    number, few, open_nodes = 0, list[int](), [place]
    while open_nodes:
        node = open_nodes.pop()
        if below := parts.below(node, node + 1):
            open_nodes += reversed(below)
        else:
            number += 1
            few += [node] if len(few) < _FEW else []
    return number, few
