"""Outcomes: a column each, NaN where not observed, refused where a likelihood cannot use them."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.data.matching import RowOrder, Schema, read_table, select_columns, unique_columns
from pyro_tbr.data.numbers import check_size, refuse_cells, to_float64
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.tree.readers.naming import listed


@dataclass(frozen=True)
class Outcomes:
    """Outcomes with the user's labels, for a likelihood to check."""

    values: NDArray[np.float64]  # (N, Q), NaN where not observed
    names: tuple[Hashable, ...]  # of the columns, Q
    index: pd.Index | None = None  # labels of the rows, where there are any

    def refuse(self, bad: NDArray[np.bool_], what: str, remedy: str) -> None:
        """Raises a ``DataError`` that names the first bad value, if there is one.

        ``what`` goes behind "y has 3 value(s)", such as "that are negative"; then what to do.
        """
        what = f"value(s) {what}"
        refuse_cells("y", self.values, bad, what, remedy, self.names, self.index)

    def refuse_constant(self) -> None:
        """Raises a ``DataError`` where columns have one value in all of two rows or more."""
        seen = ~np.isnan(self.values)
        several = np.flatnonzero(seen.sum(0) > 1)
        least, most = (f(self.values[:, several], axis=0) for f in (np.nanmin, np.nanmax))
        alike = several[least == most]
        if len(alike):
            first = alike[0]
            value = self.values[seen[:, first], first][0]
            raise DataError(
                f"y: {listed(tuple(self.names[q] for q in alike))} do(es) not vary, first "
                f"{self.names[first]!r} with {value:g} in all {seen[:, first].sum()} rows that "
                "have it: there is nothing to learn, so leave such outcomes out"
            )


Check = Callable[[Outcomes], None]


def align_outcomes(
    schema: Schema, y: Any, order: RowOrder, *, check: Check | None = None
) -> Tensor:
    """Outcomes (N, Q) of rows that come after training; any of them may be missing.

    Columns of a table are matched by name, or by position if training had no names.

    Raises:
        ShapeError: The numbers of rows or outcomes differ.
        DataError: A column is missing, values cannot be used (``check`` is the likelihood's), or
            rows cannot be matched.
    """
    y, index = read_table(y, "y")
    defaults = default_names(len(schema.outcome_names))
    if isinstance(y, pd.DataFrame):
        unnamed = schema.outcome_names == defaults and not set(defaults) <= set(y.columns)
        if not unnamed:
            y = select_columns(y, schema.outcome_names, "y")
    outcomes, _ = read_outcomes(y, index, order)
    if outcomes.values.shape[1] != len(schema.outcome_names):
        raise ShapeError(
            f"y has {outcomes.values.shape[1]} outcomes, the model {len(schema.outcome_names)}: "
            f"{listed(schema.outcome_names)}; put NaN where an outcome was not observed"
        )
    if check is not None:
        check(Outcomes(outcomes.values, schema.outcome_names, order.index))
    return torch.from_numpy(outcomes.values)


def read_outcomes(y: Any, index: pd.Index | None, order: RowOrder) -> tuple[Outcomes, int]:
    """Outcomes in the order of the rows, as :func:`read_table` gives them, and y's dimensions."""
    if hasattr(y, "toarray"):
        raise DataError("y is a sparse matrix, in which a zero is no value: give y.toarray()")
    names: tuple[Hashable, ...] | None = None  # the user's, of whatever type they are
    if isinstance(y, pd.DataFrame):
        names = unique_columns(y, "y")
        if isinstance(y.columns, pd.RangeIndex) and names == tuple(range(len(names))):
            names = None
    elif isinstance(y, pd.Series) and y.name is not None:
        names = (y.name,)
    if index is not None:
        y = order.arrange(y, index, "y")
    values = to_float64(y, "y", names, order.index)
    if values.ndim not in (1, 2) or values.shape[1:] == (0,):
        raise ShapeError(f"y has shape {values.shape}: give (N,) or (N, outcomes)")
    values = order.arrange(values, None, "y")
    ndim = values.ndim
    values = values[:, None] if ndim == 1 else values
    outcomes = Outcomes(values, names or default_names(values.shape[1]), order.index)
    outcomes.refuse(np.isinf(values), "that are infinite", "put NaN where it was not observed")
    check_size(values, "y", outcomes.names, order.index)
    return outcomes, ndim


def names_as_text(names: tuple[Hashable, ...]) -> list[str]:
    """Names for places that take text alone, all different: by ``repr`` where 1 meets "1"."""
    texts = [str(name) for name in names]
    return texts if len(set(texts)) == len(texts) else [repr(name) for name in names]


def default_names(num_outcomes: int) -> tuple[str, ...]:
    """``y0``, ``y1``, ..."""
    return tuple(f"y{q}" for q in range(num_outcomes))
