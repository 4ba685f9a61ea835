"""Features that are read by blocks: the same numbers as in memory, the same refusals."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch.testing import assert_close
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pyro_tbr.data import (
    FeatureStream,
    RowOrder,
    Schema,
    SparseFeatures,
    align_env,
    align_features,
    align_training,
    stream,
)
from pyro_tbr.data.columns import column_range, rounded_columns, varying_columns
from pyro_tbr.data.outcomes import read_outcomes
from pyro_tbr.data.sources import read_dataset
from pyro_tbr.errors import DataError, DataWarning, ShapeError
from pyro_tbr.models.principal_axes import column_moments
from pyro_tbr.tree import Tree

N, D = 23, 4
X = np.random.default_rng(0).normal(size=(N, D))
TREE = Tree.from_parents({"a": "r", "b": "r"})
ENV = ["a", "b"] * 11 + ["a"]


class Rows(Dataset):
    """A user's own: no batches, items of numpy."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        return X[row]


class Ragged(Rows):
    def __len__(self):
        return 3

    def __getitem__(self, row):
        return X[row, : 2 if row else 4]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(X)


class Stored:
    """As a dataset of h5py: rows only by rising places, each once."""

    def __init__(self, values):
        self._values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            assert (np.diff(rows) > 0).all()
        return self._values[rows]


def memory_map(folder, x=X):
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="r")


SOURCES = {
    "array": lambda _: FeatureStream(X),
    "tensor": lambda _: FeatureStream(torch.tensor(X)),
    "memory map": memory_map,
    "view of a memory map": lambda folder: np.asarray(memory_map(folder)),
    "stored": lambda _: Stored(X),
    "stored, sparse": lambda _: FeatureStream(Stored(sp.csr_array(X))),
    "dataset of tensors": lambda _: TensorDataset(torch.tensor(X)),
    "dataset of arrays": lambda _: Rows(),
    "part of a dataset": lambda _: Subset(Rows(), range(N)),
    "columns in another order": lambda _: FeatureStream(X[:, ::-1].copy(), columns=[3, 2, 1, 0]),
}
sources = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK_ELEMENTS", 5 * D)
    monkeypatch.setattr(stream, "_LEAST_ROWS", 1)


@sources
def test_all_that_is_asked_is_as_in_memory(make, tmp_path, small_blocks):
    rows, schema = align_training(TREE, make(tmp_path), X[:, 0], ENV, keep=True, learns=True)
    x, dense = rows.x, torch.tensor(X)
    assert isinstance(x, FeatureStream)
    assert (x.shape, len(x), schema.num_features) == ((N, D), N, D)
    assert [len(block) for block in x.blocks()] == [5, 5, 5, 5, 3]
    assert_close(torch.cat(list(x.blocks())), dense)
    assert_close(x.dense(), dense)
    for ours, theirs in (*zip(column_range(x), column_range(dense), strict=True),
                         *zip(column_moments(x), column_moments(dense), strict=True)):  # fmt: skip
        assert_close(ours, theirs)
    assert_close(x.each(lambda run: run if isinstance(run, torch.Tensor) else run.dense()), dense)
    assert_close(x.total(lambda block: block.T @ block), dense.T @ dense)


@sources
def test_some_rows_in_any_order(make, tmp_path, small_blocks):
    x = align_features(Schema(None, D, ("y",), 1), make(tmp_path), keep=True)[0]
    generator = torch.Generator().manual_seed(0)
    for rows in (
        torch.randperm(N, generator=generator),
        torch.tensor([7, 7, 0, 22, 7]),
        torch.arange(N) % 3 > 0,
        torch.arange(N) < 0,
    ):
        some = x[rows]
        assert_close(some.dense(), torch.tensor(X)[rows])
        assert_close(torch.cat(list(some.blocks())), torch.tensor(X)[rows])
        again = torch.arange(len(some)).flip(0)
        assert_close(some[again].dense(), torch.tensor(X)[rows][again])


def test_far_apart_rows_are_picked_and_near_ones_are_a_stretch(monkeypatch):
    source, asked = Stored(np.arange(4000.0).reshape(1000, 4)), []
    read = Stored.__getitem__
    monkeypatch.setattr(
        Stored, "__getitem__", lambda self, rows: (asked.append(rows), read(self, rows))[1]
    )
    x = FeatureStream(source)
    assert x[torch.tensor([999, 0])].dense()[:, 0].tolist() == [3996, 0]
    assert x[torch.tensor([12, 10, 20])].dense()[:, 0].tolist() == [48, 40, 80]
    assert asked[0].tolist() == [0, 999]
    assert asked[1] == slice(10, 21)


def test_what_columns_say_far_from_zero_and_of_few_steps(small_blocks):
    far = np.column_stack([1e9 + X[:, 0], np.full(N, 3.0), np.arange(N) % 5, X[:, 1]])
    x, dense = FeatureStream(far.astype(np.float32)), torch.tensor(far.astype(np.float32)).double()
    assert varying_columns(x).tolist() == [False, False, True, True]
    for ours, theirs in zip(column_moments(x), column_moments(dense), strict=True):
        assert_close(ours, theirs)
    coarse = torch.full((D,), 0.3, dtype=torch.float64)
    stored = SparseFeatures(sp.csr_array(dense.numpy()))
    assert rounded_columns(x, coarse).tolist() == rounded_columns(dense, coarse).tolist()
    assert rounded_columns(stored, coarse).tolist() == rounded_columns(dense, coarse).tolist()
    assert rounded_columns(x, coarse).any()
    with pytest.warns(DataWarning, match=r"x has 2 constant column\(s\).*: 0, 1"):
        align_training(TREE, x, X[:, 0], ENV, keep=True, learns=True)


@pytest.mark.parametrize("kind", [np.asarray, lambda x: Stored(sp.csr_array(x))])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"x has 2 cell\(s\) that are NaN or infinite, first nan at row 13, column 2"),
        (-np.inf, r"x has 2 cell\(s\) that are NaN or infinite, first -inf at row 13, column 2"),
        (1e200, r"x has 2 cell\(s\) beyond 1e\+100, first 1e\+200 at row 13, column 2"),
    ],
)
def test_cells_that_are_no_numbers(value, message, kind, small_blocks):
    bad = X.copy()
    bad[13, 2] = bad[20, 0] = value
    with pytest.raises(DataError, match=message):
        align_training(TREE, FeatureStream(kind(bad)), X[:, 0], ENV, keep=True)
    good = np.flatnonzero(np.isfinite(bad).all(1) & (np.abs(bad) < 1e100).all(1))
    assert len(FeatureStream(kind(bad))[torch.tensor(good)].dense()) == N - 2


def test_names_and_labels():
    labels = [f"r{i}" for i in range(N)]
    x = FeatureStream(X.astype(np.float32), names=list("pqrs"), index=labels)
    y = pd.Series(X[:, 0], index=labels, name="size").iloc[::-1]
    env = pd.Series(ENV, index=labels).sample(frac=1, random_state=0)
    rows, schema = align_training(TREE, x, y, env, keep=True)
    assert schema.feature_names == ("p", "q", "r", "s")
    assert rows.order.owner == "x"
    assert rows.y[:, 0].tolist() == X[:, 0].tolist()
    assert rows.env_index.tolist() == [TREE.index(label) for label in ENV]
    assert rows.rounding.tolist() == [np.finfo(np.float32).eps] * D
    other = FeatureStream(X[:, [2, 0, 3, 1]], names=list("rpsq"), index=labels)
    found, index = align_features(schema, other, keep=True)
    assert_close(found.dense(), torch.tensor(X))
    assert list(index) == labels
    unnamed, index = align_features(schema, X)
    assert_close(unnamed, torch.tensor(X))
    with pytest.raises(DataError, match=r"x lacks 1 column\(s\) of training: 'q'"):
        align_features(schema, FeatureStream(X[:, [0, 2, 3]], names=list("prs")))
    with pytest.raises(DataError, match="columns of the same name"):
        align_features(schema, FeatureStream(X, names=list("ppqr")))


def test_outcomes_and_labels_from_a_dataset():
    order = RowOrder(3)
    y = TensorDataset(torch.tensor([1.0, 2.0, 3.0]))
    assert read_outcomes(read_dataset(y), None, order)[0].values.tolist() == [[1], [2], [3]]
    rows, _ = align_training(TREE, X[:3], TensorDataset(torch.eye(3)), ["a", "b", "a"])
    assert_close(rows.y, torch.eye(3).double())
    labels = read_dataset(Subset(ENV, [2, 0, 1]))
    assert align_env(TREE, labels, order).tolist() == [TREE.index(x) for x in ("a", "a", "b")]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Endless(), DataError, "a Endless, which can only be gone through in order"),
        (lambda: TensorDataset(torch.eye(3), torch.ones(3)), DataError, "has 2 parts: give"),
        (lambda: TensorDataset(torch.zeros(3, 2, 2)), ShapeError, r"shape \(2, 2\): give rows"),
        (lambda: Ragged(), ShapeError, r"item 1 of the Dataset has shape \(2,\): give rows of"),
        (lambda: TensorDataset(torch.zeros(0, 2)), ShapeError, "a Dataset of no items"),
        (
            lambda: FeatureStream(Stored(np.zeros(3))),
            ShapeError,
            r"x has shape \(3,\): give a table",
        ),
        (lambda: Stored(np.zeros((3, 2), dtype=complex)), DataError, "dtype complex128"),
        (lambda: FeatureStream(X, names=["a"]), ShapeError, r"names has 1 labels.*: give 4"),
        (lambda: FeatureStream(X, columns=[0, 4]), ShapeError, "columns has 4, x has 4, from 0"),
        (lambda: FeatureStream(X.tolist()), DataError, "cannot be read from a list: give an"),
        (lambda: FeatureStream(pd.DataFrame(X)), DataError, r"of a table its to_numpy\(\), and"),
        (lambda: FeatureStream(X, index=["a"]), ShapeError, r"index has 1 labels.*: give 23"),
    ],
)
def test_what_cannot_be_asked_for_rows(make, error, message):
    with pytest.raises(error, match=message):
        align_training(TREE, make(), X[:3, 0], ENV[:3], keep=True)


def test_large_arrays_are_not_copied(monkeypatch):
    labels = [f"r{i}" for i in range(N)]
    frame = pd.DataFrame(X, columns=list("pqrs"), index=labels)
    for x in (X, torch.tensor(X), frame, frame.astype(np.float32)):
        for most, kind in ((N * D, torch.Tensor), (N * D - 1, FeatureStream)):
            monkeypatch.setattr(stream, "_LARGE", most)
            rows, schema = align_training(TREE, x, X[:, 0], ENV, keep=True)
            assert isinstance(rows.x, kind)
            found = rows.x if kind is torch.Tensor else rows.x.dense()
            assert_close(found, torch.tensor(np.asarray(x)).double())
            named = isinstance(x, pd.DataFrame)
            assert schema.feature_names == (tuple("pqrs") if named else None)
            assert (rows.order.index is not None) == named
    bad = frame.copy()
    bad.iloc[4, 1] = np.nan
    with pytest.raises(DataError, match=r"nan at row 4 \(index 'r4'\), column 'q'"):
        align_training(TREE, bad, X[:, 0], ENV, keep=True)


def test_arrays_in_memory_and_lists_are_no_streams():
    for x in (X, torch.tensor(X), X.tolist(), pd.DataFrame(X), sp.csr_array(X), X[0, 0]):
        assert not stream.is_stream(x)
