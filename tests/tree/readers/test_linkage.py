"""Dendrograms: heights as lengths, scanpy's order of names, matrices that are none."""

import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

from pyro_tbr.errors import DataWarning, TreeError
from pyro_tbr.tree import Tree

POINTS = np.random.default_rng(0).normal(size=(7, 3))
LABELS = [f"g{i}" for i in range(7)]


def height_above_leaves(tree, leaf, node):
    """Sum of lengths from a leaf up to a node."""
    by_child = dict(zip(tree.nodes[1:], tree.lengths, strict=True))
    total = 0.0
    while leaf != node:
        total, leaf = total + by_child[leaf], tree.parent(leaf)
    return total


@pytest.mark.parametrize("method", ["single", "average", "complete", "ward"])
def test_heights_are_scipy_s_cophenetic_distances(method):
    merges = linkage(POINTS, method)
    tree = Tree.from_linkage(merges, LABELS)
    heights = squareform(cophenet(merges))
    for i, first in enumerate(LABELS):
        for j, second in enumerate(LABELS[:i]):
            above = set(np.add(tree.path(first), 1)) | {0}
            shared = max(above & (set(np.add(tree.path(second), 1)) | {0}))
            got = height_above_leaves(tree, first, tree.nodes[shared])
            assert got == pytest.approx(heights[i, j], rel=1e-12)
    assert set(tree.leaves) == set(LABELS)
    assert tree.has_lengths


def test_long_chains():
    merges = linkage(np.cumsum(np.arange(1, 3001.0))[:, None], "single")
    tree = Tree.from_linkage(merges, [f"g{i:04d}" for i in range(3000)])
    assert (tree.num_leaves, tree.depth) == (3000, 2999)


@pytest.mark.parametrize("labels", [
    np.array(LABELS), pd.Series(LABELS), pd.Index(LABELS), pd.Categorical(LABELS), iter(LABELS),
])  # fmt: skip
def test_labels_from_any_container(labels):
    merges = linkage(POINTS)
    assert Tree.from_linkage(merges, labels) == Tree.from_linkage(merges, LABELS)


def test_names_of_clusters_do_not_clash_with_leaves():
    tree = Tree.from_linkage([[0, 1, 1, 2], [2, 3, 2, 3]], ["root", "cluster3", "root#2"])
    assert tree.leaves == ("root#2", "root", "cluster3")
    assert tree.nodes[0] == "root#3"
    assert tree.nodes[2] == "cluster3#2"


def test_inversions_and_rounding():
    tree = Tree.from_linkage([[0, 1, 2.0, 2], [2, 3, 1.5, 3]], iter("abc"))
    assert not tree.has_lengths  # as accepted as any negative length, where lengths are not used
    with pytest.warns(DataWarning, match="Z: 1 of 4 arc lengths are below 0"):
        tree = Tree.from_linkage([[0, 1, 2.0, 2], [2, 3, 2.0 - 1e-12, 3]], list("abc"))
    assert tree.has_lengths


SCANPY = {  # categories b, a, c: plotted as c, b, a
    "linkage": np.array([[0, 1, 1.0, 2], [2, 3, 2.0, 3]]),
    "categories_ordered": ["c", "b", "a"],
    "categories_idx_ordered": [2, 0, 1],
    "dendrogram_info": {},
}


@pytest.mark.parametrize("labels", [None, ["b", "a", "c"]])
def test_scanpy_dendrograms(labels):
    tree = Tree.from_linkage(SCANPY, labels)
    assert set(tree.children(tree.parent("a"))) == {"a", "b"}
    assert tree.parent("c") == tree.root


def merges(*rows):
    return [[*row, 1.0, 2] for row in rows]


THREE = ["a", "b", "c"]
ERRORS = {
    "doubled": (merges((0, 1), (0, 3)), THREE, r"Z: 1 clusters merge more.*0 \(rows 0, 1\)"),
    "not yet there": (merges((0, 3), (1, 2)), THREE, "first in row 0: cluster 3, .* 0 to 2 do"),
    "negative": (merges((0, -1), (1, 2)), THREE, "row 0: cluster -1"),
    "fraction": (merges((0, 0.5), (1, 2)), THREE, "1 of 2 rows hold a cluster that is no whole"),
    "nan": ([[0, 1, np.nan, 2]], ["a", "b"], "the first row 0"),
    "empty": (np.zeros((0, 4)), ["a"], r"at least one row, received shape \(0, 4\)"),
    "flat": ([1.0, 2.0], THREE, "shape"),
    "text": ("matrix", THREE, "received str"),
    "few": (merges((0, 1), (2, 3)), ["a", "b"], "labels: 2 given for 3 leaves, as Z has 2 rows"),
    "none": (merges((0, 1), (2, 3)), None, "labels: none given"),
    "one text": (merges((0, 1), (2, 3)), "abc", "labels: expected a list of 3 names, received str"),
    "O-04": (merges((0, 1), (2, 3)), ["a", "b", "a"], r"'a' \(2 times\)"),
    "missing": (merges((0, 1), (2, 3)), ["a", None, "b"], "1 are missing, at places 1"),
    "scanpy order": (SCANPY, ["c", "b", "a"], "that of the plot differs"),
    "not scanpy": ({"linkage": []}, THREE, "without 'categories_ordered'"),
    "scanpy cut": ({**SCANPY, "categories_idx_ordered": [2, 2, 1]}, None, "run scanpy's"),
}


@pytest.mark.parametrize(("Z", "labels", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_culprit(Z, labels, message):
    with pytest.raises(TreeError, match=message):
        Tree.from_linkage(Z, labels)
