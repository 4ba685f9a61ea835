"""What users say of rows beside features, outcomes and environment: exposures, trials, weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.data.matching import RowOrder, Schema, read_table, select_columns
from pyro_tbr.data.numbers import NOT_FINITE, refuse_cells, to_float64
from pyro_tbr.data.outcomes import default_names
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.tree.readers.naming import listed

Array = NDArray[np.float64]
_WEIGHTS = "row_weights"

# What each is where it was not said.
DEFAULTS = {"exposure": 1.0, "trials": 1.0, "y_se": 0.0}

# What is refused of each, and what to do.
_REFUSED: dict[str, tuple[Callable[[Array], NDArray[np.bool_]], str, str]] = {
    "exposure": (
        lambda v: v <= 0,
        "value(s) that are not above 0",
        "drop rows that were not observed for any time",
    ),
    "trials": (
        lambda v: (v < 1) | (v != np.floor(v)),
        "value(s) that are no whole numbers above 0",
        "give the number of trials behind each count, NaN in y where there were none",
    ),
    "y_se": (
        lambda v: v < 0,
        "value(s) below 0",
        "give standard errors, not their logarithms or log-ratios",
    ),
    _WEIGHTS: (
        lambda v: v < 0,
        "value(s) below 0",
        "give 0 for a row that is not to count",
    ),
}


@dataclass(frozen=True)
class Known:
    """What was said of rows, in the user's units.

    Attributes:
        values: (N, Q) float64, by argument.
        weights: By how much of a row each outcome counts, (N, Q) float64; ``None``: 1.
    """

    values: dict[str, Tensor]
    weights: Tensor | None

    def observed(self, y: Tensor) -> Tensor:
        """Outcomes (N, Q), NaN where a row is not to count."""
        return y if self.weights is None else torch.where(self.weights > 0, y, torch.nan)

    def given(self, rows: Tensor) -> dict[str, Any]:
        """Of some rows, by argument, as arrays."""
        every = self.values if self.weights is None else {**self.values, _WEIGHTS: self.weights}
        return {name: value[rows].numpy() for name, value in every.items()}


def as_given(
    exposure: Any = None, trials: Any = None, y_se: Any = None, row_weights: Any = None
) -> dict[str, Any]:
    """What users say of rows beside features, outcomes and environment, by argument."""
    return {"exposure": exposure, "trials": trials, "y_se": y_se, _WEIGHTS: row_weights}


def align_known(
    schema: Schema, given: Mapping[str, Any], takes: tuple[str, ...], order: RowOrder
) -> Known:
    """What was said of rows; ``None`` was not said.

    Args:
        schema: Names of the outcomes.
        given: By argument: a number, (N,) or (N, Q); tables are matched by index and columns.
        takes: Arguments that the likelihood has a use for, ``row_weights`` beside them.
        order: Of the rows.

    Raises:
        DataError: An argument the likelihood has no use for, or values that cannot be.
        ShapeError: Numbers of rows or outcomes differ.
    """
    said = {name: value for name, value in given.items() if value is not None}
    for name in said:
        if name not in (_WEIGHTS, *takes):
            known = f"it takes {listed(takes)}" if takes else "it takes no such argument"
            raise DataError(
                f"{name} was given, and this likelihood has no use for it ({known}): exposure is "
                "for 'poisson' and 'negative_binomial', trials for 'binomial', y_se for 'gaussian'"
            )
    values = {name: _aligned(schema, value, name, order) for name, value in said.items()}
    weights = values.pop(_WEIGHTS, None)
    return Known(values, weights)


def _aligned(schema: Schema, value: Any, name: str, order: RowOrder) -> Tensor:
    names, number = schema.outcome_names, len(schema.outcome_names)
    if isinstance(value, Number) or getattr(value, "ndim", 1) == 0:
        value = np.full(order.size, value)
    value, index = read_table(value, name)
    columns: tuple[Hashable, ...] | None = None
    if isinstance(value, pd.DataFrame) and value.shape[1] != 1:
        unnamed = isinstance(value.columns, pd.RangeIndex) and names == default_names(number)
        value = value if unnamed else select_columns(value, names, name)
        columns = names
    if index is not None:
        value = order.arrange(value, index, name)
    table = to_float64(value, name, columns, order.index)
    if table.ndim not in (1, 2) or (table.ndim == 2 and table.shape[1] not in (1, number)):
        raise ShapeError(
            f"{name} has shape {table.shape}: give one value a row, (N,), or one for each of the "
            f"{number} outcomes, (N, {number})"
        )
    table = order.arrange(table, None, name)
    table = table[:, None] if table.ndim == 1 else table
    refuse_cells(name, table, ~np.isfinite(table), *NOT_FINITE, columns, order.index)
    bad, what, remedy = _REFUSED[name]
    refuse_cells(name, table, bad(table), what, remedy, columns, order.index)
    if name == _WEIGHTS and not table.any():
        raise DataError("row_weights are all zero, so no row counts: give some weight to some rows")
    return torch.from_numpy(np.repeat(table, number, axis=1) if table.shape[1] == 1 else table)
