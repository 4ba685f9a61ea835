"""One table for what is taken, one for what is refused; cases O-09 to O-19 by their numbers."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_tbr.data import (
    RowOrder,
    Schema,
    align_env,
    align_features,
    align_outcomes,
    align_training,
)
from pyro_tbr.errors import DataError, DataWarning, ShapeError, TreeError
from pyro_tbr.heads.likelihoods import BernoulliLikelihood
from pyro_tbr.tree import Tree

N = 6
TREE = Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r", ("t", 1): "r"})
ENV = ["a", "b", "c", "a", "u", "b"]
INDEX = [TREE.index(label) for label in ENV]
X = np.random.default_rng(0).normal(size=(N, 3)).round(1)  # short enough for float16 to matter
X[X > 1] = 2.0
Y = np.array([0.5, -1.0, 2.0, 3.0, 0.0, 1.0])
YB = np.array([0, 1, 1, 0, 1, 0])
ROWS = pd.Index([f"r{i}" for i in range(N)])
FRAME = pd.DataFrame(X, columns=["f0", "f1", "f2"], index=ROWS)
SHUFFLE = [3, 1, 5, 0, 4, 2]


def edited(array, place, value, dtype=None):
    array = np.array(array, dtype=dtype)
    array[place] = value
    return array


ZERO_ONE = BernoulliLikelihood()
BINARY_CHECKS = {"check": ZERO_ONE.check, "check_informative": ZERO_ONE.check_informative}


def training(x=X, y=Y, env=ENV, **options):
    return align_training(TREE, x, y, env, **options)


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def same(tensor, array):
    assert tensor.dtype == torch.float64
    np.testing.assert_array_equal(tensor.numpy(), array)


# What is taken. O-15 to O-17: the same numbers, bit for bit, from every container.

INTEGERS = (10 * X).round()
FEATURES = {
    "array": (X, X),
    "fortran": (np.asfortranarray(X), X),
    "big endian": (X.astype(">f8"), X),
    "read-only": (read_only(X), X),
    "strided": (np.repeat(X, 2, axis=1)[:, ::2], X),
    "float32": (X.astype(np.float32), X.astype(np.float32)),
    "float16": (X.astype(np.float16), X.astype(np.float16)),
    "int8": (INTEGERS.astype(np.int8), INTEGERS),
    "uint64": (np.abs(INTEGERS).astype(np.uint64), np.abs(INTEGERS)),
    "bool": (X > 0, X > 0),
    "lists": (X.tolist(), X),
    "objects": (X.astype(object), X),
    "mixed objects": (edited(X, (0, 0), True, object), edited(X, (0, 0), 1)),
    "tensor": (torch.from_numpy(X).clone().requires_grad_(), X),
    "bfloat16": (torch.from_numpy(INTEGERS).to(torch.bfloat16), INTEGERS),
    "sparse tensor": (torch.from_numpy(X).to_sparse(), X),
    "frame": (FRAME, X),
    "mixed frame": (FRAME.astype({"f0": "float32", "f1": object}), None),
    "nullable frame": (pd.DataFrame(INTEGERS).astype("Int64"), INTEGERS),
    "sparse frame": (FRAME.astype(pd.SparseDtype(float)), X),
    "csr": (sp.csr_matrix(X), X),
    "csc": (sp.csc_matrix(X), X),
    "coo": (sp.coo_matrix(X), X),
    "csr array": (sp.csr_array(X), X),
    "masked": (np.ma.MaskedArray(X, mask=False), X),
}


@pytest.mark.parametrize(("x", "expected"), FEATURES.values(), ids=FEATURES.keys())
def test_features_from_any_container(x, expected):
    rows, schema = training(x=x)
    if expected is None:
        expected = edited(X, (slice(None), 0), X[:, 0].astype(np.float32))
    same(rows.x, np.asarray(expected, dtype=float))
    assert schema.num_features == 3
    same(align_features(schema, x)[0], rows.x.numpy())
    rows.x.zero_()  # what we do with it later does not reach the user
    same(align_features(schema, x)[0], np.asarray(expected, dtype=float))


def test_duplicate_entries_of_a_sparse_matrix_are_summed():
    x = sp.coo_matrix(([1.0, 2.0, 5.0], ([0, 0, 1], [0, 0, 1])), shape=(2, 2))
    same(align_features(Schema(None, 2, ("y0",), 1), x)[0], [[3, 0], [0, 5]])


NAN = np.nan
OUTCOMES = {
    "vector": (Y, Y[:, None], ("y0",), 1),
    "column": (Y[:, None], Y[:, None], ("y0",), 2),
    "table": (np.stack([Y, YB], 1), np.stack([Y, YB], 1), ("y0", "y1"), 2),
    "list with None": ([0.5, None, 2, 3, 0, True], [[0.5], [NAN], [2], [3], [0], [1]], ("y0",), 1),
    "tensor": (torch.tensor(YB), YB[:, None], ("y0",), 1),
    "series": (pd.Series(Y, name="growth"), Y[:, None], ("growth",), 1),
    "series named 3": (pd.Series(Y, name=3), Y[:, None], (3,), 1),
    "frame": (pd.DataFrame({"p": Y, "q": YB}), np.stack([Y, YB], 1), ("p", "q"), 2),
    "unnamed frame": (pd.DataFrame(np.stack([Y, YB], 1)), np.stack([Y, YB], 1), ("y0", "y1"), 2),
    "categorical": (pd.Series(pd.Categorical(YB)), YB[:, None], ("y0",), 1),
    "masked": (
        np.ma.MaskedArray(Y, mask=[1, 0, 0, 0, 0, 0]),
        edited(Y, 0, NAN)[:, None],
        ("y0",),
        1,
    ),
    "row without outcomes": (
        edited(np.stack([Y, Y], 1), 2, NAN),
        edited(np.stack([Y, Y], 1), 2, NAN),
        ("y0", "y1"),
        2,
    ),
}


@pytest.mark.parametrize(("y", "expected", "names", "ndim"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_outcomes_from_any_container(y, expected, names, ndim):
    rows, schema = training(y=y)
    same(rows.y, np.asarray(expected, dtype=float))
    assert (schema.outcome_names, schema.outcome_ndim) == (names, ndim)
    same(align_outcomes(schema, y, RowOrder(N)), rows.y.numpy())


BINARY = [
    YB,
    YB > 0,
    YB.astype(np.uint8),
    YB.astype(float),
    (YB > 0).tolist(),
    pd.Series(YB > 0).astype("boolean"),
    pd.Series(YB).astype("Int64"),
    pd.Series(YB > 0).astype(object),
]


@pytest.mark.parametrize("y", BINARY, ids=lambda y: f"{type(y).__name__}-{getattr(y, 'dtype', '')}")
def test_o17_binary_outcomes_of_every_dtype(y):
    same(training(y=y, **BINARY_CHECKS)[0].y, YB[:, None])


def test_o17_missing_nullable_outcomes_are_nan():
    y = pd.Series(YB).astype("Int64")
    y.iloc[[1, 4]] = pd.NA
    same(training(y=y, **BINARY_CHECKS)[0].y, edited(YB, [1, 4], NAN, float)[:, None])


def test_o19_an_offset_of_a_million_survives():
    same(training(y=Y * 1e-6 + 1e6)[0].y, (Y * 1e-6 + 1e6)[:, None])


ENVS = {
    "list": ENV,
    "tuple": tuple(ENV),
    "array": np.array(ENV),
    "objects": np.array(ENV, dtype=object),
    "string array": pd.array(ENV, dtype="string"),
    "categorical": pd.Categorical(ENV, categories=["zz", "c", "b", "a", "u"]),
    "series": pd.Series(ENV),
    "categorical series": pd.Series(ENV).astype("category"),
    "one-column frame": pd.DataFrame({"env": ENV}),
    "index": pd.Index(ENV),
    "generator": iter(ENV),
}


@pytest.mark.parametrize("env", ENVS.values(), ids=ENVS.keys())
def test_o09_o10_env_from_any_container(env):
    assert align_env(TREE, env, RowOrder(N)).tolist() == INDEX


@pytest.mark.parametrize("label", ["b", "u", ("t", 1), np.str_("b")])
def test_one_label_for_all_rows(label):
    env = align_env(TREE, label, RowOrder(3))
    assert env.dtype == torch.int64
    assert env.tolist() == [TREE.index(label)] * 3


def test_no_rows_at_all():
    assert (
        align_env(TREE, [], RowOrder(0)).tolist()
        == align_env(TREE, "a", RowOrder(0)).tolist()
        == []
    )
    assert align_outcomes(FITTED, np.empty((0, 2)), RowOrder(0)).shape == (0, 2)


@pytest.mark.parametrize("label", [3, np.int64(3), 3.0, np.array(3), torch.tensor(3)])
def test_o09_one_integer_label(label):
    tree = Tree.from_parents({1: 0, 3: 0})
    assert align_env(tree, label, RowOrder(2)).tolist() == [tree.index(3)] * 2


# Order. O-14 and alignment by index.


def test_pandas_objects_follow_the_index_of_x():
    y, env = pd.Series(Y, ROWS), pd.Series(ENV, ROWS)
    rows, _ = training(FRAME, y.iloc[SHUFFLE], env.iloc[::-1])
    same(rows.x, X)
    same(rows.y, Y[:, None])
    assert rows.env_index.tolist() == INDEX
    assert rows.order.index.equals(ROWS)


def test_arrays_go_by_position_beside_a_frame():
    rows, _ = training(FRAME.iloc[SHUFFLE], Y, ENV)
    same(rows.x, X[SHUFFLE])
    same(rows.y, Y[:, None])


def test_doubled_index_is_fine_in_one_order():
    double = ["r0"] * N
    frame = FRAME.set_axis(double)
    same(training(frame, pd.Series(Y, double), pd.Series(ENV, double))[0].y, Y[:, None])


def test_o14_columns_are_matched_by_name():
    _, schema = training(FRAME)
    x, index = align_features(schema, FRAME[["f2", "f0", "f1"]].iloc[:2])
    same(x, X[:2])
    assert index.equals(ROWS[:2])
    with pytest.warns(DataWarning, match=r"1 column.* ignored: 'zz'"):
        same(align_features(schema, FRAME.assign(zz=0.0))[0], X)
    same(align_features(schema, X)[0], X)  # an array goes by position
    assert align_features(schema, X[:0])[0].shape == (0, 3)


def test_outcome_columns_are_matched_by_name():
    table = pd.DataFrame({"p": Y, "q": YB})
    _, schema = training(y=table)
    same(align_outcomes(schema, table[["q", "p"]], RowOrder(N)), table.to_numpy())
    _, schema = training(y=table.to_numpy())  # no names then: by position
    same(align_outcomes(schema, table, RowOrder(N)), table.to_numpy())


def test_later_rows_may_lack_an_outcome_or_a_class():
    schema = Schema(None, 3, ("p", "q"), 2)
    y = [[1, NAN], [1, NAN]]
    same(align_outcomes(schema, y, RowOrder(2), check=ZERO_ONE.check), y)


def test_o15_constant_columns_are_named():
    const = FRAME.assign(f1=7.0, f2=edited(np.full(N, 1e-30), 0, 2e-30))
    with pytest.warns(DataWarning, match=r"2 constant column.*'f1', 'f2'"):
        same(training(const)[0].x, const.to_numpy())
    with pytest.warns(DataWarning, match="1 constant.*: 2$"):
        training(edited(X, (slice(None), 2), 0))
    training(1e6 + 1e-3 * X)  # a small spread about an offset is no constant


# What is refused.

DOUBLE = FRAME.set_axis(["f0", "f1", "f1"], axis=1)
FITTED = Schema(("f0", "f1", "f2"), 3, ("p", "q"), 2)
PLAIN = Schema(None, 3, ("y0",), 1)
Y_ROWS = pd.Series(Y, ROWS)
WORDS = np.where(YB == 1, "resistant", "susceptible")
ERRORS = {
    "x vector": (lambda: training(X[:, 0]), ShapeError, "x has shape (6,)"),
    "x series": (lambda: training(FRAME["f0"]), ShapeError, "x[:, None]"),
    "x ragged": (lambda: training([[1.0], [1.0, 2.0]]), ShapeError, "different lengths"),
    "x empty": (lambda: training(X[:0], Y[:0], []), ShapeError, "(0, 3)"),
    "x no columns": (lambda: training(X[:, :0]), ShapeError, "(6, 0)"),
    "O-16 trap": (lambda: training(np.asarray(sp.csr_matrix(X))), ShapeError, "x is a single"),
    "O-15 nan": (
        lambda: training(edited(FRAME, ([3, 5], 2), NAN)),
        DataError,
        "x has 2 cell(s) that are NaN or infinite, first nan at row 3, column 2",
    ),
    "O-15 named": (
        lambda: training(FRAME.where(FRAME != X[4, 1], np.inf)),
        DataError,
        "first inf at row 4 (index 'r4'), column 'f1'",
    ),
    "O-15 predict": (
        lambda: align_features(PLAIN, edited(X, (1, 0), -np.inf)),
        DataError,
        "1 cell(s) that are NaN or infinite, first -inf at row 1, column 0",
    ),
    "O-16 nan": (lambda: training(sp.csr_matrix(edited(X, (2, 1), NAN))), DataError, "row 2"),
    "masked x": (
        lambda: training(np.ma.MaskedArray(X, mask=edited(X * 0, (1, 2), 1))),
        DataError,
        "nan at row 1, column 2",
    ),
    "O-15 object": (
        lambda: training(edited(X, (0, 0), "1.5", object)),
        DataError,
        "x has 1 cell(s) that are no numbers, first '1.5' at row 0, column 0",
    ),
    "text in frame": (
        lambda: training(FRAME.assign(f1=list("uvwxyz"))),
        DataError,
        "6 cell(s) that are no numbers, first 'u' at row 0 (index 'r0'), column 'f1'",
    ),
    "text in list": (lambda: training([[1, "?"]] * N), DataError, "first '?' at row 0, column 1"),
    "complex": (lambda: training(X + 1j), DataError, "complex128"),
    "dates": (lambda: training(X.astype("M8[s]")), DataError, "datetime64"),
    "dates in frame": (
        lambda: training(FRAME.assign(f2=pd.Timestamp("2020-01-01"))),
        DataError,
        "column 'f2'",
    ),
    "O-14 missing": (
        lambda: align_features(FITTED, FRAME.drop(columns="f2")),
        DataError,
        "x lacks 1 column(s) of training: 'f2'",
    ),
    "O-14 dup": (lambda: training(DOUBLE), DataError, "same name: 'f1'"),
    "O-14 dup later": (lambda: align_features(FITTED, DOUBLE), DataError, "'f1'"),
    "O-14 array": (
        lambda: align_features(FITTED, X[:, :2]),
        ShapeError,
        "x has 2 columns, the model was fitted to 3",
    ),
    "y short": (lambda: training(y=Y[:4]), ShapeError, "y has 4 rows, x has 6"),
    "y long series": (lambda: training(y=pd.Series(range(9))), ShapeError, "y has 9 rows"),
    "y cube": (lambda: training(y=Y[:, None, None]), ShapeError, "(6, 1, 1)"),
    "y no columns": (lambda: training(y=Y[:, None][:, :0]), ShapeError, "(6, 0)"),
    "y None": (lambda: training(y=None), ShapeError, "y is a single NoneType"),
    "y sparse": (lambda: training(y=sp.csr_matrix(Y[:, None])), DataError, "y is a sparse"),
    "y inf": (
        lambda: training(y=edited(np.stack([Y, Y], 1), (2, 1), np.inf)),
        DataError,
        "y has 1 value(s) that are infinite, first inf at row 2, column 'y1'",
    ),
    "y unseen": (
        lambda: training(y=pd.DataFrame({"p": Y, "q": NAN})),
        DataError,
        "no observed value in column 'q', all 6 rows",
    ),
    "y dup": (
        lambda: training(y=pd.DataFrame(np.stack([Y, Y], 1), columns=["p", "p"])),
        DataError,
        "y has columns of the same name: 'p'",
    ),
    "O-18 one class": (
        lambda: training(y=YB * 0 + 1, **BINARY_CHECKS),
        DataError,
        "y has a single value 1 in all 6 rows",
    ),
    "O-18 one class seen": (
        lambda: training(y=np.where(YB == 1, 1, NAN), **BINARY_CHECKS),
        DataError,
        "single value 1 in all 3 observed rows",
    ),
    "O-18 one and two": (
        lambda: training(y=YB + 1, **BINARY_CHECKS),
        DataError,
        "y has 3 value(s) that must be 0 or 1 and are not (y holds 1.0, 2.0), first 2.0 at row 1, "
        "column 'y0': recode it",
    ),
    "O-18 words": (
        lambda: training(y=WORDS, **BINARY_CHECKS),
        DataError,
        "first 'susceptible' at row 0; such values are 'susceptible', 'resistant'",
    ),
    "O-18 words gaussian": (lambda: training(y=pd.Series(WORDS)), DataError, "'resistant'"),
    "O-18 probs": (
        lambda: training(FRAME, pd.Series(np.where(YB, 0.9, 0.1), ROWS), **BINARY_CHECKS),
        DataError,
        "(y holds 0.1, 0.9), first 0.1 at row 0 (index 'r0'), column 'y0'",
    ),
    "later 0.5": (
        lambda: align_outcomes(PLAIN, [0.5], RowOrder(1), check=ZERO_ONE.check),
        DataError,
        "first 0.5",
    ),
    "later columns": (
        lambda: align_outcomes(FITTED, Y, RowOrder(N)),
        ShapeError,
        "y has 1 outcomes, the model 2: 'p', 'q'",
    ),
    "later lacks": (
        lambda: align_outcomes(FITTED, pd.DataFrame({"p": Y}), RowOrder(N)),
        DataError,
        "y lacks 1 column(s) of training: 'q'",
    ),
    "label not in y": (
        lambda: training(FRAME, Y_ROWS.rename({"r2": "r9"}), ENV),
        DataError,
        "y has no row for 1 index label(s) of x, first 'r2'",
    ),
    "label not in env": (
        lambda: training(FRAME, Y, pd.Series(ENV)),
        DataError,
        "env has no row for 6 index label(s) of x, first 'r0'",
    ),
    "doubled in y": (
        lambda: training(FRAME, Y_ROWS.rename({"r2": "r1"}).iloc[::-1]),
        DataError,
        "the index of y holds 'r1' more than once",
    ),
    "doubled in x": (
        lambda: training(FRAME.rename(index={"r2": "r1"}), Y_ROWS),
        DataError,
        "the index of x holds 'r1' more than once",
    ),
    "y against env": (
        lambda: training(X, Y_ROWS, pd.Series(ENV)),
        DataError,
        "env has no row for 6 index label(s) of y, first 'r0'",
    ),
    "env short": (lambda: training(env=ENV[:5]), ShapeError, "env has 5 rows, x has 6"),
    "env table": (
        lambda: training(env=np.array([ENV, ENV]).T),
        ShapeError,
        "env has shape (6, 2)",
    ),
    "env None": (lambda: training(env=None), TreeError, "env is None"),
    "O-11 missing": (
        lambda: training(env=edited(ENV, [3, 5], [None, NAN], object)),
        TreeError,
        "2 of 6 rows have no label",
    ),
    "O-11 typo": (lambda: training(env=["a ", *ENV[1:]]), TreeError, "'a '"),
    "O-09 bytes": (lambda: training(env=np.array(ENV).astype("S")), TreeError, "b'a'"),
    "env one typo": (lambda: training(env="lymphoid"), TreeError, "'lymphoid'"),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_culprit(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_sparse_frame_keeps_its_names_and_stays_sparse():
    frame = pd.DataFrame.sparse.from_spmatrix(sp.csc_matrix(X), ROWS, ["f0", "f1", "f2"])
    _, schema = training(FRAME)
    found, index = align_features(schema, frame[["f2", "f0", "f1"]], keep=True)
    same(torch.cat(list(found.blocks())), X)
    assert index.equals(ROWS)
    frame = pd.DataFrame.sparse.from_spmatrix(
        sp.csc_matrix(edited(X, (4, 1), np.inf)), ROWS, ["f0", "f1", "f2"]
    )
    with pytest.raises(DataError, match=r"1 cell.*row 4 \(index 'r4'\), column 'f1'"):
        align_features(schema, frame, keep=True)


def test_series_of_more_rows_are_matched_by_index():
    y, env = pd.Series(Y, ROWS), pd.Series(ENV, ROWS)
    rows, _ = training(FRAME.iloc[[4, 0]], y, env)
    same(rows.y, Y[[4, 0], None])
    assert rows.env_index.tolist() == [INDEX[4], INDEX[0]]
    with pytest.raises(ShapeError, match="env has 6 rows, x has 2"):
        align_env(TREE, env.to_numpy(), RowOrder(2, ROWS[:2]))
    with pytest.raises(DataError, match="holds 'r0' more than once"):
        training(FRAME.iloc[:4], y, pd.concat([env, env]))
