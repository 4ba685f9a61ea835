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
    """Features of rows, and each column of labels, by the name or position that an argument gives.

    In a DataFrame a name goes first.

    Raises:
        DataError: There is no such column, or two arguments mean the same one.
        ShapeError: ``X`` is no table.
    """
    X, _ = read_table(X, "X")
    if hasattr(X, "tocsr"):
        raise DataError(
            "X is a sparse matrix, which has no column of labels: give a DataFrame "
            "(pandas.DataFrame.sparse.from_spmatrix) with one"
        )
    if hasattr(X, "__array__") and not hasattr(X, "ndim"):
        X = np.asarray(X)
    if not hasattr(X, "ndim"):  # an array of objects, so that numbers beside labels stay numbers
        X = np.array([list(row) for row in X], dtype=object)
    if X.ndim != 2:
        raise ShapeError(
            f"X has shape {tuple(X.shape)}: give a table (rows, columns). Reshape your data, a "
            "single row by X.reshape(1, -1)"
        )
    places = {argument: _place(X, argument, column) for argument, column in columns.items()}
    if len(set(places.values())) < len(places):
        column = next(iter(columns.values()))
        raise DataError(f"{listed(places)} are both {column!r}: give two columns")
    kept: list[Any] = [[i for i in range(X.shape[1]) if i not in places.values()], *places.values()]
    return tuple(X.iloc[:, at] if isinstance(X, pd.DataFrame) else X[:, at] for at in kept)


def _place(table: Any, argument: str, column: Any) -> int:
    number, is_frame = table.shape[1], isinstance(table, pd.DataFrame)
    places = [i for i, name in enumerate(table.columns if is_frame else ()) if name == column]
    if len(places) > 1:
        raise DataError(f"{argument}={column!r} is the name of {len(places)} columns of X: rename")
    if places:
        return places[0]
    whole = isinstance(column, int | np.integer) and not isinstance(column, bool)
    if whole and -number <= column < number:
        return int(column) % number
    if is_frame:
        problem = f" is no column of X, whose columns are {listed(table.columns)}"
    else:
        problem = (
            ", but X is no DataFrame: give the position of the column of labels, "
            f"-{number} to {number - 1}, or a DataFrame"
        )
    raise DataError(f"{argument}={column!r}{problem}")
