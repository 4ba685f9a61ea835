"""Taxonomies: identity by path, gaps, homonyms; O-07 and the leaves' share of O-04."""

import time

import numpy as np
import pandas as pd
import pytest

from pyro_tbr.errors import DataWarning, TreeError
from pyro_tbr.tree import Tree

RANKS = ["phylum", "genus", "species"]
TAX = pd.DataFrame(
    {
        "phylum": ["P1", "P1", "P2", "P2"],
        "genus": ["G", None, "G", "unclassified"],
        "species": ["s1", "s2", "s3", "unclassified"],
    },
    index=["g1", "g2", "g3", "g4"],
)


def frame(*rows, **options):
    return pd.DataFrame(list(rows), columns=RANKS[: len(rows[0])], **options)


def test_homonyms_and_gaps():
    assert Tree.from_taxonomy(TAX, RANKS).arcs == (
        ("root", "P1"), ("root", "P2"), ("P1", "P1/G"), ("P1", "s2"), ("P2", "P2/G"),
        ("P1/G", "s1"), ("P2/G", "s3"),
    )  # fmt: skip


def test_the_index_as_leaves():
    tree = Tree.from_taxonomy(TAX, RANKS, leaves="index")
    assert set(tree.leaves) == set(TAX.index)
    above = {leaf: tree.parent(leaf) for leaf in tree.leaves}
    assert above == {"g1": "s1", "g2": "s2", "g3": "s3", "g4": "P2"}


@pytest.mark.parametrize("gap", [
    None, np.nan, pd.NA, pd.NaT, "", "  ", "unclassified", "Unclassified ", "UNKNOWN", "g__",
])  # fmt: skip
def test_what_a_gap_is(gap):
    tree = Tree.from_taxonomy(frame(("P1", gap, "a"), ("P2", gap, "b"), ("P2", "G", "c")), RANKS)
    assert (tree.parent("a"), tree.parent("b"), tree.num_nodes) == ("P1", "P2", 7)


@pytest.mark.parametrize("name", ["NA", "g__Bacillus", "unclassified Bacilli"])
def test_what_no_gap_is(name):
    tree = Tree.from_taxonomy(frame(("P1", name, "a"), ("P2", "G", "b")), RANKS)
    assert tree.parent("a") == name


@pytest.mark.parametrize("name", ["nan", "None", "<NA>"])
def test_a_missing_name_that_became_text_is_a_name_with_a_warning(name):
    with pytest.warns(DataWarning, match=f"column 'genus': '{name}'"):
        tree = Tree.from_taxonomy(frame(("P1", name, "a"), ("P2", "G", "b")), RANKS)
    assert tree.parent("a") == name


def test_without_gap_words_unclassified_is_a_node_below_each_parent():
    rows = frame(("P1", "unclassified", "a"), ("P2", "unclassified", "b"))
    tree = Tree.from_taxonomy(rows, RANKS, gaps=())
    assert (tree.parent("a"), tree.parent("b")) == ("P1/unclassified", "P2/unclassified")


@pytest.mark.parametrize("leaves", [None, "index"])
def test_labels_do_not_hang_on_the_order_of_rows(leaves):
    rng = np.random.default_rng(0)
    names = [[f"{letter}{i}" for i in range(n)] for letter, n in (("a", 3), ("x", 4), ("x", 9))]
    table = pd.DataFrame(
        {rank: rng.choice([*pool, None], 60) for rank, pool in zip(RANKS, names, strict=True)}
    )
    table["species"] = [f"x{i}" for i in range(60)]  # also names of genera
    table.index = [f"x{i}" for i in range(60)] if leaves else table.index
    tree = Tree.from_taxonomy(table, RANKS, leaves)
    for seed in range(3):
        other = Tree.from_taxonomy(table.sample(frac=1, random_state=seed), RANKS, leaves)
        assert set(other.arcs) == set(tree.arcs)
    assert set(tree.leaves) == set(table.index if leaves else table["species"])


def test_an_inner_node_may_bear_the_name_of_a_leaf():
    tree = Tree.from_taxonomy(
        frame(("P1", "G", "G"), ("P1", "H", "G2"), ("Aus", "I", "Aus")), RANKS
    )
    assert (tree.parent("G"), tree.parent("Aus"), tree.parent("I")) == ("P1/G", "I", "root/Aus")
    assert {"G", "G2", "Aus"} == set(tree.leaves)


def test_labels_that_look_like_paths_stay_apart():
    rows = frame(("P1", "G", "P1/G"), ("P2", "G", "root/P1/G"), ("P3", "H", "root"))
    tree = Tree.from_taxonomy(rows, RANKS)
    assert tree.root == "root#2"
    assert tree.parent("P1/G") == "P1/G#2"
    assert len(set(tree.nodes)) == tree.num_nodes


def test_rows_may_repeat_and_end_early():
    rows = frame(("P1", "G", "a"), ("P1", "G", "a"), ("P1", "H", None), ("P1", "G", None))
    tree = Tree.from_taxonomy(rows, RANKS)
    assert tree.arcs == (("P1", "G"), ("P1", "H"), ("G", "a"))  # one phylum: that is the root
    assert tree.lengths == (None,) * 3


def test_labels_stay_what_they_are():
    rows = pd.DataFrame(
        {"cluster": pd.Categorical([1, 1, 2], categories=[3, 2, 1]), "sub": [10.0, np.nan, 11.0]},
        index=[("t", 1), ("t", 2), ("u", 1)],
    )
    rows.index = pd.MultiIndex.from_tuples(rows.index)
    tree = Tree.from_taxonomy(rows, ["cluster", "sub"], leaves="index")
    assert tree.leaves == (("t", 2), ("t", 1), ("u", 1))
    assert tree.nodes[1:3] == (1, 2)
    assert [type(node) for node in tree.nodes[1:3]] == [int, int]
    assert type(tree.parent(("u", 1))) is int


def test_a_hundred_thousand_rows():
    rng = np.random.default_rng(0)
    n = 100_000
    table = frame(*zip(*(rng.integers(0, k, n).astype(str) for k in (10, 300, 3000)), strict=True))
    start = time.perf_counter()
    tree = Tree.from_taxonomy(table, RANKS, leaves="index")
    assert time.perf_counter() - start < 30  # 2 s on an idle core; a quadratic step takes hours
    assert tree.num_leaves == n


TWICE = frame(("P1", "G", "m"), ("P2", "H", "m"), ("P2", "H", "n"))
ERRORS = {
    "no frame": (lambda: Tree.from_taxonomy({"a": [1]}, ["a"]), "frame: expected a DataFrame"),
    "text": (lambda: Tree.from_taxonomy(TAX, "phylum"), r"ranks: .*give \['phylum'\]"),
    "no ranks": (lambda: Tree.from_taxonomy(TAX, []), "ranks: no column given"),
    "no column": (
        lambda: Tree.from_taxonomy(TAX, ["phylum", "Genus"]),
        r"ranks: 1 of 2 are no column of frame: 'Genus' \(str\).*nearest: 'genus'",
    ),
    "column twice": (lambda: Tree.from_taxonomy(TAX, ["genus", "genus"]), "than once: 'genus'"),
    "leaves": (lambda: Tree.from_taxonomy(TAX, RANKS, "species"), "'species'.*put it last in"),
    "gaps": (lambda: Tree.from_taxonomy(TAX, RANKS, gaps="unknown"), r"give \['unknown'\]"),
    "O-04": (
        lambda: Tree.from_taxonomy(TWICE, RANKS),
        r"1 leaf names occur more than once: 'm' \(2 times, below 'P1/G', 'P2/H'\)",
    ),
    "O-04 index": (
        lambda: Tree.from_taxonomy(TAX.rename({"g3": "g1"}), RANKS, "index"),
        r"'g1' \(2 times, below 'P1/G/s1', 'P2/G/s3'\)",
    ),
    "index missing": (
        lambda: Tree.from_taxonomy(TAX.rename({"g3": None}), RANKS, "index"),
        "1 of 4 rows have no label in the index, at rows 2",
    ),
    "empty": (lambda: Tree.from_taxonomy(TAX[:0], RANKS), "frame: no rows"),
    "one node": (
        lambda: Tree.from_taxonomy(frame(("P", None, None)), RANKS),
        "at least one arc, received one node, 'P'",
    ),
    "gaps alone": (
        lambda: Tree.from_taxonomy(frame((None, "unknown", "")), RANKS),
        "all 1 rows have gaps in every rank",
    ),
    "unhashable": (lambda: Tree.from_taxonomy(frame(([], "a", "b")), RANKS), "column 'phylum'"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_culprit(call, message):
    with pytest.raises(TreeError, match=message):
        call()
