"""What q of the hyperparameters expects of the law of a change, against draws of them."""

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.heads.priors import GaussianPrior, HorseshoePrior, PriorFactor, SpikeSlabPrior
from tests.heads.cases import TREE, Q, W, assert_mean

NUM = 20_000
CHANGES = (-0.7, 0.2, 2.0)
PRIORS = {
    "gaussian": GaussianPrior,
    "normal slab": lambda: SpikeSlabPrior(slab_separation=0, spike_scale=0),
    "halves": lambda: SpikeSlabPrior(spike_scale=0),
    "halves, wide spike": lambda: SpikeSlabPrior(),
    "lengths": lambda: SpikeSlabPrior(use_lengths=True),
    "all fixed": lambda: SpikeSlabPrior(None, 0.3, 1.0, 2.0, spike_scale=0.15),
    "horseshoe": HorseshoePrior,
}
priors = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())


def moved(make, plain=False):
    """A built prior and a factor of q that is not at its start; ``plain``: without closed forms."""
    prior = make().build(TREE, W, Q).double()
    factor = (PriorFactor(prior) if plain else prior.factor()).double()
    generator = torch.Generator().manual_seed(1)
    for hyper in factor.hyper.values():
        for part in hyper.parameters():
            part.data += 0.3 * torch.randn(part.shape, generator=generator, dtype=torch.float64)
    return prior, factor


def drawn(prior, factor):
    """Classes given draws of the hyperparameters, (S, A, W, Q, J)."""
    generator = torch.Generator().manual_seed(2)
    values = {name: part.sample(NUM, generator) for name, part in factor.hyper.items()}
    parts = torch.broadcast_tensors(*prior.classes(values))
    return [part.expand(NUM, *prior.delta_shape, -1) for part in parts]


def spread_out(law, shape):
    return type(law)(*(part.expand(shape) for part in law))


@priors
def test_expectations_are_those_of_draws(make):
    """Also those of the squared change, but for the horseshoe's, which leaves out a covariance."""
    prior, factor = moved(make)
    prob, mean, var = drawn(prior, factor)
    law = spread_out(factor.law(), prob.shape[1:])
    assert_mean(prob, law.prob, atol=1e-6)
    may_be = prob.amin(0) > 0
    assert_mean(prob[:, may_be].log(), law.log_prob[may_be], atol=1e-4)
    if not isinstance(prior, HorseshoePrior):
        assert_mean(prob * (var + mean.square()), law.square, atol=1e-4)
    still = (var == 0).all(0)
    assert torch.equal(still, law.var == 0)
    for change in CHANGES:
        change = torch.tensor(change, dtype=torch.float64)
        each = dist.Normal(mean[:, ~still], var[:, ~still].sqrt()).log_prob(change)
        found = dist.Normal(law.mean[~still], law.var[~still].sqrt()).log_prob(change)
        assert_mean(each, found + law.excess[~still], atol=1e-3)


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "horseshoe"])
def test_a_prior_that_says_no_closed_form_gets_nearly_the_same(name):
    """By points that cover all hyperparameters together evenly, as a user's own prior has them.

    Not for the horseshoe: tails of its scales are heavy for so few points.
    """
    prior, factor = moved(PRIORS[name])
    _, plain = moved(PRIORS[name], plain=True)
    shape = (*prior.delta_shape, factor.law().prob.shape[-1])
    exact, found = (spread_out(f.law(), shape) for f in (factor, plain))
    assert_close(found.prob, exact.prob, rtol=0, atol=0.02)
    may_be = exact.prob > 0
    assert_close(found.log_prob[may_be], exact.log_prob[may_be], rtol=0.05, atol=0.05)
    assert torch.equal(found.var == 0, exact.var == 0)
    assert_close(found.square, exact.square, rtol=0.15, atol=0.01)
    wide = exact.var > 0
    for change in CHANGES:
        change = torch.tensor(change, dtype=torch.float64)
        one, two = (
            dist.Normal(law.mean[wide], law.var[wide].sqrt()).log_prob(change) + law.excess[wide]
            for law in (exact, found)
        )
        assert_close(one, two, rtol=0.1, atol=0.1)
