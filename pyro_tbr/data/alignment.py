"""The one step that turns a user's tables into tensors, for fit, predict, update and encode.

Features, outcomes and environments may be arrays, tensors, lists or pandas objects. They come
out as float64 (an outcome with an offset of 1e6 keeps its digits) in the row order of ``x``;
nothing the user gave is changed or shared. Where ``x`` is a DataFrame its index rules: other
pandas objects are brought into its order by label, everything else is taken by position.
"""

import warnings
from collections.abc import Hashable, Iterable, Sized
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.errors import DataError, DataWarning, ShapeError, TreeError
from pyro_tbr.tree import Tree, match_labels
from pyro_tbr.tree.naming import listed


@dataclass(frozen=True)
class Schema:
    """What later tables have to fit.

    Attributes:
        feature_names: Columns of ``x`` where it was a DataFrame, else None: then only the number
            of features is checked later.
        num_features: D.
        outcome_names: The user's column names, else ``y0``, ``y1``, ...
        outcome_ndim: 1 where ``y`` was (N,), 2 where it was (N, Q).
    """

    feature_names: tuple[Hashable, ...] | None
    num_features: int
    outcome_names: tuple[str, ...]
    outcome_ndim: int


@dataclass(frozen=True)
class Rows:
    """Rows of data that fit together.

    Attributes:
        x: Features, (N, D) float64, finite.
        y: Outcomes, (N, Q) float64, NaN where not observed; None where none were given.
        env_index: Position in ``tree.nodes`` of each row's environment, (N,) int64.
        index: The index of ``x`` where it was a DataFrame, else None.
    """

    x: Tensor
    y: Tensor | None
    env_index: Tensor
    index: pd.Index | None


def align_training(
    tree: Tree, x: Any, y: Any, env: Any, *, binary: bool = False
) -> tuple[Rows, Schema]:
    """Rows to fit, and the schema that later tables are held against.

    Args:
        tree: The environments.
        x: Features, (N, D): array, tensor, DataFrame, scipy sparse or lists; all finite numbers.
        y: Outcomes, (N,) or (N, Q); NaN, None and pd.NA are outcomes that were not observed.
        env: Each row's node, or one node for all rows.
        binary: Outcomes must be 0 or 1, and both must occur in each column.

    Raises:
        ShapeError: Numbers of rows differ, or a table has the wrong number of dimensions.
        DataError: Cells that are no usable numbers, rows that cannot be matched, an outcome that
            is nowhere observed or, if binary, has a single value.
        TreeError: A label is missing or not in the tree.

    Warns:
        DataWarning: Columns of ``x`` that are constant.
    """
    table, feature_names, index = _features(x)
    if 0 in table.shape:
        raise ShapeError(f"x has shape {table.shape}: fitting needs rows and columns")
    if index is None and _is_pandas(y) and _is_pandas(env) and not y.index.equals(env.index):
        raise DataError(
            "y and env are pandas objects with different indexes while x has none, so their rows "
            "cannot be matched: give x as a DataFrame, or y.to_numpy() and env.to_numpy()"
        )
    outcomes, names, ndim = _outcomes(y, index, len(table))
    schema = Schema(feature_names, table.shape[1], names, ndim)
    if binary:
        _check_binary(outcomes, names, index)
    _check_informative(outcomes, names, binary)
    _warn_of_constants(table, feature_names)
    env_index = align_env(tree, env, index, len(table))
    return Rows(torch.from_numpy(table), torch.from_numpy(outcomes), env_index, index), schema


def align_features(schema: Schema, x: Any) -> tuple[Tensor, pd.Index | None]:
    """Features (N, D) in the order of training, and the user's index.

    Columns of a DataFrame are matched by name if training had names, so their order is free.

    Raises:
        ShapeError: The number of columns differs from training.
        DataError: A column of training is missing or doubled, or cells are no finite numbers.

    Warns:
        DataWarning: Columns that training had not; they are ignored.
    """
    if isinstance(x, pd.DataFrame) and schema.feature_names is not None:
        x = _select_columns(x, schema.feature_names, "x")
    table, _, index = _features(x)
    if table.shape[1] != schema.num_features:
        raise ShapeError(
            f"x has {table.shape[1]} columns, the model was fitted to {schema.num_features}: "
            "give the features of training, in their order"
        )
    return torch.from_numpy(table), index


def align_env(tree: Tree, env: Any, index: pd.Index | None, num_rows: int) -> Tensor:
    """Positions in ``tree.nodes`` of the rows' environments, (N,) int64.

    Args:
        tree: The environments.
        env: A label for each row (a Series is brought into the order of ``index``), or one label
            for all rows: a str or another scalar, or a tuple that is itself a node.
        index: The index of ``x``, if it has one.
        num_rows: N.

    Raises:
        TreeError: A label is missing or not in the tree.
        ShapeError: There are more or fewer labels than rows.
        DataError: The index of a Series does not fit ``index``.
    """
    if env is None:
        raise TreeError("env is None: give a node label for each row, or one for all rows")
    if isinstance(env, pd.DataFrame) and env.shape[1] == 1:
        env = env.iloc[:, 0]
    if isinstance(env, Tensor):
        env = env.detach().cpu().numpy()
    if getattr(env, "ndim", 1) == 0:  # a numpy scalar or an array of no dimensions
        env = env.item()
    if getattr(env, "ndim", 1) > 1:
        raise ShapeError(f"env has shape {env.shape}: give one label a row, shape ({num_rows},)")
    one = isinstance(env, str | bytes) or not isinstance(env, Iterable)
    if one or (isinstance(env, tuple | frozenset) and _is_node(tree, env)):
        single = match_labels(tree, [env])
        return single.expand(num_rows).clone()
    if not isinstance(env, Sized):
        env = list(env)
    _check_length(env, "env", num_rows)
    if isinstance(env, pd.Series):
        env = _in_order(env, "env", index).array
    return match_labels(tree, env)


def align_outcomes(
    schema: Schema, y: Any, index: pd.Index | None, num_rows: int, binary: bool = False
) -> Tensor:
    """Outcomes (N, Q) of rows that come after training; any of them may be missing.

    Columns of a DataFrame are matched by name, or by position if training had no names.

    Raises:
        ShapeError: The numbers of rows or outcomes differ.
        DataError: A column is missing, values cannot be used, or rows cannot be matched.
    """
    defaults = _default_names(len(schema.outcome_names))
    if isinstance(y, pd.DataFrame):
        unnamed = schema.outcome_names == defaults and not set(defaults) <= set(y.columns)
        if not unnamed:
            y = _select_columns(y, schema.outcome_names, "y")
    outcomes, _, _ = _outcomes(y, index, num_rows)
    if outcomes.shape[1] != len(schema.outcome_names):
        raise ShapeError(
            f"y has {outcomes.shape[1]} outcomes, the model {len(schema.outcome_names)}: "
            f"{listed(schema.outcome_names)}; put NaN where an outcome was not observed"
        )
    if binary:
        _check_binary(outcomes, schema.outcome_names, index)
    return torch.from_numpy(outcomes)


def _features(x: Any) -> tuple[NDArray[Any], tuple[Hashable, ...] | None, pd.Index | None]:
    """Finite features (N, D), with column names and index where x is a DataFrame."""
    names, index = None, None
    if isinstance(x, pd.DataFrame):
        names, index = _unique_columns(x, "x"), x.index
    table = _to_float64(x, "x", names, index)
    if table.ndim != 2:
        raise ShapeError(
            f"x has shape {table.shape}: give a table (rows, features); a single feature is "
            "x[:, None], a single row x[None, :]"
        )
    bad = ~np.isfinite(table)
    if bad.any():
        raise DataError(
            f"x has {bad.sum()} cell(s) that are NaN or infinite, first "
            f"{_cell(table, bad, names, index)}: impute these cells or drop their rows"
        )
    return table, names, index


def _outcomes(
    y: Any, index: pd.Index | None, num_rows: int
) -> tuple[NDArray[Any], tuple[str, ...], int]:
    """Outcomes (N, Q) in the order of ``index``, their names, and how many dimensions y had."""
    if hasattr(y, "toarray"):
        raise DataError("y is a sparse matrix, in which a zero is no value: give y.toarray()")
    names: tuple[Any, ...] | None = None
    if _is_pandas(y):
        _check_length(y, "y", num_rows)
        y = _in_order(y, "y", index)
        if isinstance(y, pd.DataFrame):
            columns = _unique_columns(y, "y")
            names = None if isinstance(y.columns, pd.RangeIndex) else tuple(map(str, columns))
        elif isinstance(y.name, str):
            names = (y.name,)
    values = _to_float64(y, "y", names, index)
    if values.ndim not in (1, 2) or values.shape[1:] == (0,):
        raise ShapeError(f"y has shape {values.shape}: give (N,) or (N, outcomes)")
    _check_length(values, "y", num_rows)
    ndim = values.ndim
    values = values[:, None] if ndim == 1 else values
    names = names or _default_names(values.shape[1])
    bad = np.isinf(values)
    if bad.any():
        raise DataError(
            f"y has {bad.sum()} infinite value(s), first {_cell(values, bad, names, index)}: "
            "put NaN where an outcome was not observed"
        )
    return values, names, ndim


def _to_float64(
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
    elif hasattr(value, "toarray"):  # scipy sparse, which need not be installed
        value = value.toarray()
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
            numbers[place] = float(cell)  # type: ignore[arg-type]
        else:
            bad[place] = cell is not None and cell is not pd.NA
    if bad.any():
        values = tuple(dict.fromkeys(array[bad].tolist()))
        raise DataError(
            f"{name} has {bad.sum()} cell(s) that are no numbers, first "
            f"{_cell(array, bad, columns, index)}; such values are {listed(values)}: "
            "give numbers (text, such as '1.5', is not converted)"
        )
    return numbers


def _series_array(series: pd.Series) -> NDArray[Any]:
    """The values as float64 if the dtype is numeric, pandas' nullable ones included."""
    dtype = series.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    return series.to_numpy(dtype=object)


def _in_order(value: Any, name: str, index: pd.Index | None) -> Any:
    """A pandas object with its rows in the order of ``index``."""
    if index is None or value.index.equals(index):
        return value
    for owner, labels in ((name, value.index), ("x", index)):
        if labels.has_duplicates:
            double = labels[labels.duplicated()]
            raise DataError(
                f"{name} and x have their rows in different order and the index of {owner} holds "
                f"{double[0]!r} more than once ({len(double)} such row(s)), so they cannot be "
                "matched: make the index unique, or bring both into the same order"
            )
    order = value.index.get_indexer(index)
    if (order < 0).any():
        raise DataError(
            f"{name} has no row for {(order < 0).sum()} index label(s) of x, first "
            f"{index[order < 0][0]!r}: add them, or give {name}.to_numpy() if rows correspond"
        )
    return value.iloc[order]


def _select_columns(frame: pd.DataFrame, names: tuple[Hashable, ...], name: str) -> pd.DataFrame:
    """The columns of training in their order."""
    place = {column: position for position, column in enumerate(_unique_columns(frame, name))}
    missing = tuple(column for column in names if column not in place)
    if missing:
        raise DataError(
            f"{name} lacks {len(missing)} column(s) of training: {listed(missing)}; add them"
        )
    extra = tuple(column for column in place if column not in set(names))
    if extra:
        text = f"{name} has {len(extra)} column(s) that training had not, ignored: "
        warnings.warn(text + listed(extra), DataWarning, stacklevel=3)
    return frame.iloc[:, [place[column] for column in names]]


def _unique_columns(frame: pd.DataFrame, name: str) -> tuple[Hashable, ...]:
    if frame.columns.has_duplicates:
        double = tuple(frame.columns[frame.columns.duplicated()].unique())
        raise DataError(f"{name} has columns of the same name: {listed(double)}; rename them")
    return tuple(frame.columns)


def _check_binary(y: NDArray[Any], names: tuple[str, ...], index: pd.Index | None) -> None:
    bad = ~np.isnan(y) & (y != 0) & (y != 1)
    if bad.any():
        values = np.unique(y[~np.isnan(y)]).tolist()
        raise DataError(
            f"y must be 0 or 1 here, but {bad.sum()} value(s) are not, first "
            f"{_cell(y, bad, names, index)}; y holds {listed(values)}: "
            "recode it to 0 and 1, or choose another likelihood"
        )


def _check_informative(y: NDArray[Any], names: tuple[str, ...], binary: bool) -> None:
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


def _warn_of_constants(x: NDArray[Any], names: tuple[Hashable, ...] | None) -> None:
    """Warn of columns that are constant up to rounding, or too small for single precision."""
    low, high = x.min(axis=0), x.max(axis=0)
    spread = np.maximum(1e-12 * np.maximum(np.abs(low), np.abs(high)), 1e-20)
    constant = np.flatnonzero(high - low <= spread)
    if len(constant):
        labels = tuple(names[j] if names else int(j) for j in constant)
        text = f"x has {len(constant)} constant column(s), which tell nothing: {listed(labels)}"
        warnings.warn(text, DataWarning, stacklevel=3)


def _check_length(value: Sized, name: str, num_rows: int) -> None:
    if len(value) != num_rows:
        raise ShapeError(f"{name} has {len(value)} rows, x has {num_rows}: give one for each row")


def _is_pandas(value: Any) -> bool:
    return isinstance(value, pd.Series | pd.DataFrame)


def _is_node(tree: Tree, label: Hashable) -> bool:
    try:
        return label in tree.nodes
    except ValueError:  # a tuple that holds arrays
        return False


def _default_names(num_outcomes: int) -> tuple[str, ...]:
    return tuple(f"y{q}" for q in range(num_outcomes))


def _cell(
    table: NDArray[Any],
    bad: NDArray[np.bool_],
    columns: tuple[Hashable, ...] | None,
    index: pd.Index | None,
) -> str:
    """The first bad cell: its value, its row and its column, by the user's names."""
    place = np.unravel_index(bad.argmax(), bad.shape)
    value, row = table[place], int(place[0])
    text = f"{value.item() if isinstance(value, np.generic) else value!r} at row {row}"
    if index is not None:
        text += f" (index {index[row]!r})"
    if len(place) == 2:
        text += f", column {columns[place[1]] if columns else int(place[1])!r}"
    return text
