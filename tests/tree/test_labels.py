"""Labels of rows in every container and type they come in."""

import time

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_tbr.errors import ShapeError, TreeError
from pyro_tbr.tree import Tree, match_labels

NUMBERED = Tree.from_parents({1: 0, 2: 0, 3: 2, 4: 2})  # nodes 0 1 2 3 4, leaves 1 3 4
NAMED = Tree.from_parents({"T cell": "blood", "B cell": "blood", "NK": "blood"})
ENV = [1, 3, 4, 4, 1, 2]


@pytest.mark.parametrize(
    "env",
    [
        ENV,
        tuple(ENV),
        (label for label in ENV),
        np.array(ENV),
        np.array(ENV, dtype=np.uint8),
        np.array(ENV, dtype=float),
        np.array(ENV, dtype=np.float32),
        np.array(ENV, dtype=object),
        np.ma.array(ENV),
        [np.int64(label) for label in ENV],
        torch.tensor(ENV),
        pd.Series(ENV, index=range(10, 16)),
        pd.Series(ENV, dtype="Int64"),
        pd.array(ENV, dtype="Int32"),
        pd.array(ENV, dtype="Float64"),
        pd.Index(ENV),
        pd.Categorical(ENV, categories=[4, 99, 3, 2, 1]),
        pd.Series(pd.Categorical(ENV)),
    ],
    ids=lambda env: type(env).__name__,
)
def test_numbers_in_every_form(env):
    index = match_labels(NUMBERED, env)
    assert index.dtype == torch.int64
    assert index.tolist() == [1, 3, 4, 4, 1, 2]


@pytest.mark.parametrize("convert", [
    list, np.array, lambda env: np.array(env, dtype=object), pd.Series, pd.Categorical,
    lambda env: pd.array(env, dtype="string"), lambda env: pd.Series(env, dtype="string"),
    lambda env: pd.Series(env, dtype=object), lambda env: pd.Series(env).astype("category"),
])  # fmt: skip
def test_text_in_every_form(convert):
    assert match_labels(NAMED, convert(["NK", "T cell", "blood", "NK"])).tolist() == [3, 1, 0, 3]


def test_other_labels():
    days = pd.to_datetime(["2020-01-01", "2020-01-02"])
    tree = Tree.from_parents({("a", 1): 10, "10": 10, days[0]: 10, days[1]: 10})
    assert match_labels(tree, ["10", 10, ("a", 1)]).tolist() == [2, 0, 1]
    assert match_labels(tree, pd.MultiIndex.from_tuples([("a", 1)] * 2)).tolist() == [1, 1]
    assert match_labels(tree, days[::-1]).tolist() == [4, 3]
    assert match_labels(tree, days.to_numpy()).tolist() == [3, 4]


def test_no_rows():
    for env in ([], np.array([]), pd.Series([], dtype=object), pd.Categorical([])):
        assert match_labels(NAMED, env).shape == (0,)


def test_unused_categories_are_as_if_absent():
    env = pd.Categorical(["NK", "NK"], categories=["zz", "T cell", "NK"])
    assert match_labels(NAMED, env).tolist() == [3, 3]
    assert match_labels(NAMED, env.remove_unused_categories()).tolist() == [3, 3]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT], ids=repr)
@pytest.mark.parametrize("convert", [
    list, pd.Categorical, lambda env: pd.array(env, dtype="string"),
    lambda env: np.array(env, dtype=object),
])  # fmt: skip
def test_missing_labels(missing, convert):
    env = ["NK"] * 12
    env[3] = env[7] = missing
    with pytest.raises(TreeError, match=r"env: 2 of 12 rows have no label .* rows 3, 7 counted"):
        match_labels(NAMED, convert(env))


def test_missing_numbers():
    for env in ([1, None], np.array([1.0, np.nan]), pd.array([1, None], dtype="Int64"),
                np.ma.array([1, 3], mask=[False, True])):  # fmt: skip
        with pytest.raises(TreeError, match="1 of 2 rows have no label .* rows 1 counted"):
            match_labels(NUMBERED, env)


@pytest.mark.parametrize(
    ("tree", "env", "parts"),
    [
        (NUMBERED, ["1", "3", "3"], ["3 of 3 rows", "'1' (str) (row 0; nearest node 1 (int))",
         "'3' (str) (2 rows, first 1; nearest node 3 (int))",
         "env labels are str ('1'), tree nodes are int (1)"]),
        (NAMED, np.array([b"NK", b"NK"]),
         ["b'NK' (bytes) (2 rows, first 0; nearest node 'NK' (str))",
          "env labels are bytes (b'NK'), tree nodes are str ('NK')"]),
        (Tree.from_parents({"1": "0", "2": "0"}), np.array([1.0, 2.0]),
         ["1.0 (float)", "env labels are float (1.0), tree nodes are str ('1')"]),
        (NUMBERED, [1.5, 1], ["1 of 2 rows", "1.5"]),
        (NUMBERED, [True, False], ["2 of 2 rows", "True"]),
        (NAMED, ["T cell ", "t cell", "T\u00a0cell", "T_cell", "NK"],
         ["4 of 5 rows carry 4 labels", "'T cell ' (row 0; nearest node 'T cell')",
          r"'T\xa0cell' (row 2; nearest node 'T cell')", "'t cell'", "'T_cell'"]),
        (NAMED, ["xyzzy", "N"],
         ["'xyzzy' (row 0; no similar node)", "'N' (row 1; nearest node 'NK')"]),
    ],
    ids=["str for int", "bytes for str", "float for str", "half", "bool", "typos", "far"],
)  # fmt: skip
def test_labels_that_are_no_node(tree, env, parts):
    with pytest.raises(TreeError) as error:
        match_labels(tree, env)
    for part in parts:
        assert part in str(error.value)


def test_long_lists_are_cut():
    with pytest.raises(
        TreeError, match=r"50 of 50 rows carry 50 labels.*'9'.*\(10 of 50\)"
    ) as error:
        match_labels(NAMED, [str(i) for i in range(50)], argument="env_new")
    assert str(error.value).startswith("env_new: ")
    assert "'10'" not in str(error.value)


@pytest.mark.parametrize("env", [
    "NK", 3, np.array([["NK"]]), pd.DataFrame({"env": ["NK"]}), torch.tensor(1), b"NK", None,
    {"NK"}, {"NK": 1},
], ids=lambda env: type(env).__name__)  # fmt: skip
def test_one_label_a_row(env):
    with pytest.raises(ShapeError, match=r"env: expected one label a row, \(N,\), received"):
        match_labels(NAMED, env)


def test_labels_that_cannot_be_hashed():
    with pytest.raises(TreeError, match="hashable"):
        match_labels(NAMED, [["NK"], ["NK"]])


def test_a_million_rows():
    tree = Tree.from_parents({f"leaf {i}": "root" for i in range(1000)})
    labels = [f"leaf {i % 1000}" for i in range(1_000_000)]
    for env in (labels, pd.Categorical(labels)):
        start = time.perf_counter()
        index = match_labels(tree, env)
        assert time.perf_counter() - start < 3  # 0.15 s on a quiet core: no loop over rows
        assert torch.equal(index, torch.arange(1_000_000) % 1000 + 1)


def test_errors_stay_quick_in_large_trees():
    tree = Tree.from_parents({f"leaf {i}": "root" for i in range(20_000)})
    start = time.perf_counter()
    with pytest.raises(TreeError, match="nearest node 'leaf 1000'"):
        match_labels(tree, [f"laef {i}" for i in range(1000, 1020)])
    assert time.perf_counter() - start < 5
