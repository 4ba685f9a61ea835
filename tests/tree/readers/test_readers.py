"""Parent tables and networkx graphs: what is read, and what is refused by name."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from pyro_tbr.errors import DataWarning, TreeError
from pyro_tbr.tree import Tree
from tests.tree.small_trees import SMALL_TREES

PARENTS = {"T": "lymphoid", "B": "lymphoid", "lymphoid": "blood", "mono": "blood"}
ROWS = list(PARENTS.items())
LENGTHS = {"T": 1.0, "B": 2.0, "lymphoid": 0.5, "mono": 0.0}
ROWS_WITH_LENGTHS = [(*row, LENGTHS[row[0]]) for row in ROWS]
FRAME = pd.DataFrame(ROWS_WITH_LENGTHS, columns=["child", "parent", "length"])


@pytest.mark.parametrize(
    "parents",
    [
        PARENTS,
        pd.Series(PARENTS),
        ROWS,
        np.array(ROWS),
        np.array(ROWS, dtype=object),
        FRAME[["child", "parent"]],
        FRAME[["parent", "child"]],
        FRAME[["child", "parent"]].rename(columns={"child": "node", "parent": "above"}),
        FRAME[["child", "parent"]].astype("category"),
        PARENTS | {"blood": None},
        [["blood", None], *ROWS],
    ],
    ids=lambda parents: type(parents).__name__,
)
def test_forms_of_a_parent_table(parents):
    tree = Tree.from_parents(parents)
    assert tree == Tree.from_parents(PARENTS)
    assert tree.nodes == ("blood", "lymphoid", "mono", "T", "B")
    assert {type(node) for node in tree.nodes} == {str}
    assert tree.lengths == (None,) * 4


@pytest.mark.parametrize(
    "tree",
    [
        Tree.from_parents(PARENTS, lengths=LENGTHS),
        Tree.from_parents(PARENTS, lengths=pd.Series(LENGTHS)),
        Tree.from_parents(ROWS_WITH_LENGTHS),
        Tree.from_parents(FRAME),
        Tree.from_parents(FRAME[["length", "parent", "child"]]),
        Tree.from_parents(np.array(ROWS_WITH_LENGTHS, dtype=object)),
    ],
    ids=["mapping", "series", "rows", "frame", "frame by name", "array"],
)
def test_lengths(tree):
    assert dict(zip(tree.nodes[1:], tree.lengths, strict=True)) == LENGTHS
    assert tree.has_lengths


def test_missing_lengths_are_none():
    frame = FRAME.assign(length=[1.0, np.nan, 0.5, np.nan])
    assert Tree.from_parents(frame).lengths == (0.5, None, 1.0, None)
    assert Tree.from_parents(PARENTS, lengths={"T": 1}).lengths == (None, None, 1.0, None)


@pytest.mark.parametrize("root", [None, float("nan"), "", "r", pd.NA], ids=repr)
def test_the_root_written_in_many_ways(root):
    tree = Tree.from_parents({"a": "r", "r": root})
    assert tree == Tree.from_parents({"a": "r"})
    assert Tree.from_parents(pd.DataFrame({"c": ["r", "a"], "p": [root, "r"]})) == tree


def test_whole_floats_are_ints():
    frame = pd.DataFrame({"child": [0, 1, 2], "parent": [np.nan, 0, 0]})  # parents are floats
    for table in (frame, np.array([[1.0, 0.0], [2.0, 0.0]]), {1: 0.0, 2: 0.0}):
        tree = Tree.from_parents(table)
        assert repr(tree.nodes) == "(0, 1, 2)"


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({}, "at least one arc, received 0 nodes"),
        ({"a": None}, "at least one arc, received one node, 'a'"),
        ({"a": "r1", "b": "r2", "r1": None, "r2": None}, "2 nodes have no parent: 'r1', 'r2'"),
        ({"a": "r1", "b": "r2"}, "2 nodes have no parent: 'r1', 'r2'"),
        ([("a", "r"), ("b", "r"), ("a", "r")], r"'r' -> 'a' \(2 times\)"),
        ([("m", "u"), ("m", "v"), ("u", "r"), ("v", "r")], "'m' has 2: 'u', 'v'; drop arcs"),
        ([("r", "a"), ("r", "b")], "'r' has 2: 'a', 'b'; .*from child to parent: give child ->"),
        ({"x": "z", "y": "x", "z": "y", "a": "r"}, "cycle: .*'[xyz]' -> '[xyz]' -> '[xyz]'"),
        ({"a": "a"}, "at least one arc"),
        ([("r", None), ("a", "r"), ("r", "x")], "1 nodes are marked as the root.*: 'r'"),
        ([("a", "r"), (None, "r")], "1 of 2 rows have no child label, at rows 1"),
        ([("a", "r"), (float("nan"), "r")], "no child label"),
        ([("a", "r"), ("", "r")], "no child label"),
        ([("a", "r"), ("b",)], r"1 of 2 rows are not \(child, parent\).*row 1: \('b',\)"),
        ([("a", "r"), "br"], "1 of 2 rows are not"),
        (np.zeros((3, 4)), "3 of 3 rows are not"),
        (FRAME.assign(more=1, yet=2).rename(columns={"child": "c"}), "received 5: 'c', 'parent'"),
        (FRAME[["child"]], "received 1: 'child'"),
        ([(["r"], None), ("a", "r")], r"\['r'\] in node 0 \(list is not hashable\)"),
        ([(["a"], "r")], r"\['a'\] in arc 0 \(list is not hashable\)"),
        ("((a,b),c);", "received str; .*Tree.from_newick"),
        (nx.DiGraph([("r", "a")]), "received DiGraph; for graphs use Tree.from_networkx"),
        ({("a", "r")}, "received set"),
        (None, "received NoneType"),
        ([("a", "r", "long")], r"1 of 1 arcs .* no finite number: 'r' -> 'a' \('long'\)"),
        ([("a", "r", np.inf)], r"'r' -> 'a' \(inf\)"),
    ],
)
def test_tables_that_are_no_tree(parents, message):
    with pytest.raises(TreeError, match=message) as error:
        Tree.from_parents(parents)
    assert str(error.value).startswith("parents: ")


def test_lengths_of_arcs_that_are_not_there():
    with pytest.raises(TreeError, match="lengths: 1 keys are no child in parents: 'NK'"):
        Tree.from_parents(PARENTS, lengths={"T": 1.0, "NK": 2.0})
    with pytest.raises(TreeError, match="third column already"):
        Tree.from_parents(ROWS_WITH_LENGTHS, lengths=LENGTHS)


def test_lengths_a_rounding_error_below_zero():
    with pytest.warns(DataWarning, match=r"1 of 2 arc lengths.*'r' -> 'a' \(-3e-13\)") as caught:
        tree = Tree.from_parents([("a", "r", -3e-13), ("b", "r", -1.0)])
    assert caught[0].filename == __file__
    assert tree.lengths == (0.0, -1.0)
    assert not tree.has_lengths


@pytest.mark.parametrize("tree", SMALL_TREES.values(), ids=SMALL_TREES.keys())
def test_networkx_there_and_back(tree):
    graph = tree.to_networkx()
    assert nx.is_arborescence(graph)
    assert Tree.from_networkx(graph) == tree
    assert Tree.from_networkx(nx.MultiDiGraph(graph)) == tree


def test_networkx_lengths():
    graph = nx.DiGraph()
    graph.add_edge("r", "a", weight=2)
    graph.add_edge("r", "b")
    assert Tree.from_networkx(graph).lengths == (2.0, None)
    graph.add_edge("r", "b", length=0.5)
    assert Tree.from_networkx(graph).lengths == (None, 0.5)


def _with_node(graph, node):
    graph.add_node(node)
    return graph


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.DiGraph([("r", "a"), ("r", "b"), ("x", "b")]), "'b' has 2: 'r', 'x'; drop arcs"),
        (
            _with_node(nx.DiGraph([("x", "y"), ("y", "z"), ("z", "x")]), "w"),
            "3 nodes form a cycle",
        ),
        (nx.DiGraph([("x", "y"), ("y", "z"), ("z", "x")]), r"cycle: ('[xyz]' -> ){3}'[xyz]'"),
        (nx.DiGraph([("a", "u"), ("b", "u"), ("u", "r"), ("c", "r")]), r"graph.reverse\(\)"),
        (nx.Graph([("r", "a"), ("r", "b")]), "undirected .*nx.bfs_tree"),
        (nx.DiGraph([("r", "a"), ("r", "r")]), r"\(self loop\): 'r'"),
        (nx.MultiDiGraph([("r", "a"), ("r", "a")]), r"parallel arcs\): 'r' -> 'a' \(2 times\)"),
        (nx.DiGraph(), "at least one arc, received 0 nodes"),
        (_with_node(nx.DiGraph(), "a"), "at least one arc, received one node, 'a'"),
        (_with_node(nx.DiGraph([("r", "a")]), "b"), "2 nodes have no parent: 'r', 'b'"),
        (nx.DiGraph([("r", float("nan"))]), "labels are missing .*nan in arc 0"),
        (nx.DiGraph([("r", "")]), "labels are missing .*'' in arc 0"),
        ({"a": "r"}, "expected a networkx DiGraph, received dict; .*Tree.from_parents"),
    ],
)
def test_graphs_that_are_no_tree(graph, message):
    with pytest.raises(TreeError, match=message) as error:
        Tree.from_networkx(graph)
    assert str(error.value).startswith("graph: ")


def test_long_lists_are_cut():
    with pytest.raises(TreeError, match=r"30 nodes have no parent: .*'r9', ... \(10 of 30\)"):
        Tree.from_parents({f"a{i}": f"r{i}" for i in range(30)})


@pytest.mark.parametrize("tree", SMALL_TREES.values(), ids=SMALL_TREES.keys())
def test_frames_there_and_back(tree):
    frame = tree.to_frame()
    assert list(frame.columns) == ["parent", "child", "length", "is_leaf"]
    assert Tree.from_parents(frame) == tree
    assert set(frame["child"][frame["is_leaf"]]) == set(tree.leaves)


def test_frames_keep_the_user_s_labels():
    tree = Tree.from_parents({("a", 1): 0, ("a", "1"): 0, 10: 0, "10": 0})
    assert tuple(tree.to_frame()["child"]) == tree.nodes[1:]
    assert Tree.from_parents(tree.to_frame()) == tree
