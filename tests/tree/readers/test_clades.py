import pytest

from pyro_tbr import Tree
from pyro_tbr.errors import TreeError


def test_nodes_that_have_no_name_are_told_by_their_leaves():
    tree = Tree.from_newick("((A:1,B:2)95.0:0.5,((C,D)x,(E,F,G),Q,R),(H,I)'G')root;")
    texts = {node: tree.describe(node) for node in tree.nodes}
    assert texts["inner1"] == "inner1 (A, B)"  # its label is a support value
    assert texts["inner2"] == "inner2 (7 leaves: C to R)"
    assert texts["inner3"] == "inner3 (E, F, G)"
    assert texts["G#2"] == "G"  # the name that was written, which a leaf has too
    named = ["root", "x", *tree.leaves]
    assert [texts[node] for node in named] == named


def test_numbered_nodes_of_other_programs_and_numbers_as_names():
    tree = Tree.from_parents({"a": "Node12", "b": "Node12", "Node12": "r", "c": 7, "d": 7, 7: "r"})
    assert tree.describe("Node12") == "Node12 (a, b)"
    assert tree.describe(7) == "7 (c, d)"
    assert tree.describe("r") == "r"
    with pytest.raises(TreeError, match="'Node1'.* nearest: 'Node12'"):
        tree.describe("Node1")


def test_a_deep_tree_is_described():
    names = [f"u{i}" for i in range(5000)]
    parents = dict(zip(names[1:], names[:-1], strict=True)) | {"cluster1": names[-1]}
    tree = Tree.from_parents(parents | {f"leaf{i}": "cluster1" for i in range(5)})
    assert tree.describe("cluster1") == "cluster1 (5 leaves: leaf0 to leaf4)"
