"""Tables and columns of other libraries (polars, pyarrow, modin, ...) as pandas has them.

An array of such a table would have lost the names and so the order of its columns. narwhals knows
them all, where it is installed (scikit-learn brings it along); else a table has to know the way.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pyro_tbr.errors import DataError, TbrError

_LAZY = "is lazy, so it holds no rows yet: collect it first, such as by .collect()"


def as_pandas(value: Any, name: str, error: type[TbrError] = DataError) -> Any:
    """A table of another library as a DataFrame, a column as a Series; all else as it is.

    Raises:
        TbrError: Of the kind ``error``: what knows its columns cannot be read here, or is lazy.
    """
    if isinstance(value, pd.Series | pd.DataFrame | pd.Index | np.ndarray | Tensor):
        return value
    # Of the class, as asking a lazy table itself for its columns may take long.
    known = {*dir(type(value)), *getattr(value, "__dict__", ())}
    named = not known.isdisjoint({"columns", "column_names"})
    if not named and "to_pandas" not in known:
        return value
    kind = f"{name} is a {type(value).__module__}.{type(value).__qualname__}"
    found = _by_narwhals(value)
    if isinstance(found, str):
        raise error(f"{kind}, which {found}")
    if found is not None:
        return found
    if "to_pandas" not in known:
        raise error(
            f"{kind}, whose columns cannot be read: give it as a pandas DataFrame, or install "
            "narwhals, which reads many kinds of tables"
        )
    try:
        return value.to_pandas()
    except ImportError as missing:
        if not named:  # without columns there is nothing to confuse
            return value
        raise error(
            f"{kind}, whose to_pandas() fails ({missing}): install what it needs, or narwhals, or "
            f"give {name} as a pandas DataFrame"
        ) from missing


def _by_narwhals(value: Any) -> Any:
    """As pandas; what is wrong with it, as text; None where narwhals is missing or knows it not."""
    try:
        narwhals = importlib.import_module("narwhals")
    except ImportError:
        return None
    found = narwhals.from_native(value, allow_series=True, pass_through=True)
    if isinstance(found, narwhals.LazyFrame):
        return _LAZY
    if isinstance(found, narwhals.Series):
        return _column(found)
    if not isinstance(found, narwhals.DataFrame):
        return None
    try:
        return found.to_pandas()
    except ImportError:  # polars without pyarrow
        return pd.DataFrame({column.name: _column(column) for column in found.iter_columns()})


def _column(series: Any) -> pd.Series:
    """A narwhals Series as pandas; one without a name may be called ''."""
    try:
        values = series.to_pandas()
    except ImportError:
        numbers = series.dtype.is_numeric() and not series.dtype.is_decimal()
        values = pd.Series(series.to_numpy() if numbers else series.to_list())
    return values.rename(series.name or None)
