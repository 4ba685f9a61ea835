"""Probabilities of 0 and 1, gradients, single precision and extremes; batches."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.tree.messages import outside_pass, sample
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


@each_tree
def test_rates_of_zero_and_one(tree):
    eta, lam = draw_potentials(tree, 0.3, 0.3, 1.0, 3.0, seed=10)
    rate = torch.full((tree.num_arcs,), 0.3, dtype=torch.float64)
    rate[0] = 0.0
    rate[-1] = 1.0
    exact = enumerated(tree, eta, lam, rate, 1.0, 3.0)
    rate.requires_grad_()
    for num_components in (None, 32):
        inside = gated_inside(
            tree, eta, lam, **law_of(rate, 1.0, 3.0), num_components=num_components
        )
        result = outside_pass(tree, inside)
        atol = 1e-9 if num_components is None else 5e-3
        for name in FIELDS:
            assert_close(getattr(result, name).detach(), exact[name], rtol=1e-3, atol=atol)
        assert torch.equal(result.pips[:, -1].detach(), torch.ones(3, dtype=torch.float64))
        if tree.num_arcs > 1:
            assert not result.pips[:, 0].any()
        (gradient,) = torch.autograd.grad(inside.log_evidence.sum(), rate)
        assert gradient.isfinite().all()


def test_no_change_anywhere_pools_the_leaves():
    tree = TREES["10 arcs, deep"]
    eta, lam = draw_potentials(tree, 0.1, 0.0, 1.0, 3.0, seed=11)
    result = smooth_gated(tree, eta, lam, **law_of(0.0, 1.0, 3.0))
    precision = lam.sum(-1) + 3.0**-2
    assert_close(result.node_mean, (eta.sum(-1) / precision).unsqueeze(-1).expand_as(eta))
    assert_close(result.node_var, (1 / precision).unsqueeze(-1).expand_as(eta))
    assert not result.pips.any()


@each_tree
def test_gradients_without_a_cap(tree):
    if tree.num_arcs > 6:
        pytest.skip("finite differences of many arcs take long")
    eta, lam = draw_potentials(tree, 0.7, 0.3, 1.0, 2.0, seed=12, num=1)
    seen = lam > 0
    rate = torch.full((tree.num_arcs,), 0.3, dtype=torch.float64)
    slab, root, loc = (torch.tensor(v, dtype=torch.float64) for v in (1.2, 2.0, 0.1))

    def log_evidence(eta_seen, lam_seen, rate, slab, root, loc):
        law = law_of(rate, slab, root) | {"root_loc": loc, "num_components": None}
        full = torch.zeros_like(eta)
        return gated_inside(
            tree,
            full.masked_scatter(seen, eta_seen),
            full.masked_scatter(seen, lam_seen),
            **law,
        ).log_evidence

    inputs = [eta[seen], lam[seen], rate, slab, root, loc]
    assert torch.autograd.gradcheck(log_evidence, [x.requires_grad_() for x in inputs])


def test_gradients_are_moments():
    """By the theory of exponential families; with a cap, up to the error of the messages."""
    tree, batch = TREES["10 arcs, 7 leaves"], BATCHES["rough"]
    eta, lam = draw_potentials(tree, *batch, seed=13)
    rate = torch.full((tree.num_arcs,), batch[1], dtype=torch.float64)
    for part in (eta, lam, rate):
        part.requires_grad_()
    inside = gated_inside(tree, eta, lam, **law_of(rate, *batch[2:]))
    by_eta, by_lam, by_rate = torch.autograd.grad(inside.log_evidence.sum(), (eta, lam, rate))
    with torch.no_grad():
        result = outside_pass(tree, inside)
    leaf = tree.leaf_index
    second = result.node_var + result.node_mean.square()
    assert_close(by_eta[:, leaf], result.node_mean[:, leaf], rtol=0, atol=0.01)
    assert_close(by_lam[:, leaf], -0.5 * second[:, leaf], rtol=0.01, atol=0.01)
    gain = (result.pips - rate).sum(0) / (rate * (1 - rate))
    assert_close(by_rate, gain, rtol=0, atol=0.1)


def test_single_precision():
    tree, batch = TREES["10 arcs, 7 leaves"], BATCHES["precise"]
    eta, lam = draw_potentials(tree, *batch, seed=14)
    double = smooth_gated(tree, eta, lam, **law_of(*batch[1:]))
    single = smooth_gated(tree, eta.float(), lam.float(), **law_of(*batch[1:]))
    for name in FIELDS:
        value = getattr(single, name)
        assert value.dtype == torch.float32
        assert_close(value.double(), getattr(double, name), rtol=1e-5, atol=2e-3, msg=name)


@pytest.mark.parametrize("num_components", [1, 2, 8, 32])
@pytest.mark.parametrize("sweeps", [1, 2])
def test_extremes_stay_finite(num_components, sweeps):
    """Precisions from 1e-8 to 1e8 in one tree, weights far out, a root and a slab of width 0."""
    tree = TREES["10 arcs, deep"]
    generator = torch.Generator().manual_seed(15)
    lam = 10.0 ** (16 * torch.rand(8, tree.num_nodes, generator=generator).double() - 8)
    eta = lam * 100 * torch.randn(8, tree.num_nodes, generator=generator).double()
    lam[:4, tree.leaf_index[::2]] = 0.0
    slab = torch.tensor([0.0, 1e-6, 1.0, 1e3, 0.0, 1e-6, 1.0, 1e3])
    root = torch.tensor([0.0, 1.0, 1e4, 1.0, 1.0, 1e-6, 1.0, 1e4])
    law = law_of(0.2, slab, root) | {"num_components": num_components, "sweeps": sweeps}
    for part in (eta, lam):
        part.requires_grad_()
    inside = gated_inside(tree, eta, lam, **law)
    result = outside_pass(tree, inside)
    for name in FIELDS:
        assert getattr(result, name).isfinite().all(), name
    assert ((result.pips >= 0) & (result.pips <= 1)).all()
    assert (result.node_var >= 0).all()
    for gradient in torch.autograd.grad(inside.log_evidence.sum(), (eta, lam)):
        assert gradient.isfinite().all()
    for draws in sample(tree, inside, 10, generator):
        assert draws.isfinite().all()


def test_batches_are_independent_and_laws_broadcast():
    tree, (_, _, slab, root) = TREES["mixed"], BATCHES["good"]
    eta, lam = draw_potentials(tree, 0.1, 0.2, slab, root, seed=16, num=6)
    rates = torch.linspace(0.05, 0.5, tree.num_arcs).double()
    slabs = torch.linspace(0.5, 3.0, 6).double()
    roots = torch.linspace(1.0, 5.0, 6).double().reshape(2, 3)
    shaped = [part.reshape(2, 3, -1) for part in (eta, lam)]
    law = law_of(rates, slabs.reshape(2, 3), roots)
    result = smooth_gated(tree, *shaped, **law, root_loc=roots / 10)
    by_arc = law | {"slab_scale": slabs.reshape(2, 3, 1).expand(2, 3, tree.num_arcs)}
    same = smooth_gated(tree, *shaped, **by_arc, root_loc=roots / 10)
    for i in range(6):
        place = divmod(i, 3)
        one = law_of(rates, float(slabs[i]), float(roots[place]))
        alone = smooth_gated(tree, eta[i], lam[i], **one, root_loc=float(roots[place]) / 10)
        for name in FIELDS:
            assert_close(getattr(result, name)[place], getattr(alone, name), rtol=1e-6, atol=1e-9)
            assert torch.equal(getattr(result, name), getattr(same, name))
    assert result.log_evidence.shape == (2, 3)
    assert result.pips.shape == (2, 3, tree.num_arcs)
    assert result.node_mean.shape == (2, 3, tree.num_nodes)


def test_slab_scale_by_arc():
    tree = TREES["mixed"]
    eta, lam = draw_potentials(tree, 0.1, 0.2, 1.0, 3.0, seed=17, num=1)
    slab = torch.linspace(0.0, 3.0, tree.num_arcs).double()
    result = smooth_gated(tree, eta[0], lam[0], **law_of(0.2, slab, 3.0), num_components=None)
    exact = enumerated(tree, eta, lam, 0.2, slab, 3.0)
    for name in FIELDS:
        assert_close(getattr(result, name), exact[name][0], rtol=1e-9, atol=1e-7)
