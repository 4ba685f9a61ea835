"""Which columns of features say something: what varies, and what rounding has eaten."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data.features import Features
from pyro_tbr.errors import warn_user
from pyro_tbr.tree.readers.naming import listed

# The one bound below which a column is taken as constant, relative to its size: a few thousand
# steps of double precision, so a second's spread among time stamps of 1.7e9 seconds is far above.
_LEAST_SPREAD = 1e-12
_LEAST = 1e-20  # and in itself: its square has to be a number of single precision
_STEPS = 8  # a column that spans fewer steps of its rounding is mostly rounding


def column_range(x: Tensor | Features) -> tuple[Tensor, Tensor]:
    """Least and largest value of each column of (N, D), each (D,), double precision."""
    if isinstance(x, Features):
        return x.column_range()
    return x.amin(0).double(), x.amax(0).double()


def varying_columns(x: Tensor | Features) -> Tensor:
    """Columns of (N, D) that are not constant, (D,) bool."""
    low, high = column_range(x)
    size = torch.maximum(low.abs(), high.abs())
    return high - low > (_LEAST_SPREAD * size).clamp(min=_LEAST)


def rounded_columns(x: Tensor | Features, rounding: Tensor) -> Tensor:
    """Columns of (N, D) that vary by little more than their own relative rounding (D,), as bool.

    Whole numbers that are small enough to be held exactly, such as years, are not among them.
    """
    low, high = column_range(x)
    size = torch.maximum(low.abs(), high.abs())
    rounding = rounding.to(size)
    few = varying_columns(x) & (high - low <= _STEPS * rounding * size)
    for column in few.nonzero()[:, 0].tolist():
        if isinstance(x, Features):
            exact = bool(x.summary.whole[column])
        else:
            exact = bool((x[:, column] == x[:, column].round()).all())
        few[column] = not (exact and size[column] * rounding[column] <= 2)
    return few


def rounding_of(x: Any, num_columns: int) -> Tensor:
    """Relative rounding of the user's own numbers, (D,): of single or half precision, else 0."""
    if isinstance(x, pd.DataFrame):
        return torch.tensor([_rounding(dtype) for dtype in x.dtypes], dtype=torch.float64)
    rounding = _rounding(getattr(x, "dtype", None))
    return torch.full((num_columns,), rounding, dtype=torch.float64)


def _rounding(dtype: Any) -> float:
    if isinstance(dtype, torch.dtype):
        eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    else:
        dtype = getattr(dtype, "subtype", dtype)  # of a sparse column
        dtype = getattr(dtype, "numpy_dtype", dtype)  # of a nullable one, or of pyarrow
        floats = isinstance(dtype, np.dtype) and dtype.kind == "f"
        eps = float(np.finfo(dtype).eps) if floats else 0.0
    return eps if eps > 1e-15 else 0.0


def warn_of_columns(
    x: Tensor | Features,
    names: tuple[Hashable, ...] | None,
    rounding: Tensor,
    precision: torch.dtype | None,
) -> None:
    """Warns of columns of (N, D) that are constant, or lost in rounding, by names or numbers.

    ``rounding`` (D,) is that of the numbers as they were given, ``precision`` the one in which an
    encoder takes them as they are, if one does.
    """
    constant = ~varying_columns(x)
    given = rounded_columns(x, rounding)
    little = "that vary by little more than the rounding of"
    found = [
        (constant, "constant column(s), which tell nothing: {}"),
        (
            given,
            f"column(s) {little} the numbers given: {{}}; give them in double precision, or "
            "subtract a constant, such as the first time, while they still are",
        ),
    ]
    if precision is not None:
        used = rounded_columns(x, torch.full_like(rounding, _rounding(precision))) & ~given
        kind = str(precision).removeprefix("torch.")
        found.append((
            used,
            f"column(s) {little} {kind}, in which this encoder sees them: {{}}; subtract their "
            "means, or take FitOptions(dtype='float64')",
        ))  # fmt: skip
    for columns, text in found:
        if columns.any():
            labels = [names[j] if names else j for j in columns.nonzero()[:, 0].tolist()]
            warn_user(f"x has {len(labels)} " + text.format(listed(labels)))
