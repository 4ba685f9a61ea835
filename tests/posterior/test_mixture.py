"""Equal mixtures of any distribution, and draws by a generator, against brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import distributions as dist

from pyro_tbr.posterior.mixture import Mixture, drawn, quantile_of_draws


def normal_mixture(locs, scales, num_rows=1):
    """A mixture with these components, the same at each row."""
    locs, scales = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (locs, scales))
    return Mixture(dist.Normal(locs.expand(-1, num_rows), scales.expand(-1, num_rows)))


MIXTURES = {
    "one": ([2.0], [0.5]),
    "two far apart": ([-50.0, 50.0], [0.1, 0.2]),
    "narrow in wide": ([0.0, 0.0], [1e-3, 10.0]),
    "many": (list(np.linspace(-3, 5, 17) ** 3), list(np.linspace(0.1, 2, 17))),
    "tiny unit": ([1e-12, 3e-12], [1e-13, 2e-12]),
    "far from zero": ([1e6, 1e6 + 2], [0.5, 1.0]),
}


@pytest.mark.parametrize("probability", [0.005, 0.05, 0.3, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
def test_quantiles_are_those_of_the_distribution_function(mixture, probability):
    locs, scales = map(np.array, mixture)
    found = normal_mixture(*mixture).quantile(probability).item()
    low, high = (locs - 9 * scales).min(), (locs + 9 * scales).max()
    if mixture is MIXTURES["two far apart"] and probability == 0.5:
        assert -50 < found < 50  # nothing lies in between, so any value is a median
        return
    exact = optimize.brentq(
        lambda t: stats.norm.cdf(t, locs, scales).mean() - probability, low, high, xtol=1e-300
    )
    assert found == pytest.approx(exact, rel=0, abs=1e-5 * scales.max())


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
def test_moments_and_quantiles_are_those_of_draws(mixture):
    num = 200_000
    rng = np.random.default_rng(0)
    locs, scales = map(np.array, mixture)
    pick = rng.integers(len(locs), size=num)
    draws = locs[pick] + scales[pick] * rng.standard_normal(num)
    found = normal_mixture(*mixture)
    sd = found.sd().item()
    assert found.mean().item() == pytest.approx(draws.mean(), rel=0, abs=5 * sd / math.sqrt(num))
    assert sd == pytest.approx(draws.std(), rel=0.02)
    for probability in (0.05, 0.5, 0.95):
        below = (draws < found.quantile(probability).item()).mean()
        error = 5 * math.sqrt(probability * (1 - probability) / num)
        assert below == pytest.approx(probability, abs=error)


def test_rows_and_outcomes_of_a_mixture_have_quantiles_of_their_own():
    rng = np.random.default_rng(1)
    predictor = rng.normal(0, [[[1.0, 100.0]]], (50, 7, 2))
    noise = rng.uniform(0.5, 2.0, (50, 1, 2))
    each = dist.Normal(torch.tensor(predictor), torch.tensor(noise))
    found = Mixture(each).quantile(0.9).numpy()
    cdf = stats.norm.cdf(found, predictor, noise).mean(0)
    assert cdf == pytest.approx(np.full((7, 2), 0.9), abs=1e-5)
    alone = Mixture(dist.Normal(each.loc[:, :1, :1], each.scale[:, :1, :1])).quantile(0.9)
    assert found[0, 0] == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("df", [0.7, 1.5, 4.0])
def test_quantiles_without_a_variance_or_a_mean(df, probability):
    locs, scales = np.array([-3.0, 0.0, 8.0]), np.array([0.1, 2.0, 1.0])
    normals = (torch.tensor(v)[:, None] for v in (locs, scales))
    each = _StudentT(df, *normals)
    found = Mixture(each).quantile(probability).item()
    assert stats.t.cdf(found, df, locs, scales).mean() == pytest.approx(probability, rel=1e-3)


class _StudentT(dist.StudentT):
    """Torch's has no distribution function."""

    def cdf(self, value):
        return torch.as_tensor(stats.t.cdf(value, self.df, self.loc, self.scale))


def test_quantiles_of_means():
    draws = torch.arange(12.0).reshape(4, 3).double()
    expected = np.quantile(draws.numpy(), 0.3, axis=0)
    assert quantile_of_draws(draws, 0.3).numpy() == pytest.approx(expected)
    assert quantile_of_draws(draws[:, :0], 0.3).shape == (0,)


def test_binary_mixture():
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.normal(0, 2, (500, 4, 2)))
    prob = torch.sigmoid(logits).mean(0)
    found = Mixture(dist.Bernoulli(logits=logits))
    torch.testing.assert_close(found.mean(), prob)
    torch.testing.assert_close(found.sd(), (prob * (1 - prob)).sqrt())
    y = torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, torch.nan]]).double()
    log_prob = found.log_prob(y)
    torch.testing.assert_close(log_prob[:3], torch.where(y == 1, prob, 1 - prob).log()[:3])
    assert log_prob[3, 1].isnan()
    assert found.log_prob(torch.full((4, 2), torch.nan)).isnan().all()


def shape(*values):
    return [torch.full((20_000,), value, dtype=torch.float64) for value in values]


DRAWN = {
    "normal": dist.Normal(*shape(1.0, 2.0)),
    "bernoulli": dist.Bernoulli(*shape(0.3)),
    "student": dist.StudentT(*shape(9.0, 1.0, 2.0)),
    "gamma": dist.Gamma(*shape(2.0, 3.0)),
    "beta": dist.Beta(*shape(2.0, 3.0)),
    "poisson": dist.Poisson(*shape(4.0)),
    "negative binomial": dist.NegativeBinomial(*shape(4.0, 0.3)),
    "binomial": dist.Binomial(10, *shape(0.3)),
    "laplace": dist.Laplace(*shape(1.0, 2.0)),
    "exponential": dist.Exponential(*shape(2.0)),
    "log-normal": dist.LogNormal(*shape(0.0, 0.3)),
}


@pytest.mark.parametrize("each", DRAWN.values(), ids=DRAWN.keys())
def test_draws_by_a_generator_are_those_of_the_distribution(each):
    """The same seed the same draws; that the global generator stays is what all tests check."""
    one, two, other = (drawn(each, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    error = 5 * (each.variance[0] / len(one)).sqrt()
    assert (one.mean() - each.mean[0]).abs() < error
    assert one.var().item() == pytest.approx(each.variance[0].item(), rel=0.15)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
def test_log_density_is_that_of_the_mixture(mixture):
    locs, scales = map(np.array, mixture)
    y = np.linspace(locs.min() - scales.max(), locs.max() + scales.max(), 7)
    found = normal_mixture(*mixture, num_rows=7).log_prob(torch.tensor(y))
    each = stats.norm.logpdf(y[:, None], locs, scales)
    assert found.numpy() == pytest.approx(np.logaddexp.reduce(each, 1) - math.log(len(locs)))
