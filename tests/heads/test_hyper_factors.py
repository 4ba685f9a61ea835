"""Factors of hyperparameters: KL against Monte Carlo, updates against numeric optima."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch.distributions import LogNormal, Normal, kl_divergence
from torch.testing import assert_close

from pyro_tbr.errors import TrainingError
from pyro_tbr.heads.hyper import (
    HalfCauchyScale,
    PositiveScale,
    Rate,
    ScaleFactor,
    Separation,
    SlabScale,
    quadrature,
)
from tests.heads.monte_carlo import assert_mean

SHAPE = (3, 1)
LOC = torch.tensor([[-1.5], [0.2], [1.0]], dtype=torch.float64)
SPREAD = torch.tensor([[0.1], [0.4], [0.8]], dtype=torch.float64)
HYPERS = {
    "positive scale": lambda: PositiveScale("s", SHAPE, None, median=0.5, spread=1.2),
    "half Cauchy": lambda: HalfCauchyScale("s", SHAPE, None, scale=0.3),
    "slab scale": lambda: SlabScale("s", SHAPE, None, scale=torch.tensor(0.8), df=4.0),
    "rate": lambda: Rate("s", SHAPE, None, concentration1=1.5, concentration0=6.0),
    "separation": lambda: Separation("s", SHAPE, None, median=2.0, spread=0.5),
}
hypers = pytest.mark.parametrize("make", HYPERS.values(), ids=HYPERS.keys())


def factor_of(hyper, loc=LOC, spread=SPREAD):
    factor = hyper.double().factor()
    with torch.no_grad():
        factor.loc.copy_(loc)
        factor.log_scale.copy_(spread.log())
    return factor


def test_quadrature_integrates_polynomials():
    points, weights = quadrature(LOC, SPREAD)
    assert_close(torch.einsum("t,tkq->kq", weights, points), LOC)
    second = torch.einsum("t,tkq->kq", weights, (points - LOC) ** 4)
    assert_close(second, 3 * SPREAD**4)


@hypers
def test_kl_is_that_of_draws(make):
    factor = factor_of(make())
    draws = factor.sample(100_000, torch.Generator().manual_seed(0))
    log_q = factor._distribution().log_prob(draws).sum((1, 2))
    gap = log_q - factor.hyper.prior().log_prob(draws)
    assert_mean(gap.detach(), factor.kl().sum().detach())
    factor.kl().sum().backward()
    assert (factor.loc.grad != 0).all()
    assert (factor.log_scale.grad != 0).all()


def test_kl_of_scales_is_the_closed_form():
    factor = factor_of(HYPERS["positive scale"]())
    q = LogNormal(LOC, SPREAD)
    p = LogNormal(torch.full_like(LOC, math.log(0.5)), torch.full_like(LOC, 1.2))
    expected = kl_divergence(q.base_dist, p.base_dist).sum()
    assert_close(
        factor.kl().sum().detach(), expected, rtol=1e-6, atol=0
    )  # the hyperprior is float32


@pytest.mark.parametrize("name", ["positive scale", "half Cauchy"])
def test_moments_of_scales(name):
    factor = factor_of(HYPERS[name]())
    draws = factor.sample(200_000, torch.Generator().manual_seed(1)).detach()
    assert_mean(draws.log(), factor.mean_log().detach())
    for power in (-2.0, -1.0, 1.0):
        assert_mean(draws[:, :2] ** power, factor.mean_power(power)[:2].detach())


def test_points_of_rates():
    factor = factor_of(HYPERS["rate"]())
    rates, weights = factor.points()
    draws = factor.sample(200_000, torch.Generator().manual_seed(1)).detach()
    for function in (lambda r: r, torch.log, lambda r: torch.log1p(-r)):
        assert_mean(function(draws), torch.einsum("t,tkq->kq", weights, function(rates)).detach())


FIXED = {
    "scale": lambda: PositiveScale("s", SHAPE, torch.tensor(0.4)),
    "rate": lambda: Rate("s", SHAPE, torch.tensor(0.4), concentration1=1.0, concentration0=1.0),
}


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED.keys())
def test_fixed_values_have_nothing_to_learn(make):
    factor = make().factor()
    assert not factor.learnt
    assert not list(factor.parameters())
    assert (factor.kl() == 0).all()
    assert (factor.sample(4, torch.Generator()) == 0.4).all()
    assert factor.sample(4, torch.Generator()).shape == (4, *SHAPE)
    assert (factor() == 0.4).all()
    values, weights = factor.points()
    assert_close(values, torch.full((1, *SHAPE), 0.4))
    assert weights.tolist() == [1.0]
    assert (factor.scale == 0).all()
    factor.initialise(torch.tensor(3.0))
    factor.restore(factor.state())
    if isinstance(factor, ScaleFactor):
        factor.update(torch.ones(SHAPE), torch.ones(SHAPE))
        assert_close(factor.mean_power(-2.0), torch.full(SHAPE, 0.4**-2))
    else:
        factor.update(torch.ones(2, *SHAPE), torch.ones(2, *SHAPE), torch.ones(2, 1, 1))
    assert (factor.hyper.fixed == 0.4).all()


@hypers
def test_a_factor_starts_in_the_middle_of_its_hyperprior(make):
    hyper = make().double()
    factor = hyper.factor()
    assert factor.loc.dtype == torch.float64
    assert_close(factor.points(1)[0][0], hyper.middle())
    assert factor.loc.data_ptr() != hyper.middle().data_ptr()


@hypers
def test_a_state_is_gone_back_to(make):
    factor = factor_of(make())
    kept = factor.state()
    draws = factor.sample(5, torch.Generator().manual_seed(0)).detach()
    factor.initialise(torch.tensor(0.3), 1.0)
    factor.restore(kept)
    assert_close(factor.sample(5, torch.Generator().manual_seed(0)).detach(), draws)
    other = copy.deepcopy(factor)
    other.match(kept.loc + 1, kept.log_scale.exp())
    assert_close(other.state().loc, kept.loc + 1)
    assert_close(other.scale.detach(), kept.log_scale.exp())


@hypers
@pytest.mark.parametrize("duplicate", [
    copy.deepcopy, lambda factor: pickle.loads(pickle.dumps(factor)),
], ids=["deepcopy", "pickle"])  # fmt: skip
def test_copies_say_the_same(make, duplicate):
    factor = factor_of(make())
    assert_close(duplicate(factor).kl(), factor.kl())
    fresh = make().double().factor()
    fresh.load_state_dict(factor.state_dict())
    assert_close(fresh.points(), factor.points())


@hypers
def test_points_are_differentiable_averages(make):
    factor = factor_of(make())
    values, weights = factor.points(9)
    assert values.shape == (9, *SHAPE)
    draws = factor.sample(100_000, torch.Generator().manual_seed(0)).detach()
    assert_mean(draws, torch.tensordot(weights, values, 1), atol=1e-6)
    values.sum().backward()
    assert (factor.log_scale.grad != 0).any()


@hypers
def test_initialise(make):
    hyper = make()
    factor = factor_of(hyper)
    factor.initialise(torch.tensor(0.3), 1e-3)
    draws = factor.sample(100, torch.Generator().manual_seed(0))
    assert_close(draws, torch.full_like(draws, 0.3), rtol=1e-2, atol=0)


SCALE_CASES = [
    (1.0, 2.0),
    (0.0, 0.0),
    (1e12, 3.0),
    (40.0, 3.0),
    (1e-6, 50.0),
    (1e6, 1.0),
    (30.0, 1000.0),
]


@pytest.mark.parametrize(("square", "count"), SCALE_CASES)
def test_scale_update_is_the_optimum(square, count):
    hyper = PositiveScale("s", (1,), None, median=0.5, spread=1.2)
    factor = factor_of(hyper, torch.tensor(0.3), torch.tensor(0.2))
    mu, precision = hyper.prior_loc.item(), hyper.prior_scale.item() ** -2

    def loss(point):
        loc, log_var = point
        var = math.exp(min(log_var, 300.0))
        pull = 0.5 * square * math.exp(min(-2 * loc + 2 * var, 300.0))
        return pull + count * loc + 0.5 * precision * ((loc - mu) ** 2 + var) - 0.5 * log_var

    factor.update(torch.tensor(square), torch.tensor(count))
    found = [factor.loc.item(), 2 * factor.log_scale.item()]
    best = min(
        (scipy.optimize.minimize(loss, start, method="Nelder-Mead",
                                 options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000})
         for start in (found, [mu, -2.0], [0.0, -4.0])), key=lambda result: result.fun,
    )  # fmt: skip
    assert loss(found) == pytest.approx(best.fun, abs=1e-6)
    assert found == pytest.approx(best.x.tolist(), abs=1e-3)


def test_scale_update_is_the_elbos_optimum():
    """What it climbs is E[log N(draws; 0, scale)] - KL, up to a constant."""
    hyper = PositiveScale("s", (1,), None, median=0.5, spread=1.2)
    factor = factor_of(hyper, torch.tensor(0.3), torch.tensor(0.2))
    square, count = torch.tensor(6.0).double(), torch.tensor(9.0).double()
    factor.update(square, count)
    fit = -0.5 * square * factor.mean_power(-2.0) - count * factor.mean_log()
    elbo = fit.sum() - factor.kl().sum()
    gradient = torch.autograd.grad(elbo, list(factor.parameters()))
    assert_close(torch.cat(gradient), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("square", [0.0, 1e-320, 1e-60, 1e60])
@pytest.mark.parametrize("count", [0.0, 1.0, 1e7])
def test_an_update_is_finite(square, count, dtype):
    hyper = PositiveScale("s", (1,), None, median=0.5, spread=1.5)
    factor = hyper.to(dtype).factor()
    factor.update(torch.tensor([square], dtype=torch.float64), torch.tensor([count]))
    assert all(torch.isfinite(part).all() for part in factor.state())
    assert torch.isfinite(factor.mean_power(-2.0)).all()
    assert torch.isfinite(factor.kl()).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_from_what_is_not_finite_is_refused(bad):
    factor = PositiveScale("slab_scale", (2,), None).factor()
    before = factor.loc.detach().clone()
    with pytest.raises(TrainingError, match=r"slab_scale cannot be learnt: 1 of 2 number"):
        factor.update(torch.tensor([1.0, bad]), torch.ones(2))
    assert_close(factor.loc.detach(), before)


def test_separation_is_learnt_and_has_moments():
    factor = Separation("s", (1, 1), None, median=2.0, spread=0.5).double().factor()
    factor.initialise(torch.tensor(1.5), 0.2)
    draws = factor.sample(200_000, torch.Generator().manual_seed(0)).detach()
    square = draws.square()
    expected = (1 + square, (square * (1 + square)).sqrt(), torch.log1p(square))
    for found, each in zip(factor.moments(), expected, strict=True):
        assert_mean(each, found.detach(), atol=1e-6)
    ratio, scale, num = 3.0, 2.0, 2000  # halves of mean c / sqrt(1 + c^2) and sd 1 / sqrt(1 + c^2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num, generator=generator, dtype=torch.float64)
    change = (ratio + noise) * scale / (1 + ratio**2) ** 0.5
    square, size = (change / scale).square().sum(), (change / scale).sum()
    factor.learn(square, size, torch.tensor(float(num)))
    assert abs(factor.mean_log().item() - math.log(ratio)) < 4 * factor.scale.item()


RATE_CASES = [([1.0] * 3 + [0.0] * 17, [1.0] * 20), ([0.0] * 8, [1.0] * 8), ([1.0] * 5, [1.0] * 5),
              ([0.7, 0.2, 0.0, 0.0], [0.5, 1.5, 2.0, 0.0]),
              ([0.02] * 500, [1.0] * 500)]  # fmt: skip


@pytest.mark.parametrize(("on", "length"), RATE_CASES)
def test_rate_update_matches_the_posterior(on, length):
    hyper = Rate("s", (1,), None, concentration1=1.5, concentration0=6.0)
    factor = factor_of(hyper, torch.tensor(0.0), torch.tensor(0.2))
    on, length = torch.tensor(on, dtype=torch.float64), torch.tensor(length, dtype=torch.float64)
    factor.update(on[:, None], 1 - on[:, None], length[:, None])
    # the posterior of the logit by plain integration; an arc of length 0 says nothing
    logit = np.linspace(-20, 12, 200_001)
    rate = scipy.special.expit(logit)
    log_post = scipy.stats.beta(1.5, 6.0).logpdf(rate) + np.log(rate) + np.log1p(-rate)
    for gate, each in zip(on.tolist(), length.tolist(), strict=True):
        if each > 0:
            log_post = log_post + gate * np.log(-np.expm1(each * np.log1p(-rate)))
            log_post = log_post + (1 - gate) * each * np.log1p(-rate)
    weight = np.exp(log_post - log_post.max())
    weight /= weight.sum()
    mean = (weight * logit).sum()
    sd = np.sqrt((weight * (logit - mean) ** 2).sum())
    assert factor.loc.item() == pytest.approx(mean, abs=1e-3)
    assert factor.log_scale.exp().item() == pytest.approx(sd, abs=1e-3)


def test_a_rate_does_not_collapse():
    factor = factor_of(HYPERS["rate"]())
    none = torch.zeros(30, *SHAPE)
    factor.update(none, torch.ones(30, *SHAPE), torch.ones(30, 1, 1))
    rates, weights = factor.points()
    assert (torch.einsum("t,tkq->kq", weights, rates) > 0.02).all()


def test_normal_twin():
    factor = factor_of(HYPERS["positive scale"]())
    value = torch.tensor([[0.2], [1.0], [3.0]], dtype=torch.float64)
    expected = Normal(LOC, SPREAD).log_prob(value.log()) - value.log()
    assert_close(factor._distribution().log_prob(value).detach(), expected)
