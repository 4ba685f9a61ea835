"""Outcomes: a column each, NaN where not observed, refused where a likelihood cannot use them."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.data.matching import (
    check_length,
    in_order,
    is_pandas,
    select_columns,
    unique_columns,
)
from pyro_tbr.data.numbers import cell_text, check_size, to_float64
from pyro_tbr.data.schema import Schema
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.tree.readers.naming import listed


class Outcomes(NamedTuple):
    """Outcomes as a likelihood checks them.

    Attributes:
        values: (N, Q), NaN where not observed.
        names: Of the columns.
        index: The user's index of the rows, where they have one.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    index: pd.Index | None  # type: ignore[assignment]

    def refuse(self, bad: NDArray[np.bool_], what: str, remedy: str) -> None:
        """Raises where some values (N, Q) are bad.

        Raises:
            DataError: What y must be, how many values are not, the first of them, the remedy.
        """
        if bad.any():
            raise DataError(
                f"y {what}, but {bad.sum()} value(s) are not, first "
                f"{cell_text(self.values, bad, self.names, self.index)}: {remedy}"
            )


def align_outcomes(
    schema: Schema, y: Any, index: pd.Index | None, num_rows: int, binary: bool = False
) -> Tensor:
    """Outcomes (N, Q) of rows that come after training; any of them may be missing.

    Columns of a DataFrame are matched by name, or by position if training had no names.

    Raises:
        ShapeError: The numbers of rows or outcomes differ.
        DataError: A column is missing, values cannot be used, or rows cannot be matched.
    """
    defaults = default_names(len(schema.outcome_names))
    if isinstance(y, pd.DataFrame):
        unnamed = schema.outcome_names == defaults and not set(defaults) <= set(y.columns)
        if not unnamed:
            y = select_columns(y, schema.outcome_names, "y")
    outcomes, _, _ = outcome_table(y, index, num_rows)
    if outcomes.shape[1] != len(schema.outcome_names):
        raise ShapeError(
            f"y has {outcomes.shape[1]} outcomes, the model {len(schema.outcome_names)}: "
            f"{listed(schema.outcome_names)}; put NaN where an outcome was not observed"
        )
    if binary:
        check_binary(outcomes, schema.outcome_names, index)
    return torch.from_numpy(outcomes)


def outcome_table(
    y: Any, index: pd.Index | None, num_rows: int
) -> tuple[NDArray[Any], tuple[str, ...], int]:
    """Outcomes (N, Q) in the order of ``index``, their names, and how many dimensions y had."""
    if hasattr(y, "toarray"):
        raise DataError("y is a sparse matrix, in which a zero is no value: give y.toarray()")
    names: tuple[Any, ...] | None = None
    if is_pandas(y):
        y = in_order(y, "y", index)
        check_length(y, "y", num_rows)
        if isinstance(y, pd.DataFrame):
            columns = unique_columns(y, "y")
            names = None if isinstance(y.columns, pd.RangeIndex) else tuple(map(str, columns))
        elif isinstance(y.name, str):
            names = (y.name,)
    values = to_float64(y, "y", names, index)
    if values.ndim not in (1, 2) or values.shape[1:] == (0,):
        raise ShapeError(f"y has shape {values.shape}: give (N,) or (N, outcomes)")
    check_length(values, "y", num_rows)
    ndim = values.ndim
    values = values[:, None] if ndim == 1 else values
    names = names or default_names(values.shape[1])
    bad = np.isinf(values)
    if bad.any():
        raise DataError(
            f"y has {bad.sum()} infinite value(s), first {cell_text(values, bad, names, index)}: "
            "put NaN where an outcome was not observed"
        )
    check_size(values, "y", names, index)
    return values, names, ndim


def check_binary(y: NDArray[Any], names: tuple[str, ...], index: pd.Index | None) -> None:
    """Refuses values other than 0, 1 and NaN."""
    bad = ~np.isnan(y) & (y != 0) & (y != 1)
    if bad.any():
        values = np.unique(y[~np.isnan(y)]).tolist()
        raise DataError(
            f"y must be 0 or 1 here, but {bad.sum()} value(s) are not, first "
            f"{cell_text(y, bad, names, index)}; y holds {listed(values, 4)}: "
            "recode it to 0 and 1, or choose another likelihood"
        )


def check_informative(y: NDArray[Any], names: tuple[str, ...], binary: bool) -> None:
    """Refuses a column without an observed value, or binary with a single one."""
    for name, column in zip(names, y.T, strict=True):
        seen = column[~np.isnan(column)]
        if len(seen) == 0:
            raise DataError(
                f"y has no observed value in column {name!r}, all {len(column)} rows are missing: "
                "drop this outcome"
            )
        if binary and (seen == seen[0]).all():
            rows = "rows" if len(seen) == len(column) else "observed rows"
            raise DataError(
                f"y has a single value {seen[0]:g} in all {len(seen)} {rows} of column {name!r}: "
                "there is nothing to learn, give both 0 and 1 or drop this outcome"
            )


def default_names(num_outcomes: int) -> tuple[str, ...]:
    """``y0``, ``y1``, ..."""
    return tuple(f"y{q}" for q in range(num_outcomes))
