"""The tree of environments: nodes in level order, arcs, lengths. It never changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from pyro_tbr.errors import TreeError
from pyro_tbr.markup import block, fragment, paragraph
from pyro_tbr.tree.forms import TreeForms
from pyro_tbr.tree.readers.arrange import TreeParts
from pyro_tbr.tree.readers.drawing import draw_tree
from pyro_tbr.tree.readers.naming import arc_text, listed_texts, same_kind, unknown_label

Node = Hashable
_MOST_LINES = 60  # of a drawing in a notebook


class Tree(TreeForms):
    r"""A rooted tree of environments, with at least one arc.

    Make one with :meth:`from_parents` and the like, which check what they are given and put the
    nodes in order. The constructor takes nodes that are in order.

    Nodes stand in level order: the root, its children, their children, siblings in the order
    given. So nodes of one level are contiguous, siblings are contiguous, a parent comes before
    its children, and arc ``a`` leads into node ``a + 1``. Two trees are equal if nodes (in order),
    arcs and lengths are.

    Args:
        nodes: Node labels in level order, any hashable objects; they are kept as they are.
        parents: For nodes 1, 2, ...: index of the parent, never decreasing.
        lengths: Arc lengths in any unit, one per arc, None where unknown; all None if left out.
        labels: Text to show for a node, where it is not the text of the node itself.
        support: Support of a node, for trees that come with it, as in ``((A,B)95,C);``.

    Raises:
        TreeError: The arguments are not a tree in level order.

    Example:
        >>> tree = Tree.from_parents({"T": "lymphoid", "B": "lymphoid",
        ...                           "lymphoid": "blood", "mono": "blood"})
        >>> tree
        Tree(5 nodes, 3 leaves, depth 2, root 'blood')
        >>> tree.arcs
        (('blood', 'lymphoid'), ('blood', 'mono'), ('lymphoid', 'T'), ('lymphoid', 'B'))
        >>> tree.path("B")
        [0, 3]
    """

    nodes: tuple[Node, ...]
    lengths: tuple[float | None, ...]
    support: Mapping[Node, float]
    _parents: tuple[int, ...]
    _index: dict[Node, int]
    _labels: dict[Node, str]  # as written in Newick text, "" for none, where it is not the node
    _derived: dict[Any, Any]  # tensors made from the tree, by device; no part of its value

    def __init__(
        self,
        nodes: Iterable[Node],
        parents: Iterable[int] | None = None,
        lengths: Iterable[float | None] | None = None,
        labels: Mapping[Node, str] | None = None,
        support: Mapping[Node, float] | None = None,
    ):
        if parents is None:
            raise TreeError(
                f"nodes: {type(nodes).__name__} alone is no tree: use Tree.from_parents"
                "({child: parent}), from_children({parent: [children]}), from_newick, "
                "from_networkx, from_taxonomy or from_linkage"
            )
        nodes, parents = tuple(nodes), tuple(int(parent) for parent in parents)
        lengths = (None,) * len(parents) if lengths is None else tuple(lengths)
        index = {node: i for i, node in enumerate(nodes)}
        in_order = all(0 <= parent <= arc for arc, parent in enumerate(parents)) and all(
            first <= second for first, second in zip(parents, parents[1:], strict=False)
        )
        if not (parents and in_order and len(nodes) == len(index) == len(parents) + 1):
            raise TreeError(
                f"nodes and parents are no tree in level order: {len(nodes)} nodes, {len(index)} "
                f"of them distinct, {len(parents)} parents; use Tree.from_parents, which sorts"
            )
        if len(lengths) != len(parents):
            raise TreeError(f"lengths: {len(lengths)} given for {len(parents)} arcs")
        names, support = dict(labels or {}), MappingProxyType(dict(support or {}))
        self.__dict__.update(nodes=nodes, lengths=lengths, support=support, _parents=parents)
        self.__dict__.update(_parts=TreeParts(nodes, parents, lengths, names, support))
        self.__dict__.update(_labels=names, _index=index, _derived={})

    @classmethod
    def _of(cls, parts: TreeParts) -> Self:
        return cls(*parts)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Tree never changes: cannot set {name!r}; build another tree")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Tree never changes: cannot delete {name!r}")

    @property
    def root(self) -> Node:
        """The node without a parent."""
        return self.nodes[0]

    @property
    def num_nodes(self) -> int:
        """``V``, one more than arcs."""
        return len(self.nodes)

    @property
    def num_arcs(self) -> int:
        """``A``."""
        return len(self._parents)

    @property
    def num_leaves(self) -> int:
        """``L``, nodes without children."""
        return len(self.leaves)

    @property
    def depth(self) -> int:
        """Arcs on the longest path from the root."""
        return len(self.levels) - 1

    @cached_property
    def arcs(self) -> tuple[tuple[Node, Node], ...]:
        """(parent, child) of every arc, in the order of the children among the nodes."""
        return self._parts.arcs

    @cached_property
    def leaves(self) -> tuple[Node, ...]:
        """Nodes without children, in node order."""
        return tuple(self.nodes[i] for i in self.leaf_index.tolist())

    @cached_property
    def leaf_index(self) -> Tensor:
        """Node index of every leaf, ``(L,)`` int64 on the CPU."""
        inner = set(self._parents)
        return _indices(i for i in range(self.num_nodes) if i not in inner)

    @cached_property
    def arc_parent(self) -> Tensor:
        """Node index of every arc's parent, ``(A,)`` int64 on the CPU."""
        return _indices(self._parents)

    @cached_property
    def arc_child(self) -> Tensor:
        """Node index of every arc's child: 1, 2, ..., A. ``(A,)`` int64 on the CPU."""
        return _indices(range(1, self.num_nodes))

    @cached_property
    def levels(self) -> tuple[slice, ...]:
        """Nodes of every level as a slice into the nodes; the first holds the root alone."""
        levels = [slice(0, 1)]
        while levels[-1].stop < self.num_nodes:
            levels.append(self._below(levels[-1]))
        return tuple(levels)

    @cached_property
    def labels(self) -> Mapping[Node, str]:
        """The text to show for every node; inner nodes may share one."""
        texts = map(self._parts.text, range(self.num_nodes))
        return MappingProxyType(dict(zip(self.nodes, texts, strict=True)))

    @cached_property
    def has_lengths(self) -> bool:
        """Whether every arc has a length that is not negative."""
        return all(length is not None and length >= 0 for length in self.lengths)

    def require_lengths(self) -> tuple[float, ...]:
        """The arc lengths, none of them negative, for those who cannot do without.

        Raises:
            TreeError: An arc has no length, or a negative one; the message names the arcs.
        """
        bad = [
            f"{arc_text(*arc)} ({'no length' if length is None else f'length {length:g}'})"
            for arc, length in zip(self.arcs, self.lengths, strict=True)
            if length is None or length < 0
        ]
        if bad:
            raise TreeError(
                f"lengths: {len(bad)} of {self.num_arcs} arcs have no length or a negative one: "
                f"{listed_texts(bad)}; give every arc a length of 0 or more, or do without lengths"
            )
        return tuple(length for length in self.lengths if length is not None)

    def index(self, node: Node) -> int:
        """Place of a node among ``nodes``.

        Raises:
            TreeError: No such node; the message names the nearest one.
        """
        place = self.find(node)
        if place is None:
            raise TreeError(f"node: {unknown_label(node, self.nodes, 'nodes')}")
        return place

    def find(self, node: Node) -> int | None:
        """Place of a node among ``nodes``; None where there is no such node."""
        try:
            place = self._index[node]
        except (KeyError, TypeError):  # TypeError: not hashable
            return None
        return place if same_kind(node, self.nodes[place]) else None

    def path(self, node: Node) -> list[int]:
        """Arcs (indices) from the root to a node, the one at the root first."""
        arcs, i = [], self.index(node)
        while i:
            arcs.append(i - 1)
            i = self._parents[i - 1]
        return arcs[::-1]

    def parent(self, node: Node) -> Node | None:
        """The node above; None for the root."""
        i = self.index(node)
        return self.nodes[self._parents[i - 1]] if i else None

    def children(self, node: Node) -> tuple[Node, ...]:
        """The nodes right below, in node order; none for a leaf."""
        i = self.index(node)
        return self.nodes[self._below(slice(i, i + 1))]

    def arcs_below(self, node: Node) -> tuple[tuple[Node, Node], ...]:
        """(parent, child) of every arc of a clade, in arc order; none for a leaf."""
        i, places = self.index(node), list[int]()
        block = slice(i, i + 1)
        while block.start < block.stop:
            block = self._below(block)
            places += range(block.start - 1, block.stop - 1)
        return tuple(self.arcs[place] for place in places)

    def descendant_leaves(self, node: Node) -> tuple[Node, ...]:
        """The leaves at or below a node, in node order; a leaf has itself."""
        i = self.index(node)
        block, found = slice(i, i + 1), []
        while block.start < block.stop:
            below = self._below(block)
            inner = set(self._parents[below.start - 1 : below.stop - 1])
            found += [j for j in range(block.start, block.stop) if j not in inner]
            block = below
        return tuple(self.nodes[j] for j in found)

    def _below(self, block: slice) -> slice:
        """Children of a run of nodes, a run too."""
        below = self._parts.below(block.start, block.stop)
        return slice(below.start, below.stop)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tree):
            return NotImplemented
        return self is other or self._value == other._value

    def __hash__(self) -> int:
        return self._hash

    @property
    def _value(self) -> tuple[object, ...]:
        return self.nodes, self._parents, self.lengths

    @cached_property
    def _hash(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tree, (*self._value, self._labels, dict(self.support))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tree:
        return self  # nothing in it changes

    def _repr_html_(self) -> str:
        drawing = "\n".join(draw_tree(self._parts, _MOST_LINES))
        return fragment(paragraph(repr(self)), block(drawing))

    def __repr__(self) -> str:
        return (
            f"Tree({self.num_nodes} nodes, {self.num_leaves} leaves, depth {self.depth}, "
            f"root {self.root!r})"
        )


def _indices(values: Iterable[int]) -> Tensor:
    """An int64 tensor that can be used anywhere later, whatever mode is on now."""
    with torch.inference_mode(False):
        return torch.tensor(list(values), dtype=torch.int64, device="cpu")
