"""From arcs in any order to a tree in level order, or to an error that names the culprit."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import networkx as nx

from pyro_tbr.errors import TreeError, warn_user
from pyro_tbr.tree.readers.naming import (
    arc_text,
    is_blank,
    is_missing,
    listed,
    listed_texts,
    refuse_rounded,
    repeated,
    warn_of_missing_as_text,
)

Arc = tuple[Hashable, Hashable]
Name = TypeVar("Name", bound=Hashable)

_NOTHING: Mapping[Any, Any] = MappingProxyType({})
_ROUNDING = 1e-6  # a length not further below zero is a rounding error of a tree builder


class TreeParts(NamedTuple):
    """The arguments of :class:`~pyro_tbr.tree.Tree`, checked and in level order."""

    nodes: Sequence[Hashable]
    parents: Sequence[int]
    lengths: Sequence[float | None]
    labels: Mapping[Hashable, str] = _NOTHING
    support: Mapping[Hashable, float] = _NOTHING

    @property
    def arcs(self) -> tuple[tuple[Hashable, Hashable], ...]:
        """(parent, child) of every arc, in the order of the children among the nodes."""
        pairs = zip(self.parents, self.nodes[1:], strict=True)
        return tuple((self.nodes[parent], child) for parent, child in pairs)

    def below(self, first: int, stop: int) -> range:
        """Places of the children of a run of nodes: a run too, as parents never decrease."""
        start = bisect_left(self.parents, first) + 1
        return range(start, bisect_right(self.parents, stop - 1) + 1)

    def text(self, place: int) -> str:
        """The text to show for a node."""
        node = self.nodes[place]
        return self.labels.get(node) or str(node)


def arrange(
    argument: str,
    arcs: Sequence[Arc],
    lengths: Sequence[Any],
    *,
    nodes: Iterable[Hashable] = (),
    turn_round: str,
    only_children: str | None = None,
) -> TreeParts:
    """Checks that arcs form a rooted tree and puts them in level order. Linear in the arcs.

    Args:
        argument: What the user gave, for the messages.
        arcs: (parent, child) in any order; siblings stay in the order given.
        lengths: One per arc in any unit; None, NaN or ``pd.NA`` where not known.
        nodes: Nodes that may be without arcs: a second root among them is an error.
        turn_round: How to reverse the arcs, told where they seem to run from child to parent.
        only_children: What it may mean that no node of several trees has two children.
    """
    nodes = list(nodes)
    _check_labels(argument, arcs, nodes)
    nodes = list(dict.fromkeys([*nodes, *(node for arc in arcs for node in arc)]))
    if not arcs:
        alone = f"one node, {nodes[0]!r}" if len(nodes) == 1 else f"{len(nodes)} nodes"
        raise TreeError(
            f"{argument}: a tree needs at least one arc, received {alone} and no arc; give a root "
            "and at least one environment below it"
        )
    _check_degrees(argument, arcs, turn_round)
    length_of = dict(zip((child for _, child in arcs), lengths, strict=True))
    roots = [node for node in nodes if node not in length_of]
    if len(roots) > 1:
        way_out = "put one node above them or keep one of the trees"
        if only_children is not None and len({parent for parent, _ in arcs}) == len(arcs):
            way_out = f"and no node has two children: {only_children}"
        raise TreeError(
            f"{argument}: a tree has one root, but {len(roots)} nodes have no parent: "
            f"{listed(roots)}; {way_out}"
        )
    order, parents = level_order(roots[0], arcs) if roots else ([], [])
    if len(order) < len(nodes):
        cycle = [parent for parent, _ in nx.find_cycle(nx.DiGraph(arcs))]
        raise TreeError(
            f"{argument}: {len(cycle)} nodes form a cycle: "
            f"{listed_texts([repr(node) for node in cycle], ' -> ')} -> {cycle[0]!r}; remove one "
            "of its arcs"
        )
    warn_of_missing_as_text(argument, roots)  # the parent of the root, it may be
    return with_lengths(argument, TreeParts(order, parents, [length_of[n] for n in order[1:]]))


def level_order(root: Name, arcs: Iterable[tuple[Name, Name]]) -> tuple[list[Name], list[int]]:
    """Nodes below and at the root, level by level; for each but the root, its parent's place."""
    children: dict[Name, list[Name]] = {}
    for parent, child in arcs:
        children.setdefault(parent, []).append(child)
    order, parents = [root], list[int]()
    for place, node in enumerate(order):  # grows while it is walked
        below = children.get(node, ())
        order += below
        parents += [place] * len(below)
    return order, parents


def with_lengths(argument: str, tree: TreeParts) -> TreeParts:
    """The tree with lengths as floats, None where missing; rounding errors below zero become zero.

    Raises:
        TreeError: A length is no finite number.
    """
    usable: list[float | None] = []
    clipped, bad = [], []
    for arc, length in zip(tree.arcs, tree.lengths, strict=True):
        number = float(length) if isinstance(length, Real) else math.nan
        if is_missing(length):
            usable.append(None)
        elif not math.isfinite(number):
            bad.append(f"{arc_text(*arc)} ({length!r})")
        elif -_ROUNDING <= number < 0:
            usable.append(0.0)
            clipped.append(f"{arc_text(*arc)} ({number:g})")
        else:
            usable.append(number)
    if bad:
        raise TreeError(
            f"{argument}: {len(bad)} of {len(tree.parents)} arcs have a length that is no finite "
            f"number: {listed_texts(bad)}; use numbers, and None or NaN where a length is not known"
        )
    if clipped:
        warn_user(
            f"{argument}: {len(clipped)} of {len(tree.parents)} arc lengths are below 0 by less "
            f"than {_ROUNDING:g} and taken as 0: {listed_texts(clipped)}"
        )
    return tree._replace(lengths=usable)


def _check_labels(argument: str, arcs: Sequence[Arc], nodes: Sequence[Hashable]) -> None:
    bad = []
    placed = [(label, f"arc {place}") for place, arc in enumerate(arcs) for label in arc]
    for label, place in placed + [(node, f"node {place}") for place, node in enumerate(nodes)]:
        try:
            hash(label)
        except TypeError:
            bad.append(f"{label!r} in {place} ({type(label).__name__} is not hashable)")
            continue
        if is_blank(label):
            bad.append(f"{label!r} in {place}")
    if bad:
        raise TreeError(
            f"{argument}: {len(bad)} labels are missing or cannot be used: {listed_texts(bad)}; "
            "name every node by text, a number or a tuple of these"
        )
    for end in (0, 1):
        refuse_rounded(argument, (arc[end] for arc in arcs), "arc")
    refuse_rounded(argument, nodes, "node")


def _check_degrees(argument: str, arcs: Sequence[Arc], turn_round: str) -> None:
    loops = list(dict.fromkeys(parent for parent, child in arcs if parent == child))
    if loops:
        raise TreeError(
            f"{argument}: {len(loops)} nodes have an arc to themselves (self loop): "
            f"{listed(loops)}; remove these arcs"
        )
    if parallel := repeated(arcs):
        texts = [f"{arc_text(*arc)} ({count} times)" for arc, count in parallel.items()]  # type: ignore[misc]
        raise TreeError(
            f"{argument}: {len(parallel)} arcs are given more than once (parallel arcs): "
            f"{listed_texts(texts)}; give every arc, and every leaf, once"
        )
    above: dict[Hashable, list[Hashable]] = {}
    for parent, child in arcs:
        above.setdefault(child, []).append(parent)
    texts = [f"{child!r} has {len(up)}: {listed(up, 4)}" for child, up in above.items() if up[1:]]
    if texts:
        num_parents, num_nodes = len({parent for parent, _ in arcs}), len(set().union(*arcs))
        way_out = "drop arcs, or split these nodes"
        if num_parents == len(arcs) == num_nodes - 1:
            way_out = f"the arcs seem to run from child to parent: {turn_round}"
        raise TreeError(
            f"{argument}: a node of a tree has one parent, but {len(texts)} have more: "
            f"{listed_texts(texts, '; ')}; {way_out}"
        )
