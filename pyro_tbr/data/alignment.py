"""The one step that turns a user's tables into tensors, for fit, predict, update and encode.

Features, outcomes and environments may be arrays, tensors, lists or pandas objects. They come
out as float64 (an outcome with an offset of 1e6 keeps its digits) in the row order of ``x``;
nothing the user gave is changed or shared. Where ``x`` is a DataFrame its index rules: other
pandas objects are brought into its order by label (they may have rows that ``x`` has not),
everything else is taken by position.
"""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Set, Sized
from typing import Any

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
from pyro_tbr.data.outcomes import check_binary, check_informative, outcome_table
from pyro_tbr.data.schema import Rows, Schema
from pyro_tbr.data.sparse import SparseFeatures, is_sparse, sparse_of_frame
from pyro_tbr.errors import DataError, DataWarning, ShapeError, TreeError
from pyro_tbr.tree import Tree, match_labels
from pyro_tbr.tree.readers.naming import listed


def align_training(
    tree: Tree,
    x: Any,
    y: Any,
    env: Any,
    *,
    binary: bool = False,
    keep_sparse: bool = False,
    learns: bool = False,
) -> tuple[Rows, Schema]:
    """Rows to fit, and the schema that later tables are held against.

    Args:
        tree: The environments.
        x: Features, (N, D): array, tensor, DataFrame, scipy sparse or lists; all finite numbers.
        y: Outcomes, (N,) or (N, Q); NaN, None and pd.NA are outcomes that were not observed.
        env: Each row's node, or one node for all rows.
        binary: Outcomes must be 0 or 1, and both must occur in each column.
        keep_sparse: Leave sparse features as they are, rather than dense.
        learns: Something is learnt from the features, so one of them must vary.

    Raises:
        ShapeError: Numbers of rows differ, or a table has the wrong number of dimensions.
        DataError: Cells that are no usable numbers, rows that cannot be matched, an outcome that
            is nowhere observed or, if binary, has a single value; no column that varies.
        TreeError: A label is missing or not in the tree.

    Warns:
        DataWarning: Columns of ``x`` that are constant.
    """
    rows, schema = read_rows(tree, x, y, env, binary=binary, keep_sparse=keep_sparse)
    check_whole(rows, schema, binary=binary, learns=learns)
    return rows, schema


def read_rows(
    tree: Tree, x: Any, y: Any, env: Any, *, binary: bool = False, keep_sparse: bool = False
) -> tuple[Rows, Schema]:
    """As :func:`align_training`, without what only the whole data set can tell."""
    table, feature_names, index = _features(x)
    if 0 in table.shape:
        raise ShapeError(f"x has shape {table.shape}: fitting needs rows and columns")
    if index is None and is_pandas(y) and is_pandas(env) and not y.index.equals(env.index):
        raise DataError(
            "y and env are pandas objects with different indexes while x has none, so their rows "
            "cannot be matched: give x as a DataFrame, or y.to_numpy() and env.to_numpy()"
        )
    outcomes, names, ndim = outcome_table(y, index, len(table))
    schema = Schema(feature_names, table.shape[1], names, ndim)
    if binary:
        check_binary(outcomes, names, index)
    env_index = align_env(tree, env, index, len(table))
    features = _tensor(table, keep_sparse)
    return Rows(features, torch.from_numpy(outcomes), env_index, index), schema


def check_whole(rows: Rows, schema: Schema, *, binary: bool, learns: bool) -> None:
    """Checks that need all rows: outcomes that say something, features that vary.

    Raises:
        DataError: An outcome that is nowhere observed or, if binary, has a single value; no column
            of ``x`` varies, but something is to be learnt from them.

    Warns:
        DataWarning: Columns of ``x`` that are constant.
    """
    assert rows.y is not None  # training has outcomes
    check_informative(rows.y.numpy(), schema.outcome_names, binary)
    constant = _constant_columns(rows.x)
    if learns and len(constant) == schema.num_features:
        raise DataError(
            f"x does not vary: {_columns_text(len(constant))} the same in all {len(rows.y)} "
            "row(s), so there are no latents to learn; add features, or rows (for changes of the "
            "mean alone: encoder='identity')"
        )
    if len(constant):
        names = schema.feature_names
        labels = tuple(names[j] if names else int(j) for j in constant)
        text = f"x has {len(constant)} constant column(s), which tell nothing: {listed(labels)}"
        warnings.warn(text, DataWarning, stacklevel=4)


def _columns_text(number: int) -> str:
    return "its one column is" if number == 1 else f"its {number} columns are"


def align_features(
    schema: Schema, x: Any, *, keep_sparse: bool = False
) -> tuple[Any, pd.Index | None]:
    """Features (N, D) in the order of training, and the user's index.

    Columns of a DataFrame are matched by name if training had names, so their order is free.

    Args:
        schema: What training had.
        x: Features.
        keep_sparse: Leave sparse features as they are (SparseFeatures), rather than a dense tensor.

    Raises:
        ShapeError: The number of columns differs from training.
        DataError: A column of training is missing or doubled, or cells are no finite numbers.

    Warns:
        DataWarning: Columns that training had not; they are ignored.
    """
    if isinstance(x, pd.DataFrame) and schema.feature_names is not None:
        x = select_columns(x, schema.feature_names, "x")
    table, _, index = _features(x)
    if table.shape[1] != schema.num_features:
        raise ShapeError(
            f"x has {table.shape[1]} columns, the model was fitted to {schema.num_features}: "
            "give the features of training, in their order"
        )
    return _tensor(table, keep_sparse), index


def _tensor(table: NDArray[Any] | SparseFeatures, keep_sparse: bool) -> Tensor | SparseFeatures:
    if isinstance(table, SparseFeatures):
        return table if keep_sparse else table.dense()
    return torch.from_numpy(table)


def align_env(tree: Tree, env: Any, index: pd.Index | None, num_rows: int) -> Tensor:
    """Positions in ``tree.nodes`` of the rows' environments, (N,) int64.

    Args:
        tree: The environments.
        env: A label for each row (a Series is brought into the order of ``index``, rows that are
            not in it are left out), or one label for all rows: a str or another scalar, or a tuple
            that is itself a node.
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
    if isinstance(env, pd.Series):
        env = in_order(env, "env", index)
    if not isinstance(env, Mapping | Set):  # these have no rows at all, as is said below
        check_length(env, "env", num_rows)
    return match_labels(tree, env)


def _features(
    x: Any,
) -> tuple[NDArray[Any] | SparseFeatures, tuple[Hashable, ...] | None, pd.Index | None]:
    """Finite features (N, D), with column names and index where x is a DataFrame."""
    if is_sparse(x):
        return SparseFeatures(x), None, None
    names, index = None, None
    if isinstance(x, pd.DataFrame):
        names, index = unique_columns(x, "x"), x.index
        stored = sparse_of_frame(x)
        if stored is not None:
            return SparseFeatures(stored, names, index), names, index
    table = to_float64(x, "x", names, index)
    if table.ndim != 2:
        raise ShapeError(
            f"x has shape {table.shape}: give a table (rows, features); a single feature is "
            "x[:, None], a single row x[None, :]"
        )
    bad = ~np.isfinite(table)
    if bad.any():
        raise DataError(
            f"x has {bad.sum()} cell(s) that are NaN or infinite, first "
            f"{cell_text(table, bad, names, index)}: impute these cells or drop their rows"
        )
    check_size(table, "x", names, index)
    return table, names, index


def _constant_columns(x: Tensor | SparseFeatures) -> NDArray[np.int64]:
    """Columns that are constant up to rounding, or too small for single precision."""
    if isinstance(x, SparseFeatures):
        low, high = x.column_range()
    else:
        low, high = x.amin(0).numpy(), x.amax(0).numpy()
    spread = np.maximum(1e-12 * np.maximum(np.abs(low), np.abs(high)), 1e-20)
    return np.flatnonzero(high - low <= spread)


def _is_node(tree: Tree, label: Hashable) -> bool:
    try:
        return label in tree.nodes
    except ValueError:  # a tuple that holds arrays
        return False
