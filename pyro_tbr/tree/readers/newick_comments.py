"""What is written beside the nodes of Newick text, in square brackets that readers may skip."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping
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
    places: dict[Hashable, int] = {arc: place for place, arc in enumerate(tree.arcs, start=1)}
    places |= {node: place for place, node in enumerate(tree.nodes)}  # also one that is a pair
    unknown = []
    for key, values in _entries(comments):
        place = places.get(key)
        node = None if place is None else tree.nodes[place]
        label = key if key == node or not isinstance(key, tuple) else key[1]
        if place is None or not same_kind(label, node):
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


def _entries(comments: Any) -> Iterable[tuple[Hashable, Mapping[Any, Any]]]:
    if isinstance(comments, pd.DataFrame):
        rows = comments.to_numpy(dtype=object)
        dicts = [dict(zip(comments.columns, row, strict=True)) for row in rows]
        return zip(comments.index, dicts, strict=True)
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


def _word(key: Any) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return "_".join(_RESERVED.sub("_", str(part)) for part in parts)


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, Real) and math.isfinite(number := float(value)):
        return str(int(number)) if number.is_integer() else f"{number:.4g}"
    return _RESERVED.sub("_", str(value))
