"""Splits by environment: every row where it belongs, every leaf or clade as asked for."""

import numpy as np
import pytest

from parts.splits import leave_clades_out, leave_leaves_out
from pyro_tbr import Tree
from pyro_tbr.errors import DataError, TreeError

TREE = Tree.from_parents(
    {"a": "u", "b": "u", "c": "v", "d": "v", "u": "w", "v": "w", "w": "r", "e": "r", "f": "r"}
)
ENV = np.array(["a", "a", "b", "c", "e", "u", "f", "e"])  # d has no rows, u is an inner node


def test_every_leaf_with_rows_is_held_out_once():
    splits = list(leave_leaves_out(TREE, ENV, 2))
    assert [len(split.held_out) for split in splits] == [2, 2, 1]
    assert sorted(leaf for split in splits for leaf in split.held_out) == ["a", "b", "c", "e", "f"]
    for train, test, held_out in splits:
        np.testing.assert_array_equal(test, np.isin(ENV, held_out))
        np.testing.assert_array_equal(train, ~test)
        assert train[5]  # a row at an inner node belongs to no leaf
    again = leave_leaves_out(TREE, list(ENV), 2)
    assert [split.held_out for split in splits] == [split.held_out for split in again]
    other = leave_leaves_out(TREE, ENV, 2, seed=1)
    assert [split.held_out for split in splits] != [split.held_out for split in other]


def test_clades_go_out_whole():
    splits = {split.held_out: split for split in leave_clades_out(TREE, ENV, min_leaves=1)}
    assert set(splits) == {("a", "b", "c", "d"), ("a", "b"), ("c", "d")}
    np.testing.assert_array_equal(splits["a", "b"].test, np.isin(ENV, ["a", "b", "u"]))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"min_depth": 2, "min_leaves": 1}, {("a", "b"), ("c", "d")}),
        ({"min_leaves": 2}, {("a", "b", "c", "d"), ("a", "b")}),  # d has no rows
        ({"min_leaves": 2, "max_leaves": 2}, {("a", "b")}),
    ],
)
def test_bounds_choose_clades(bounds, expected):
    assert {split.held_out for split in leave_clades_out(TREE, ENV, **bounds)} == expected


def test_a_clade_with_all_rows_is_no_split():
    splits = leave_clades_out(TREE, ["a", "b", "c"], min_leaves=1)
    assert ("a", "b", "c", "d") not in {split.held_out for split in splits}


def test_labels_that_are_tuples():
    tree = Tree.from_parents({("a", 1): "r", ("a", 2): "r"})
    splits = leave_leaves_out(tree, [("a", 1), ("a", 2), ("a", 1)])
    assert {split.held_out[0]: split.test.sum() for split in splits} == {("a", 1): 2, ("a", 2): 1}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: leave_leaves_out(TREE, ENV, 0), DataError, "k is 0"),
        (lambda: leave_leaves_out(TREE, ENV, 5), DataError, "give 1 to 4"),
        (lambda: leave_leaves_out(TREE, ["a", "x"]), TreeError, "'x'"),
        (lambda: leave_clades_out(TREE, ENV, min_depth=0), DataError, "min_depth is 0"),
        (lambda: leave_clades_out(TREE, ENV, min_leaves=9), DataError, "min_leaves=9"),
    ],
)
def test_errors_name_the_culprit(call, error, message):
    with pytest.raises(error, match=message):
        call()
