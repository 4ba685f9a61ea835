"""Parts of a tree without data, and large trees."""

import math
import time

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import ArcLaw, inside_pass, outside_pass, sample, smooth
from tests.oracles import dense_paths
from tests.tree.messages.cases import FIELDS, TREES, draw_potentials, each_tree, law_of
from tests.tree.messages.gates import smooth_gated


@each_tree
@pytest.mark.parametrize("num_components", [None, 4, 32])
def test_arcs_without_data_below_keep_their_prior(tree, num_components):
    eta, lam = draw_potentials(tree, 0.1, 0.3, 1.0, 3.0, seed=5)
    seen = int(tree.leaf_index[0])
    lam[1], eta[1] = 0.0, 0.0
    lam[0, :seen], lam[0, seen + 1 :] = 0.0, 0.0
    on_path = torch.zeros(tree.num_arcs, dtype=torch.bool)
    on_path[tree.path(tree.nodes[seen])] = True
    rate = torch.linspace(0.1, 0.9, tree.num_arcs, dtype=torch.float64)
    law = law_of(rate, 1.5, 3.0)
    result = smooth_gated(tree, eta, lam, **law, num_components=num_components)
    assert torch.equal(result.pips[0][~on_path], rate[~on_path])
    assert torch.equal(result.pips[1], rate)
    assert_close(result.delta_second[1], rate * 1.5**2)
    prior_var = 3.0**2 + dense_paths(tree) @ (rate * 1.5**2)
    assert_close(result.node_var[1], prior_var)
    assert_close(result.node_mean[1], torch.zeros_like(prior_var))
    assert result.log_evidence[1].abs() < 1e-12


@pytest.mark.parametrize(
    "parents",
    [[0] * 20_000, list(range(1_500)), [i // 2 for i in range(4_000)]],
    ids=["star of 20,000", "chain of 1,500", "balanced, 2,000 leaves"],
)
def test_large_trees(parents):
    tree = Tree(range(len(parents) + 1), parents)
    generator = torch.Generator().manual_seed(19)
    lam = torch.zeros(tree.num_nodes, dtype=torch.float64)
    lam[tree.leaf_index] = 100.0
    eta = lam * torch.randn(tree.num_nodes, generator=generator).double().round()
    start = time.perf_counter()
    result = smooth_gated(tree, eta, lam, **law_of(0.01, 1.0, 3.0), num_components=8)
    assert time.perf_counter() - start < 60  # takes a few seconds; this is no measurement
    for name in FIELDS:
        assert getattr(result, name).isfinite().all()


@pytest.mark.slow
def test_chain_of_5000():
    tree = Tree(range(5_001), range(5_000))
    lam = torch.zeros(tree.num_nodes, dtype=torch.float64)
    lam[[0, -1]] = 400.0
    eta = torch.zeros_like(lam)
    eta[-1] = 2.0 * lam[-1]
    result = smooth_gated(tree, eta, lam, **law_of(2e-4, 1.0, 3.0))
    assert_close(result.pips, result.pips.mean().expand_as(result.pips), rtol=0, atol=1e-4)
    expected = result.pips.sum()  # about one change, wherever it is; one is on for sure
    assert 1.0 < expected < 2.5


def test_a_star_is_a_product_of_its_leaves():
    """With the root known, the leaves of a star are independent, however many there are."""
    tree = Tree(range(1_001), [0] * 1_000)
    generator = torch.Generator().manual_seed(20)
    lam = torch.full((tree.num_nodes,), 25.0, dtype=torch.float64)
    lam[0] = 0.0
    value = torch.randn(tree.num_nodes, generator=generator).double()
    result = smooth_gated(tree, lam * value, lam, **law_of(0.1, 1.0, 1e-4))
    slab = torch.distributions.Normal(0.0, math.sqrt(1 / 25 + 1)).log_prob(value[1:])
    spike = torch.distributions.Normal(0.0, 1 / 5).log_prob(value[1:])
    exact = torch.sigmoid(slab - spike + math.log(0.1 / 0.9))
    assert_close(result.pips, exact, rtol=0, atol=1e-4)


def partly_seen(tree, seed):
    """Potentials at the first leaf alone, in the second of two elements nowhere."""
    eta, lam = draw_potentials(tree, 0.3, 0.3, 1.0, 2.0, seed=seed, num=2)
    rest = torch.arange(tree.num_nodes) != tree.leaf_index[0]
    eta[:, rest], lam[:, rest] = 0.0, 0.0
    eta[1], lam[1] = 0.0, 0.0
    return eta, lam


@each_tree
def test_draws_where_no_data_are_below_are_from_the_prior(tree):
    eta, lam = partly_seen(tree, 31)
    prob, mean, var = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, -1.0], [0.0, 0.5, 0.1]]).double()
    inside = inside_pass(tree, eta, lam, ArcLaw.of(prob, mean, var), 0.0, 2.0, None)
    result, num = outside_pass(tree, inside), 4_000
    root, classes, deltas = sample(tree, inside, num, torch.Generator().manual_seed(32))
    assert torch.equal(deltas == 0, classes == 0)
    nodes = root.unsqueeze(-1) + deltas @ dense_paths(tree).T
    for draws, expected in (
        (torch.nn.functional.one_hot(classes.long(), 3).double(), result.class_prob),
        (deltas, result.delta_mean),
        (deltas.square(), result.delta_second),
        (nodes, result.node_mean),
        ((nodes - result.node_mean).square(), result.node_var),
    ):
        allowed = 4.5 * draws.std(0) / math.sqrt(num) + 2e-3
        assert ((draws.mean(0) - expected).abs() < allowed).all()


@each_tree
def test_gradients_where_no_data_are_below(tree):
    """The prior's moments, by their formulas."""
    eta, lam = partly_seen(tree, 33)
    rate, slab = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 1.5))
    result = smooth(tree, eta, lam, ArcLaw.spike_slab(rate, slab), 0.0, 2.0, None)
    silent = torch.ones(tree.num_arcs, dtype=torch.bool)
    silent[tree.path(tree.leaves[0])] = False
    second = rate * slab.square()
    node_var = 4 + dense_paths(tree).sum(1) * second
    found = result.node_var[1].sum() + result.delta_second[:, silent].sum()
    expected = node_var.sum() + 2 * silent.sum() * second
    assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, (rate, slab)),
        torch.autograd.grad(expected, (rate, slab)),
        strict=True,
    ):
        assert_close(one, other)


def test_a_large_batch_goes_by_runs(monkeypatch):
    tree = TREES["10 arcs, 7 leaves"]
    eta, lam = draw_potentials(tree, 0.3, 0.3, 1.0, 2.0, seed=34, num=6)
    lam[4] = 0.0
    eta, lam = eta.reshape(2, 3, -1), lam.reshape(2, 3, -1)
    root = torch.arange(1.0, 7.0).reshape(2, 3)
    law = ArcLaw.spike_slab(torch.full((2, 1, 1), 0.2), root.unsqueeze(-1))
    whole = smooth(tree, eta, lam, law, root, root)
    monkeypatch.setattr("pyro_tbr.tree.messages.smoothing._COMPONENTS", 4 * 48 * tree.num_nodes)
    runs = smooth(tree, eta, lam, law, root, root)
    for name in FIELDS:
        assert_close(getattr(runs, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
        assert getattr(runs, name).shape[:2] == (2, 3)
