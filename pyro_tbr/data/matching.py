"""Rows by the index and columns by their names, where there are any."""

import warnings
from collections.abc import Hashable, Sized
from typing import Any

import pandas as pd

from pyro_tbr.data.numbers import plain
from pyro_tbr.errors import DataError, DataWarning, ShapeError
from pyro_tbr.tree.readers.naming import NearestNode, listed


def in_order(value: Any, name: str, index: pd.Index | None) -> Any:
    """A pandas object with its rows in the order of ``index``; those not in it are left out."""
    if index is None or value.index.equals(index):
        return value
    for owner, labels in ((name, value.index), ("x", index)):
        if labels.has_duplicates:
            double = labels[labels.duplicated()]
            raise DataError(
                f"{name} and x have other rows or another order, and the index of {owner} holds "
                f"{plain(double[0])!r} more than once ({len(double)} such row(s)), so they cannot "
                "be matched: make the index unique, or bring both into the same order"
            )
    order = value.index.get_indexer(index)
    if (order < 0).any():
        raise DataError(
            f"{name} has no row for {(order < 0).sum()} index label(s) of x, first "
            f"{plain(index[order < 0][0])!r}: add them, or give {name}.to_numpy() if rows "
            "correspond"
        )
    return value.iloc[order]


def select_columns(frame: pd.DataFrame, names: tuple[Hashable, ...], name: str) -> pd.DataFrame:
    """The columns of training in their order."""
    place = {column: position for position, column in enumerate(unique_columns(frame, name))}
    missing = tuple(column for column in names if column not in place)
    if missing:
        spare = [column for column in place if column not in set(names)]
        near = NearestNode(spare)(missing[0])
        hint = "add them" if near is None else f"add them (is {near!r} meant for {missing[0]!r}?)"
        raise DataError(
            f"{name} lacks {len(missing)} column(s) of training: {listed(missing)}; {hint}"
        )
    extra = tuple(column for column in place if column not in set(names))
    if extra:
        text = f"{name} has {len(extra)} column(s) that training had not, ignored: "
        warnings.warn(text + listed(extra), DataWarning, stacklevel=3)
    return frame.iloc[:, [place[column] for column in names]]


def unique_columns(frame: pd.DataFrame, name: str) -> tuple[Hashable, ...]:
    """The column names, refused if one occurs twice."""
    if frame.columns.has_duplicates:
        double = tuple(frame.columns[frame.columns.duplicated()].unique())
        raise DataError(f"{name} has columns of the same name: {listed(double)}; rename them")
    return tuple(frame.columns)


def check_length(value: Sized, name: str, num_rows: int) -> None:
    """Refuses other numbers of rows than those of ``x``."""
    if len(value) != num_rows:
        raise ShapeError(f"{name} has {len(value)} rows, x has {num_rows}: give one for each row")


def is_pandas(value: Any) -> bool:
    """It has an index of rows."""
    return isinstance(value, pd.Series | pd.DataFrame)
