"""The one step that turns a user's tables into tensors, for fit, predict, update and encode.

Features, outcomes and environments may be arrays, tensors, lists, pandas objects or tables of
another library. They come out as float64 (an outcome with an offset of 1e6 keeps its digits) in one
order of the rows; nothing the user gave is changed or shared. The first of ``x``, ``y``, ``env``
and ``groups`` that labels its rows sets the order: others with labels are brought into it (they may
have rows that it has not), everything else is taken by position.
"""

from collections.abc import Hashable, Iterable, Mapping, Set, Sized
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.data.columns import rounding_of, varying_columns, warn_of_columns
from pyro_tbr.data.matching import RowOrder, read_table, select_columns, unique_columns
from pyro_tbr.data.numbers import cell_text, check_size, to_float64
from pyro_tbr.data.outcomes import Check, Outcomes, check_observed, read_outcomes
from pyro_tbr.data.schema import Rows, Schema
from pyro_tbr.data.sparse import SparseFeatures, is_sparse, sparse_of_frame
from pyro_tbr.errors import DataError, ShapeError, TreeError
from pyro_tbr.tree import Tree, match_labels


def align_training(
    tree: Tree,
    x: Any,
    y: Any,
    env: Any,
    *,
    check: Check | None = None,
    check_informative: Check | None = None,
    keep_sparse: bool = False,
    learns: bool = False,
    precision: torch.dtype | None = None,
) -> tuple[Rows, Schema]:
    """Rows to fit, and the schema that later tables are held against.

    Args:
        tree: The environments.
        x: Features, (N, D): array, tensor, table, scipy sparse or lists; all finite numbers.
        y: Outcomes, (N,) or (N, Q); NaN, None and pd.NA are outcomes that were not observed.
        env: Each row's node, or one node for all rows.
        check: The likelihood's, which refuses outcomes outside its support.
        check_informative: The likelihood's, which refuses columns that tell it nothing.
        keep_sparse: Leave sparse features as they are, rather than dense.
        learns: Something is learnt from the features, so one of them must vary.
        precision: In which an encoder takes the features as they are; ``None``: none does.

    Raises:
        ShapeError: Numbers of rows differ, or a table has the wrong number of dimensions.
        DataError: Cells that are no usable numbers, rows that cannot be matched, an outcome that
            is nowhere observed or that the likelihood refuses; no column that varies.
        TreeError: A label is missing or not in the tree.

    Warns:
        DataWarning: Columns of ``x`` that are constant, or vary by little more than rounding.
    """
    rows, schema = read_rows(tree, x, y, env, check=check, keep_sparse=keep_sparse)
    check_whole(rows, schema, check_informative, learns=learns, precision=precision)
    return rows, schema


def read_rows(
    tree: Tree, x: Any, y: Any, env: Any, *, check: Check | None = None, keep_sparse: bool = False
) -> tuple[Rows, Schema]:
    """As :func:`align_training`, without what only the whole data set can tell."""
    x, index = read_table(x, "x")
    table, names = _features(x, index)
    if 0 in table.shape:
        raise ShapeError(f"x has shape {table.shape}: fitting needs rows and columns")
    order = RowOrder(len(table), index).or_of(y=y, env=env)
    outcomes, ndim = read_outcomes(*read_table(y, "y"), order)
    if check is not None:
        check(outcomes)
    rows = Rows(
        _tensor(table, keep_sparse),
        torch.from_numpy(outcomes.values),
        align_env(tree, env, order),
        order,
        rounding_of(x, table.shape[1]),
    )
    return rows, Schema(names, table.shape[1], outcomes.names, ndim)


def check_whole(
    rows: Rows,
    schema: Schema,
    check_informative: Check | None,
    *,
    learns: bool,
    precision: torch.dtype | None,
) -> None:
    """Checks that need all rows: outcomes that say something, features that vary.

    Raises:
        DataError: An outcome that is nowhere observed or that the likelihood refuses; no column of
            ``x`` varies, but something is to be learnt from them.

    Warns:
        DataWarning: Columns of ``x`` that are constant, or vary by little more than rounding.
    """
    assert rows.y is not None  # training has outcomes
    outcomes = Outcomes(rows.y.numpy(), schema.outcome_names, rows.order.index)
    check_observed(outcomes)
    if check_informative is not None:
        check_informative(outcomes)
    if learns and not varying_columns(rows.x).any():
        number = schema.num_features
        columns = "its one column is" if number == 1 else f"its {number} columns are"
        raise DataError(
            f"x does not vary: {columns} the same in all {len(rows.y)} row(s), up to rounding, so "
            "there are no latents to learn; add features, or rows (for changes of the mean alone: "
            "encoder='identity')"
        )
    warn_of_columns(rows.x, schema.feature_names, rows.rounding, precision)


def align_features(
    schema: Schema, x: Any, *, keep_sparse: bool = False
) -> tuple[Any, pd.Index | None]:
    """Features (N, D) in the order of training, and the user's index.

    Columns of a table are matched by name if training had names, so their order is free.

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
    x, index = read_table(x, "x")
    if isinstance(x, pd.DataFrame) and schema.feature_names is not None:
        x = select_columns(x, schema.feature_names, "x")
    table, _ = _features(x, index)
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


def align_env(tree: Tree, env: Any, order: RowOrder) -> Tensor:
    """Positions in ``tree.nodes`` of the rows' environments, (N,) int64.

    Args:
        tree: The environments.
        env: A label for each row (a Series is brought into the order of the rows, those that are
            not in it are left out), or one label for all rows: a str or another scalar, or a tuple
            that is itself a node.
        order: Of the rows.

    Raises:
        TreeError: A label is missing or not in the tree.
        ShapeError: There are more or fewer labels than rows.
        DataError: The index of a Series does not fit those of the others.
    """
    if env is None:
        raise TreeError("env is None: give a node label for each row, or one for all rows")
    env, index = read_table(env, "env")
    if isinstance(env, pd.DataFrame) and env.shape[1] == 1:
        env = env.iloc[:, 0]
    if isinstance(env, Tensor):
        env = env.detach().cpu().numpy()
    if getattr(env, "ndim", 1) == 0:  # a numpy scalar or an array of no dimensions
        env = env.item()
    if getattr(env, "ndim", 1) > 1:
        raise ShapeError(f"env has shape {env.shape}: give one label a row, shape ({order.size},)")
    one = isinstance(env, str | bytes) or not isinstance(env, Iterable)
    if one or (isinstance(env, tuple | frozenset) and _is_node(tree, env)):
        single = match_labels(tree, [env])
        return single.expand(order.size).clone()
    if not isinstance(env, Sized):
        env = list(env)
    if not isinstance(env, Mapping | Set):  # these have no rows at all, as match_labels says
        env = order.arrange(env, index, "env")
    return match_labels(tree, env)


def _features(
    x: Any, index: pd.Index | None
) -> tuple[NDArray[Any] | SparseFeatures, tuple[Hashable, ...] | None]:
    """Finite features (N, D), and the names of their columns where they have some."""
    if is_sparse(x):
        return SparseFeatures(x), None
    names = None
    if isinstance(x, pd.DataFrame):
        names = unique_columns(x, "x")
        stored = sparse_of_frame(x)
        if stored is not None:
            return SparseFeatures(stored, names, index), names
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
    return table, names


def _is_node(tree: Tree, label: Hashable) -> bool:
    try:
        return label in tree.nodes
    except ValueError:  # a tuple that holds arrays
        return False
