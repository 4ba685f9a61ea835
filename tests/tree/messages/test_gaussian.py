"""Laws of one class: the closed form against enumeration and the passes."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import ArcLaw, inside_pass, outside_pass, sample, smooth
from tests.tree.messages.cases import FIELDS, draw_potentials, each_tree, enumerated


def dense_law(var, mean=0.0):
    """Every arc changes, by N(mean, var); means and variances by arc."""
    mean = torch.as_tensor(mean)
    return ArcLaw.of(1.0, mean.unsqueeze(-1) if mean.dim() else mean, var.unsqueeze(-1))


@each_tree
@pytest.mark.parametrize("inner", [False, True], ids=["leaves", "any node"])
def test_gaussian_smoothing_is_exact(tree, inner):
    eta, lam = draw_potentials(tree, 0.3, 1.0, 1.0, 3.0, seed=18, inner=inner)
    var = torch.linspace(0.0, 2.0, tree.num_arcs).double()
    result = smooth(tree, eta, lam, dense_law(var), root_loc=0.5, root_scale=3.0)
    always = torch.ones(1, tree.num_arcs, dtype=torch.float64)
    law = (1.0, var.sqrt(), 3.0)
    exact = enumerated(tree, eta, lam, *law, root_loc=0.5, gates=always)
    assert result.pips is None
    for name in FIELDS:
        if name != "pips":
            assert_close(getattr(result, name), exact[name], rtol=1e-9, atol=1e-9)


SHAPES = {
    "random": [i * 7919 % (i + 1) // 2 for i in range(300)],
    "chain": list(range(300)),
    "star": [0] * 300,
}


@pytest.mark.parametrize("name", SHAPES)
def test_dense_changes_are_one_component(name):
    """The closed form against the passes for mixtures, gradients too; on draws its moments."""
    tree = Tree(range(301), sorted(SHAPES[name]))
    eta, lam = draw_potentials(tree, 0.1, 1.0, 1.0, 3.0, seed=21, inner=True)
    var = torch.linspace(0.0, 2.0, tree.num_arcs).double()  # the first arc cannot change
    given = [part.clone().requires_grad_() for part in (eta, lam, var)]
    law = (dense_law(given[2]), 0.5, 3.0)
    direct = smooth(tree, *given[:2], *law)
    inside = inside_pass(tree, *given[:2], *law)
    passes = outside_pass(tree, inside)
    for field in FIELDS:
        if field != "pips":
            assert_close(getattr(direct, field), getattr(passes, field), rtol=1e-8, atol=1e-9)
    both = [
        torch.autograd.grad(found.log_evidence.sum(), given, retain_graph=True)
        for found in (direct, passes)
    ]
    for one, other in zip(*both, strict=True):
        assert_close(one, other, rtol=1e-7, atol=1e-7)
    num = 4_000
    root, classes, deltas = sample(tree, inside, num, torch.Generator().manual_seed(0))
    assert (classes == 0).all()
    assert (deltas[..., 0] == 0).all()
    with torch.no_grad():
        sd = (direct.delta_second - direct.delta_mean.square()).clamp(min=0).sqrt()
        gap = (deltas.mean(0) - direct.delta_mean).abs()
        assert (gap < 5 * sd / num**0.5 + 1e-12).all()
        assert_close(deltas.std(0), sd, rtol=5 / (2 * num) ** 0.5, atol=1e-12)
        gap = (root.mean(0) - direct.node_mean[:, 0]).abs()
        assert (gap < 5 * (direct.node_var[:, 0] / num).sqrt()).all()


@each_tree
def test_one_class_may_have_a_mean(tree):
    """The closed form against the passes, moments, gradients and draws."""
    eta, lam = draw_potentials(tree, 0.3, 1.0, 1.0, 3.0, seed=27, inner=True)
    mean = torch.linspace(-1.0, 2.0, tree.num_arcs).double().requires_grad_()
    law = dense_law(torch.linspace(0.0, 2.0, tree.num_arcs).double(), mean)
    direct = smooth(tree, eta, lam, law, 0.5, 3.0)
    inside = inside_pass(tree, eta, lam, law, 0.5, 3.0, None)
    passes = outside_pass(tree, inside)
    for field in ("class_prob", *FIELDS[2:]):
        assert_close(getattr(direct, field), getattr(passes, field), rtol=1e-9, atol=1e-9)
    one, other = (
        torch.autograd.grad(found.log_evidence.sum(), mean)[0] for found in (direct, passes)
    )
    assert_close(one, other)
    draws = sample(tree, inside, 4_000, torch.Generator().manual_seed(28))
    sd = (direct.delta_second - direct.delta_mean.square()).clamp(min=0).sqrt().detach()
    gap = (draws.deltas.mean(0) - direct.delta_mean).abs()
    assert (gap < 5 * sd / 4_000**0.5 + 1e-7).all()
