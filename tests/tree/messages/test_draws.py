"""Draws along the tree against a plain version of a step, and draws of some arcs alone."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.tree.messages import ArcLaw, inside_pass, sample
from pyro_tbr.tree.messages.draws import _Step
from pyro_tbr.tree.messages.laws import ClassRows
from pyro_tbr.tree.messages.merging import _told_apart
from pyro_tbr.tree.messages.mixtures import DEAD, Density, Message
from tests.tree.messages.cases import TREES, draw_potentials, each_tree

SIZE = (3, 2)  # nodes, batch
HALVES = {"inclusion_prob": 0.3, "slab_scale": 0.5, "slab_loc": 1.5, "spike_scale": 0.05}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def messages(num_components, spread=1.0):
    """Random ones, one component dead, precisions over many orders of magnitude."""
    log_height = 3 * normal(*SIZE, num_components, seed=1)
    log_height[..., -1] = DEAD
    mean = spread * normal(*SIZE, num_components, seed=2)
    return Message(log_height, mean, (3 * normal(*SIZE, num_components, seed=3)).exp())


def halves(never=False):
    prob = torch.tensor([1.0, 0.0, 0.0] if never else [0.7, 0.2, 0.1]).double()
    log_prob = torch.where(prob > 0, prob.clamp(min=1e-300).log(), DEAD)
    mean, var = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.0, 0.3, 0.3])
    parts = prob, log_prob, mean.double(), var.double()
    return ClassRows(*(part.expand(*SIZE, 3) for part in parts))


def plain_step(parent, message, arcs, uniform, normal):
    """Every class and component one by one, in double precision."""
    num = message.mean.shape[-1]
    picked, weight = torch.zeros_like(parent), torch.zeros_like(parent)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in parent.shape)).tolist():
        s, n, b = place
        logs, ways = [], []
        for j in reversed(range(arcs.var.shape[-1])):
            for c in range(num):
                precision = message.precision[n, b, c]
                spread = 1 + precision * arcs.var[n, b, j]
                gap = message.mean[n, b, c] - parent[s, n, b] - arcs.mean[n, b, j]
                fit = -0.5 * (spread.log() + precision / spread * gap.square())
                logs.append(message.log_height[n, b, c] + arcs.log_prob[n, b, j] + fit)
                ways.append((j, precision, gap, spread))
        upto = torch.stack(logs).softmax(0).cumsum(0)
        j, precision, gap, spread = ways[int((upto <= uniform[s, n, b]).sum())]
        var, mean = arcs.var[n, b, j], arcs.mean[n, b, j]
        moved = mean + var * precision / spread * gap
        picked[s, n, b] = j
        weight[s, n, b] = parent[s, n, b] + moved + (var / spread).sqrt() * normal[s, n, b]
    return picked, weight


@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("num_components", [1, 6])
def test_a_step_is_that_of_the_plain_version(num_components, spread):
    message, arcs = messages(num_components + 1, spread), halves()
    parent, noise = spread * normal(40, *SIZE, seed=4), normal(40, *SIZE, seed=5)
    uniform = torch.rand(40, *SIZE, generator=torch.Generator().manual_seed(6)).double()
    found = _Step(message, arcs).draw(parent, uniform, noise)
    expected = plain_step(parent, message, arcs, uniform, noise)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(found[0].unique()) == 3


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_what_is_impossible_is_never_drawn(uniform):
    parent = normal(5, *SIZE, seed=7)
    at = torch.full_like(parent, uniform)
    picked, weight = _Step(messages(4), halves(never=True)).draw(parent, at, parent)
    assert (picked == 0).all()
    assert_close(weight, parent)  # no change: the class is a point at zero


@each_tree
@pytest.mark.parametrize("silent", [False, True])
def test_draws_of_some_arcs_and_trees_are_those_of_all(tree, silent):
    eta, lam = draw_potentials(tree, 0.1, 0.3, 1.0, 3.0, seed=5)
    if silent:
        lam[:, tree.leaf_index[0]] = 0.0
    inside = inside_pass(tree, eta, lam, ArcLaw.spike_slab(**HALVES), 0.0, 3.0, 4)
    whole = sample(tree, inside, 7, torch.Generator().manual_seed(1))
    for arcs in ([tree.num_arcs - 1], range(0, tree.num_arcs, 2), range(tree.num_arcs)):
        for batch in ([1], [0, 2]):
            some = sample(
                tree, inside, 7, torch.Generator().manual_seed(1),
                arcs=torch.tensor(list(arcs)), batch=torch.tensor(batch),
            )  # fmt: skip
            assert torch.equal(some.root, whole.root[:, batch])
            assert torch.equal(some.classes, whole.classes[:, batch][..., list(arcs)])
            assert torch.equal(some.deltas, whole.deltas[:, batch][..., list(arcs)])


def test_a_generator_goes_on_alike_whatever_was_asked_for():
    tree = TREES["10 arcs, deep"]
    eta, lam = draw_potentials(tree, 0.1, 0.3, 1.0, 3.0, seed=5)
    inside = inside_pass(tree, eta, lam, ArcLaw.spike_slab(**HALVES), 0.0, 3.0, 4)
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    sample(tree, inside, 7, one)
    sample(tree, inside, 7, other, arcs=torch.tensor([0]), batch=torch.tensor([0]))
    assert torch.equal(one.get_state(), other.get_state())


def plain_told_apart(density, num):
    """The same choice by selections, one kept after the other."""
    log_weight = (density.log_weight - density.log_weight.amax(-1, keepdim=True)).float()
    kept = [log_weight.argmax(-1, keepdim=True)]
    mean = (density.mean - density.mean.gather(-1, kept[0])).float()
    var = density.var.float().clamp_min(1e-30)
    group = torch.zeros_like(mean, dtype=torch.int64)
    nearest = torch.full_like(mean, torch.inf)
    for number in range(num):
        at = kept[-1]
        total = var + var.gather(-1, at)
        distance = 0.5 * (mean - mean.gather(-1, at)).square() / total
        distance = distance + (0.5 * total).log() - 0.5 * var.log() - 0.5 * var.gather(-1, at).log()
        distance = (0.5 * distance).clamp(min=0).scatter(-1, at, -1.0)
        group = torch.where(distance < nearest, number, group)
        nearest = torch.minimum(nearest, distance)
        loss = (-torch.expm1(-nearest)).clamp(min=1e-7).log() + log_weight
        kept.append(torch.where(nearest < 0, -torch.inf, loss).argmax(-1, keepdim=True))
    return torch.cat(kept[:num], -1), group


def test_components_kept_are_those_of_the_plain_version():
    mean, log_weight = normal(50, 40, seed=1), 5 * normal(50, 40, seed=2)
    density = Density(log_weight, mean, normal(50, 40, seed=3).exp())
    kept, group = _told_apart(density, 8)
    expected = plain_told_apart(density, 8)
    assert torch.equal(kept, expected[0])
    assert torch.equal(group, expected[1])
