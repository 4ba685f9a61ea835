"""The one step that turns a user's tables into tensors, for fit, predict, update and encode.

They come out as float64 (an outcome with an offset of 1e6 keeps its digits) in one order of the
rows: that of the first of ``x``, ``y``, ``env`` and ``groups`` that labels its rows. Others with
labels are brought into it and may have more rows; everything else is taken by position.
"""

from collections.abc import Hashable, Iterable, Mapping, Set, Sized
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data.columns import rounding_of, varying_columns, warn_of_columns
from pyro_tbr.data.features import Features, dense
from pyro_tbr.data.matching import (
    RowOrder,
    Rows,
    Schema,
    column_places,
    read_table,
    select_columns,
    unique_columns,
)
from pyro_tbr.data.numbers import NOT_FINITE, check_size, plain, refuse_cells, to_float64
from pyro_tbr.data.outcomes import Check, Outcomes, read_outcomes
from pyro_tbr.data.sparse import SparseFeatures, is_sparse, sparse_of_frame
from pyro_tbr.data.stream import FeatureStream, as_stream, is_stream
from pyro_tbr.errors import DataError, ShapeError, TreeError
from pyro_tbr.tree import Tree, match_labels
from pyro_tbr.tree.labels import factorize_labels
from pyro_tbr.tree.readers.naming import unknown_label

_LOOKED_AT = 100  # rows that say whether arguments have changed places


def align_training(
    tree: Tree,
    x: Any,
    y: Any,
    env: Any,
    *,
    check: Check | None = None,
    check_informative: Check | None = None,
    keep: bool = False,
    learns: bool = False,
    precision: torch.dtype | None = None,
) -> tuple[Rows, Schema]:
    """Rows to fit, and the schema that later tables are held against.

    Args:
        tree: The environments.
        x: Features, (N, D): array, tensor, table, scipy sparse, lists or what is read by blocks
            (:class:`FeatureStream`); all finite numbers.
        y: Outcomes, (N,) or (N, Q); NaN, None and pd.NA are outcomes that were not observed.
        env: Each row's node, or one node for all rows.
        check: The likelihood's, which refuses outcomes outside its support.
        check_informative: The likelihood's, which refuses columns that tell it nothing.
        keep: Leave features that are sparse or read by blocks as they are, rather than dense.
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
    rows, schema = read_rows(tree, x, y, env, check=check, keep=keep)
    check_whole(rows, schema, check_informative, learns=learns, precision=precision)
    return rows, schema


def read_rows(
    tree: Tree, x: Any, y: Any, env: Any, *, check: Check | None = None, keep: bool = False
) -> tuple[Rows, Schema]:
    """As :func:`align_training`, without what only the whole data set can tell."""
    x, index = read_table(x, "x")
    _refuse_swapped(tree, x, y)
    table, names = _features(x, index)
    if 0 in table.shape:
        raise ShapeError(f"x has shape {tuple(table.shape)}: fitting needs rows and columns")
    order = RowOrder(len(table), index).or_of(y=y, env=env)
    outcomes, ndim = read_outcomes(*read_table(y, "y"), order)
    if check is not None:
        check(outcomes)
    rows = Rows(
        table if keep else dense(table),
        torch.from_numpy(outcomes.values),
        align_env(tree, env, order),
        order,
        rounding_of(x, table.shape[1]),
    )
    return rows, Schema(names, table.shape[1], outcomes.names, ndim)


def _refuse_swapped(tree: Tree, x: Any, y: Any) -> None:
    """Refuses what are good arguments in another order."""
    given = {"x": x, "y": y}
    dims = [getattr(value, "ndim", None) for value in given.values()]
    order = "the order is fit(model, x, y, env)"
    if dims == [1, 2] and len(x) == len(y):
        shapes = f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}"
        raise ShapeError(f"{shapes}: they seem to have changed places; {order}")
    labels = y if isinstance(y, np.ndarray | pd.Series) else None
    if labels is None and isinstance(y, list | tuple):
        labels = np.array([label for label in y if isinstance(label, str)], dtype=object)
    if labels is None or labels.ndim != 1 or not len(labels):
        return
    texts = [label for label in labels[:_LOOKED_AT] if isinstance(label, str)]
    if texts and all(tree.find(text) is not None for text in texts):
        raise DataError(
            f"y holds nodes of the tree, first {texts[0]!r}: y and env seem to have changed "
            f"places; {order}"
        )


def check_whole(
    rows: Rows,
    schema: Schema,
    check_informative: Check | None,
    *,
    learns: bool,
    precision: torch.dtype | None,
) -> None:
    """What :func:`align_training` checks of all rows: outcomes say something, features vary."""
    assert rows.y is not None  # training has outcomes
    outcomes = Outcomes(rows.y.numpy(), schema.outcome_names, rows.order.index)
    for name, column in zip(outcomes.names, outcomes.values.T, strict=True):
        if np.isnan(column).all():
            raise DataError(
                f"y has no observed value in column {name!r}, all {len(column)} rows are missing: "
                "drop this outcome"
            )
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


def align_features(schema: Schema, x: Any, *, keep: bool = False) -> tuple[Any, pd.Index | None]:
    """Features (N, D) in the order of training, and the index of what is said of each row.

    That is the user's where ``x`` is a table, of pandas or another library, else ``None``.

    Columns of a table are matched by name if training had names, so their order is free. What is
    sparse or read by blocks becomes a dense tensor unless asked to stay.

    Raises:
        ShapeError: The number of columns differs from training.
        DataError: A column of training is missing or doubled, or cells are no finite numbers.

    Warns:
        DataWarning: Columns that training had not; they are ignored.
    """
    x, _ = read_table(x, "x")
    index = x.index if isinstance(x, pd.DataFrame | FeatureStream) else None
    known = schema.feature_names
    if isinstance(x, pd.DataFrame) and known is not None:
        x = select_columns(x, known, "x")
    elif isinstance(x, FeatureStream) and x.names not in (None, known) and known is not None:
        x = x.with_columns(column_places(x.names, known, "x"))
    table, _ = _features(x, index)
    if table.shape[1] != schema.num_features:
        raise ShapeError(
            f"x has {table.shape[1]} columns, the model was fitted to {schema.num_features}: "
            "give the features of training, in their order"
        )
    return table if keep else dense(table), index


def align_env(tree: Tree, env: Any, order: RowOrder) -> Tensor:
    """Positions in ``tree.nodes`` of the rows' environments, (N,) int64.

    There is a label for each row (a Series is brought into the order of the rows, those that are
    not in it are left out), or one for all rows: a str or another scalar, or a tuple that is itself
    a node.

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
    if one or (isinstance(env, tuple | frozenset) and tree.find(env) is not None):
        if isinstance(env, str) and tree.find(env) is None:
            raise TreeError(
                f"env: {unknown_label(env, tree.nodes, 'nodes')}; one label stands for all rows, "
                f"and a column of a table is table[{env!r}]"
            )
        single = match_labels(tree, [env])
        return single.expand(order.size).clone()
    if not isinstance(env, Sized):
        env = list(env)
    if not isinstance(env, Mapping | Set):  # these have no rows at all, as match_labels says
        env = order.arrange(env, index, "env")
    return match_labels(tree, env)


def align_groups(groups: Any, env_index: Tensor, order: RowOrder, *, learns: bool = True) -> Tensor:
    """A number for each row's group within its environment, (N,) int64, from 0 on.

    A Series is brought into the order of the rows. Rows at two nodes are of two groups, whatever
    the label. Some have to share one where it ``learns`` how alike the rows of a group are.

    Raises:
        ShapeError: There are more or fewer labels than rows, or more than one column.
        TreeError: Labels that are not hashable.
        DataError: A label is missing, with ``learns`` no two rows share group and node, or the
            index of a Series does not fit those of the others.
    """
    codes, _ = factorize_labels(arrange_groups(groups, order), "groups")
    missing = codes < 0
    if missing.any():
        first = int(missing.argmax())
        where = first if order.index is None else plain(order.index[first])
        raise DataError(
            f"groups has no label for {missing.sum()} row(s), first row {where!r}: give a row that "
            "is alone a label of its own, or leave the row out"
        )
    both = torch.stack([env_index.cpu(), torch.from_numpy(codes.astype("int64"))], 1)
    pairs = both.unique(dim=0, return_inverse=True)[1]
    if learns and len(pairs) and int(pairs.max()) + 1 == len(pairs):
        raise DataError(
            f"groups: none of the {len(pairs)} rows shares group and environment with another one, "
            "so nothing says how alike the rows of a group are: leave groups out"
        )
    return pairs


def arrange_groups(groups: Any, order: RowOrder) -> Any:
    """The labels of groups as they were given, one a row, in the order of the rows."""
    bad = isinstance(groups, str | bytes | Mapping | Set) or not hasattr(groups, "__len__")
    if bad:
        shown = repr(groups) if isinstance(groups, str | bytes) else type(groups).__name__
        raise DataError(
            f"groups: {shown} is no label for each row: give a list or Series of {order.size} "
            "labels, of a table its column"
        )
    groups, index = read_table(groups, "groups")
    if isinstance(groups, pd.DataFrame) and groups.shape[1] == 1:
        groups = groups.iloc[:, 0]
    return order.arrange(groups, index, "groups")


def _features(
    x: Any, index: pd.Index | None
) -> tuple[Tensor | Features, tuple[Hashable, ...] | None]:
    """Finite features (N, D), and the names of their columns where they have some."""
    if is_stream(x):
        stream = as_stream(x)
        return stream, stream.names
    if is_sparse(x):
        return SparseFeatures(x), None
    names = None
    if isinstance(x, pd.DataFrame):
        names = unique_columns(x, "x")
        stored = sparse_of_frame(x)
        if stored is not None:
            return SparseFeatures(stored, names, index), names
        if len(set(x.dtypes)) == 1 and isinstance(x.dtypes.iloc[0], np.dtype):
            values = x.to_numpy()  # a view
            if is_stream(values):
                return FeatureStream(values, names, x.index), names
    table = to_float64(x, "x", names, index)
    if table.ndim != 2:
        raise ShapeError(
            f"x has shape {table.shape}: give a table (rows, features); a single feature is "
            "x[:, None], a single row x[None, :]"
        )
    bad = ~np.isfinite(table)
    refuse_cells("x", table, bad, *NOT_FINITE, names, index)
    check_size(table, "x", names, index)
    return torch.from_numpy(table), names
