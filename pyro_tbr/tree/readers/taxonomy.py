"""Trees from taxonomies: tables with a column for every rank, a row for every leaf or sample."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_tbr.errors import TreeError
from pyro_tbr.tree.readers.arrange import TreeParts, level_order
from pyro_tbr.tree.readers.naming import (
    as_text,
    free_name,
    is_blank,
    is_missing,
    listed,
    listed_texts,
    refuse_rounded,
    repeated,
    unknown_label,
    warn_of_missing_as_text,
)
from pyro_tbr.tree.readers.other_tables import as_pandas

GAPS = ("unclassified", "unknown", "unassigned")

_EMPTY_PREFIX = re.compile(r"[a-z]{1,2}__")  # GTDB and Greengenes write 'g__' for no genus
_SEPARATOR = "/"


def read_taxonomy(
    frame: pd.DataFrame,
    ranks: Sequence[Hashable],
    leaves: str | None = None,
    *,
    gaps: Iterable[str] = GAPS,
) -> TreeParts:
    """A tree from a table with one column a rank: see ``Tree.from_taxonomy``."""
    frame = as_pandas(frame, "frame", TreeError)
    columns = _columns(frame, ranks, leaves)
    if isinstance(gaps, str):
        raise TreeError(f"gaps: expected a list of words, received {gaps!r}; give [{gaps!r}]")
    words = frozenset(word.casefold() for word in gaps)
    draft = _Draft([None], [-1], np.zeros(len(frame), dtype=np.int64))
    for column in columns:
        draft = _with_rank(draft, *_known(frame[column], words))
    if leaves is not None:
        draft = _with_rank(draft, *_index_codes(frame.index))
    draft = _without_single_top(draft, columns[0])
    inner = set(draft.parents)
    _check_leaves(draft, inner)
    order, parents = level_order(0, zip(draft.parents[1:], count(1), strict=False))
    labels = _unique_labels(draft, inner)
    return TreeParts([labels[node] for node in order], parents, [None] * len(parents))


class _Draft(NamedTuple):
    """Nodes so far, parents before children."""

    names: list[Any]  # as in the table, not unique; None for a root the table does not name
    parents: list[int]  # places, -1 for the root at place 0
    lowest: NDArray[np.int64]  # for every row the place of its lowest node, (N,)


def _columns(frame: Any, ranks: Any, leaves: Any) -> list[Hashable]:
    if not isinstance(frame, pd.DataFrame):
        raise TreeError(
            f"frame: expected a DataFrame with a column a rank, received {type(frame).__name__}; "
            "for child -> parent use Tree.from_parents, for text Tree.from_newick"
        )
    if isinstance(ranks, str) or not isinstance(ranks, Iterable):
        raise TreeError(
            f"ranks: expected a list of columns, the coarsest first, received {ranks!r}; "
            f"give [{ranks!r}] if it is one column"
        )
    if leaves not in (None, "index"):
        raise TreeError(
            f"leaves: expected None (the last of ranks) or 'index', received {leaves!r}; to take "
            "them from another column, put it last in ranks"
        )
    columns = list(ranks)
    if not columns:
        raise TreeError("ranks: no column given; name at least one, the coarsest first")
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        hint = unknown_label(absent[0], list(frame.columns), "columns")
        raise TreeError(f"ranks: {len(absent)} of {len(columns)} are no column of frame: {hint}")
    twice = list(repeated(columns))
    twice += [column for column in columns if list(frame.columns).count(column) > 1]
    if twice:
        raise TreeError(
            f"ranks: {len(twice)} columns occur more than once: {listed(twice)}; give every rank "
            "one column"
        )
    if not len(frame):
        raise TreeError("frame: no rows, and a tree needs at least one arc; give a row a leaf")
    return columns


def _known(column: pd.Series, gaps: frozenset[str]) -> tuple[NDArray[np.int64], list[Any]]:
    """Codes of a rank's names (N,), -1 where a row does not know the rank, and the names."""
    if column.dtype.kind in "fO":
        refuse_rounded(f"frame, column {column.name!r}", column)
    try:
        codes, found = pd.factorize(column)
    except TypeError as error:
        raise TreeError(
            f"frame: names in column {column.name!r} must be hashable ({error}); use text"
        ) from error
    names = found.tolist()
    is_gap = np.array([_is_gap(name, gaps) for name in names] + [True])
    names = [None if gap else name for name, gap in zip(names, is_gap[:-1], strict=True)]
    warn_of_missing_as_text(f"frame, column {column.name!r}", names)
    if all(name is None or (isinstance(name, float) and name.is_integer()) for name in names):
        names = [None if name is None else int(name) for name in names]
    return np.where(is_gap[codes], -1, codes), names


def _is_gap(name: Any, gaps: frozenset[str]) -> bool:
    if not isinstance(name, str):
        return is_missing(name)
    text = name.strip().casefold()
    return not text or text in gaps or bool(_EMPTY_PREFIX.fullmatch(text))


def _index_codes(index: pd.Index) -> tuple[NDArray[np.int64], list[Any]]:
    """A code of its own for every row, and the labels of the index."""
    names = index.tolist()
    refuse_rounded("frame, index", names)
    missing = [row for row, name in enumerate(names) if is_blank(name)]
    if missing:
        raise TreeError(
            f"frame: {len(missing)} of {len(names)} rows have no label in the index, at rows "
            f"{listed(missing)} counted from 0; every leaf needs a name"
        )
    return np.arange(len(names)), names


def _with_rank(draft: _Draft, codes: NDArray[np.int64], names: list[Any]) -> _Draft:
    """The draft with a node for every name below every node that rows have it under."""
    rows = np.flatnonzero(codes >= 0)
    keys = draft.lowest[rows] * max(1, len(names)) + codes[rows]
    places, found = pd.factorize(keys)
    lowest = draft.lowest.copy()
    lowest[rows] = len(draft.names) + places
    above, name = np.divmod(np.asarray(found, dtype=np.int64), max(1, len(names)))
    return _Draft(
        draft.names + [names[code] for code in name.tolist()],
        draft.parents + above.tolist(),
        lowest,
    )


def _without_single_top(draft: _Draft, first: Hashable) -> _Draft:
    """The draft without its nameless root, where that has one child and no row of its own."""
    if len(draft.names) == 1:
        raise TreeError(
            f"frame: a tree needs at least one arc, but all {len(draft.lowest)} rows have gaps in "
            f"every rank, {first!r} the first; give rows that know one"
        )
    if draft.parents.count(0) > 1 or not draft.lowest.all():
        return draft
    if len(draft.names) == 2:
        raise TreeError(
            f"frame: a tree needs at least one arc, received one node, {draft.names[1]!r}; add "
            "leaves, or a finer rank"
        )
    return _Draft(draft.names[1:], [parent - 1 for parent in draft.parents[1:]], draft.lowest - 1)


def _check_leaves(draft: _Draft, inner: set[int]) -> None:
    places: dict[Hashable, list[int]] = {}
    for node, name in enumerate(draft.names):
        if node not in inner:
            places.setdefault(name, []).append(node)
    twice = {name: nodes for name, nodes in places.items() if len(nodes) > 1}
    if twice:
        texts = []
        for name, nodes in twice.items():
            above = [_path(draft, draft.parents[node]) or "root" for node in nodes]
            texts.append(f"{name!r} ({len(nodes)} times, below {listed(above, 3)})")
        raise TreeError(
            f"frame: {len(twice)} leaf names occur more than once: {listed_texts(texts)}; give "
            "every leaf its own name and one place, as rows labelled so could belong to either "
            "(leaves='index' takes names from the index)"
        )


def _path(draft: _Draft, node: int) -> str:
    texts = []
    while node >= 0 and draft.names[node] is not None:
        texts.append(as_text(draft.names[node]))
        node = draft.parents[node]
    return _SEPARATOR.join(reversed(texts))


def _unique_labels(draft: _Draft, inner: set[int]) -> list[Hashable]:
    """Leaves by their names, inner nodes by name if it is theirs alone, else by path."""
    times = Counter(draft.names)
    labels = [
        name if times[name] == 1 or node not in inner else None
        for node, name in enumerate(draft.names)
    ]
    used = {label for label in labels if label is not None}
    if draft.names[0] is None:
        labels[0] = free_name(["root"], used)
    shared = [(_path(draft, node), node) for node, label in enumerate(labels) if label is None]
    for path, node in sorted(shared):  # by path: labels must not hang on the order of rows
        labels[node] = free_name([path, f"root{_SEPARATOR}{path}"], used)
    return labels
