"""What every likelihood promises, for ours and for some that only this file knows."""

import copy
import math
import pickle

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import torch
from torch.testing import assert_close

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError, ShapeError, TrainingError
from pyro_tbr.heads.hyper import PositiveScale
from pyro_tbr.heads.likelihoods import (
    LIKELIHOODS,
    BernoulliLikelihood,
    BinomialLikelihood,
    GaussianLikelihood,
    Likelihood,
    MixedLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    Scaling,
    StudentTLikelihood,
    expectations,
    standardised,
)
from tests.heads.monte_carlo import assert_mean


class LaplaceLikelihood(Likelihood):
    """A corner in the log density, and a parameter."""

    def _build(self, num_outcomes, unit):
        self.spread = PositiveScale("spread", (num_outcomes,), None, median=0.5, unit="outcome")

    def standardise(self, y, *, intercept):
        return standardised(y, intercept=intercept)

    def forward(self, predictor, nuisance):
        return dist.Laplace(predictor, nuisance["spread"])


class PlainStudentT(Likelihood):
    """Not concave, two parameters, everything by default."""

    def _build(self, num_outcomes, unit):
        self.spread = PositiveScale("spread", (num_outcomes,), None, median=0.5, unit="outcome")
        self.df = PositiveScale("df", (num_outcomes,), None, median=10.0, spread=0.5)

    def forward(self, predictor, nuisance):
        return dist.StudentT(nuisance["df"], predictor, nuisance["spread"])


class GammaLikelihood(Likelihood):
    """Positive outcomes around exp(predictor), zero not among them; one parameter for all."""

    placeholder = 1.0

    def _build(self, num_outcomes, unit):
        self.shape = PositiveScale("shape", (1,), None, median=2.0)

    def forward(self, predictor, nuisance):
        return dist.Gamma(nuisance["shape"], nuisance["shape"] * (-predictor).exp())


N, Q = 40, 2
CASES = {
    "gaussian": lambda: GaussianLikelihood(noise="common"),
    "gaussian, noise fixed": lambda: GaussianLikelihood(0.6),
    "bernoulli": BernoulliLikelihood,
    "laplace": LaplaceLikelihood,
    "plain student t": PlainStudentT,
    "gamma": GammaLikelihood,
    "student t": lambda: StudentTLikelihood(noise="common"),
    "binomial": BinomialLikelihood,
    "poisson": PoissonLikelihood,
    "negative binomial": NegativeBinomialLikelihood,
    "ordinal": lambda: OrdinalLikelihood(4),
    "mixed": lambda: MixedLikelihood({
        "y0": GaussianLikelihood(noise="common"), "y1": NegativeBinomialLikelihood(),
    }),
}  # fmt: skip
CLOSED = ["gaussian", "gaussian, noise fixed", "bernoulli", "binomial", "poisson",
          "negative binomial", "mixed"]  # fmt: skip
LEARNT = ["gaussian", "laplace", "plain student t", "gamma", "student t", "negative binomial",
          "ordinal", "mixed"]  # fmt: skip
BOUNDS = ["student t"]  # whose expected log density is a lower bound of it
NOT_SMOOTH = ["laplace", "plain student t"]
every = pytest.mark.parametrize("name", CASES)


def case(name, dtype=torch.float64, num_rows=N, seed=0):
    """A built likelihood, outcomes drawn from it, moments of the predictor and its factors."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(num_rows, Q, generator=generator, dtype=torch.float64)

    likelihood = CASES[name]().build(Q).to(dtype)
    mean, var = normal(), 0.5 * normal().square() + 0.02
    nuisance = likelihood.factors()
    for factor in nuisance.values():
        factor.initialise(0.7 * factor.hyper.middle(), 0.15)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values = {key: factor.points(1)[0][0].double() for key, factor in nuisance.items()}
        y = likelihood(mean + var.sqrt() * normal(), values).sample()
    return likelihood, nuisance, *(part.to(dtype) for part in (y, mean, var))


def draws_of(likelihood, nuisance, mean, var, num=50_000):
    """The distribution of every outcome, given draws of predictor and parameters."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(num, *mean.shape, generator=generator, dtype=mean.dtype)
    values = {
        name: factor.sample(num, generator).unsqueeze(1).detach()
        for name, factor in nuisance.items()
    }
    return likelihood(mean + var.sqrt() * noise, values)


def by_default(likelihood):
    """The same outcomes with everything by default."""

    class Plain(Likelihood):
        def hyperparameters(self):
            return likelihood.hyperparameters()

        def forward(self, predictor, nuisance):
            return likelihood(predictor, nuisance)

    return Plain().build(Q).double()


# --- expectations -----------------------------------------------------------------------------


@every
def test_expected_log_prob_is_that_of_draws(name):
    likelihood, nuisance, y, mean, var = case(name, num_rows=5)
    draws = draws_of(likelihood, nuisance, mean, var).log_prob(y)
    atol = 0.02 if name == "laplace" else 1e-9  # a corner
    found = likelihood.expected_log_prob(y, mean, var, nuisance)
    if name in BOUNDS:
        error = draws.std(0) / len(draws) ** 0.5
        assert (found <= draws.mean(0) + 4 * error).all()
        # Tight where predictors and parameters are known well.
        for factor in nuisance.values():
            factor.initialise(factor.hyper.middle(), 0.01)
        sharp = draws_of(likelihood, nuisance, mean, 1e-4 * var).log_prob(y)
        assert_mean(sharp, likelihood.expected_log_prob(y, mean, 1e-4 * var, nuisance), atol=1e-3)
    else:
        assert_mean(draws, found, atol=atol)


@every
def test_predictive_moments_are_those_of_draws(name):
    likelihood, nuisance, _, mean, var = case(name, num_rows=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = draws_of(likelihood, nuisance, mean, var).sample()
    found_mean, found_var = likelihood.predictive_moments(mean, var, nuisance)
    assert_mean(draws, found_mean)
    assert_mean((draws - found_mean).square(), found_var, num_sigma=5.5)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_the_defaults(name):
    likelihood, nuisance, y, mean, var = case(name)
    plain = by_default(likelihood)
    for method in ("expected_log_prob", "site_terms"):
        found = getattr(likelihood, method)(y, mean, var, nuisance)
        expected = getattr(plain, method)(y, mean, var, nuisance)
        if method == "site_terms":  # the default has the scale of sites in them
            found = found._replace(precision=found.precision * likelihood.site_scale(nuisance))
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found = likelihood.predictive_moments(mean, var, nuisance)
    assert_close(found, plain.predictive_moments(mean, var, nuisance), rtol=1e-5, atol=1e-6)


def test_a_corner_costs_what_the_docstring_says():
    likelihood = LaplaceLikelihood().build(1).double()
    likelihood.spread = PositiveScale("spread", (1,), torch.tensor(0.8)).double()
    nuisance, spread = likelihood.factors(), 0.8
    standard = torch.linspace(-6, 6, 2001, dtype=torch.float64)[:, None]
    normal = dist.Normal(0.0, 1.0)
    for sd in (0.01, 0.8, 5.0):
        y, mean, var = sd * standard, torch.zeros_like(standard), torch.full_like(standard, sd**2)
        sign = 2 * normal.cdf(standard) - 1
        expected = -sd * (standard * sign + 2 * normal.log_prob(standard).exp()) / spread
        expected = expected - np.log(2 * spread)
        found = likelihood.expected_log_prob(y, mean, var, nuisance)
        assert (found - expected).abs().max() < 0.02 * sd / spread
        sites = likelihood.site_terms(y, mean, var, nuisance)
        slope = sites.precision * (sites.response - mean)
        assert (slope - sign / spread).abs().max() < 0.02 / spread
        bend = normal.log_prob(standard).exp() / (sd * spread)
        assert (0.5 * sites.precision - bend).abs().max() < 0.01 / (sd * spread)


def integrated(function, mean, sd):
    """E[function(f)], f ~ N(mean, sd^2), by adaptive integration."""

    def weighed(f):
        return function(f) * math.exp(-0.5 * ((f - mean) / sd) ** 2)

    low, high = mean - 12 * sd, mean + 12 * sd
    breaks = sorted(np.clip([-8.0, 0.0, 8.0, mean], mean - 11 * sd, mean + 11 * sd))
    tight = {"limit": 400, "epsabs": 1e-12, "epsrel": 1e-12}
    value, _ = scipy.integrate.quad(weighed, low, high, points=breaks, **tight)
    return value / (sd * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("sd", [1e-3, 0.5, 3.0, 30.0])
@pytest.mark.parametrize("mean", [-50.0, -4.0, 0.0, 1.3, 50.0])
def test_bernoulli_is_the_integral_however_wide(mean, sd):
    likelihood = BernoulliLikelihood().build(2).double()
    y = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    at, var = torch.full_like(y, mean), torch.full_like(y, sd**2)
    found = likelihood.expected_log_prob(y, at, var, {})[0]
    for value, log_prob in zip(found, (lambda f: -np.logaddexp(0, f),
                                       lambda f: -np.logaddexp(0, -f)), strict=True):  # fmt: skip
        assert value.item() == pytest.approx(integrated(log_prob, mean, sd), rel=1e-8, abs=2e-8)
    prob = integrated(scipy.special.expit, mean, sd)
    assert likelihood.predictive_moments(at, var, {})[0][0, 0].item() == pytest.approx(
        prob, abs=2e-8
    )
    slope = integrated(lambda f: scipy.special.expit(f) * scipy.special.expit(-f), mean, sd)
    sites = likelihood.site_terms(y, at, var, {})
    assert sites.precision[0, 0].item() == pytest.approx(slope, abs=3e-8)
    pulls = sites.precision * (sites.response - at)
    assert_close(pulls, y - prob, rtol=1e-6, atol=3e-8)
    assert all(torch.isfinite(part).all() for part in sites)


# --- sites ------------------------------------------------------------------------------------


@every
def test_sites_touch_the_expected_log_density(name):
    likelihood, nuisance, y, mean, var = case(name)
    sites = likelihood.site_terms(y, mean, var, nuisance)
    precision = sites.precision * likelihood.site_scale(nuisance)
    m, v = mean.clone().requires_grad_(), var.clone().requires_grad_()
    each = likelihood.expected_log_prob(y, m, v, nuisance)
    slope, bend = torch.autograd.grad(each.sum(), (m, v))
    step = mean - sites.response
    assert_close(sites.log_norm - 0.5 * precision * (step.square() + var), each, check_dtype=False)
    assert_close(-precision * step, slope)
    proper = bend < -1e-5  # not floored
    assert_close(precision[proper], -2 * bend[proper])
    assert proper.all() or name in NOT_SMOOTH


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_SMOOTH])
def test_sites_are_finite_differences(name):
    likelihood, nuisance, y, mean, var = case(name)
    sites = likelihood.site_terms(y, mean, var, nuisance)
    precision = sites.precision * likelihood.site_scale(nuisance)
    small = 1e-5

    def at(mean, var):
        return likelihood.expected_log_prob(y, mean, var, nuisance).detach()

    slope = (at(mean + small, var) - at(mean - small, var)) / (2 * small)
    bend = (at(mean, var + small) - at(mean, var - small)) / (2 * small)
    assert_close(precision * (sites.response - mean), slope, rtol=1e-5, atol=1e-6)
    assert_close(precision, -2 * bend, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("var", [0.0, 1e-14, 9e-7, 1.1e-6, 1e-4, 1.0, 4.0])
def test_sites_of_counts_are_the_closed_form(var):
    likelihood = PoissonLikelihood().build(1).double()
    mean = torch.tensor([[-3.0], [0.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [2.0], [25.0]], dtype=torch.float64)
    sites = likelihood.site_terms(y, mean, torch.full_like(mean, var), {})
    rate = (mean + var / 2).exp()
    assert_close(sites.precision, rate, rtol=1e-5, atol=0)
    assert_close(sites.precision * (sites.response - mean), y - rate, rtol=0, atol=1e-8)


def test_an_outlier_keeps_its_pull_and_a_positive_precision():
    likelihood = PlainStudentT().build(1).double()
    y = torch.tensor([[0.1], [-0.3], [40.0], [0.2]], dtype=torch.float64)
    mean, var = torch.zeros_like(y), torch.full_like(y, 0.01)
    sites = likelihood.site_terms(y, mean, var, likelihood.factors())
    assert 0 < sites.precision[2] < 1e-4 * sites.precision[0]
    pull = sites.precision * sites.response
    assert 0 < pull[2] < 1
    assert all(torch.isfinite(part).all() for part in sites)


@every
def test_exact_sites_do_not_depend_on_q(name):
    likelihood, nuisance, y, mean, var = case(name)
    sites = likelihood.site_terms(y, mean, var, nuisance)
    if likelihood.exact:
        assert_close(sites.precision, torch.ones_like(y))
        assert_close(sites.response, y)
        assert_close(sites.log_norm, likelihood.site_norm(nuisance).expand_as(y))
    else:
        assert (likelihood.site_scale(nuisance) == 1).all()
        assert (likelihood.site_norm(nuisance) == 0).all()


# --- learning ---------------------------------------------------------------------------------


def bound(likelihood, nuisance, y, mean, var, weights):
    each = likelihood.expected_log_prob(y, mean, var, nuisance)
    return (weights * each).sum() - sum(factor.kl().sum() for factor in nuisance.values())


@pytest.mark.parametrize("name", LEARNT)
def test_learning_ends_at_the_optimum(name):
    likelihood, nuisance, y, mean, var = case(name)
    weights = torch.ones_like(y)
    weights[::3] = 0.5
    before = bound(likelihood, nuisance, y, mean, var, weights)
    with torch.no_grad():
        likelihood.learn(nuisance, y, mean, var, weights)
    found = bound(likelihood, nuisance, y, mean, var, weights)
    assert found > before + 0.1
    parameters = [p for factor in nuisance.values() for p in factor.parameters()]

    def loss(flat):
        pieces = torch.from_numpy(flat).split([p.numel() for p in parameters])
        with torch.no_grad():
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.copy_(piece.reshape(parameter.shape))
        value = -bound(likelihood, nuisance, y, mean, var, weights)
        slopes = torch.autograd.grad(value, parameters)
        return value.item(), torch.cat([s.flatten() for s in slopes]).numpy()

    for offset in (0.0, 0.4, -0.4):
        start = torch.cat([p.detach().flatten() for p in parameters]).numpy() + offset
        best = scipy.optimize.minimize(loss, start, jac=True, method="BFGS")
        assert found.item() > -best.fun - 1e-5
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
@every
def test_callers_may_have_switched_gradients_off(name, switched_off):
    likelihood, nuisance, y, mean, var = case(name)
    other = copy.deepcopy(nuisance)
    expected = likelihood.site_terms(y, mean, var, nuisance)
    likelihood.learn(nuisance, y, mean, var, torch.ones_like(y))
    with switched_off():
        rows = [part + 0 for part in (y, mean, var)]
        found = likelihood.site_terms(*rows, other)
        likelihood.learn(other, *rows, torch.ones_like(y))
    assert_close(found, expected)
    for key, factor in nuisance.items():
        assert_close(factor.state(), other[key].state())


def test_learning_noise_by_default_is_the_closed_form():
    likelihood, nuisance, y, mean, var = case("gaussian")
    other = likelihood.factors()
    likelihood.learn(nuisance, y, mean, var, torch.ones_like(y))
    by_default(likelihood).learn(other, y, mean, var, torch.ones_like(y))
    assert_close(nuisance["noise_scale"].state(), other["noise_scale"].state(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LEARNT)
def test_rows_of_no_weight_say_nothing(name):
    likelihood, nuisance, y, mean, var = case(name)
    other = likelihood.factors()
    seen = torch.ones_like(y)
    seen[5:9] = 0
    missing = torch.where(seen > 0, y, float("nan"))
    likelihood.learn(nuisance, missing, mean, var, seen)
    kept = torch.cat([torch.arange(5), torch.arange(9, N)])
    likelihood.learn(other, y[kept], mean[kept], var[kept], seen[kept])
    for key, factor in nuisance.items():
        assert_close(factor.state(), other[key].state(), rtol=0, atol=1e-3)


@every
def test_missing_outcomes_are_finite(name):
    likelihood, nuisance, y, mean, var = case(name)
    y[3] = float("nan")
    assert torch.isfinite(likelihood.expected_log_prob(y, mean, var, nuisance)).all()
    assert all(torch.isfinite(p).all() for p in likelihood.site_terms(y, mean, var, nuisance))


@every
def test_fixed_parameters_stay(name):
    likelihood, _, y, mean, var = case(name)
    for hyper in likelihood.hyperparameters():
        hyper.fixed = hyper.middle()
    nuisance = likelihood.factors()
    likelihood.learn(nuisance, y, mean, var, torch.ones_like(y))
    for factor in nuisance.values():
        assert not list(factor.parameters())
        assert_close(factor.points()[0][0], factor.hyper.middle())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_rows_fitted_exactly_leave_a_small_finite_spread(name, dtype):
    likelihood = CASES[name]().build(Q).to(dtype)
    nuisance = likelihood.factors()
    y = torch.tensor([-1.0, 1.0], dtype=dtype).repeat(200, 1)
    likelihood.learn(nuisance, y, y, torch.zeros_like(y), torch.ones_like(y))
    (factor,) = nuisance.values()
    spread = factor.mean_power(1.0)
    least = torch.finfo(dtype).eps ** 0.5
    assert ((0.3 * least < spread) & (spread < 100 * least)).all()
    assert torch.isfinite(likelihood.expected_log_prob(y, y, torch.zeros_like(y), nuisance)).all()


def test_residuals_are_floored_in_the_outcomes_unit():
    likelihood = GaussianLikelihood(noise="common").build(2).double()
    count, total = torch.tensor([[100.0, 100.0]]), torch.tensor([[100e6, 100.0]])
    nuisance, node = likelihood.factors(), torch.tensor([0])
    likelihood.learn_from_residuals(nuisance, torch.zeros(1, 2), count, node, total)
    noise = nuisance["noise_scale"].mean_power(1.0)
    assert (noise[0] / noise[1]).item() == pytest.approx(1e3, rel=0.1)
    with pytest.raises(NotImplementedError, match="LaplaceLikelihood is not exact"):
        LaplaceLikelihood().build(1).learn_from_residuals({}, count, count, node)


@pytest.mark.parametrize("name", [name for name in LEARNT if name != "mixed"])
def test_what_is_not_finite_is_refused(name):
    likelihood, nuisance, y, mean, var = case(name)
    before = [p.clone() for factor in nuisance.values() for p in factor.parameters()]
    var[2, 1] = float("inf")
    with pytest.raises((TrainingError, ValueError)):
        likelihood.learn(nuisance, y, mean, var, torch.ones_like(y))
    after = [p for factor in nuisance.values() for p in factor.parameters()]
    assert_close(before, [p.detach() for p in after])


# --- numbers, memory, copies ------------------------------------------------------------------


@every
def test_single_precision_is_double_but_for_rounding(name):
    single, double = case(name, torch.float32), case(name)
    for method in ("expected_log_prob", "site_terms", "predictive_moments"):
        parts = []
        for likelihood, nuisance, y, mean, var in (single, double):
            moments = (mean, var) if method == "predictive_moments" else (y, mean, var)
            parts.append(getattr(likelihood, method)(*moments, nuisance))
        assert_close(*parts, rtol=2e-3, atol=2e-3, check_dtype=False)
    assert single[0].expected_log_prob(*single[2:], single[1]).dtype == torch.float32
    assert single[0].site_terms(*single[2:], single[1]).precision.dtype == torch.float64


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_moments_and_factors(name, dtype):
    likelihood, nuisance, y, mean, var = case(name, dtype)
    mean.requires_grad_()
    var.requires_grad_()
    likelihood.expected_log_prob(y, mean, var, nuisance).sum().backward()
    parameters = [p for factor in nuisance.values() for p in factor.parameters()]
    for part in (mean, var, *parameters):
        assert torch.isfinite(part.grad).all()
        assert (part.grad != 0).any()


@every
def test_rows_may_come_in_chunks(name, monkeypatch):
    likelihood, nuisance, y, mean, var = case(name)

    def answers():
        factors = copy.deepcopy(nuisance)
        found = [
            likelihood.expected_log_prob(y, mean, var, factors),
            *likelihood.site_terms(y, mean, var, factors),
            *likelihood.predictive_moments(mean, var, factors),
        ]
        likelihood.learn(factors, y, mean, var, torch.ones_like(y))
        return found + [part for factor in factors.values() for part in factor.state()]

    whole = answers()
    monkeypatch.setattr(expectations, "_CHUNK_ELEMENTS", 7 * 32 * Q * 9)
    assert_close(answers(), whole, rtol=1e-6, atol=1e-6)
    no_rows = [part[:0] for part in (y, mean, var)]
    assert likelihood.expected_log_prob(*no_rows, nuisance).shape == (0, Q)
    assert likelihood.site_terms(*no_rows, nuisance).response.shape == (0, Q)


@pytest.mark.parametrize("num_axes", [0, 1, 2, 3, 5])
def test_points_of_several_parameters(num_axes):
    like = torch.zeros(1, dtype=torch.float64)
    points, weights = expectations._standard_points(num_axes, like)
    assert points.shape == (len(weights), num_axes)
    assert weights.sum().item() == pytest.approx(1.0)
    assert_close(weights @ points, torch.zeros(num_axes, dtype=torch.float64))
    second = torch.einsum("t,ti,tj->ij", weights, points, points)
    assert_close(second, torch.eye(num_axes, dtype=torch.float64))


def test_parameters_of_several_elements_an_outcome():
    hyper = PositiveScale("cuts", (Q, 3), None)
    values, weights = expectations.nuisance_points({"cuts": hyper.factor()}, torch.zeros(1))
    assert values["cuts"].shape == (6, 1, 1, Q, 3)
    assert weights.shape == (6,)


@every
@pytest.mark.parametrize("duplicate", [
    copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts)),
], ids=["deepcopy", "pickle"])  # fmt: skip
def test_copies_say_the_same(name, duplicate):
    likelihood, nuisance, y, mean, var = case(name)
    other, factors = duplicate((likelihood, nuisance))
    expected = likelihood.expected_log_prob(y, mean, var, nuisance)
    assert_close(other.expected_log_prob(y, mean, var, factors), expected)
    fresh = CASES[name]().build(Q).double()
    fresh.load_state_dict(likelihood.state_dict())
    assert_close(fresh.expected_log_prob(y, mean, var, nuisance), expected)
    assert repr(other) == repr(likelihood) == repr(CASES[name]())


@every
def test_sites_in_pyro_and_batches_of_values(name):
    likelihood, _, _, mean, _ = case(name)
    with torch.random.fork_rng():
        trace = poutine.trace(likelihood.sample_nuisance).get_trace()
    values = {
        hyper.name: trace.nodes[hyper.name]["value"] for hyper in likelihood.hyperparameters()
    }
    assert likelihood(mean, values).batch_shape == (N, Q)
    batch = {key: value.expand(3, 1, *value.shape) for key, value in values.items()}
    assert likelihood(mean.expand(3, N, Q), batch).batch_shape == (3, N, Q)


# --- units, checks ----------------------------------------------------------------------------


def test_fixed_noise_is_in_the_users_unit():
    unit = torch.tensor([2.0, 4.0])
    built = GaussianLikelihood(0.6).build(2, outcome_scale=unit)
    assert_close(built.noise_scale.fixed, torch.tensor([0.3, 0.15]))
    assert_close(GaussianLikelihood(0.6).build(2).noise_scale.fixed, torch.tensor([0.6, 0.6]))
    one_each = GaussianLikelihood(torch.tensor([0.6, 2.0])).build(2, outcome_scale=unit)
    assert_close(one_each.noise_scale.fixed, torch.tensor([0.3, 0.5]))
    assert_close(one_each.sample_nuisance()["noise_scale"], torch.tensor([0.3, 0.5]))


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan")])
def test_noise_that_is_not_positive_is_refused(scale):
    with pytest.raises(DataError, match="scale must be positive"):
        GaussianLikelihood(scale)


def test_noise_of_other_shape_is_refused():
    with pytest.raises(ShapeError, match=r"scale has shape \(3,\)"):
        GaussianLikelihood(torch.ones(3)).build(2)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_building_leaves_the_description_alone(name):
    likelihood = LIKELIHOODS[name]()
    built = likelihood.build(3, outcome_scale=torch.ones(3))
    assert built is not likelihood
    assert not likelihood.hyperparameters()
    assert repr(built) == repr(likelihood) == f"{type(likelihood).__name__}()"
    assert repr(GaussianLikelihood(0.3)) == "GaussianLikelihood(scale=0.3)"


@pytest.mark.parametrize("shift", [0.0, 1.7e9])
def test_outcomes_are_standardised_in_double(shift):
    generator = torch.Generator().manual_seed(0)
    y = shift + 3 * torch.randn(500, 2, generator=generator, dtype=torch.float64)
    y[:, 1] = 5.0
    y[::7] = float("nan")
    scaling = GaussianLikelihood().standardise(y, intercept=True)
    inside = (y - scaling.loc) / scaling.scale
    assert_close(inside.nanmean(0), torch.zeros(2).double(), rtol=0, atol=1e-6)
    assert inside[:, 0].square().nanmean().item() == pytest.approx(1.0)
    assert scaling.scale[1] == 1  # a constant keeps its unit
    assert (GaussianLikelihood().standardise(y, intercept=False).loc == 0).all()
    for plain in (BernoulliLikelihood(), PoissonLikelihood()):
        scaling = plain.standardise(y.abs(), intercept=True)
        assert scaling.scale.tolist() == [1, 1]
        assert_close(scaling.to_model(y), y, equal_nan=True)
    assert_close(scaling.loc, y.abs().nanmean(0).log())  # the mean rate
    assert (PoissonLikelihood().standardise(y.abs(), intercept=False).loc == 0).all()


@every
def test_draws_come_back_in_the_users_unit(name):
    likelihood, nuisance, *_ = case(name)
    generator = torch.Generator().manual_seed(0)
    draws = {key: factor.sample(4, generator) for key, factor in nuisance.items()}
    draws["deltas"] = torch.ones(4, 3, 1, Q)
    scale = torch.tensor([2.0, 5.0], dtype=torch.float64)
    found = likelihood.rescale(draws, Scaling(torch.zeros(Q), scale))
    assert found.keys() == draws.keys()
    for key, value in found.items():
        own = scale[: value.shape[-1]] if key in ("noise_scale", "spread") else 1.0
        assert_close(value, draws[key] * own, check_dtype=False)


def outcomes(*columns):
    index = pd.Index([f"cell{n}" for n in range(len(columns[0]))])
    return Outcomes(np.array(columns, float).T, ("marker", "state")[: len(columns)], index)


def test_binary_outcomes_are_checked():
    likelihood, nan = BernoulliLikelihood(), float("nan")
    likelihood.check(outcomes([0, 1, nan], [1, 1, 0]))
    what = r"2 value\(s\) that must be 0 or 1.*holds 0\.0, 1\.0, 2\.0"
    place = r".*2\.0 at row 1 \(index 'cell1'\), column 'state': recode"
    with pytest.raises(DataError, match=what + place):
        likelihood.check(outcomes([0, 1, nan], [1, 2, 2]))
    likelihood.check_informative(outcomes([0, 1, nan]))
    with pytest.raises(DataError, match="single value 1 in all 2 observed rows of column 'state'"):
        likelihood.check_informative(outcomes([0, 1, nan], [1, nan, 1]))


def test_a_likelihood_of_a_users_own_refuses_likewise():
    with pytest.raises(
        DataError, match=r"1 value\(s\) that are no counts .*, first -1.0 at row 2.*whole"
    ):
        PoissonLikelihood().check(outcomes([0, 3, -1]))
    GaussianLikelihood().check(outcomes([0, 3, -1.5]))
    with pytest.raises(DataError, match="first 'marker' with 2 in all 3 rows"):
        GaussianLikelihood().check_informative(outcomes([2, 2, 2]))
    GaussianLikelihood().check_informative(outcomes([2]))  # one row is too little in any case
    GaussianLikelihood(0.5).check_informative(outcomes([2, 2, 2]))  # noise that is known is none
