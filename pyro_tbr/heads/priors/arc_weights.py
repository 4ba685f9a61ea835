"""What is known of single arcs before the data: some are likelier to change, some never do."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from numbers import Real
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.tree import Tree
from pyro_tbr.tree.readers.naming import arc_text, listed_texts, unknown_label


def as_arc_weights(given: Any) -> dict[Hashable, float] | None:
    """Weights by arc as the user gives them, checked but for the arcs, which need a tree.

    Args:
        given: A mapping from arcs, ``(parent, child)`` or ``child``, to numbers from 0 on, or a
            Series with such an index; ``None``: none.

    Raises:
        DataError: No such mapping, or a weight that is no number from 0 on.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping | pd.Series):
        raise DataError(
            f"arc_weights={given!r} is no mapping from arcs to weights: give "
            "{('blood', 'B'): 3.0}, or {'B': 3.0} for the arc into 'B'"
        )
    weights = dict(given.items())
    for arc, weight in weights.items():
        number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not number or not 0 <= float(weight) < math.inf:
            raise DataError(
                f"arc_weights: {arc!r} has the weight {weight!r}: give a number, 0 (never "
                "changes) or more, 1 being what other arcs have"
            )
    return {arc: float(weight) for arc, weight in weights.items()}


def as_arcs(given: Any, argument: str) -> list[Hashable] | None:
    """Arcs as the user gives them, checked but for what needs a tree; ``None`` stays.

    Raises:
        DataError: A text or a number rather than several arcs.
    """
    if given is None:
        return None
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError(
            f"{argument}={given!r} is no list of arcs: give [('blood', 'B'), ...], or ['B', ...] "
            "for the arcs into these nodes"
        )
    return list(given)


def weights_of_arcs(
    tree: Tree,
    weights: Mapping[Hashable, float] | None,
    only: Iterable[Hashable] | None,
    never: Iterable[Hashable] | None,
) -> Tensor:
    """The weight of every arc, (A,): 1 where nothing is said, 0 where it never changes.

    Args:
        tree: The environments.
        weights: By arc, see :func:`as_arc_weights`.
        only: Arcs that may change, no others; ``None``: all may.
        never: Arcs that never change.

    Raises:
        TreeError: Arcs that the tree has not.
        DataError: An arc is named twice, or said to change and never to change.
    """
    found = torch.ones(tree.num_arcs)
    if weights is not None:
        places = _places(tree, weights, "arc_weights")
        found[places] = torch.tensor(list(weights.values()))
    if only is not None:
        free = torch.zeros(tree.num_arcs, dtype=torch.bool)
        free[_places(tree, only, "only_arcs")] = True
        found = torch.where(free, found, 0.0)
    if never is not None:
        still = _places(tree, never, "never_arcs")
        both = sorted(set(still) & set([] if only is None else _places(tree, only, "only_arcs")))
        if both:
            shown = [arc_text(*tree.arcs[place]) for place in both]
            raise DataError(
                f"never_arcs and only_arcs both name {listed_texts(shown)}: leave them out of one"
            )
        found[still] = 0.0
    return found


def _places(tree: Tree, arcs: Iterable[Hashable], argument: str) -> list[int]:
    """Number of each arc, by both of its ends or by its child."""
    arcs = list(arcs)
    places = [_place(tree, arc) for arc in arcs]
    wrong = [arc for arc, place in zip(arcs, places, strict=True) if place is None]
    if wrong:
        raise TreeError(
            f"{argument}: {len(wrong)} of {len(arcs)} are no arcs of the tree: "
            f"{listed_texts([_wrong(tree, arc) for arc in wrong])}; give (parent, child), or the "
            "child alone"
        )
    found = [place for place in places if place is not None]
    twice = sorted({place for place in found if found.count(place) > 1}) if arcs else []
    if twice:
        shown = [arc_text(*tree.arcs[place]) for place in twice]
        raise DataError(f"{argument} names {listed_texts(shown)} more than once: once is enough")
    return found


def _place(tree: Tree, arc: Any) -> int | None:
    """Number of an arc; ``None`` where it is none. A label that is itself a pair is a label."""
    node = tree.find(arc)
    if node is not None:
        return node - 1 if node else None
    if isinstance(arc, tuple) and len(arc) == 2:
        parent, child = (tree.find(end) for end in arc)
        if parent is not None and child and int(tree.arc_parent[child - 1]) == parent:
            return child - 1
    return None


def _wrong(tree: Tree, arc: Any) -> str:
    """An arc that the tree has not, and why."""
    if tree.find(arc) == 0:
        return f"{arc!r} is the root, no arc leads into it"
    if not (isinstance(arc, tuple) and len(arc) == 2):
        return unknown_label(arc, tree.nodes, "nodes")
    for end in arc:
        if tree.find(end) is None:
            return f"{arc_text(*arc)}: {unknown_label(end, tree.nodes, 'nodes')}"
    return f"{arc_text(*arc)}: the parent of {arc[1]!r} is {tree.parent(arc[1])!r}"
