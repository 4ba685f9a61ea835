"""Two normals at even odds."""

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.heads.priors import SpikeSlabPrior, slab_halves, slab_law
from pyro_tbr.heads.priors.even_mixture import EvenMixture
from pyro_tbr.tree import Tree


def test_density_is_that_of_the_mixture():
    first, second, scale = torch.tensor([1.0, -0.5]), torch.tensor(-1.0), torch.tensor(0.7)
    locs = torch.stack([first, second.expand(2)], -1)
    plain = dist.MixtureSameFamily(
        dist.Categorical(torch.full((2, 2), 0.5)), dist.Normal(locs, scale)
    )
    value = torch.linspace(-3, 3, 7)[:, None]
    mixture = EvenMixture(first, second, scale)
    assert_close(mixture.log_prob(value), plain.log_prob(value))
    assert_close(mixture.mean, plain.mean)
    assert_close(mixture.variance, plain.variance)
    assert mixture.expand(torch.Size([3, 2])).log_prob(value[:3]).shape == (3, 2)


@pytest.mark.own_random_state
def test_draws_and_their_gradient():
    torch.manual_seed(0)
    loc = torch.tensor(1.5, requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    draws = EvenMixture(loc, -loc, scale).rsample(torch.Size([100_000]))
    second = draws.square().mean()
    assert abs(draws.mean().item()) < 4 * (2.5 / 1e5) ** 0.5
    assert abs(second.item() - 2.5) < 4 * (3.0 / 1e5) ** 0.5
    second.backward()  # of loc^2 + scale^2
    assert_close(loc.grad, torch.tensor(3.0), atol=0.03, rtol=0)
    assert_close(scale.grad, torch.tensor(1.0), atol=0.03, rtol=0)


def test_the_slab_scale_is_the_root_mean_square():
    scale = torch.tensor([0.5, 2.0])
    loc, each = slab_halves(scale, torch.tensor(1.5))
    assert_close((loc.square() + each.square()).sqrt(), scale)
    assert_close(loc / each, torch.full((2,), 1.5))
    assert_close(slab_law(scale, torch.tensor(1.5)).variance.sqrt(), scale)


def test_which_slabs_have_halves():
    tree = Tree.from_parents({"a": "r", "b": "r"})
    cases = {
        "learnt": (SpikeSlabPrior(), True, None),
        "fixed scale": (SpikeSlabPrior(slab_scale=1.0), False, None),
        "normal": (SpikeSlabPrior(slab_separation=0), False, None),
        "both fixed": (SpikeSlabPrior(slab_scale=1.0, slab_separation=2.0), True, 2.0),
    }
    for name, (prior, halves, fixed) in cases.items():
        built = prior.build(tree, 2, 1)
        assert built.halves is halves, name
        if halves:
            value = built.slab_separation.fixed
            assert value is None if fixed is None else value.item() == fixed, name
