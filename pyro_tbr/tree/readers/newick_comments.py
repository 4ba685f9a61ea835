"""What is written beside the nodes of Newick text, in square brackets that readers may skip."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from pyro_tbr.errors import TreeError
from pyro_tbr.tree.parts import TreeParts
from pyro_tbr.tree.readers.naming import is_missing, listed, same_kind

STYLES = {"nhx": ("[&&NHX:", ":"), "beast": ("[&", ",")}  # how one opens, what is between

_RESERVED = re.compile(r"[\s\[\]{}()'\",:;=&]+")


def node_comments(tree: TreeParts, comments: Any, style: str) -> list[str]:
    """A comment for every node, in node order, empty where there is nothing to say.

    Args:
        tree: The tree.
        comments: By node, or by arc (parent, child) for the child: a mapping or Series of single
            values (written as ``value``), a mapping of mappings, or a DataFrame whose columns are
            the keys; levels of a key are joined by ``_``.
        style: ``"nhx"`` or ``"beast"``.

    Raises:
        TreeError: A style or form that is not known, or nodes that are not in the tree.
    """
    if style not in STYLES:
        raise TreeError(f"style: {style!r} is none of {listed(STYLES)}; use one of them")
    start, between = STYLES[style]
    texts = [""] * len(tree.nodes)
    if comments is None:
        return texts
    index = {node: place for place, node in enumerate(tree.nodes)}
    unknown = []
    for key, values in _entries(comments):
        place = _place(tree, index, key)
        if place is None:
            unknown.append(key)
            continue
        written = [f"{_word(name)}={_text(value)}" for name, value in values.items()
                   if not is_missing(value)]  # fmt: skip
        if written:
            texts[place] = f"{start}{between.join(written)}]"
    if unknown:
        raise TreeError(
            f"comments: {len(unknown)} keys are no node and no (parent, child) of the tree: "
            f"{listed(unknown)}; use the labels of tree.nodes or the pairs of tree.arcs"
        )
    return texts


def _entries(comments: Any) -> list[tuple[Hashable, Mapping[Any, Any]]]:
    if isinstance(comments, pd.DataFrame):
        table = comments.to_numpy(dtype=object)
        columns = list(comments.columns)
        return [
            (key, dict(zip(columns, row, strict=True)))
            for key, row in zip(comments.index, table, strict=True)
        ]
    if isinstance(comments, Mapping | pd.Series):
        name = getattr(comments, "name", None) or "value"
        return [
            (key, value if isinstance(value, Mapping) else {name: value})
            for key, value in comments.items()
        ]
    raise TreeError(
        f"comments: expected a table by node or by (parent, child), received "
        f"{type(comments).__name__}; give posterior.pips(), a DataFrame, a Series or a dict"
    )


def _place(tree: TreeParts, index: Mapping[Hashable, int], key: Hashable) -> int | None:
    """Of a node, or of the child of an arc; a node that is itself a pair goes first."""
    place = _find(tree, index, key)
    if place is None and isinstance(key, tuple) and len(key) == 2:
        place = _find(tree, index, key[1])
        if not place or tree.nodes[tree.parents[place - 1]] != key[0]:
            return None
    return place


def _find(tree: TreeParts, index: Mapping[Hashable, int], node: Hashable) -> int | None:
    place = index.get(node)
    return place if place is None or same_kind(node, tree.nodes[place]) else None


def _word(key: Any) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return "_".join(_RESERVED.sub("_", str(part)) for part in parts)


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, Real) and math.isfinite(number := float(value)):
        return str(int(number)) if number.is_integer() else f"{number:.4g}"
    return _RESERVED.sub("_", str(value))
