"""Likelihoods: expected log densities and quadratic expansions against integration."""

import copy

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch.testing import assert_close

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads.likelihoods import BernoulliLikelihood, GaussianLikelihood, NoiseMoments

Y = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
MEAN = torch.tensor([[0.3, -1.2], [4.0, -7.0], [0.0, 2.0], [-15.0, 15.0]], dtype=torch.float64)
VAR = torch.tensor([[0.5, 2.0], [0.0, 4.0], [1e-8, 9.0], [0.3, 25.0]], dtype=torch.float64)
SCALE = torch.tensor([0.3, 2.0], dtype=torch.float64)
LIKELIHOODS = {"gaussian": GaussianLikelihood(), "bernoulli": BernoulliLikelihood()}


def integrated(log_prob, mean, var):
    """E[log_prob(f)], f ~ N(mean, var), by adaptive integration."""
    sd = var**0.5
    if sd < 1e-3:
        return log_prob(mean)
    value, _ = scipy.integrate.quad(
        lambda f: log_prob(f) * scipy.stats.norm(mean, sd).pdf(f),
        mean - 12 * sd, mean + 12 * sd, limit=200, points=[0.0, mean],
    )  # fmt: skip
    return value


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_expected_log_prob_is_the_integral(name):
    likelihood = LIKELIHOODS[name].build(2)
    noise = NoiseMoments(SCALE**-2, SCALE.log()) if name == "gaussian" else None
    found = likelihood.expected_log_prob(Y, MEAN, VAR, noise)
    for index in np.ndindex(Y.shape):
        y, scale = Y[index], SCALE[index[1]]

        def log_prob(f, y=y, scale=scale):
            predictor = torch.tensor(f, dtype=torch.float64)
            return likelihood(predictor, scale).log_prob(y).item()

        expected = integrated(log_prob, MEAN[index].item(), VAR[index].item())
        # 20 nodes on a kinked function: worst where the predictor's sd is many logits
        atol = 1e-9 if name == "gaussian" else 2e-2 * max(VAR[index].item() ** 0.5 - 1, 0.01)
        assert found[index].item() == pytest.approx(expected, rel=1e-6, abs=atol)


def test_gaussian_under_an_uncertain_noise_scale():
    generator = torch.Generator().manual_seed(0)
    log_scale = -0.7 + 0.3 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    noise = NoiseMoments(
        torch.tensor([np.exp(1.4 + 2 * 0.09)]), torch.tensor([-0.7], dtype=torch.float64)
    )
    y, mean, var = (torch.tensor([[v]], dtype=torch.float64) for v in (1.0, 0.4, 0.2))
    f = mean + var.sqrt() * torch.randn(200_000, generator=generator, dtype=torch.float64)
    draws = GaussianLikelihood().build(1)(f, log_scale.exp()).log_prob(y).flatten()
    found = GaussianLikelihood().expected_log_prob(y, mean, var, noise).item()
    assert abs(found - draws.mean()) < 4.5 * draws.std() / len(draws) ** 0.5


def expansion(likelihood, y, point):
    """Quadratic expansion as a function of f, with its constant set to touch at the point."""
    precision, response = likelihood.working_response(y, point)

    def at(f):
        return -0.5 * precision * (f - response) ** 2

    log_prob = likelihood(point, torch.ones(())).log_prob(y)
    return lambda f: at(f) - at(point) + log_prob


def test_gaussian_expansion_is_exact():
    likelihood = GaussianLikelihood().build(2)
    quadratic = expansion(likelihood, Y, MEAN)
    for f in (MEAN - 3, MEAN + 0.1, 10 * torch.ones_like(MEAN)):
        assert_close(quadratic(f), likelihood(f, torch.ones(())).log_prob(Y))


@pytest.mark.parametrize("point", [-20.0, -2.0, -1e-3, 0.0, 0.5, 8.0])
def test_polya_gamma_expansion_is_a_bound_that_touches(point):
    likelihood = BernoulliLikelihood()
    y = torch.tensor([0.0, 1.0], dtype=torch.float64)
    point = torch.full((2,), point, dtype=torch.float64)
    quadratic = expansion(likelihood, y, point)
    for f in torch.linspace(-30, 30, 121, dtype=torch.float64):
        assert (quadratic(f) <= likelihood(f, None).log_prob(y) + 1e-7).all()
    # touches with its slope at the point and, the bound being even, touches at minus the point
    f = point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(quadratic(f).sum(), f)
    assert_close(slope, y - torch.sigmoid(point), rtol=0, atol=1e-4)
    assert_close(quadratic(-point), likelihood(-point, None).log_prob(y), rtol=0, atol=1e-4)


def test_fixed_noise_is_in_the_users_unit():
    unit = torch.tensor([2.0, 4.0])
    assert_close(
        GaussianLikelihood(0.6).build(2, outcome_scale=unit).sample_noise(),
        torch.tensor([0.3, 0.15]),
    )
    assert_close(GaussianLikelihood(0.6).build(2).sample_noise(), torch.tensor([0.6, 0.6]))
    one_each = GaussianLikelihood(torch.tensor([0.6, 2.0])).build(2, outcome_scale=unit)
    assert_close(one_each.sample_noise(), torch.tensor([0.3, 0.5]))
    assert BernoulliLikelihood().build(2).sample_noise() is None


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan")])
def test_noise_that_is_not_positive_is_refused(scale):
    with pytest.raises(DataError, match="scale must be positive"):
        GaussianLikelihood(scale)


def test_noise_of_other_shape_is_refused():
    with pytest.raises(ShapeError, match=r"scale has shape \(3,\)"):
        GaussianLikelihood(torch.ones(3)).build(2)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_building_leaves_the_description_alone(name):
    likelihood = copy.deepcopy(LIKELIHOODS[name])
    built = likelihood.build(3, outcome_scale=torch.ones(3))
    assert built is not likelihood
    assert likelihood.noise_scale is None
    assert repr(built) == repr(likelihood) == f"{type(likelihood).__name__}()"
    assert repr(GaussianLikelihood(0.3)) == "GaussianLikelihood(scale=0.3)"
