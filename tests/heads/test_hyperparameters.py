"""Hyperparameters: densities of their hyperpriors against scipy, and fixed values."""

import numpy as np
import pyro.poutine as poutine
import pytest
import scipy.integrate
import scipy.stats
import torch

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import HalfCauchyScale, PositiveScale, Rate, SlabScale, as_fixed

SHAPE = (2, 3)
DF, SLAB = 4.0, 1.7
LEARNT = {  # constructor, density of one element by scipy
    "positive scale": (
        lambda: PositiveScale("s", SHAPE, None, median=0.4, spread=1.3),
        scipy.stats.lognorm(s=1.3, scale=0.4).logpdf,
    ),
    "rate": (
        lambda: Rate("s", SHAPE, None, concentration1=1.5, concentration0=6.0),
        scipy.stats.beta(1.5, 6.0).logpdf,
    ),
    "half Cauchy": (
        lambda: HalfCauchyScale("s", SHAPE, None, scale=0.3),
        scipy.stats.halfcauchy(scale=0.3).logpdf,
    ),
    "slab scale": (
        lambda: SlabScale("s", SHAPE, None, scale=torch.tensor(SLAB), df=DF),
        # density of a square root: that of the square times 2 s
        lambda s: scipy.stats.invgamma(DF / 2, scale=DF / 2 * SLAB**2).logpdf(s**2) + np.log(2 * s),
    ),
}
learnt = pytest.mark.parametrize(("make", "logpdf"), LEARNT.values(), ids=LEARNT.keys())


@learnt
def test_log_density_is_scipys(make, logpdf):
    prior = make().double().prior()
    value = torch.linspace(0.05, 0.95, 6, dtype=torch.float64).reshape(SHAPE)
    assert prior.batch_shape == ()
    assert prior.event_shape == SHAPE
    expected = logpdf(value.numpy()).sum()
    assert prior.log_prob(value).item() == pytest.approx(expected, rel=1e-6)


@learnt
def test_mass_is_one(make, logpdf):
    del logpdf
    hyper = make().double()
    prior = hyper.prior()
    base = torch.full(SHAPE, 0.5, dtype=torch.float64)
    rest = prior.log_prob(base) * (1 - 1 / base.numel())  # all but one element at 0.5

    def density(value):
        at = base.clone()
        at[0, 0] = value
        return (prior.log_prob(at) - rest).exp().item()

    parts = [(0, 0.2), (0.2, 1.0)] + ([] if isinstance(hyper, Rate) else [(1, 10), (10, np.inf)])
    mass = sum(scipy.integrate.quad(density, *part)[0] for part in parts)
    assert mass == pytest.approx(1.0, abs=1e-5)


@pytest.mark.own_random_state
def test_slab_scale_makes_a_student_t():
    torch.manual_seed(0)
    hyper = SlabScale("s", (), None, scale=torch.tensor(SLAB), df=DF).double()
    scale = hyper.prior().sample((40_000,))
    draws = scale * torch.randn(40_000, dtype=torch.float64)
    inside = (draws.abs() < 1.0).double()
    expected = 2 * scipy.stats.t(DF, scale=SLAB).cdf(1.0) - 1
    error = (expected * (1 - expected) / len(draws)) ** 0.5
    assert abs(inside.mean().item() - expected) < 4.5 * error


@pytest.mark.own_random_state
@learnt
def test_site_is_sampled_from_the_hyperprior(make, logpdf):
    del logpdf
    hyper = make()
    site = poutine.trace(hyper).get_trace().nodes["s"]
    assert site["value"].shape == SHAPE
    assert not site["is_observed"]
    assert torch.equal(site["fn"].log_prob(site["value"]), hyper.prior().log_prob(site["value"]))


FIXED = [
    PositiveScale("s", SHAPE, torch.tensor(0.4)),
    Rate("s", SHAPE, torch.tensor([0.1, 0.2, 0.3]), concentration1=1, concentration0=1),
]


@pytest.mark.parametrize("hyper", FIXED, ids=lambda hyper: type(hyper).__name__)
def test_fixed_value_is_a_deterministic_site_and_a_buffer(hyper):
    trace = poutine.trace(hyper).get_trace()
    assert torch.equal(trace.nodes["s"]["value"], hyper.fixed)
    assert trace.log_prob_sum() == 0
    assert hyper.fixed.shape == SHAPE
    assert "fixed" in hyper.state_dict()
    assert hyper.double().fixed.dtype == torch.float64


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, 0.0])])
def test_fixed_values_that_are_not_positive_are_refused(value):
    with pytest.raises(DataError, match="tau must be positive, got"):
        as_fixed(value, "tau")


@pytest.mark.parametrize("value", [1.0, 1.5])
def test_fixed_rates_of_one_or_more_are_refused(value):
    with pytest.raises(DataError, match="rate must be positive and below 1"):
        as_fixed(value, "rate", below=1.0)


def test_nothing_fixed_is_learnt():
    assert as_fixed(None, "tau") is None
    assert as_fixed(2, "tau").dtype == torch.get_default_dtype()
