"""Tables of other libraries, which know their columns: by name, as a DataFrame, or refused."""

import sys

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.data import RowOrder, align_env, align_groups
from pyro_tbr.data.matching import read_table
from pyro_tbr.errors import DataError, TreeError
from tests.cases.toy import identity_fit, same_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=20, d=2)
FRAME = pd.DataFrame(X, columns=["age", "size"])
TWO = pd.DataFrame(np.stack([Y, 2 * Y[::-1]], 1), columns=["growth", "yield"])
LABELS = pd.DataFrame({"env": ENV})


class Table:
    """What every such table has: columns, and a way to pandas; numbers without names as an array.

    Its rows have no labels of their own unless the DataFrame's do.
    """

    def __init__(self, frame):
        self._frame = frame
        self.column_names = list(frame.columns)
        self.shape = frame.shape

    def __len__(self):
        return len(self._frame)

    def __array__(self, dtype=None, copy=None):
        return self._frame.to_numpy(dtype=dtype)

    def to_pandas(self):
        return self._frame.copy()


class Polars(Table):
    """Columns by another word, and a conversion that needs a package that is not there."""

    def __init__(self, frame):
        super().__init__(frame)
        self.columns = self.column_names
        del self.column_names

    def to_pandas(self):
        raise ModuleNotFoundError("pyarrow is required for converting to pandas")


class Interchange:
    """Columns, but no way to pandas."""

    def __init__(self, frame):
        self.columns = list(frame.columns)
        self._frame = frame

    def __dataframe__(self):
        raise NotImplementedError

    def __array__(self, dtype=None, copy=None):
        return self._frame.to_numpy(dtype=dtype)


class Column:
    """A column of a table: numbers, without names."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        raise AssertionError("its elements are scalars of its own kind")

    def to_pandas(self):
        return pd.Series(self._values)


def arrow(frame):
    return pytest.importorskip("pyarrow", reason="pip install pyarrow").Table.from_pandas(frame)


def polars(frame):
    table = pytest.importorskip("polars", reason="pip install polars").DataFrame
    return table({name: frame[name].tolist() for name in frame.columns})


@pytest.fixture
def without_pyarrow(monkeypatch):
    """What polars says where pyarrow is not installed."""

    def fails(*_, **__):
        raise ModuleNotFoundError("pyarrow is required for converting to pandas")

    library = pytest.importorskip("polars", reason="pip install polars")
    for kind in (library.DataFrame, library.Series):
        monkeypatch.setattr(kind, "to_pandas", fails)


@pytest.fixture(scope="module")
def fitted():
    return identity_fit(TREE, FRAME, TWO, ENV, mixture_components=2)


kinds = pytest.mark.parametrize("table", [Table, arrow, polars], ids=["any", "pyarrow", "polars"])


@kinds
def test_columns_go_by_name(table, fitted):
    turned = table(FRAME[["size", "age"]])
    expected = fitted.predict(FRAME, ENV)
    prediction = fitted.predict(turned, ENV)
    np.testing.assert_array_equal(prediction.mean, expected.mean)
    pd.testing.assert_frame_equal(prediction.mean, expected.mean)  # results are of pandas
    pd.testing.assert_frame_equal(fitted.encode(turned), fitted.encode(FRAME))
    outcomes = table(TWO[["yield", "growth"]])
    assert prediction.log_score(outcomes) == expected.log_score(TWO)
    same_fit(fitted.update(turned, outcomes, table(LABELS)), fitted.update(FRAME, TWO, ENV))
    again = identity_fit(TREE, table(FRAME), table(TWO), ENV, mixture_components=2)
    assert again.schema == fitted.schema
    same_fit(again, fitted)
    with pytest.raises(DataError, match="x lacks 1 column.*: 'size'"):
        fitted.encode(table(FRAME[["age"]]))


def test_rows_go_by_position_unless_they_have_labels(fitted):
    index = [f"r{i}" for i in range(60)]
    labelled = pd.Series(ENV, index)
    expected = fitted.predict(FRAME, ENV).mean
    found = fitted.predict(Table(FRAME), labelled).mean
    np.testing.assert_array_equal(found, expected)
    own = fitted.predict(Table(FRAME.set_axis(index)), labelled.iloc[::-1]).mean
    np.testing.assert_array_equal(own, expected)
    assert list(own.index) == index


def test_what_cannot_be_read_by_name_is_refused(fitted):
    match = r"x is a .*Polars, whose to_pandas\(\) fails \(pyarrow is .*give x as a pandas Data"
    with pytest.raises(DataError, match=match):
        fitted.predict(Polars(FRAME), ENV)
    match = "x is a .*Interchange, whose columns cannot be read: give it as a pandas DataFrame"
    with pytest.raises(DataError, match=match):
        fitted.predict(Interchange(FRAME), ENV)
    with pytest.raises(DataError, match="y is a .*Interchange"):
        fitted.update(FRAME, Interchange(TWO), ENV)
    with pytest.raises(DataError, match="X is a .*Interchange"):
        pytest.importorskip("pyro_tbr.io.sklearn").TreeRegressor(TREE).fit(Interchange(FRAME), Y)


def test_columns_without_names_are_values():
    env = align_env(TREE, Column(ENV), RowOrder(60))
    assert env.tolist() == align_env(TREE, ENV, RowOrder(60)).tolist()
    pairs = np.arange(60) // 2
    found = align_groups(Column(pairs), env, RowOrder(60))
    assert found.tolist() == align_groups(pairs, env, RowOrder(60)).tolist()
    column = Polars(LABELS)
    del column.columns
    assert read_table(column, "env") == (column, None)


@kinds
def test_scikit_learns_face(table):
    sklearn = pytest.importorskip("pyro_tbr.io.sklearn")
    whole = FRAME.assign(env=ENV)
    model = sklearn.TreeRegressor(TREE, encoder="identity").fit(whole, Y)
    np.testing.assert_array_equal(model.predict(table(whole[["env", "size", "age"]])),
                                  model.predict(whole))  # fmt: skip
    again = sklearn.TreeRegressor(TREE, encoder="identity").fit(table(whole), Y)
    same_fit(again.posterior_, model.posterior_)
    assert list(again.feature_names_in_) == ["age", "size", "env"]


@pytest.mark.usefixtures("without_pyarrow")
def test_polars_needs_narwhals_or_pyarrow(monkeypatch, fitted):
    import polars as pl

    expected = fitted.predict(FRAME, ENV).mean
    env, groups = pl.Series(ENV, dtype=pl.Categorical), pl.Series(np.arange(60) // 2)
    pytest.importorskip("narwhals")
    pd.testing.assert_frame_equal(
        fitted.predict(polars(FRAME[["size", "age"]]), env).mean, expected
    )
    found = read_table(pl.DataFrame({"n": [1, None], "s": ["a", None], "b": [True, False]}), "x")[0]
    assert np.isnan(found["n"][1])
    assert (found["s"].tolist(), found["b"].tolist()) == (["a", None], [True, False])
    pairs = align_groups(groups, align_env(TREE, env, RowOrder(60)), RowOrder(60))
    assert pairs.tolist() == align_groups(np.arange(60) // 2, align_env(
        TREE, ENV, RowOrder(60)), RowOrder(60)).tolist()  # fmt: skip
    monkeypatch.setitem(sys.modules, "narwhals", None)
    match = (
        r"x is a polars.*to_pandas\(\) fails \(pyarrow is .*: install what it needs, or narwhals"
    )
    with pytest.raises(DataError, match=match):
        fitted.predict(polars(FRAME), ENV)


def test_columns_of_polars_have_names_where_they_were_given_some():
    pl = pytest.importorskip("polars", reason="pip install polars")
    names = [read_table(pl.Series(name, [1.0, 2.0]), "y")[0].name for name in ("growth", "")]
    assert names == ["growth", None]


def test_lazy_tables_are_to_be_collected(fitted):
    pytest.importorskip("narwhals")
    lazy = polars(FRAME).lazy()
    with pytest.raises(DataError, match=r"x is a .*LazyFrame, which is lazy.*by \.collect\(\)"):
        fitted.encode(lazy)


ARCS = pd.DataFrame({"child": ["a", "b", "c"], "parent": ["m", "m", "r"], "length": [1.0, 2, 3]})
ARCS.loc[3] = ["m", "r", 0.5]


@kinds
def test_trees_come_from_such_tables(table):
    expected = tbr.Tree.from_parents(ARCS)
    assert tbr.Tree.from_parents(table(ARCS[["parent", "length", "child"]])) == expected
    ranks = pd.DataFrame({"genus": ["g", "g", "h"], "species": ["s", "t", "u"]})
    expected = tbr.Tree.from_taxonomy(ranks, ["genus", "species"])
    assert tbr.Tree.from_taxonomy(table(ranks[["species", "genus"]]), list(ranks)) == expected
    with pytest.raises(TreeError, match="parents is a .*Interchange"):
        tbr.Tree.from_parents(Interchange(ARCS))


def test_names_of_leaves_may_be_a_column_of_arrow():
    pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    merges = np.array([[0, 1, 1.0, 2], [2, 3, 2.0, 3]])
    tree = tbr.Tree.from_linkage(merges, pa.chunked_array([["a", "b", "c"]]))
    assert set(tree.leaves) == {"a", "b", "c"}
