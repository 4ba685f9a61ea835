"""Whole numbers of 64 bits as labels: exact, or refused where a column of floats rounded them."""

import re

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_tbr.data import RowOrder, align_groups
from pyro_tbr.errors import TreeError
from pyro_tbr.tree import Tree, match_labels

B = 2**53
CHILDREN = [11, 12, 13, 14, B, B + 1, B + 4]
PARENTS = [B, B, B + 1, B + 1, B + 4, B + 4, None]
EXACT = Tree.from_parents(dict(zip(CHILDREN, PARENTS, strict=True)))


def frame(**columns):
    return pd.DataFrame({"child": CHILDREN, "parent": PARENTS} | columns)


def as_int64():
    return frame(parent=pd.array(PARENTS, dtype="Int64"))


def as_objects():
    return frame(parent=np.array(PARENTS, dtype=object))


def as_uint64():
    return frame(
        child=np.array(CHILDREN, dtype=np.uint64), parent=pd.array(PARENTS, dtype="UInt64")
    )


@pytest.mark.parametrize("make", [as_int64, as_objects, as_uint64])
def test_whole_numbers_are_exact(make):
    table = make()
    assert Tree.from_parents(table) == EXACT
    assert Tree.from_parents(table.set_index("child")["parent"]) == EXACT
    assert EXACT.children(B) == (11, 12)
    assert EXACT.children(B + 1) == (13, 14)


def test_text_is_exact():
    table = frame(parent=np.array(PARENTS, dtype=object)).map(
        lambda x: None if x is None else str(x)
    )
    tree = Tree.from_parents(table)
    assert tree.children(str(B + 1)) == ("13", "14")


def test_numbers_beyond_63_bits_are_exact():
    top = 2**64 - 1
    table = pd.DataFrame({"child": [top, top - 1], "parent": [top - 2] * 2}, dtype=np.uint64)
    tree = Tree.from_parents(table)
    assert tree.leaves == (top, top - 1)
    assert match_labels(tree, np.array([top - 1, top], dtype=np.uint64)).tolist() == [2, 1]


def test_parents_that_became_floats_are_refused():
    message = (
        "parents, column 'parent': 6 labels are floats of 2**53 or more, where floats no longer "
        "tell whole numbers apart, first 9007199254740992.0 at row 0 counted from 0; read ids as "
        'dtype="Int64", which may be missing, or as text'
    )
    with pytest.raises(TreeError, match=re.escape(message)):
        Tree.from_parents(frame())
    renamed = frame().rename(columns={"child": "id", "parent": "up"})
    with pytest.raises(TreeError, match="parents, column 'up': 6 labels"):
        Tree.from_parents(renamed)


def graph(node):
    return nx.DiGraph([("root", 1), ("root", node)])


ROUNDED = float(B + 4)
LINKAGE = [[0, 1, 0.5, 2], [2, 3, 2.0, 3]]
RANKS = {"order": ["a", "a", "b"], "species": [1, None, B + 4]}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Tree.from_parents({ROUNDED: "r", "a": "r"}), "parents, column 'child': 1 labels"),
    (lambda: Tree.from_parents({"a": ROUNDED, "b": ROUNDED}), "parents, column 'parent': 2 labels"),
    (lambda: Tree.from_parents([("a", "r"), (np.float64(ROUNDED), "r")]), "at row 1"),
    (lambda: Tree.from_parents(np.array([[1.0, ROUNDED], [2.0, ROUNDED]])), "column 'parent': 2"),
    (lambda: Tree.from_parents(pd.Series([ROUNDED] * 2, index=[1, 2])), "column 'parent': 2"),
    (lambda: Tree.from_parents({B + 4: "r", 1: "r"}, lengths={ROUNDED: 1.0}), "lengths: 1 labels"),
    (lambda: Tree.from_networkx(graph(ROUNDED)), "graph: 1 labels"),
    (lambda: Tree.from_networkx(graph(-np.inf)), "graph: 1 labels .* first -inf"),
    (lambda: Tree.from_linkage(LINKAGE, [1.0, ROUNDED, 3.0]), "labels: 1 labels .* at place 1"),
    (lambda: Tree.from_taxonomy(pd.DataFrame(RANKS), ["order", "species"]),
     "frame, column 'species': 1 labels .* at row 2"),
    (lambda: Tree.from_taxonomy(pd.DataFrame({"order": ["a", "b"]}, index=[1.0, ROUNDED]),
                                ["order"], leaves="index"), "frame, index: 1 labels .* at row 1"),
    (lambda: match_labels(EXACT, [11, B, ROUNDED]), "env: 1 labels .* at row 2"),
    (lambda: match_labels(EXACT, [B, float(B)]), "env: 1 labels .* at row 1"),
    (lambda: match_labels(EXACT, np.array([11, B], dtype=np.float64)), "env: 1 labels"),
    (lambda: match_labels(EXACT, pd.Series([11, None, B])), "env: 1 labels .* at row 2"),
    (lambda: match_labels(EXACT, pd.Series([ROUNDED]).astype("category")), "env: 1 labels"),
    (lambda: match_labels(EXACT, pd.Series([11, B], dtype="Float64")), "env: 1 labels"),
    (lambda: match_labels(EXACT, torch.tensor([11.0, ROUNDED], dtype=torch.float64)), "env: 1"),
    (lambda: align_groups([1.0, ROUNDED], torch.tensor([1, 1]), RowOrder(2)),
     "groups: 1 labels"),
])  # fmt: skip
def test_floats_too_large_for_ids_are_refused(call, message):
    with pytest.raises(TreeError, match=message):
        call()


def test_labels_of_rows_are_exact():
    labels, places = [B + 1, B, 11], [EXACT.index(node) for node in (B + 1, B, 11)]
    for env in (
        labels,
        np.array(labels),
        np.array(labels, dtype=np.uint64),
        np.array(labels, dtype=object),
        pd.Series(labels, dtype="Int64"),
        pd.Series(labels).astype("category"),
        torch.tensor(labels),
    ):
        assert match_labels(EXACT, env).tolist() == places
    with pytest.raises(TreeError, match=r"1 of 2 rows have no label"):
        match_labels(EXACT, pd.Series([B + 1, None], dtype="Int64"))


def test_ranks_are_exact():
    species = pd.array([B, B + 1, None], dtype="Int64")
    tree = Tree.from_taxonomy(
        pd.DataFrame({"order": ["a", "a", "b"], "species": species}), ["order", "species"]
    )
    assert tree.children("a") == (B, B + 1)


def test_smaller_whole_floats_stay_labels():
    tree = Tree.from_parents(pd.DataFrame({"child": [1, 2, B - 1], "parent": [B - 1, B - 1, None]}))
    assert tree.nodes == (B - 1, 1, 2)
    assert all(type(node) is int for node in tree.nodes)
    assert match_labels(tree, [1.0, float(B - 1)]).tolist() == [1, 0]
