"""Where known latents count from, so that changes of the intercept are sparse."""

import time

import numpy as np
import pytest
import torch

from pyro_tbr.inference.rotation.basis import Estimates
from pyro_tbr.inference.rotation.reference import reference_point
from pyro_tbr.tree import path_sum
from tests.inference.rotation.simulated import balanced_tree, leaf_nodes

NOISE = 0.3


def estimates(depth, deltas, *, mean=0.0, rows=60, unit=1.0, num_outcomes=1, seed=0, scatter=0.0):
    """Leaf by leaf regressions on latents that are centred at ``mean`` and counted in ``unit``.

    Args:
        depth: Of the tree.
        deltas: Function of random numbers and the tree, gives (A, W, Q).
        mean: What is taken off each latent.
        rows: A leaf.
        unit: What latents are multiplied by.
        num_outcomes: Q.
        seed: Randomness.
        scatter: Standard deviation of the leaves' means of each latent.
    """
    rng, tree = np.random.default_rng(seed), balanced_tree(depth)
    nodes = leaf_nodes(tree)
    deltas = torch.tensor(deltas(rng, tree))
    k = deltas.shape[1] - 1
    root = torch.tensor(rng.normal(size=(k + 1, num_outcomes)))
    weights = path_sum(tree, root, deltas, event_dim=2)[nodes].numpy()
    found, covs = [], []
    for w in weights:
        x = rng.normal(size=(rows, k)) + (scatter * rng.normal(size=k) if scatter else 0.0)
        y = np.c_[x, np.ones(rows)] @ w + NOISE * rng.normal(size=(rows, num_outcomes))
        design = np.c_[(x - mean) * unit, np.ones(rows)]
        inverse = np.linalg.inv(design.T @ design)
        found.append((inverse @ design.T @ y).T)
        covs.append(np.broadcast_to(NOISE**2 * inverse, (num_outcomes, k + 1, k + 1)))
    return Estimates(tree, nodes, torch.tensor(np.stack(found)), torch.tensor(np.stack(covs)))


def offset_of(args, spread=0.1):
    return reference_point(args, spread).offset


def one_leaf(rng, tree):
    """A slope that changes by 2 at one leaf."""
    deltas = np.zeros((tree.num_arcs, 2, 1))
    deltas[-2, 0] = 2.0
    return deltas


def all_slopes(rng, tree):
    """All slopes change everywhere, the intercept at one leaf."""
    deltas = np.zeros((tree.num_arcs, 4, 1))
    deltas[:, :3] = rng.normal(size=(tree.num_arcs, 3, 1))
    deltas[-1, 3] = 1.0
    return deltas


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_offset_is_where_the_intercept_is_constant(depth):
    errors = [
        offset_of(estimates(depth, one_leaf, mean=0.08, seed=seed)).item() + 0.08
        for seed in range(8)
    ]
    # The contrast of one leaf with the others, over the change of 2.
    error = NOISE / 60**0.5 / 2
    assert np.square(errors).mean() ** 0.5 < 1.6 * error
    assert abs(np.mean(errors)) < 1.5 * error


@pytest.mark.parametrize("depth", [2, 4])
def test_no_offset_where_the_intercept_is_constant_at_the_mean(depth):
    found = offset_of(estimates(depth, one_leaf, rows=6000))
    assert found.abs().max() < 3 * NOISE / 6000**0.5 / 2


def test_changes_of_slopes_and_of_the_intercept_together():
    found = offset_of(estimates(4, all_slopes, mean=0.08, rows=1000))
    torch.testing.assert_close(found, torch.full((3,), -0.08).double(), atol=0.01, rtol=0)


def test_slopes_that_do_not_differ_say_nothing():
    def none(rng, tree):
        return np.zeros((tree.num_arcs, 2, 1))

    found = [offset_of(estimates(3, none, mean=0.08, seed=seed)).item() for seed in range(8)]
    assert max(map(abs, found)) < 0.03


def test_offset_goes_with_the_unit_of_the_latents_and_is_the_same_each_time():
    def found(unit):
        args = estimates(3, all_slopes, mean=0.08, unit=unit)
        return offset_of(args, torch.full((3,), 0.1 * unit))

    torch.testing.assert_close(found(7.0) / 7, found(1.0), atol=1e-6, rtol=1e-5)
    assert torch.equal(found(1.0), found(1.0))


def test_a_narrow_prior_holds_and_nothing_to_move_is_no_error():
    args = estimates(3, one_leaf, mean=0.08)
    assert offset_of(args, 1e-4).abs().max() < 1e-4
    tree, nodes, mean, cov = args
    alone = Estimates(tree, nodes, mean[..., -1:], cov[..., -1:, -1:])
    assert offset_of(alone, 1.0).shape == (0,)
    assert offset_of(Estimates(tree, nodes[:1], mean[:1], cov[:1]), 1.0).item() == 0


def some_slopes(rng, tree):
    """Slopes change on a quarter of the arcs, the intercept nowhere."""
    deltas = np.zeros((tree.num_arcs, 4, 1))
    size = (tree.num_arcs, 3, 1)
    deltas[:, :3] = (rng.random(size) < 0.25) * rng.normal(size=size)
    return deltas


def test_errors_of_an_offset_are_as_large_as_it_says():
    """Also where leaves are far from zero, so that slopes that are not known well count."""
    squares = []
    for seed in range(24):
        args = estimates(4, some_slopes, mean=0.15, seed=seed, scatter=2.0)
        found = reference_point(args, spread=0.25)
        error = found.offset + 0.15
        squares.append((error @ torch.linalg.solve(found.cov, error)).item() / 3)
    # Three errors each; heavy tails, as now and then a change of the intercept is seen.
    assert np.median(squares) < 1.5
    assert np.mean(np.array(squares) < 2.6) > 0.8  # 0.95 of a chi-square


def test_offset_of_32_nodes_is_quick():
    args = estimates(5, all_slopes, mean=0.08, rows=200)
    offset_of(args)
    start = time.process_time()
    offset_of(args)
    assert time.process_time() - start < 1.0  # a fifth of it on a quiet machine
