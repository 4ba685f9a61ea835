"""The tree itself: order, questions about it, and that it is a value."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.errors import TreeError
from pyro_tbr.tree import Tree
from tests.tree.small_trees import SMALL_TREES, dense_paths

ALL_SHAPES = pytest.mark.parametrize("tree", SMALL_TREES.values(), ids=SMALL_TREES.keys())


def chain(depth: int) -> Tree:
    return Tree.from_parents({i + 1: i for i in range(depth)})


def star(num_leaves: int) -> Tree:
    return Tree.from_parents(dict.fromkeys(range(num_leaves), "root"))


@ALL_SHAPES
def test_order(tree):
    assert tree.root == tree.nodes[0]
    assert len(set(tree.nodes)) == tree.num_nodes == tree.num_arcs + 1
    assert [child for _, child in tree.arcs] == list(tree.nodes[1:])
    assert tree.arc_child.tolist() == list(range(1, tree.num_nodes))
    assert [tree.nodes[i] for i in tree.arc_parent] == [parent for parent, _ in tree.arcs]
    assert tree.arc_parent.dtype == tree.arc_child.dtype == tree.leaf_index.dtype == torch.int64
    inner = {parent for parent, _ in tree.arcs}
    assert tree.leaves == tuple(node for node in tree.nodes if node not in inner)
    assert [tree.nodes[i] for i in tree.leaf_index] == list(tree.leaves)
    assert tree.num_leaves == len(tree.leaves)


@ALL_SHAPES
def test_levels_hold_the_nodes_by_their_depth(tree):
    depths = dense_paths(tree).sum(1).int().tolist()
    assert depths == sorted(depths)
    assert tree.depth == max(depths)
    assert tree.levels[0] == slice(0, 1)
    assert [depths[i] for i in range(tree.num_nodes)] == [
        depth for depth, level in enumerate(tree.levels) for _ in tree.nodes[level]
    ]


@ALL_SHAPES
def test_questions(tree):
    paths = dense_paths(tree)
    for v, node in enumerate(tree.nodes):
        assert tree.index(node) == v
        assert sorted(tree.path(node)) == paths[v].nonzero().flatten().tolist()
        assert tree.path(node) == sorted(tree.path(node))  # root side first
        assert tree.children(node) == tuple(child for parent, child in tree.arcs if parent == node)
        assert all(tree.parent(child) == node for child in tree.children(node))
        below = [i for i in tree.leaf_index if v == 0 or paths[i, v - 1]]
        assert tree.descendant_leaves(node) == tuple(tree.nodes[i] for i in below)
        inside = [a for a in range(tree.num_arcs) if v == 0 or (a != v - 1 and paths[a + 1, v - 1])]
        assert tree.arcs_below(node) == tuple(tree.arcs[a] for a in inside)
    assert tree.parent(tree.root) is None


def test_siblings_stay_in_the_order_given():
    tree = Tree.from_parents({"b": "r", "a": "r", "z": "a", "y": "b", "x": "a"})
    assert tree.nodes == ("r", "b", "a", "y", "z", "x")


@ALL_SHAPES
def test_is_a_value(tree):
    for twin in (copy.deepcopy(tree), copy.copy(tree), pickle.loads(pickle.dumps(tree))):
        assert twin == tree
        assert hash(twin) == hash(tree)
        assert (twin.nodes, twin.arcs, twin.lengths) == (tree.nodes, tree.arcs, tree.lengths)
        assert (twin.labels, twin.support) == (tree.labels, tree.support)
    others = [other for other in SMALL_TREES.values() if other is not tree]
    assert tree not in others
    assert tree != "tree"
    with pytest.raises(AttributeError, match="never changes"):
        tree.nodes = ()
    with pytest.raises(AttributeError, match="never changes"):
        del tree.nodes


def test_lengths_count_in_equality():
    parents = {"a": "r", "b": "r"}
    first, second = (Tree.from_parents(parents, lengths={"a": x, "b": 1.0}) for x in (1.0, 2.0))
    assert first != second
    assert first != Tree.from_parents(parents)


def test_repr_is_short():
    tree = Tree.from_parents({"T": "lymphoid", "B": "lymphoid", "lymphoid": "blood", "m": "blood"})
    assert repr(tree) == str(tree) == "Tree(5 nodes, 3 leaves, depth 2, root 'blood')"


def test_labels_are_the_users_own_objects():
    leaf = ("genus", 3)
    tree = Tree.from_parents({leaf: 10, "10": 10})
    assert tree.nodes[1] is leaf
    assert (tree.index(10), tree.index("10")) == (0, 2)
    assert tree.labels[leaf] == "('genus', 3)"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("t cell", r"'t cell' \(str\) is none of the 3 nodes; nearest: 'T cell' \(str\)"),
        (b"NK", r"b'NK' \(bytes\).*nearest: 'NK' \(str\)"),
        (["NK"], r"\['NK'\] \(list\)"),
        (None, r"None \(NoneType\)"),
        ("zzz", r"'zzz' \(str\) is none of the 3 nodes, which are 'blood', 'T cell', 'NK'"),
    ],
)
def test_index_names_the_nearest_node(node, message):
    with pytest.raises(TreeError, match=message):
        Tree.from_parents({"T cell": "blood", "NK": "blood"}).index(node)


def test_true_is_not_the_node_one():
    with pytest.raises(TreeError, match=r"True \(bool\)"):
        Tree.from_parents({1: 0, 2: 0}).index(True)


@pytest.mark.parametrize(
    ("lengths", "has_lengths", "message"),
    [
        ({"a": 0.0, "b": 2.0}, True, None),
        ({"a": 1.0}, False, r"1 of 2 arcs .*'r' -> 'b' \(no length\)"),
        ({"a": 1.0, "b": -2.0}, False, r"1 of 2 arcs .*'r' -> 'b' \(length -2\)"),
        (None, False, "2 of 2 arcs"),
    ],
)
def test_require_lengths(lengths, has_lengths, message):
    tree = Tree.from_parents({"a": "r", "b": "r"}, lengths=lengths)
    assert tree.has_lengths is has_lengths
    if message is None:
        assert tree.require_lengths() == (0.0, 2.0)
    else:
        with pytest.raises(TreeError, match=message):
            tree.require_lengths()


@pytest.mark.parametrize(
    ("nodes", "parents", "lengths"),
    [
        ("r", [], None),
        ("rab", [0], None),
        ("raa", [0, 0], None),
        ("rab", [1, 0], None),  # a parent after its child
        ("rabc", [0, 1, 0], None),  # not level by level
        ("rab", [0, -1], None),
        ("rab", [0, 0], [1.0]),
    ],
)
def test_constructor_takes_trees_in_level_order_only(nodes, parents, lengths):
    with pytest.raises(TreeError):
        Tree(nodes, parents, lengths)


@pytest.mark.parametrize("tree", [chain(5000), star(20_000)], ids=["chain", "star"])
def test_deep_and_wide_trees(tree):
    last = tree.nodes[-1]
    assert pickle.loads(pickle.dumps(tree)) == copy.deepcopy(tree) == tree
    assert len(repr(tree)) < 80
    assert len(tree.path(last)) == tree.depth
    assert len(tree.descendant_leaves(tree.root)) == tree.num_leaves
    assert Tree.from_networkx(tree.to_networkx()) == tree
    read = Tree.from_newick(tree.to_newick())
    assert (read.num_nodes, read.depth) == (tree.num_nodes, tree.depth)
    assert_close(read.arc_parent, tree.arc_parent)


def test_made_in_inference_mode_it_serves_training():
    with torch.inference_mode():
        tree = Tree.from_parents({"a": "r", "b": "r"})
        index = tree.leaf_index
    weights = torch.ones(3, requires_grad=True)
    weights[index].square().sum().backward()
    assert weights.grad.tolist() == [0, 2, 2]
