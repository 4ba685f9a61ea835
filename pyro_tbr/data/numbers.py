"""Numbers from whatever holds them: float64 copies, and the place of what is no number."""

from collections.abc import Hashable
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.tree.readers.naming import listed

LARGEST = 1e100  # of a number among features or outcomes


def to_float64(
    value: Any, name: str, columns: tuple[Hashable, ...] | None, index: pd.Index | None
) -> NDArray[np.float64]:
    """A copy as float64; what is missing (None, pd.NA, masked) is NaN, text is refused."""
    if isinstance(value, pd.api.extensions.ExtensionArray | pd.Index):
        value = pd.Series(value)
    if isinstance(value, pd.Series):
        value = _series_array(value)
    elif isinstance(value, pd.DataFrame):
        if all(isinstance(dtype, np.dtype) and dtype.kind in "fiub" for dtype in value.dtypes):
            value = value.to_numpy(dtype=np.float64)
        else:
            value = np.stack([_series_array(column) for _, column in value.items()], axis=1)
    elif isinstance(value, Tensor):
        value = (value.to_dense() if value.layout != torch.strided else value).detach().cpu()
        value = (value if value.is_complex() else value.to(torch.float64)).numpy()
    elif isinstance(value, np.ma.MaskedArray):  # np.asarray would show what is under the mask
        value = np.ma.filled(value.astype(np.float64), np.nan)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} has rows of different lengths: give a table") from error
    if array.ndim == 0:
        raise ShapeError(f"{name} is a single {type(value).__name__}: give an array of numbers")
    if array.dtype.kind in "fiub":
        return np.array(array, dtype=np.float64, order="C")
    if array.dtype.kind not in "OUS":
        raise DataError(f"{name} has dtype {array.dtype}: give real numbers")
    if array.dtype.kind in "US" and not isinstance(value, np.ndarray):
        array = np.asarray(value, dtype=object)  # numpy turned the numbers in it to text
    numbers = np.full(array.shape, np.nan)
    bad = np.zeros(array.shape, dtype=bool)
    for place, cell in np.ndenumerate(array):
        if isinstance(cell, Number | np.bool_) and not isinstance(cell, complex):
            numbers[place] = _as_float(cell)
        else:
            bad[place] = cell is not None and cell is not pd.NA
    if bad.any():
        values = tuple(dict.fromkeys(array[bad].tolist()))
        raise DataError(
            f"{name} has {bad.sum()} cell(s) that are no numbers, first "
            f"{cell_text(array, bad, columns, index)}; such values are {listed(values, 4)}: "
            f"give numbers (text, such as '1.5', is not converted; {_categories(name)})"
        )
    return numbers


def check_size(
    table: NDArray[np.float64],
    name: str,
    columns: tuple[Hashable, ...] | None,
    index: pd.Index | None,
) -> None:
    """Refuses numbers whose squares double precision cannot hold; NaN and inf pass."""
    bad = (np.abs(table) > LARGEST) & np.isfinite(table)
    if bad.any():
        raise DataError(
            f"{name} has {bad.sum()} value(s) beyond {LARGEST:g}, first "
            f"{cell_text(table, bad, columns, index)}: give it in another unit"
        )


def _as_float(cell: Any) -> float:
    try:
        return float(cell)
    except OverflowError:  # an int of hundreds of digits
        return float("inf") if cell > 0 else -float("inf")


def _categories(name: str) -> str:
    """What to do with categories among features, or outcomes."""
    if name == "y":
        return "two classes are 0 and 1, with likelihood='bernoulli'"
    return "categories need a column each, as pd.get_dummies makes them"


def _series_array(series: pd.Series) -> NDArray[Any]:
    """The values as float64 if the dtype is numeric, pandas' nullable ones included."""
    dtype = series.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    return series.to_numpy(dtype=object)


def plain(value: Any) -> Any:
    """A scalar as Python has it, which prints without its type."""
    return value.item() if isinstance(value, np.generic) else value


def cell_text(
    table: NDArray[Any],
    bad: NDArray[np.bool_],
    columns: tuple[Hashable, ...] | None,
    index: pd.Index | None,
) -> str:
    """The first bad cell: its value, its row and its column, by the user's names."""
    place = np.unravel_index(bad.argmax(), bad.shape)
    row = int(place[0])
    text = f"{plain(table[place])!r} at row {row}"
    if index is not None:
        text += f" (index {plain(index[row])!r})"
    if len(place) == 2:
        text += f", column {columns[place[1]] if columns else int(place[1])!r}"
    return text
