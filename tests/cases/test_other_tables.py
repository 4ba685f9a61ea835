"""Tables of other libraries, which know their columns: by name, as a DataFrame, or refused."""

import numpy as np
import pandas as pd
import pytest

from pyro_tbr.data import RowOrder, align_env, align_groups
from pyro_tbr.data.matching import read_table
from pyro_tbr.errors import DataError
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


@pytest.fixture(scope="module")
def fitted():
    return identity_fit(TREE, FRAME, TWO, ENV, mixture_components=2)


@pytest.mark.parametrize("table", [Table, arrow], ids=["any", "pyarrow"])
def test_columns_go_by_name(table, fitted):
    turned = table(FRAME[["size", "age"]])
    expected = fitted.predict(FRAME, ENV)
    prediction = fitted.predict(turned, ENV)
    np.testing.assert_array_equal(prediction.mean, expected.mean)
    np.testing.assert_array_equal(fitted.encode(turned), fitted.encode(FRAME))
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


@pytest.mark.parametrize("table", [Table, arrow], ids=["any", "pyarrow"])
def test_scikit_learns_face(table):
    sklearn = pytest.importorskip("pyro_tbr.io.sklearn")
    whole = FRAME.assign(env=ENV)
    model = sklearn.TreeRegressor(TREE, encoder="identity").fit(whole, Y)
    np.testing.assert_array_equal(model.predict(table(whole[["env", "size", "age"]])),
                                  model.predict(whole))  # fmt: skip
    again = sklearn.TreeRegressor(TREE, encoder="identity").fit(table(whole), Y)
    same_fit(again.posterior_, model.posterior_)
    assert list(again.feature_names_in_) == ["age", "size", "env"]
