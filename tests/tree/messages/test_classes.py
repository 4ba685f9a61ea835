"""Laws of several classes, and laws that do not fit."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree.messages import ArcLaw, inside_pass, outside_pass, sample, smooth
from tests.oracles import dense_paths, enumerate_classes
from tests.tree.messages.cases import FIELDS, draw_potentials, each_tree, law_of
from tests.tree.messages.gates import smooth_gated
from tests.tree.small_trees import SMALL_TREES


def scale_mixture(error, num_classes):
    """Classes like those of a horseshoe: narrower than the data see, up to the width of a slab."""
    log_scale = torch.linspace(math.log(0.1 * error), math.log(2.0), num_classes).double()
    local = log_scale - math.log(0.3 * error)
    return (1 / local.cosh()) / (1 / local.cosh()).sum(), (2 * log_scale).exp()


def by_classes(tree, eta, lam, prob, var, **more):
    return inside_pass(tree, eta, lam, ArcLaw.of(prob, 0.0, var), 0.3, 2.0, **more)


def enumerated_classes(tree, eta, lam, prob, var):
    rows = [
        enumerate_classes(dense_paths(tree), *row, prob, var, 2.0, 0.3)
        for row in zip(eta, lam, strict=True)
    ]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


MIXED = [name for name, tree in SMALL_TREES.items() if tree.num_arcs <= 6]


CLASS_FIELDS = ("log_evidence", "class_prob", "node_mean", "node_var", "delta_mean", "delta_second")


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("num_classes", [1, 3, 4])
def test_classes_without_a_cap_are_enumeration(name, num_classes):
    tree = SMALL_TREES[name]
    eta, lam = draw_potentials(tree, 0.1, 0.3, 1.0, 2.0, seed=21, num=2, inner=True)
    prob, var = scale_mixture(0.1, num_classes)
    prob = prob.repeat(tree.num_arcs, 1) if num_classes == 1 else torch.stack(
        [prob.roll(arc) for arc in range(tree.num_arcs)]
    )  # each arc its own  # fmt: skip
    result = outside_pass(tree, by_classes(tree, eta, lam, prob, var, num_components=None))
    exact = enumerated_classes(tree, eta, lam, prob, var)
    assert result.pips is None
    for field in CLASS_FIELDS:
        assert_close(getattr(result, field), exact[field], rtol=1e-9, atol=1e-7, msg=field)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("error", [0.02, 0.1, 0.5])
def test_classes_with_the_default_cap_are_close(name, error):
    tree = SMALL_TREES[name]
    eta, lam = draw_potentials(tree, error, 0.3, 1.0, 2.0, seed=22)
    prob, var = scale_mixture(error, 6)
    result = outside_pass(tree, by_classes(tree, eta, lam, prob, var, sweeps=2))
    exact = enumerated_classes(tree, eta, lam, prob, var)
    assert_close(result.log_evidence, exact["log_evidence"], rtol=0, atol=0.01)
    assert_close(result.class_prob, exact["class_prob"], rtol=0, atol=0.02)
    sd = (exact["delta_second"] - exact["delta_mean"].square()).sqrt()
    assert ((result.delta_mean - exact["delta_mean"]) / sd).abs().max() < 0.05
    found = (result.delta_second - result.delta_mean.square()).sqrt()
    assert_close(found, sd, rtol=0.1, atol=0)


@each_tree
@pytest.mark.parametrize("num_components", [None, 32])
def test_gates_are_the_case_of_two_classes(tree, num_components):
    eta, lam = draw_potentials(tree, 0.1, 0.2, 1.0, 2.0, seed=23)
    prob, var = torch.tensor([0.8, 0.2]).double(), torch.tensor([0.0, 1.0]).double()
    result = outside_pass(
        tree, by_classes(tree, eta, lam, prob, var, num_components=num_components)
    )
    law = law_of(0.2, 1.0, 2.0) | {"root_loc": 0.3, "num_components": num_components}
    gated = smooth_gated(tree, eta, lam, **law)
    assert result.pips is None
    assert_close(result.class_prob[..., 1], gated.pips)
    for name in FIELDS:
        if name != "pips":
            assert_close(getattr(result, name), getattr(gated, name))


def test_draws_of_classes_agree_with_the_passes():
    tree = SMALL_TREES["balanced"]
    eta, lam = draw_potentials(tree, 0.3, 0.3, 1.0, 2.0, seed=24, num=2)
    inside = by_classes(tree, eta, lam, *scale_mixture(0.3, 4), num_components=64, sweeps=2)
    result, num = outside_pass(tree, inside), 8_000
    root, classes, deltas = sample(tree, inside, num, torch.Generator().manual_seed(25))
    picked = torch.nn.functional.one_hot(classes.long(), 4).double()
    nodes = root.unsqueeze(-1) + deltas @ dense_paths(tree).T
    for draws, mean in (
        (picked, result.class_prob),
        (deltas, result.delta_mean),
        (deltas.square(), result.delta_second),
        (nodes, result.node_mean),
    ):
        assert ((draws.mean(0) - mean).abs() < 4.5 * draws.std(0) / math.sqrt(num) + 2e-3).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": torch.zeros(2, 4)}, r"eta, lam: expected \(\*B, 3\) each"),
        ({"lam": torch.zeros(3)}, r"eta, lam: .* received \(2, 3\) and \(3,\)"),
        ({"inclusion_prob": torch.zeros(3)}, r"law: .* = \(2, 2, 2\), received prob \(3, 2\)"),
        ({"slab_scale": torch.zeros(3)}, r"law: .* = \(2, 2, 2\), .* var \(3, 1, 2\)"),
        ({"root_scale": torch.zeros(3)}, r"root_scale: .* \(2,\), received \(3,\)"),
    ],
)
def test_wrong_shapes(change, message):
    arguments = {"eta": torch.zeros(2, 3), "lam": torch.zeros(2, 3)} | law_of(0.1, 1.0, 1.0)
    with pytest.raises(ShapeError, match=message):
        smooth_gated(SMALL_TREES["cherry"], **(arguments | change))


def test_laws_that_do_not_fit():
    for parts in (torch.ones(2), 0.0, torch.ones(3)), (torch.ones(2, 1), 0.0, torch.ones(3)):
        with pytest.raises(ShapeError, match=r"as many classes J .* received prob \(2,.*var \(3,"):
            ArcLaw.of(*parts)
    with pytest.raises(ShapeError, match=r"expected 2 or more classes .* received prob \(1,\)"):
        ArcLaw.of(1.0, 0.0, 1.0, gated=True)
    with pytest.raises(ShapeError, match=r"slab_scale, spike_scale: .* \(2,\) and \(3,\)"):
        ArcLaw.spike_slab(0.5, torch.ones(2), spike_scale=torch.ones(3))
    tree, eta = SMALL_TREES["cherry"], torch.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"= \(2, 2, 3\), received prob \(5, 3\), mean \(1,\)"):
        by_classes(tree, eta, eta, torch.ones(5, 3) / 3, torch.ones(3))


def test_laws_are_constant_where_they_are_not_by_arc_or_batch():
    """One row and one column stand for all, and the answers are those of the law written out."""
    tree, num = SMALL_TREES["mixed"], 3
    eta, lam = draw_potentials(tree, 0.3, 0.3, 1.0, 2.0, seed=26, num=num)
    prob, mean, var = torch.tensor([[0.6, 0.3, 0.1], [0.0, 1.0, -1.0], [0.0, 0.2, 0.5]]).double()
    shape = (num, tree.num_arcs, 3)
    found = [
        smooth(tree, eta, lam, ArcLaw.of(*parts), 0.0, 2.0)
        for parts in (
            (prob, mean, var),
            (prob.expand(shape), mean.expand(shape), var.expand(shape)),
            (prob.expand(num, 1, 3), mean, var.expand(tree.num_arcs, 3)),
            (prob.expand(1, 1, 3), mean, var.expand(1, tree.num_arcs, 3)),
        )
    ]
    for field in CLASS_FIELDS:
        for other in found[1:]:
            assert torch.equal(getattr(found[0], field), getattr(other, field))


def test_draws_of_a_law_without_gates_name_its_classes():
    tree = SMALL_TREES["balanced"]
    eta, lam = draw_potentials(tree, 0.3, 0.3, 1.0, 2.0, seed=29, num=2)
    prob, mean = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([0.0, 3.0, -3.0]).double()
    for gated in (False, True):
        law = ArcLaw.of(prob, mean, torch.zeros(3), gated=gated)
        inside = inside_pass(tree, eta, lam, law, 0.0, 2.0)
        draws = sample(tree, inside, 500, torch.Generator().manual_seed(30))
        expected = (draws.deltas.abs() > 1).double() * (1 if gated else 1 + (draws.deltas < 0))
        assert torch.equal(draws.classes, expected)
