"""Least numbers of changes: by hand, by going through all labellings, and which bases are best."""

import itertools

import numpy as np
import pytest

from parts.parsimony import latents_are_sparsest, parsimony_score, sparsest_basis
from pyro_tbr import Tree, simulate
from pyro_tbr.errors import DataError, ShapeError
from tests.tree.small_trees import SMALL_TREES

CHERRIES = Tree.from_parents({"u": "r", "v": "r", "a": "u", "b": "u", "c": "v", "d": "v"})


def fewest_changes(tree, labels):
    """By every labelling of the inner nodes with the leaves' states."""
    leaf = dict(zip(tree.leaves, labels, strict=True))
    inner = [node for node in tree.nodes if node not in leaf]
    return min(
        sum(value[above] != value[below] for above, below in tree.arcs)
        for states in itertools.product(sorted(set(labels)), repeat=len(inner))
        for value in [leaf | dict(zip(inner, states, strict=True))]
    )


@pytest.mark.parametrize("tree", SMALL_TREES.values(), ids=SMALL_TREES.keys())
def test_score_is_the_least_over_all_labellings(tree):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (12, tree.num_leaves))
    values = np.array([-0.3, 1.7, 1e3])[labels]
    expected = [fewest_changes(tree, row) for row in labels.tolist()]
    assert parsimony_score(tree, values).tolist() == expected
    batched = parsimony_score(tree, values.reshape(3, 4, -1))
    np.testing.assert_array_equal(batched.ravel(), expected)


def test_a_polytomy_needs_one_change_a_child_that_differs():
    star = SMALL_TREES["star"]
    assert parsimony_score(star, [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]) == 3  # Fitch's sets alone say 2
    assert parsimony_score(star, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0 + 1e-9]) == 0


def best_bases(tree, weights):
    """All least sums of scores over bases of the null directions of pairs of leaves, by hand."""
    pairs = list(itertools.combinations(range(len(weights)), 2))
    contrasts = [weights[i] - weights[j] for i, j in pairs]
    contrasts = [c for c in contrasts if np.abs(c).max() > 1e-9]
    if weights.shape[1] == 2:
        raw = [np.array([c[1], -c[0]]) for c in contrasts]
    else:
        raw = [np.cross(c, d) for c, d in itertools.combinations(contrasts, 2)]
    found = []
    for vector in raw:
        if np.linalg.norm(vector) < 1e-9:
            continue
        unit = vector / np.linalg.norm(vector)
        if all(min(abs(unit - o).max(), abs(unit + o).max()) > 1e-6 for o in found):
            found.append(unit)
    scores = [int(parsimony_score(tree, weights @ unit)) for unit in found]
    sums = {}
    for places in itertools.combinations(range(len(found)), weights.shape[1]):
        if abs(np.linalg.det(np.array([found[p] for p in places]))) > 1e-6:
            sums.setdefault(sum(scores[p] for p in places), []).append(places)
    least = min(sums, default=None)
    return least, len(sums.get(least, ()))


@pytest.mark.parametrize(("num_leaves", "latent_dim"), [(4, 2), (7, 2), (4, 3), (5, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_basis_is_the_best_of_all(num_leaves, latent_dim, seed):
    data = simulate(
        num_leaves=num_leaves, latent_dim=latent_dim, shape="random", rows_per_leaf=1, seed=seed
    )
    weights = data.node_weights[data.tree.leaf_index.numpy(), :, 0]
    least, number = best_bases(data.tree, weights)
    if least is None:
        assert not latents_are_sparsest(data.tree, weights)
        return
    found = sparsest_basis(data.tree, weights)
    assert found.scores.sum() == least
    assert found.unique == (number == 1)
    assert abs(np.linalg.det(found.basis)) > 1e-6


def test_latents_found_in_any_basis():
    data = simulate(num_leaves=32, latent_dim=3, num_outcomes=1, rows_per_leaf=1, seed=0)
    weights = data.node_weights[data.tree.leaf_index.numpy()]
    assert latents_are_sparsest(data.tree, weights)
    mixing = np.random.default_rng(0).standard_normal((3, 3))
    mixed = np.einsum("jk,lkq->ljq", mixing, weights)
    assert not latents_are_sparsest(data.tree, mixed)
    back = sparsest_basis(data.tree, mixed).basis @ mixing
    back = np.abs(back / np.linalg.norm(back, axis=1, keepdims=True))
    np.testing.assert_allclose(np.sort(back.max(1)), 1, atol=1e-6)
    assert sorted(back.argmax(1)) == [0, 1, 2]


def test_outcomes_add_up():
    weights = np.zeros((4, 2, 2))
    weights[:, 0, 0] = [0, 0, 1, 1]  # of the cherries apart
    weights[:, 1, 1] = [0, 1, 0, 0]
    found = sparsest_basis(CHERRIES, weights)
    assert found.scores.tolist() == [1, 1]
    assert found.unique
    assert latents_are_sparsest(CHERRIES, weights)
    # Added up to one outcome, the sum of the two latents changes but once too.
    one = weights.sum(-1)
    assert parsimony_score(CHERRIES, one @ [1.0, 1.0]) == 1
    assert not latents_are_sparsest(CHERRIES, one)


def test_too_few_leaves_determine_nothing():
    assert not latents_are_sparsest(SMALL_TREES["cherry"], np.array([[0.0, 1.0], [1.0, 3.0]]))
    with pytest.raises(DataError, match="do not span"):
        sparsest_basis(SMALL_TREES["cherry"], [[0.0, 1.0], [1.0, 3.0]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: parsimony_score(CHERRIES, [1.0, 2.0]), ShapeError, "one a leaf"),
        (lambda: sparsest_basis(CHERRIES, np.ones((3, 2))), ShapeError, "L 4"),
        (lambda: sparsest_basis(CHERRIES, np.ones((4, 4))), DataError, "too many candidates"),
        (lambda: latents_are_sparsest(CHERRIES, np.ones((4, 4))), DataError, "too many"),
    ],
)
def test_errors_name_the_culprit(call, error, message):
    with pytest.raises(error, match=message):
        call()
