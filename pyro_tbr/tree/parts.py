"""What a tree is made of: the plain value that readers return and writers take."""

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class TreeParts(NamedTuple):
    """The arguments of :class:`~pyro_tbr.tree.Tree`, checked and in level order.

    Attributes:
        nodes: Labels, root first, ``V`` of them.
        parents: For nodes 1, 2, ...: place of the parent, never decreasing, ``A`` of them.
        lengths: One per arc in any unit, None where unknown; None if no arc has one.
        labels: The text written for a node, where it is not the text of the node itself.
        support: Support of a node, where it has one.
    """

    nodes: Sequence[Hashable]
    parents: Sequence[int]
    lengths: Sequence[float | None] | None = None
    labels: Mapping[Hashable, str] = _NOTHING
    support: Mapping[Hashable, float] = _NOTHING

    @property
    def arcs(self) -> tuple[tuple[Hashable, Hashable], ...]:
        """(parent, child) of every arc, in the order of the children among the nodes."""
        pairs = zip(self.parents, self.nodes[1:], strict=True)
        return tuple((self.nodes[parent], child) for parent, child in pairs)

    @property
    def arc_lengths(self) -> Sequence[float | None]:
        """A length per arc, None where unknown."""
        return (None,) * len(self.parents) if self.lengths is None else self.lengths
