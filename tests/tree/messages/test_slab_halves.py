"""Slabs in two halves and spikes of some width, against enumeration of every pattern of signs."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pyro_tbr.tree.messages import outside_pass, sample
from tests.oracles import dense_paths
from tests.tree.messages.gates import gated_inside, smooth_gated
from tests.tree.small_trees import SMALL_TREES

RATE, SCALE, LOC, ROOT = 0.3, 0.4, 1.1, 2.0
TREES = {name: tree for name, tree in SMALL_TREES.items() if tree.num_arcs <= 6}
each_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())


def data(tree, error=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(tree.num_nodes, generator=generator, dtype=torch.float64)
    lam = torch.zeros_like(weight)
    lam[tree.leaf_index] = error**-2
    return lam * weight, lam


def enumerated(tree, eta, lam, spike=0.0):
    """Log evidence, inclusion, mean and mean square of the changes, and where gates are open."""
    seen = lam > 0
    paths, value = dense_paths(tree)[seen], eta[seen] / lam[seen]
    log_weight, found = [], []
    for signs in itertools.product([0.0, 1.0, -1.0], repeat=tree.num_arcs):
        signs = torch.tensor(signs, dtype=torch.float64)
        on = signs.abs()
        var = on * SCALE**2 + (1 - on) * spike**2
        shared = (paths * var) @ paths.T + ROOT**2
        law = MultivariateNormal(paths @ signs * LOC, shared + torch.diag(1 / lam[seen]))
        prior = (on * RATE / 2 + (1 - on) * (1 - RATE)).log().sum()
        log_weight.append(law.log_prob(value) + prior)
        gain = torch.linalg.solve(law.covariance_matrix, paths * var).T  # (A, seen)
        mean = signs * LOC + gain @ (value - law.mean)
        second = mean.square() + var - (gain * (paths * var).T).sum(1)
        found.append(torch.stack([on, mean, second, on * mean, on * second]))
    log_weight = torch.stack(log_weight)
    height = 0.5 * (lam[seen] * value.square() - (lam[seen] / (2 * math.pi)).log()).sum()
    moments = torch.einsum("g,gka->ka", log_weight.softmax(0), torch.stack(found))
    return log_weight.logsumexp(0) + height, *moments


@each_tree
@pytest.mark.parametrize("spike", [0.0, 0.1])
@pytest.mark.parametrize(("cap", "tolerance"), [(None, 1e-8), (32, 0.02)])
def test_passes_enumerate_the_halves(tree, cap, tolerance, spike):
    eta, lam = data(tree)
    law = {"inclusion_prob": RATE, "slab_scale": SCALE, "slab_loc": LOC, "root_scale": ROOT}
    found = smooth_gated(tree, eta, lam, **law, spike_scale=spike, num_components=cap, sweeps=2)
    log_evidence, pips, mean, second, *on = enumerated(tree, eta, lam, spike)
    for name, value, expected in (
        ("log evidence", found.log_evidence, log_evidence),
        ("pips", found.pips, pips),
        ("mean", found.delta_mean, mean),
        ("second", found.delta_second, second),
        ("mean of open gates", found.class_mean[..., 1:].sum(-1), on[0]),
        ("second of open gates", found.class_second[..., 1:].sum(-1), on[1]),
    ):
        assert_close(value, expected, rtol=tolerance, atol=tolerance, msg=name)
    assert_close(found.class_mean.sum(-1), found.delta_mean)
    assert_close(found.class_second.sum(-1), found.delta_second)


def test_halves_at_zero_are_one_slab():
    tree = SMALL_TREES["balanced"]
    eta, lam = data(tree, seed=1)
    law = {"inclusion_prob": RATE, "slab_scale": 1.2, "root_scale": ROOT, "num_components": None}
    one, two = (smooth_gated(tree, eta, lam, **law, slab_loc=loc) for loc in (None, 0.0))
    for name in ("log_evidence", "pips", "node_mean", "node_var", "delta_second"):
        assert_close(getattr(one, name), getattr(two, name))


def test_draws_have_the_posterior_s_gates_and_means():
    tree, num = SMALL_TREES["balanced"], 20_000
    eta, lam = data(tree, seed=2)
    law = {"inclusion_prob": RATE, "slab_scale": SCALE, "slab_loc": LOC, "root_scale": ROOT}
    inside = gated_inside(tree, eta, lam, **law, num_components=None)
    exact = outside_pass(tree, inside)
    _, gates, deltas = sample(tree, inside, num, torch.Generator().manual_seed(0))
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert (deltas[gates == 0] == 0).all()
    error = (exact.pips * (1 - exact.pips) / num).sqrt()
    assert ((gates.mean(0) - exact.pips).abs() < 4 * error + 1e-9).all()
    error = ((exact.delta_second - exact.delta_mean.square()) / num).sqrt()
    assert ((deltas.mean(0) - exact.delta_mean).abs() < 4 * error + 1e-9).all()
