"""Columns of labels apart from those of features, for rows that come as one table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pyro_tbr.data.matching import read_table
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.tree.readers.naming import listed


def split_columns(X: Any, columns: Mapping[str, Hashable]) -> tuple[Any, ...]:
    """Features of rows, and each column of labels.

    Args:
        X: A DataFrame, or a table that knows its columns, or one of rows and columns.
        columns: Name or position of each column of labels, by the argument that says which; in a
            DataFrame a name goes first.

    Raises:
        DataError: There is no such column, or two arguments mean the same one.
        ShapeError: ``X`` is no table.
    """
    X, _ = read_table(X, "X")
    frame = isinstance(X, pd.DataFrame)
    table = X if frame or (hasattr(X, "ndim") and not hasattr(X, "tocsr")) else _table(X)
    if table.ndim != 2:
        raise ShapeError(f"X has shape {tuple(table.shape)}: give a table (rows, columns)")
    place = _named if frame else _placed
    places = {argument: place(table, argument, column) for argument, column in columns.items()}
    for argument, at in places.items():
        same = [name for name, other in places.items() if other == at]
        if len(same) > 1:
            raise DataError(f"{listed(same)} are both {columns[argument]!r}: give two columns")
    rest = [i for i in range(table.shape[1]) if i not in places.values()]
    if frame:
        return table.iloc[:, rest], *(table.iloc[:, at] for at in places.values())
    return table[:, rest], *(table[:, at] for at in places.values())


def _placed(table: Any, argument: str, column: Hashable) -> int:
    number = table.shape[1]
    if not _is_position(column, number):
        raise DataError(
            f"{argument}={column!r}, but X is no DataFrame: give the position of the column of "
            f"labels, -{number} to {number - 1}, or a DataFrame"
        )
    return int(column) % number  # type: ignore[call-overload]


def _named(frame: pd.DataFrame, argument: str, column: Hashable) -> int:
    places = [i for i, name in enumerate(frame.columns) if name == column]
    if len(places) > 1:
        raise DataError(f"{argument}={column!r} is the name of {len(places)} columns of X: rename")
    if places:
        return places[0]
    if _is_position(column, frame.shape[1]):
        return int(column) % frame.shape[1]  # type: ignore[call-overload]
    raise DataError(
        f"{argument}={column!r} is no column of X, whose columns are {listed(frame.columns)}"
    )


def _is_position(column: Hashable, number: int) -> bool:
    whole = isinstance(column, int | np.integer) and not isinstance(column, bool)
    return whole and -number <= int(column) < number  # type: ignore[call-overload]


def _table(X: Any) -> Any:
    """Lists of rows as an array of objects, so that numbers beside labels stay numbers."""
    if hasattr(X, "tocsr"):
        raise DataError(
            "X is a sparse matrix, which has no column of labels: give a DataFrame "
            "(pandas.DataFrame.sparse.from_spmatrix) with one"
        )
    rows = [list(row) for row in X]
    return np.array(rows, dtype=object)
