"""From arcs in any order to a tree in level order, or to an error that names the culprit."""

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TypeVar

from pyro_tbr.errors import DataWarning, TreeError
from pyro_tbr.tree.parts import TreeParts
from pyro_tbr.tree.readers.naming import (
    arc_text,
    is_missing,
    listed,
    listed_texts,
    refuse_rounded,
    repeated,
    warn_of_missing_as_text,
)

Arc = tuple[Hashable, Hashable]
Name = TypeVar("Name", bound=Hashable)

_ROUNDING = 1e-6  # a length not further below zero is a rounding error of a tree builder


def arrange(
    argument: str,
    arcs: Sequence[Arc],
    lengths: Sequence[object],
    *,
    nodes: Iterable[Hashable] = (),
    turn_round: str,
) -> TreeParts:
    """Checks that arcs form a rooted tree and puts them in level order. Linear in the arcs.

    Args:
        argument: What the user gave, for the messages.
        arcs: (parent, child) in any order; siblings stay in the order given.
        lengths: One per arc in any unit; None, NaN or ``pd.NA`` where not known.
        nodes: Nodes that may be without arcs: a second root among them is an error.
        turn_round: How to reverse the arcs, told where they seem to run from child to parent.

    Returns:
        The parts of the tree.

    Raises:
        TreeError: No arc, a missing or unusable label, self loop, parallel arcs, two parents,
            several roots, a cycle, or a length that is no number.

    Warns:
        DataWarning: A root called ``"nan"`` or so, and lengths a rounding error below zero.
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
    children: dict[Hashable, list[Hashable]] = {}
    for parent, child in arcs:
        children.setdefault(parent, []).append(child)
    has_parent = {child for _, child in arcs}
    roots = [node for node in nodes if node not in has_parent]
    if len(roots) > 1:
        raise TreeError(
            f"{argument}: a tree has one root, but {len(roots)} nodes have no parent: "
            f"{listed(roots)}; put one node above them or keep one of the trees"
        )
    order, parents = level_order(roots[0], children) if roots else ([], [])
    if len(order) < len(nodes):
        cycle = _find_cycle(arcs, set(nodes).difference(order))
        raise TreeError(
            f"{argument}: {len(cycle)} nodes form a cycle: "
            f"{listed_texts([repr(node) for node in cycle], ' -> ')} -> {cycle[0]!r}; remove one "
            "of its arcs"
        )
    warn_of_missing_as_text(argument, roots, stacklevel=4)  # the parent of the root, it may be
    by_child = dict(zip((child for _, child in arcs), lengths, strict=True))
    in_order = [(order[parent], child) for parent, child in zip(parents, order[1:], strict=True)]
    by_arc = [by_child[child] for _, child in in_order]
    return TreeParts(order, parents, usable_lengths(argument, in_order, by_arc, stacklevel=5))


def level_order(
    root: Name, children: Mapping[Name, Sequence[Name]]
) -> tuple[list[Name], list[int]]:
    """Nodes below and at the root, level by level; for each but the root, its parent's place."""
    order, parents = [root], list[int]()
    for place, node in enumerate(order):  # grows while it is walked
        below = children.get(node, ())
        order += below
        parents += [place] * len(below)
    return order, parents


def usable_lengths(
    argument: str, arcs: Sequence[Arc], lengths: Sequence[object], *, stacklevel: int
) -> list[float | None]:
    """Lengths as floats, None where missing; those a rounding error below zero become zero.

    Raises:
        TreeError: A length is no finite number.
    """
    usable: list[float | None] = []
    clipped, bad = [], []
    for arc, length in zip(arcs, lengths, strict=True):
        if is_missing(length):
            usable.append(None)
            continue
        number = float(length) if isinstance(length, Real) else math.nan
        if not math.isfinite(number):
            bad.append(f"{arc_text(*arc)} ({length!r})")
        elif -_ROUNDING <= number < 0:
            usable.append(0.0)
            clipped.append(f"{arc_text(*arc)} ({number:g})")
        else:
            usable.append(number)
    if bad:
        raise TreeError(
            f"{argument}: {len(bad)} of {len(arcs)} arcs have a length that is no finite number: "
            f"{listed_texts(bad)}; use numbers, and None or NaN where a length is not known"
        )
    if clipped:
        warnings.warn(
            f"{argument}: {len(clipped)} of {len(arcs)} arc lengths are below 0 by less than "
            f"{_ROUNDING:g} and taken as 0: {listed_texts(clipped)}",
            DataWarning,
            stacklevel=stacklevel,
        )
    return usable


def _check_labels(argument: str, arcs: Sequence[Arc], nodes: Sequence[Hashable]) -> None:
    bad = []
    placed = [(label, f"arc {place}") for place, arc in enumerate(arcs) for label in arc]
    for label, place in placed + [(node, f"node {place}") for place, node in enumerate(nodes)]:
        try:
            hash(label)
        except TypeError:
            bad.append(f"{label!r} in {place} ({type(label).__name__} is not hashable)")
            continue
        if is_missing(label) or (isinstance(label, str) and not label):
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
    parallel = repeated(arcs)
    if parallel:
        texts = [f"{arc_text(*arc)} ({count} times)" for arc, count in parallel.items()]  # type: ignore[misc]
        raise TreeError(
            f"{argument}: {len(parallel)} arcs are given more than once (parallel arcs): "
            f"{listed_texts(texts)}; give every arc, and every leaf, once"
        )
    parents: dict[Hashable, list[Hashable]] = {}
    for parent, child in arcs:
        parents.setdefault(child, []).append(parent)
    merged = {child: above for child, above in parents.items() if len(above) > 1}
    if not merged:
        return
    texts = [f"{child!r} has {len(up)}: {listed(up, 4)}" for child, up in merged.items()]
    num_nodes = len({node for arc in arcs for node in arc})
    single_child = len({parent for parent, _ in arcs}) == len(arcs)
    reversed_ = single_child and num_nodes == len(arcs) + 1
    way_out = (
        f"the arcs seem to run from child to parent: {turn_round}"
        if reversed_
        else "drop arcs, or split these nodes"
    )
    raise TreeError(
        f"{argument}: a node of a tree has one parent, but {len(merged)} have more: "
        f"{listed_texts(texts, '; ')}; {way_out}"
    )


def _find_cycle(arcs: Sequence[Arc], unreached: set[Hashable]) -> list[Hashable]:
    """Nodes of one cycle, in the direction of the arcs; every unreached node has a parent."""
    above = {child: parent for parent, child in arcs}
    node = next(child for _, child in arcs if child in unreached)
    seen: dict[Hashable, None] = {}
    while node not in seen:
        seen[node] = None
        node = above[node]
    upwards = list(seen)
    return upwards[upwards.index(node) :][::-1]
