"""Distributions of outcomes, what rows give to their likelihood, and columns of several kinds."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch.testing import assert_close

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError
from pyro_tbr.heads.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    GaussianLikelihood,
    MixedLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    Scaling,
    StudentTLikelihood,
)
from pyro_tbr.heads.likelihoods.distributions import (
    Binomial,
    NegativeBinomial,
    Poisson,
    StudentT,
    Weighted,
)
from pyro_tbr.heads.likelihoods.incomplete_beta import incomplete_beta
from pyro_tbr.heads.likelihoods.ordinal import Ordinal, thresholds_of
from pyro_tbr.posterior.mixture import Mixture, quantiles
from tests.heads.monte_carlo import assert_mean

F64 = {"dtype": torch.float64}


def tensor(*values):
    return torch.tensor(values, **F64)


# --- distribution functions -------------------------------------------------------------------


def test_incomplete_beta_is_scipys():
    rng = np.random.default_rng(0)
    a, b = (10 ** rng.uniform(-3, 6, 4000) for _ in range(2))
    near = np.clip(a / (a + b) * (1 + 0.1 * rng.standard_normal(4000)), 0, 1)
    x = np.where(rng.random(4000) < 0.5, rng.random(4000), near)
    found = incomplete_beta(*map(torch.from_numpy, (a, b, x)))
    assert_close(found.numpy(), scipy.special.betainc(a, b, x), rtol=0, atol=1e-8)
    assert incomplete_beta(tensor(2.0), tensor(3.0), tensor(0.0)).item() == 0
    assert incomplete_beta(tensor(2.0), tensor(3.0), tensor(1.0)).item() == 1


COUNTS = tensor(-1.0, 0.0, 0.5, 3.0, 40.0, 1000.0)
FUNCTIONS = {
    "poisson": (Poisson(tensor(4.2)), scipy.stats.poisson(4.2)),
    "negative binomial": (
        NegativeBinomial(tensor(2.5), logits=tensor(math.log(4.2 / 2.5))),
        scipy.stats.nbinom(2.5, 2.5 / 6.7),
    ),
    "binomial": (Binomial(tensor(40.0), probs=tensor(0.2)), scipy.stats.binom(40, 0.2)),
    "student t": (StudentT(tensor(2.5), tensor(1.0), tensor(3.0)), scipy.stats.t(2.5, 1.0, 3.0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_distribution_functions_are_scipys(name):
    ours, theirs = FUNCTIONS[name]
    values = COUNTS if name != "student t" else tensor(-1e6, -3.0, 0.0, 1.0, 1.1, 50.0)
    found = ours.cdf(values[:, None])[:, 0] if name != "student t" else ours.cdf(values)
    assert_close(found.numpy(), theirs.cdf(values.numpy()), rtol=1e-7, atol=1e-12)


def test_grades_are_a_logistic_variable_between_thresholds():
    predictor = torch.tensor([[-60.0, -1.0, 0.3, 2.5, 60.0]], **F64).mT.expand(5, 2)
    gaps = torch.tensor([[0.5, 2.0], [1.0, 1e-3]], **F64)
    cuts = thresholds_of(gaps)
    assert_close(cuts.mean(-1), torch.zeros(2, **F64))
    assert_close(cuts.diff(dim=-1), gaps)
    law = Ordinal(predictor, cuts)
    grades = torch.arange(4.0, **F64).reshape(4, 1, 1)
    inside = torch.sigmoid(cuts - predictor.unsqueeze(-1))
    below = torch.cat([torch.zeros(5, 2, 1, **F64), inside, torch.ones(5, 2, 1, **F64)], -1)
    slow = below.diff(dim=-1).permute(2, 0, 1)
    found = law.log_prob(grades)
    assert_close(found.exp(), slow, rtol=1e-9, atol=1e-14)
    assert torch.isfinite(found).all()
    assert_close(law.cdf(grades), below[..., 1:].permute(2, 0, 1))
    assert_close(law.cdf(grades + 0.5), law.cdf(grades))
    assert (law.cdf(grades[:1] - 1) == 0).all()
    assert_close(law.mean, (grades * slow).sum(0))
    assert_close(law.variance, (grades**2 * slow).sum(0) - law.mean**2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = law.sample((20_000,))
    share = (drawn[None] == grades[:, None]).double().mean(1)
    assert ((share - slow).abs() < 5 * (slow * (1 - slow) / 20_000).sqrt() + 1e-9).all()
    wide = law.expand((3, 5, 2))
    assert_close(wide.log_prob(grades[1]), law.log_prob(grades[1]).expand(3, 5, 2))


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("name", ["poisson", "negative binomial", "binomial"])
def test_whole_quantiles_are_scipys(name, probability):
    ours, theirs = FUNCTIONS[name]
    assert Mixture(ours).whole_quantile(probability).item() == theirs.ppf(probability)


def test_whole_quantiles_of_mixtures():
    rates = tensor(0.01, 3.0, 3000.0, 1e7).reshape(4, 1)
    found = Mixture(Poisson(rates)).whole_quantile(0.6).item()
    steps = np.arange(found - 2, found + 3)
    reached = scipy.stats.poisson(rates.numpy()).cdf(steps).mean(0)
    assert steps[(reached >= 0.6).argmax()] == found
    assert Mixture(Poisson(tensor(1e300).reshape(1, 1))).whole_quantile(0.6).item() == np.inf
    assert Mixture(Poisson(torch.ones(3, 0, **F64))).whole_quantile(0.6).shape == (0,)


def test_weights_multiply_the_log_density():
    base, weights = dist.Normal(torch.zeros(4, 2), 1.0), torch.tensor([[1.0, 2.0]])
    weighed = Weighted(base, weights).to_event(1)
    value = torch.ones(4, 2)
    assert_close(weighed.log_prob(value), 3 * base.log_prob(value)[:, 0])
    masked = Weighted(base, weights).mask(torch.tensor([[True, False]])).to_event(1)
    assert_close(masked.log_prob(value), base.log_prob(value)[:, 0])
    with poutine.trace() as trace:
        pyro.sample("y", weighed)
    assert trace.trace.nodes["y"]["value"].shape == (4, 2)


# --- what rows give ---------------------------------------------------------------------------

N, Q = 30, 2
KINDS = {
    "poisson": (PoissonLikelihood, "exposure"),
    "negative binomial": (NegativeBinomialLikelihood, "exposure"),
    "binomial": (BinomialLikelihood, "trials"),
    "gaussian": (GaussianLikelihood, "y_se"),
}


def made(name, seed=0):
    """A built likelihood, its factors and what rows give, outcomes, moments."""
    kind, known = KINDS[name]
    generator = torch.Generator().manual_seed(seed)
    likelihood = kind().resolved(("y0", "y1"), (known,)).build(Q, known=(known,)).double()
    given = {
        "exposure": torch.exp(2 * torch.randn(N, Q, generator=generator, **F64)),
        "trials": torch.randint(1, 30, (N, Q), generator=generator).double(),
        "y_se": torch.rand(N, Q, generator=generator, **F64),
    }[known]
    mean = torch.randn(N, Q, generator=generator, **F64)
    var = 0.02 + 0.5 * torch.rand(N, Q, generator=generator, **F64)
    nuisance = likelihood.factors()
    values = {key: factor.points(1)[0][0].double() for key, factor in nuisance.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        y = likelihood(mean, {**values, known: given}).sample()
    return likelihood, {**nuisance, known: given}, y, mean, var


@pytest.mark.parametrize("name", KINDS)
def test_expectations_know_what_rows_give(name):
    likelihood, nuisance, y, mean, var = made(name)
    known = KINDS[name][1]
    generator = torch.Generator().manual_seed(1)
    predictor = mean + var.sqrt() * torch.randn(20_000, N, Q, generator=generator, **F64)
    draws = {
        key: part if key == known else part.sample(20_000, generator).unsqueeze(1)
        for key, part in nuisance.items()
    }
    outcome = likelihood(predictor, draws)
    assert_mean(outcome.log_prob(y), likelihood.expected_log_prob(y, mean, var, nuisance))
    found_mean, found_var = likelihood.predictive_moments(mean, var, nuisance)
    assert_mean(outcome.mean, found_mean)
    assert_mean(outcome.variance + (outcome.mean - found_mean).square(), found_var)


@pytest.mark.parametrize("name", KINDS)
def test_sites_touch_and_come_in_chunks(name, monkeypatch):
    likelihood, nuisance, y, mean, var = made(name)
    sites = likelihood.site_terms(y, mean, var, nuisance)
    m, v = mean.clone().requires_grad_(), var.clone().requires_grad_()
    each = likelihood.expected_log_prob(y, m, v, nuisance)
    slope, bend = torch.autograd.grad(each.sum(), (m, v))
    step = mean - sites.response
    assert_close(sites.log_norm - 0.5 * sites.precision * (step.square() + var), each)
    assert_close(-sites.precision * step, slope, rtol=1e-5, atol=1e-6)
    assert_close(sites.precision, -2 * bend, rtol=1e-5, atol=1e-6)
    assert (sites.precision > 0).all()
    monkeypatch.setattr("pyro_tbr.heads.likelihoods.expectations._CHUNK_ELEMENTS", 500)
    assert_close(likelihood.site_terms(y, mean, var, nuisance), sites)


def test_an_exposure_is_a_shift_of_the_predictor_and_ten_trials_ten_rows():
    likelihood, nuisance, y, mean, var = made("poisson")
    plain = likelihood.expected_log_prob(y, mean + nuisance["exposure"].log(), var, {})
    assert_close(likelihood.expected_log_prob(y, mean, var, nuisance), plain)
    binomial, bernoulli = BinomialLikelihood().build(1), BernoulliLikelihood().build(1)
    at, spread, trials = torch.zeros(1, 1) + 0.4, torch.ones(1, 1), {"trials": tensor([10.0])}
    ways = math.log(math.comb(10, 3))
    both = [bernoulli.expected_log_prob(torch.tensor([[v]]), at, spread, {}) for v in (0.0, 1.0)]
    found = binomial.expected_log_prob(torch.tensor([[3.0]]), at, spread, trials)
    assert_close(found, ways + 7 * both[0] + 3 * both[1], check_dtype=False)


def test_measurement_errors_of_zero_are_none_and_known_ones_are_taken_off_the_noise():
    generator = torch.Generator().manual_seed(3)
    error = 2.0 * torch.rand(4000, 1, generator=generator, **F64)
    noise = torch.randn(4000, 1, generator=generator, **F64)
    y = 0.5 * noise + error * torch.randn(4000, 1, generator=generator, **F64)
    zero, ones = torch.zeros_like(y), torch.ones_like(y)
    likelihood = GaussianLikelihood().resolved(("y0",), ("y_se",)).build(1).double()
    factors = likelihood.factors()
    likelihood.learn(factors, y, zero, 1e-6 * ones, ones, values={"y_se": error})
    scale = factors["noise_scale"]
    sd = scale.scale.item()
    assert abs(scale.mean_log().item() - math.log(0.5)) < 4 * sd
    assert sd < 0.1
    plain = GaussianLikelihood(noise="common").build(1).double()
    other = plain.factors()
    likelihood.learn(factors, y, zero, 1e-6 * ones, ones, values={"y_se": zero})
    plain.learn(other, y, zero, 1e-6 * ones, ones)
    assert_close(scale.state(), other["noise_scale"].state(), rtol=0, atol=2e-3)
    with pytest.raises(DataError, match="noise='by_environment' together with y_se"):
        GaussianLikelihood(noise="by_environment").resolved(("y0",), ("y_se",))


# --- columns of several kinds -----------------------------------------------------------------

PARTS = {
    "count": NegativeBinomialLikelihood(),
    "size": GaussianLikelihood(),
    "alive": BernoulliLikelihood(),
    "weight": GaussianLikelihood(),
    "rate": StudentTLikelihood(df=4.0, noise="common"),
}
NAMES = ("weight", "count", "alive", "size", "rate")


def mixed():
    likelihood = MixedLikelihood(PARTS).resolved(NAMES, ("exposure",))
    return likelihood.build(5, num_nodes=3, names=NAMES, known=("exposure",)).double()


def rows_of_mixed(seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(40, 5, generator=generator, **F64)
    y[:, 1] = torch.randint(0, 9, (40,), generator=generator).double()
    y[:, 2] = (y[:, 2] > 0).double()
    mean, var = torch.randn(40, 5, generator=generator, **F64), torch.full((40, 5), 0.3, **F64)
    return y, mean, var, torch.arange(40) % 3


def test_columns_are_those_of_their_likelihoods():
    likelihood = mixed()
    y, mean, var, env = rows_of_mixed()
    factors = likelihood.factors()
    assert set(factors) == {
        "noise_scale", "noise_spread", "node_noise_scale", "overdispersion",
        "noise_scale_rate", "tail_df_rate",
    }  # fmt: skip
    likelihood.know_nodes(factors, torch.ones(3, dtype=torch.bool))
    likelihood.learn(factors, y, mean, var, torch.ones_like(y), env)
    nuisance = likelihood.at_nodes(factors, env)
    found = likelihood.expected_log_prob(y, mean, var, nuisance)
    sites = likelihood.site_terms(y, mean, var, nuisance)
    for columns, part in (([0, 3], GaussianLikelihood()), ([1], NegativeBinomialLikelihood()),
                          ([2], BernoulliLikelihood()),
                          ([4], StudentTLikelihood(df=4.0, noise="common"))):  # fmt: skip
        alone = part.build(len(columns), num_nodes=3).double()
        own = alone.factors()
        alone.know_nodes(own, torch.ones(3, dtype=torch.bool))
        some = [part[:, columns] for part in (y, mean, var)]
        alone.learn(own, *some, torch.ones_like(some[0]), env)
        at = alone.at_nodes(own, env)
        assert_close(found[:, columns], alone.expected_log_prob(*some, at))
        terms = alone.site_terms(*some, at)
        assert_close(sites.precision[:, columns], terms.precision * alone.site_scale(at))
        assert_close(sites.response[:, columns], terms.response)
    assert likelihood.by_node
    assert not likelihood.exact


def test_draws_and_quantiles_of_several_kinds():
    likelihood = mixed()
    generator = torch.Generator().manual_seed(0)
    draws = likelihood.draw_nuisance(likelihood.factors(), 6, generator)
    at = likelihood.values_at_nodes(draws, torch.tensor([0, 2]))
    predictor = torch.randn(6, 2, 5, generator=generator, **F64)
    each = likelihood(predictor, at)
    assert each.batch_shape == (6, 2, 5)
    y = torch.zeros(2, 5, **F64)
    assert_close(
        each.log_prob(y)[..., 2], dist.Bernoulli(logits=predictor[..., 2]).log_prob(y[:, 2])
    )
    assert each.mean.shape == each.variance.shape == (6, 2, 5)
    ends = quantiles(each, likelihood.kinds(), 0.8)
    assert ends.shape == (2, 5)
    assert (ends[:, 1] == ends[:, 1].floor()).all()  # a count
    assert_close(ends[:, 2], torch.quantile(torch.sigmoid(predictor[..., 2]), 0.8, dim=0))
    for part, columns in zip(each.parts, each.columns, strict=True):
        if isinstance(part, dist.Normal | StudentT):
            reached = part.cdf(ends[:, columns].expand(6, 2, len(columns))).mean(0)
            assert_close(reached, torch.full_like(reached, 0.8), rtol=0, atol=1e-4)


def test_units_of_several_kinds():
    likelihood = MixedLikelihood(PARTS).resolved(NAMES, ("exposure",))
    y, *_ = rows_of_mixed()
    exposure = torch.full_like(y, 2.0)
    scaling = likelihood.units(y, {"exposure": exposure}, intercept=True)
    assert scaling.of_outcome.tolist() == [True, False, True, True, True]
    assert scaling.loc[1].item() == pytest.approx(math.log(y[:, 1].mean() / 2))
    assert_close(scaling.to_model(y)[:, [1, 2]], y[:, [1, 2]])
    assert_close(scaling.to_user(scaling.to_model(y)), y)
    assert_close(scaling.to_model(y)[:, 0].mean(), tensor(0.0)[0])
    known = likelihood.row_values({"exposure": exposure}, scaling, 40)["exposure"]
    assert_close(known[:, 1], 2 * scaling.loc[1].exp().expand(40))
    draws = {"noise_scale": torch.ones(3, 2, **F64), "deltas": torch.ones(3, **F64)}
    back = mixed().rescale(draws, scaling)
    assert_close(back["noise_scale"], scaling.scale[[0, 3]].expand(3, 2))
    plain = Scaling(scaling.loc, scaling.scale)
    assert_close(plain.outcome_scale(), scaling.scale)


def test_columns_without_a_likelihood_are_refused():
    y = Outcomes(np.ones((3, 2)), ("count", "length"))
    with pytest.raises(DataError, match=r"none for 'length'.*give one for each column"):
        MixedLikelihood({"count": PoissonLikelihood()}).check(y)
    three = MixedLikelihood(dict.fromkeys(("count", "length", "age"), PoissonLikelihood()))
    with pytest.raises(DataError, match="y has no 'age'"):
        three.resolved(y.names, ())
    wrong = Outcomes(np.array([[1.0, 0.5], [2.5, 0.1]]), ("count", "length"))
    with pytest.raises(DataError, match=r"first 2.5 at row 1, column 'count'"):
        MixedLikelihood({"count": PoissonLikelihood(), "length": GaussianLikelihood()}).check(wrong)


@pytest.mark.parametrize(("likelihood", "values", "what"), [
    (PoissonLikelihood(), [[1.0], [2.5]], "no counts"),
    (NegativeBinomialLikelihood(), [[1.0], [-1.0]], "no counts"),
    (BinomialLikelihood(), [[1.0], [0.5]], "no counts"),
])  # fmt: skip
def test_what_is_no_count_is_refused(likelihood, values, what):
    with pytest.raises(DataError, match=rf"1 value\(s\) that are {what}.*at row 1"):
        likelihood.check(Outcomes(np.array(values), ("n",)))
    with pytest.raises(DataError, match="y is 0 in all 2 observed rows of column 'n'"):
        likelihood.check_informative(Outcomes(np.array([[0.0], [np.nan], [0.0]]), ("n",)))


def test_what_is_no_grade_is_refused():
    likelihood = OrdinalLikelihood(3)
    for value in (-1.0, 3.0, 1.5):
        with pytest.raises(DataError, match=r"no whole numbers from 0 to 2, first .* at row 1"):
            likelihood.check(Outcomes(np.array([[1.0], [value]]), ("n",)))
    likelihood.check(Outcomes(np.array([[1.0], [np.nan], [2.0]]), ("n",)))
    with pytest.raises(DataError, match="'n' do.es. not vary, first 'n' with 2 in all 2 rows"):
        likelihood.check_informative(Outcomes(np.array([[2.0], [np.nan], [2.0]]), ("n",)))
    for number in (2, 2.5, True, "4", 1000):
        with pytest.raises(DataError, match="num_categories="):
            OrdinalLikelihood(number)
    with pytest.raises(DataError, match="intercept=False"):
        likelihood.units(torch.zeros(3, 1), {}, intercept=False)


def test_more_successes_than_trials_are_refused():
    y = Outcomes(np.array([[3.0], [4.0], [np.nan]]), ("n",))
    BinomialLikelihood().check_with(y, {"trials": np.array([[3.0], [9.0], [1.0]])})
    with pytest.raises(DataError, match=r"2 value\(s\) that are more than their row's trials"):
        BinomialLikelihood().check_with(y, {})


@pytest.mark.parametrize("df", [2.0, 1.0, -3.0])
def test_degrees_of_freedom_without_a_variance_are_refused(df):
    with pytest.raises(DataError, match="df"):
        StudentTLikelihood(df=df)
