"""Newick text: reading it into a tree with unique names, and writing what reads back the same."""

import math
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain, count
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_tbr.errors import TreeError
from pyro_tbr.tree.readers.arrange import TreeParts, level_order, with_lengths
from pyro_tbr.tree.readers.naming import (
    is_missing,
    listed,
    refuse_repeated,
    same_kind,
    written_names,
)
from pyro_tbr.tree.readers.newick_parser import NUMBER, Draft

STYLES = {"nhx": ("[&&NHX:", ":"), "beast": ("[&", ",")}  # how comments open, what is between

_RESERVED = re.compile(r"[\s\[\]{}()'\",:;=&]+")
_NEEDS_QUOTES = re.compile(r"[\s()\[\]',:;]")


def read_newick(text_or_path: str | os.PathLike[str]) -> TreeParts:
    """A tree from Newick text, or from the file of that name: see ``Tree.from_newick``."""
    draft = Draft(_load(text_or_path))
    order, parents = level_order(0, zip(draft.parents[1:], count(1), strict=False))
    written, inner = [draft.names[i] for i in order], set(parents)
    refuse_repeated(
        "newick",
        "leaf names ",
        [name for place, name in enumerate(written) if place not in inner],
        "give every leaf its own name, as rows labelled so could belong to either",
    )
    is_support = [
        place in inner and not draft.quoted[i] and bool(NUMBER.fullmatch(written[place]))
        for place, i in enumerate(order)
    ]
    nodes = _unique_names(written, inner, is_support)
    texts = list(zip(nodes, written, is_support, strict=True))
    labels = {node: name for node, name, _ in texts if node != name}
    support = {node: float(name) for node, name, is_number in texts if is_number}
    lengths = [draft.lengths[i] for i in order[1:]]
    return with_lengths("newick", TreeParts(nodes, parents, lengths, labels, support))


def write_newick(tree: TreeParts, comments: Any = None, *, style: str = "nhx") -> str:
    """Newick text of a tree: see ``Tree.to_newick``."""
    beside = _node_comments(tree, comments, style)
    written_names(tree.nodes)
    below: list[list[str]] = [[] for _ in tree.nodes]  # texts of the children, the last one first
    for place, (node, comment) in reversed(list(enumerate(zip(tree.nodes, beside, strict=True)))):
        name = tree.labels.get(node, str(node))
        number = below[place] and NUMBER.fullmatch(name) and node not in tree.support
        if number or _NEEDS_QUOTES.search(name):
            name = "'" + name.replace("'", "''") + "'"
        length = tree.lengths[place - 1] if place else None
        after = ["" if length is None else f":{length!r}", comment]
        inner = f"({','.join(reversed(below[place]))})" if below[place] else ""
        text = inner + name + "".join(after if style == "nhx" else reversed(after))
        below[place] = [text]
        if place:
            below[tree.parents[place - 1]].append(text)
    return f"{below[0][0]};"


def _unique_names(
    written: Sequence[str], inner: Set[int], is_support: Sequence[bool]
) -> list[Hashable]:
    """A name of its own for every node: leaves keep theirs, inner nodes if it is still free."""
    taken, used = set(written), {name for i, name in enumerate(written) if i not in inner}
    numbers: dict[str, Iterator[int]] = {}
    names: list[Hashable] = []
    for place, name in enumerate(written):
        generated = not name or is_support[place]
        if place in inner and (generated or name in used):
            stem, first = ("inner", 1) if generated else (f"{name}#", 2)
            numbered = (f"{stem}{n}" for n in numbers.setdefault(stem, count(first)))
            candidates = chain(["root"] if generated and not place else [], numbered)
            name = next(candidate for candidate in candidates if candidate not in taken)
        used.add(name)
        names.append(name)
    return names


def _node_comments(tree: TreeParts, comments: Any, style: str) -> list[str]:
    """A comment for every node, in node order, empty where there is nothing to say.

    ``comments`` go by node, or by arc for its child: a mapping or Series of single values, a
    mapping of mappings, or a DataFrame whose columns are the keys.
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


def _load(text_or_path: str | os.PathLike[str]) -> str:
    if not isinstance(text_or_path, str | os.PathLike):
        raise TreeError(
            f"newick: expected text or a path, received {type(text_or_path).__name__}; for "
            "tables use Tree.from_parents, for graphs Tree.from_networkx"
        )
    text = os.fspath(text_or_path)
    if not isinstance(text_or_path, str) or os.path.isfile(text):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TreeError(
                f"newick: the file {text!r} is no text in UTF-8, as byte {error.start + 1} shows; "
                "unpack it if it is compressed, or save it anew in UTF-8"
            ) from error
    elif text and not re.search(r"[(;]", text):
        raise TreeError(
            f"newick: {text[:60]!r} is no file and no Newick text, which has brackets and ends "
            "with ';'; check the path (relative to the working directory)"
        )
    if text.lstrip()[:6].upper() == "#NEXUS":
        raise TreeError(
            "newick: a NEXUS file, which holds more than a tree; give the Newick text after "
            "'tree ... =' in it"
        )
    return text.removeprefix("\ufeff")  # the byte order mark of some editors
