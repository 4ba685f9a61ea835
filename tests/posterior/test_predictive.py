"""Predictive distributions against brute force, closed forms and the model they stand for."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

import pyro_tbr as tbr
from pyro_tbr.data import RowOrder, Schema
from pyro_tbr.posterior import predictive
from pyro_tbr.posterior.predictive import Form, Mixture
from tests.posterior.small_fits import FAST, NOISE_SCALE, RATE, SLAB_SCALE

NUM_DRAWS = 6_000
FAR = np.array([[1.0, -2.0], [0.3, 0.3], [0.0, 3.0]])  # rows whose weights matter
DESIGN_SQUARE = (FAR**2).sum(1) + 1  # with the intercept's 1


def normal_mixture(locs, scales, num_rows=1):
    """A mixture with these components, the same at each row."""
    predictor = torch.tensor(locs, dtype=torch.float64)[:, None, None]
    return Mixture(
        predictor.expand(-1, num_rows, 1), torch.tensor(scales, dtype=torch.float64)[:, None]
    )


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
    noise = rng.uniform(0.5, 2.0, (50, 2))
    found = Mixture(torch.tensor(predictor), torch.tensor(noise)).quantile(0.9).numpy()
    cdf = stats.norm.cdf(found, predictor, noise[:, None]).mean(0)
    assert cdf == pytest.approx(np.full((7, 2), 0.9), abs=1e-9)


def test_binary_mixture():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (500, 4, 2))
    prob = 1 / (1 + np.exp(-logits))
    found = Mixture(torch.tensor(logits), None)
    assert found.mean().numpy() == pytest.approx(prob.mean(0), rel=1e-12)
    variance = prob.mean(0) * (1 - prob.mean(0))
    assert found.sd().numpy() == pytest.approx(np.sqrt(variance), rel=1e-12)
    assert found.quantile(0.05).numpy() == pytest.approx(np.quantile(prob, 0.05, 0), rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    pick = torch.randint(500, (20_000,), generator=generator)
    draws = found.sample(pick, generator).numpy()
    assert set(np.unique(draws)) == {0.0, 1.0}
    error = 5 * np.sqrt(variance / 20_000)
    assert (np.abs(draws.mean(0) - prob.mean(0)) < error).all()


def prediction(num_rows=3, noise=1e-6, level=0.9):
    """Two draws of one weight, far apart, at one node; rows of the same design."""
    weights = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    return tbr.Prediction(
        torch.ones(num_rows, 1, dtype=torch.float64),
        weights,
        torch.zeros(num_rows, dtype=torch.int64),
        torch.full((2, 1), noise, dtype=torch.float64),
        level,
        Form(True, None, ("y0",), RowOrder(num_rows)),
        Schema(None, 1, ("y0",), 1),
    )


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
def test_log_density_is_that_of_the_mixture(mixture):
    locs, scales = map(np.array, mixture)
    y = np.linspace(locs.min() - scales.max(), locs.max() + scales.max(), 7)
    found = normal_mixture(*mixture, num_rows=7).log_prob(torch.tensor(y)[:, None])[:, 0]
    each = stats.norm.logpdf(y[:, None], locs, scales)
    assert found.numpy() == pytest.approx(np.logaddexp.reduce(each, 1) - math.log(len(locs)))


def test_log_probability_of_binary_outcomes():
    predictor = torch.randn(50, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    prob = torch.sigmoid(predictor).mean(0)
    y = torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, torch.nan]]).double()
    found = Mixture(predictor, None).log_prob(y)
    expected = torch.where(y == 1, prob, 1 - prob).log()
    torch.testing.assert_close(found[:3], expected[:3])
    assert found[3, 1].isnan()


def test_log_score_is_the_mean_over_what_was_observed(monkeypatch):
    y = [0.2, np.nan, -1.4]
    whole = prediction(noise=0.5).log_score(y)
    density = 0.5 * (stats.norm.pdf(y, -1, 0.5) + stats.norm.pdf(y, 1, 0.5))
    assert whole == pytest.approx(np.nanmean(np.log(density)))
    monkeypatch.setattr(predictive, "_CHUNK_ELEMENTS", 2)
    assert prediction(noise=0.5).log_score(y) == pytest.approx(whole)
    with pytest.raises(tbr.DataError, match="no observed value"):
        prediction().log_score([np.nan] * 3)
    with pytest.raises(tbr.ShapeError, match="y has 2"):
        prediction().log_score([0.0, 1.0])


def test_rows_of_one_draw_share_their_weights_in_chunks_too(monkeypatch):
    whole = prediction()
    monkeypatch.setattr(predictive, "_CHUNK_ELEMENTS", 2)  # a row a chunk
    parted = prediction()
    draws = parted.sample(1000, seed=1)
    assert draws.shape == (1000, 3)
    assert np.ptp(draws, axis=1).max() < 1e-4
    assert (draws[:, 0] > 0).mean() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(1000))
    for name in ("mean", "sd", "lower", "upper"):
        assert getattr(parted, name) == pytest.approx(getattr(whole, name), rel=1e-12)


@pytest.mark.parametrize("level", [0, 1, -0.1, 90])
def test_level_is_a_probability(level):
    with pytest.raises(tbr.DataError, match=f"level={level}"):
        prediction(level=level)


def variance(posterior, env, x=FAR, num_draws=NUM_DRAWS):
    """Of the predictor: without the noise, which is known."""
    sd = posterior.predict(x, env, num_draws=num_draws).sd
    return sd**2 - NOISE_SCALE**2


def assert_adds(more, less, added):
    """Variances differ by what they should, within 5 standard errors of a heavy-tailed sample."""
    # A spike and slab has kurtosis 3 / rate; variances of its draws are uncertain accordingly.
    error = 5 * math.sqrt((3 / RATE - 1) / NUM_DRAWS)
    assert more - less == pytest.approx(added, rel=error)
    assert error < 0.2  # the test can fail


def test_each_arc_without_data_adds_its_prior_variance(held_out):
    """Rate times squared slab scale times the squared length of the row, an arc."""
    an_arc = RATE * SLAB_SCALE**2 * DESIGN_SQUARE
    parent = held_out.tree.parent("leaf5")
    at_parent = variance(held_out, parent)
    at_leaf = variance(held_out, "leaf5")
    assert_adds(at_leaf, at_parent, an_arc)
    assert_adds(variance(held_out, tbr.NewLeaf("new", parent)), at_parent, an_arc)
    assert_adds(variance(held_out, tbr.NewLeaf("new", "leaf5")), at_leaf, an_arc)
    for seen in ("leaf0", "leaf3"):
        assert (variance(held_out, seen) < 0.2 * at_leaf).all()
        assert_adds(variance(held_out, tbr.NewLeaf("new", seen)), variance(held_out, seen), an_arc)


def test_leaf_without_rows_is_predicted_around_its_ancestor(held_out):
    parent = held_out.tree.parent("leaf5")
    at_parent = held_out.predict(FAR, parent, num_draws=NUM_DRAWS)
    at_leaf = held_out.predict(FAR, "leaf5", num_draws=NUM_DRAWS)
    assert (np.abs(at_leaf.mean - at_parent.mean) < 5 * at_leaf.sd / math.sqrt(NUM_DRAWS)).all()


def test_unknown_environment_is_the_mixture_of_seen_ones_by_their_rows(sim):
    """Mean and variance by the laws of total expectation and total variance."""
    keep = np.concatenate([np.flatnonzero(sim.env == f"leaf{i}")[: 5 * (i + 1)] for i in range(5)])
    model = tbr.TreeModel(
        sim.tree, 2, encoder="identity", likelihood=tbr.GaussianLikelihood(scale=NOISE_SCALE)
    )
    posterior = tbr.fit(
        model, sim.z[keep], sim.y[keep], sim.env[keep], progress=False, options=FAST
    )
    share = np.arange(1, 6) / 15
    seen = [posterior.predict(FAR, f"leaf{i}", num_draws=NUM_DRAWS) for i in range(5)]
    means, sds = np.stack([p.mean for p in seen]), np.stack([p.sd for p in seen])
    mean = share @ means
    sd = np.sqrt(share @ (sds**2 + (means - mean) ** 2))
    found = posterior.predict(FAR, None, num_draws=NUM_DRAWS)
    assert (np.abs(found.mean - mean) < 5 * sd / math.sqrt(NUM_DRAWS)).all()
    assert found.sd == pytest.approx(sd, rel=0.03)
    draws = found.sample(NUM_DRAWS)
    for value, probability in [(found.lower, 0.05), (found.upper, 0.95)]:
        assert (draws < value).mean(0) == pytest.approx(np.full(3, probability), abs=0.02)


@pytest.fixture(scope="module")
def with_lengths(sim):
    lengths = {child: 1.0 + (child == "leaf0") for _, child in sim.tree.arcs}
    parents = {child: parent for parent, child in sim.tree.arcs}
    tree = tbr.Tree.from_parents(parents, lengths=lengths)
    prior = tbr.SpikeSlabPrior(
        inclusion_prob=RATE, slab_scale=SLAB_SCALE, root_scale=3.0, use_lengths=True
    )
    noise = tbr.GaussianLikelihood(scale=NOISE_SCALE)
    model = tbr.TreeModel(tree, 2, encoder="identity", prior=prior, likelihood=noise)
    return tbr.fit(model, sim.z, sim.y, sim.env, progress=False, options=FAST)


def test_new_leaf_at_the_end_of_a_longer_arc_is_less_sure(with_lengths):
    at_parent = with_lengths.predict(FAR, "leaf3", num_draws=NUM_DRAWS)
    none = with_lengths.predict(FAR, tbr.NewLeaf("new", "leaf3", length=0), num_draws=NUM_DRAWS)
    assert none.mean.tolist() == at_parent.mean.tolist()
    assert none.sd.tolist() == at_parent.sd.tolist()
    mean_length = 11 / 10
    for length, relative in [(None, 1.0), (mean_length, 1.0), (3.3, 3.0)]:
        change = (1 - (1 - RATE) ** relative) * SLAB_SCALE**2 * DESIGN_SQUARE
        new = variance(with_lengths, tbr.NewLeaf("new", "leaf3", length=length))
        assert_adds(new, variance(with_lengths, "leaf3"), change)


@pytest.mark.parametrize(
    ("leaf", "error", "message"),
    [
        (tbr.NewLeaf("new", "leaf33"), tbr.TreeError, "leaf33.*nearest: 'leaf3'"),
        (tbr.NewLeaf("leaf5", "leaf3"), tbr.DataError, "'leaf5' is a node of the tree already"),
        (tbr.NewLeaf("new", "leaf3", length=-1.0), tbr.DataError, "length=-1.0"),
        (tbr.NewLeaf("new", "leaf3", length=math.nan), tbr.DataError, "length=nan"),
    ],
)
def test_new_leaf_that_cannot_be_placed(with_lengths, leaf, error, message):
    with pytest.raises(error, match=message):
        with_lengths.predict(FAR, leaf)


def test_no_rows_no_predictions(held_out):
    for env in ("leaf3", [], None, tbr.NewLeaf("new", "leaf3")):
        prediction = held_out.predict(FAR[:0], env)
        assert prediction.mean.shape == prediction.sd.shape == prediction.lower.shape
        assert len(prediction.mean) == 0


def test_binary_predictions_are_probabilities_near_the_truth(binary, binary_sim):
    sim = binary_sim
    found = binary.predict(sim.z, sim.env)
    index = [sim.tree.index(leaf) for leaf in sim.env]
    logits = (sim.z * sim.node_weights[index, :, 0]).sum(1) + sim.node_intercepts[index, 0]
    truth = 1 / (1 + np.exp(-logits))
    assert found.sd == pytest.approx(np.sqrt(found.mean * (1 - found.mean)), rel=1e-9)
    # With 200 rows a leaf and three weights a probability is known to some sqrt(3 / 200) / 2.
    assert np.abs(found.mean - truth).mean() < 0.06
    covered = (found.lower <= truth) & (truth <= found.upper)
    assert covered.mean() > 0.75
    draws = found.sample(400)
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert draws.mean() == pytest.approx(found.mean.mean(), abs=0.01)
