"""Numbers from whatever holds them: float64 copies, and the place of what is no number."""

from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
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
TOO_LARGE = (f"cell(s) beyond {LARGEST:g}", "give it in another unit")
NOT_FINITE = ("cell(s) that are NaN or infinite", "impute these cells or drop their rows")


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
        remedy = _remedy(value, name)
        raise ShapeError(f"{name} is a single {type(value).__name__}: {remedy}")
    if array.dtype.kind in "fiub":
        return np.array(array, dtype=np.float64, order="C")
    if array.dtype.kind not in "OUS":
        what = "Complex data not supported" if array.dtype.kind == "c" else "no numbers"
        raise DataError(f"{name} has dtype {array.dtype} ({what}): give real numbers")
    if array.dtype.kind in "US" and not isinstance(value, np.ndarray):
        array = np.asarray(value, dtype=object)  # numpy turned the numbers in it to text
    numbers = np.full(array.shape, np.nan)
    bad = np.zeros(array.shape, dtype=bool)
    for place, cell in np.ndenumerate(array):
        if isinstance(cell, Number | np.bool_) and not isinstance(cell, complex):
            try:
                numbers[place] = float(cell)  # type: ignore[arg-type]
            except OverflowError:  # an int of hundreds of digits
                numbers[place] = np.inf if cell > 0 else -np.inf  # type: ignore[operator]
        else:
            bad[place] = cell is not None and cell is not pd.NA
    if bad.any():
        values = list({repr(cell): cell for cell in array[bad].tolist()}.values())
        hint = "categories need a column each, as pd.get_dummies makes them"
        if name == "y":
            hint = "two classes are 0 and 1, with likelihood='bernoulli'"
        place = np.unravel_index(bad.argmax(), bad.shape)
        raise DataError(
            f"{name} has {bad.sum()} cell(s) that are no numbers, first "
            f"{cell_text(array[place], place, columns, index)}; such values are "
            f"{listed(values, 4)}: give numbers (text, such as '1.5', is not converted, "
            f"pd.to_numeric does it; {hint})"
        )
    return numbers


def _remedy(value: Any, name: str) -> str:
    """What to give in place of what is no array."""
    if isinstance(value, str | bytes):
        return (
            f"for {value!r} give the column itself, table[{value!r}]; a file is to be read first, "
            "such as by pd.read_csv"
        )
    if isinstance(value, Mapping):
        return f"of a dict of columns pd.DataFrame({name}) makes a table"
    if isinstance(value, Set):
        return "its order means nothing; give a list"
    if isinstance(value, Iterator):
        return f"it can be gone through only once; give list({name})"
    return "give an array of numbers"


def check_size(
    table: NDArray[np.float64],
    name: str,
    columns: tuple[Hashable, ...] | None,
    index: pd.Index | None,
) -> None:
    """Refuses numbers whose squares double precision cannot hold; NaN and inf pass."""
    bad = (np.abs(table) > LARGEST) & np.isfinite(table)
    what, remedy = f"value(s) beyond {LARGEST:g}", "give it in another unit"
    refuse_cells(name, table, bad, what, remedy, columns, index)


def refuse_cells(
    name: str,
    table: NDArray[Any],
    bad: NDArray[np.bool_],
    what: str,
    remedy: str,
    columns: tuple[Hashable, ...] | None,
    index: pd.Index | None,
) -> None:
    """Refuses cells that are bad: their number, and value, row and column of the first."""
    if bad.any():
        place = np.unravel_index(bad.argmax(), bad.shape)
        first = cell_text(table[place], place, columns, index)
        raise DataError(f"{name} has {bad.sum()} {what}, first {first}: {remedy}")


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
    value: Any,
    place: Sequence[Any],
    columns: tuple[Hashable, ...] | None,
    index: pd.Index | None,
) -> str:
    """A cell: its value, its row and its column, by the user's names."""
    row, *column = (int(part) for part in place)
    text = f"{plain(value)!r} at row {row}"
    if index is not None:
        text += f" (index {plain(index[row])!r})"
    return text + "".join(f", column {columns[j] if columns else j!r}" for j in column)
