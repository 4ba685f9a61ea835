"""Wrong trees: the same leaves, changed as much as asked for."""

import numpy as np
import pytest

from parts.rearrange import (
    clades_collapsed,
    leaves_clustered,
    shared_changes,
    star,
    subtrees_moved,
)
from pyro_tbr import Tree, simulate
from pyro_tbr.errors import DataError, ShapeError

FOUR = Tree.from_parents({"u": "r", "v": "r", "a": "u", "b": "u", "c": "v", "d": "v"})
LARGE = simulate(num_leaves=16, rows_per_leaf=1).tree


def clades(tree):
    """Sets of two leaves or more below inner nodes but the root."""
    inner = [node for node in tree.nodes[1:] if tree.children(node)]
    return {"".join(sorted(tree.descendant_leaves(node))) for node in inner}


def test_star():
    assert clades(star(FOUR)) == set()
    assert star(LARGE).leaves == LARGE.leaves


def test_a_move_makes_one_of_the_trees_one_move_away():
    found = {frozenset(clades(subtrees_moved(FOUR, seed=seed))) for seed in range(60)}
    # A leaf onto a leaf of the other clade, onto that clade, or a clade onto a leaf of the other.
    ladders = {
        frozenset({pair, "".join(sorted(pair + third))})
        for pair in ("ab", "cd", "ac", "ad", "bc", "bd")
        for third in set("abcd") - set(pair)
    }
    assert {frozenset({"cd", "bcd"}), frozenset({"ab", "abc"}), frozenset({"ac", "acd"})} <= found
    assert found <= ladders


@pytest.mark.parametrize("number", [0, 1, 4, 12])
def test_moves_keep_leaves_and_binary_nodes(number):
    tree = subtrees_moved(LARGE, number, seed=3)
    assert set(tree.leaves) == set(LARGE.leaves)
    assert all(len(tree.children(node)) in (0, 2) for node in tree.nodes)
    lost = clades(LARGE) - clades(tree)
    assert bool(lost) == (number > 0)
    assert tree == subtrees_moved(LARGE, number, seed=3)
    assert number == 0 or tree != subtrees_moved(LARGE, number, seed=4)


def test_collapsed_clades():
    assert clades_collapsed(LARGE, 0) == LARGE
    assert clades(clades_collapsed(LARGE, 1)) == set()
    half = clades_collapsed(LARGE, 0.5, seed=1)
    assert clades(half) < clades(LARGE)
    assert len(clades(half)) == 7  # of 14 inner nodes
    assert set(half.leaves) == set(LARGE.leaves)


def test_clusters_are_found():
    profiles = np.array([[0.0, 0], [5, 5], [0.1, 0], [5.1, 5]])
    tree = leaves_clustered(FOUR, profiles)
    assert clades(tree) == {"ac", "bd"}
    part = leaves_clustered(FOUR, profiles, known=[True, True, True, False])
    assert clades(part) == {"ac"}
    assert part.parent("d") == part.root
    assert set(part.leaves) == set("abcd")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: subtrees_moved(FOUR, -1), DataError, "number is -1"),
        (lambda: subtrees_moved(Tree.from_parents({"a": "r", "b": "r"})), DataError, "no subtree"),
        (lambda: clades_collapsed(FOUR, 1.5), DataError, "share is 1.5"),
        (lambda: leaves_clustered(FOUR, np.ones((3, 2))), ShapeError, r"give \(4, P\)"),
        (lambda: leaves_clustered(FOUR, np.full((4, 2), np.nan)), DataError, "finite"),
    ],
)
def test_errors_name_the_culprit(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_changes_between_clades_that_both_trees_have():
    data = simulate(FOUR, latent_dim=2, num_features=4, rows_per_leaf=1, changes="half_the_arcs")
    same = shared_changes(data, FOUR)
    assert same.shared.all()
    np.testing.assert_array_equal(same.gates, data.gates)
    flat = shared_changes(data, star(FOUR))
    assert flat.shared.all()
    for leaf, gates in zip(FOUR.leaves, flat.gates, strict=True):
        np.testing.assert_array_equal(gates, data.gates[FOUR.path(leaf)].any(0))
    other = Tree.from_parents({"u": "r", "v": "r", "a": "u", "c": "u", "b": "v", "d": "v"})
    assert not shared_changes(data, other).shared.any()  # no inner clade is the true tree's
