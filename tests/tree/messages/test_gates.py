"""Inside and outside passes against enumeration of all inclusion patterns."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import outside_pass, sample
from tests.oracles import dense_paths
from tests.tree.messages.cases import (
    BATCHES,
    FIELDS,
    TREES,
    draw_potentials,
    each_tree,
    enumerated,
    law_of,
)
from tests.tree.messages.gates import gated_inside, smooth_gated
from tests.tree.small_trees import SMALL_TREES


@each_tree
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("inner", [False, True], ids=["leaves", "any node"])
def test_without_a_cap_it_is_enumeration(tree, batch, inner):
    eta, lam = draw_potentials(tree, *batch, seed=1, num=2, inner=inner)
    result = smooth_gated(tree, eta, lam, **law_of(*batch[1:]), root_loc=0.3, num_components=None)
    exact = enumerated(tree, eta, lam, *batch[1:], root_loc=0.3)
    for name in FIELDS:  # rtol: log evidence of precise leaves is of size 1e5
        assert_close(getattr(result, name), exact[name], rtol=1e-9, atol=1e-6, msg=name)


@each_tree
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("sweeps", [1, 2])
def test_with_the_default_cap_it_is_close(tree, batch, sweeps):
    eta, lam = draw_potentials(tree, *batch, seed=2, num=4)
    result = smooth_gated(tree, eta, lam, **law_of(*batch[1:]), sweeps=sweeps)
    exact = enumerated(tree, eta, lam, *batch[1:])
    assert_close(result.pips, exact["pips"], rtol=0, atol=0.02)
    assert_close(result.log_evidence, exact["log_evidence"], rtol=0, atol=0.02)
    scale = exact["node_var"].sqrt()
    gap = (result.node_mean - exact["node_mean"]) / scale
    assert gap.abs().max() < 0.1
    # The spread may rest on a mode far out of probability 0.002: its share is what is kept.
    assert_close(result.node_var.sqrt(), scale, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("name", ["10 arcs, 7 leaves", "10 arcs, deep", "ladder of 6"])
def test_data_unlike_the_prior(name, sweeps):
    """Every arc changes although few should: what the prior thinks light decides."""
    tree = TREES[name]
    eta, lam = draw_potentials(tree, 0.05, 1.0, 3.0, 1.0, seed=3, num=6)
    result = smooth_gated(tree, eta, lam, **law_of(0.1, 3.0, 1.0), sweeps=sweeps)
    exact = enumerated(tree, eta, lam, 0.1, 3.0, 1.0)
    assert_close(result.pips, exact["pips"], rtol=0, atol=0.02 if sweeps == 2 else 0.04)
    assert_close(result.log_evidence, exact["log_evidence"], rtol=0, atol=0.02 * (3 - sweeps))


def test_fewer_components_are_worse_and_a_second_sweep_helps():
    tree = Tree(range(15), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6])
    eta, lam = draw_potentials(tree, 0.05, 1.0, 3.0, 1.0, seed=4, num=6)
    exact = enumerated(tree, eta, lam, 0.1, 3.0, 1.0)["log_evidence"]

    def error(num_components, sweeps):
        law = law_of(0.1, 3.0, 1.0) | {"num_components": num_components, "sweeps": sweeps}
        return float((gated_inside(tree, eta, lam, **law).log_evidence - exact).abs().mean())

    assert error(4, 1) > 10 * error(32, 1)
    assert error(8, 2) < 0.5 * error(8, 1)


def test_three_arcs_in_series_share_one_change():  # case O-05
    tree = SMALL_TREES["unary chain"]
    eta, lam = torch.zeros(2, tree.num_nodes, dtype=torch.float64)
    a, b = tree.index("a"), tree.index("b")
    eta[a], lam[[a, b]] = 2.0 / 0.0025, 1 / 0.0025
    law = law_of(0.2, 1.0, 1.0)
    result = smooth_gated(tree, eta, lam, **law)
    series, other = tree.path("a"), tree.path("b")
    assert_close(result.pips[series], torch.full((3,), 0.441).double(), rtol=0, atol=5e-4)
    assert_close(result.pips[other], torch.tensor([0.219]).double(), rtol=0, atol=5e-4)
    inside = gated_inside(tree, eta, lam, **law)
    _, gates, _ = sample(tree, inside, 20_000, torch.Generator().manual_seed(0))
    any_on = gates[:, series].any(-1).double()
    assert abs(any_on.mean() - 0.977) < 4.5 * any_on.std() / math.sqrt(20_000) + 5e-4


def test_two_leaves_under_the_root_share_a_change():
    tree = SMALL_TREES["cherry"]
    lam = torch.tensor([0.0, 400.0, 400.0])
    result = smooth_gated(tree, lam * torch.tensor([0.0, 1.0, -1.0]), lam, **law_of(0.1, 1.0, 9.0))
    assert_close(result.pips[0], result.pips[1])
    assert 0.5 < result.pips[0] < 0.6


@each_tree
def test_draws_agree_with_the_passes(tree):
    batch = (0.3, 0.3, 1.5, 3.0)
    eta, lam = draw_potentials(tree, *batch, seed=6, num=2, inner=True)
    inside = gated_inside(tree, eta, lam, **law_of(*batch[1:]), root_loc=0.5, num_components=None)
    result = outside_pass(tree, inside)
    num = 4_000
    root, gates, deltas = sample(tree, inside, num, torch.Generator().manual_seed(7))
    assert root.shape == (num, 2)
    assert gates.shape == deltas.shape == (num, 2, tree.num_arcs)
    assert torch.equal(deltas == 0, gates == 0)
    nodes = root.unsqueeze(-1) + deltas @ dense_paths(tree).T
    for draws, mean in (
        (gates, result.pips),
        (deltas, result.delta_mean),
        (deltas.square(), result.delta_second),
        (nodes, result.node_mean),
        ((nodes - result.node_mean).square(), result.node_var),
    ):
        allowed = 4.5 * draws.std(0) / math.sqrt(num) + 2e-3  # rare events may not come at all
        assert ((draws.mean(0) - mean).abs() < allowed).all()


def test_capped_draws_stay_close():
    tree, batch = TREES["10 arcs, deep"], BATCHES["rough"]
    eta, lam = draw_potentials(tree, *batch, seed=8)
    inside = gated_inside(tree, eta, lam, **law_of(*batch[1:]))
    _, gates, _ = sample(tree, inside, 10_000, torch.Generator().manual_seed(9))
    exact = enumerated(tree, eta, lam, *batch[1:])["pips"]
    assert_close(gates.mean(0), exact, rtol=0, atol=0.02 + 4.5 * 0.005)
