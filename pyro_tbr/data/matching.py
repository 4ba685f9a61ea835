"""Rows by the index and columns by their names, where there are any; what comes of aligning."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from pyro_tbr.data.numbers import plain
from pyro_tbr.data.sources import read_dataset
from pyro_tbr.data.stream import FeatureStream
from pyro_tbr.errors import DataError, ShapeError, warn_user
from pyro_tbr.tree.readers.naming import NearestNode, listed
from pyro_tbr.tree.readers.other_tables import as_pandas


def read_table(value: Any, name: str) -> tuple[Any, pd.Index | None]:
    """What was given, as pandas where it knows its columns, and the labels of its rows.

    A torch ``Dataset`` of anything but features becomes a list.

    A table of another library (polars, pyarrow, ...) becomes a DataFrame. Its rows go by position,
    unless it brings labels of its own along.

    Raises:
        DataError: It knows its columns, but cannot be made a DataFrame here.
    """
    if isinstance(value, FeatureStream):
        return value, value.index
    table = as_pandas(value if name == "x" else read_dataset(value), name)
    if not isinstance(table, pd.Series | pd.DataFrame):
        return table, None
    own = table is value or not isinstance(table.index, pd.RangeIndex)
    return table, table.index if own else None


@dataclass(frozen=True)
class RowOrder:
    """The rows of one call: how many, and in which order others are brought."""

    size: int  # N
    index: pd.Index | None = None  # labels of the rows; None: everything goes by position
    owner: str = "x"  # the argument whose index it is

    def or_of(self, **arguments: Any) -> RowOrder:
        """This order; where it has no labels, that of the first argument which has some."""
        for name, value in arguments.items() if self.index is None else ():
            labels = read_table(value, name)[1]
            if labels is not None:
                return RowOrder(self.size, labels, name)
        return self

    def arrange(self, value: Any, index: pd.Index | None, name: str) -> Any:
        """A value with its rows in this order, which must be as many.

        A pandas object may have other rows too, which are left out; everything else stays as it is.

        Raises:
            DataError: The labels do not fit.
            ShapeError: There are more or fewer rows.
        """
        if index is not None and self.index is not None and not index.equals(self.index):
            for owner, labels in ((name, index), (self.owner, self.index)):
                if labels.has_duplicates:
                    double = labels[labels.duplicated()]
                    raise DataError(
                        f"{name} and {self.owner} have other rows or another order, and the index "
                        f"of {owner} holds {plain(double[0])!r} more than once ({len(double)} such "
                        "row(s)), so they cannot be matched: make the index unique, or bring both "
                        "into the same order"
                    )
            places = index.get_indexer(self.index)
            if (places < 0).any():
                first = plain(self.index[places < 0][0])
                raise DataError(
                    f"{name} has no row for {(places < 0).sum()} index label(s) of {self.owner}, "
                    f"first {first!r}: add them, or give {name}.to_numpy() if rows correspond"
                )
            value = value.iloc[places]
        if len(value) != self.size:
            raise ShapeError(
                f"{name} has {len(value)} rows, x has {self.size}: give one for each row"
            )
        return value


@dataclass(frozen=True)
class Schema:
    """What later tables have to fit."""

    feature_names: tuple[Hashable, ...] | None  # None: only their number is checked later
    num_features: int  # D
    outcome_names: tuple[Hashable, ...]  # the user's, of whatever type, else y0, y1, ...
    outcome_ndim: int  # 1 where y was (N,), 2 where it was (N, Q)


@dataclass(frozen=True)
class Rows:
    """Rows of data that fit together."""

    x: Any  # (N, D) float64, finite: a tensor, or Features where these may stay
    y: Tensor | None  # (N, Q) float64, NaN where not observed; None where none were given
    env_index: Tensor  # position of each row's environment in tree.nodes, (N,) int64
    order: RowOrder  # the index of x, else of y or env, if one of them has one
    rounding: Tensor  # relative, of each feature as it was given, (D,); 0 for double precision


def select_columns(frame: pd.DataFrame, names: tuple[Hashable, ...], name: str) -> pd.DataFrame:
    """The columns of training in their order."""
    return frame.iloc[:, column_places(unique_columns(frame, name), names, name)]


def column_places(
    columns: tuple[Hashable, ...], names: tuple[Hashable, ...], name: str
) -> list[int]:
    """Where the columns of training are among these, in their order."""
    place = {column: position for position, column in enumerate(columns)}
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
        warn_user(text + listed(extra))
    return [place[column] for column in names]


def unique_columns(frame: pd.DataFrame, name: str) -> tuple[Hashable, ...]:
    """The column names, refused if one occurs twice."""
    if frame.columns.has_duplicates:
        double = tuple(frame.columns[frame.columns.duplicated()].unique())
        raise DataError(f"{name} has columns of the same name: {listed(double)}; rename them")
    return tuple(frame.columns)
