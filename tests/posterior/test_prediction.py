"""Predictive distributions against closed forms, brute force and the model they stand for."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import r2_score, roc_auc_score

import pyro_tbr as tbr
from pyro_tbr.evaluation import interval_coverage
from pyro_tbr.posterior import prediction
from tests.brief import mostly_slow
from tests.posterior.small_fits import BALANCED, FAST, NOISE_SCALE, RATE, SLAB_SCALE, known_fit, toy

NUM_DRAWS = 6_000
FAR = np.array([[1.0, -2.0], [0.3, 0.3], [0.0, 3.0]])  # rows whose weights matter


def design_square(posterior):
    """Of rows seen from the latents' reference point, with the intercept's 1."""
    return ((FAR - posterior.latent_units.shift.numpy()) ** 2).sum(1) + 1


def test_log_score_is_the_mean_over_what_was_observed(held_out, monkeypatch):
    found = held_out.predict(FAR, "leaf3")
    y = found.mean + [0.2, np.nan, -1.4]
    rows = [held_out.predict(FAR[[i]], "leaf3").log_score(y[[i]]) for i in (0, 2)]
    assert found.log_score(y) == pytest.approx(np.mean(rows))
    np.testing.assert_allclose(found.log_scores(y), [rows[0], np.nan, rows[1]], rtol=1e-6)
    monkeypatch.setattr(prediction, "_CHUNK_ELEMENTS", 2)
    assert found.log_score(y) == pytest.approx(np.mean(rows))
    # At a leaf with rows the predictive distribution is nearly one normal.
    normal = stats.norm.logpdf(y, found.mean, found.sd)
    assert np.mean(rows) == pytest.approx(np.nanmean(normal), abs=0.05)
    with pytest.raises(tbr.DataError, match="no observed value"):
        found.log_score([np.nan] * 3)
    with pytest.raises(tbr.ShapeError, match="y has 2"):
        found.log_score([0.0, 1.0])


def test_all_of_it_is_one_table(held_out, several, frames):
    found = held_out.predict(FAR, "leaf3", level=0.5)
    table = found.to_frame()
    assert list(table.columns) == ["mean", "sd", "lower", "upper"]
    assert list(table.index) == [0, 1, 2]
    for name in table:
        np.testing.assert_array_equal(table[name], getattr(found, name))
    labels = pd.Series(["leaf3"] * 3, index=["r", "s", "t"])
    assert list(held_out.predict(FAR, labels).to_frame().index) == ["r", "s", "t"]
    x, _, env = frames
    found = several.predict(x.iloc[:4], env)
    table = found.to_frame()
    assert table.columns.names == ["outcome", "statistic"]
    assert table.shape == (4, 12)
    assert table.index.equals(x.index[:4])
    for name in ("mean", "sd", "lower", "upper"):
        part = table.xs(name, axis=1, level="statistic").rename_axis(columns=None)
        pd.testing.assert_frame_equal(part, getattr(found, name))


def test_scores_by_outcome(several, frames):
    x, y, env = frames
    y = y.copy()
    y.iloc[::3, 1], y["c"] = np.nan, np.nan
    found = several.predict(x, env, level=0.8)
    table = several.score(x, y.iloc[::-1], env, level=0.8)
    pd.testing.assert_frame_equal(table, found.score(y))
    assert table["num_rows"].tolist() == [len(y), y["b"].notna().sum(), 0]
    for name in ("a", "b"):
        seen, mean = y[name].notna(), found.mean[name]
        truth, row = y.loc[seen, name], table.loc[name]
        assert row["r2"] == pytest.approx(r2_score(truth, mean[seen]))
        assert row["log_score"] == pytest.approx(found.log_scores(y)[name].mean())
        lower, upper = found.lower[name][seen], found.upper[name][seen]
        assert row["coverage"] == interval_coverage(truth, lower, upper)
        assert abs(row["coverage"] - 0.8) < 0.1
    assert table.loc["c", "log_score":].isna().all()
    assert table["auroc"].isna().all()
    with pytest.raises(tbr.DataError, match="no observed value"):
        found.score(y * np.nan)
    assert several.score(x[:1], y[:1], env)["r2"].isna().all()  # one row: no spread


def test_scores_of_binary_outcomes():
    sim = tbr.simulate(num_leaves=3, latent_dim=1, num_features=1, rows_per_leaf=30,
                       likelihood="bernoulli", seed=3)  # fmt: skip
    model = tbr.TreeModel(sim.tree, 1, "identity", tbr.GaussianPrior(), "bernoulli")
    posterior = tbr.fit(model, sim.z, sim.y, sim.env, progress=False, options=FAST)
    row = posterior.score(sim.z, sim.y, sim.env).loc["y0"]
    probability = posterior.predict(sim.z, sim.env).mean
    assert row["auroc"] == pytest.approx(roc_auc_score(sim.y, probability))
    assert row[["r2", "coverage"]].isna().all()
    ones = sim.y == 1
    assert np.isnan(posterior.score(sim.z[ones], sim.y[ones], sim.env[ones])["auroc"].iloc[0])


def test_rows_of_one_draw_share_their_weights_in_chunks_too(held_out, monkeypatch):
    """At a leaf without rows weights differ by far more than the noise."""
    twice = np.array([[0.0, 30.0], [0.0, 30.0], [0.0, -30.0]])
    whole = held_out.predict(twice, "leaf5")
    expected = {name: getattr(whole, name) for name in ("mean", "sd", "lower", "upper")}
    monkeypatch.setattr(prediction, "_CHUNK_ELEMENTS", 2)  # a row a chunk
    parted = held_out.predict(twice, "leaf5")
    draws = parted.sample(1000, seed=1)
    assert draws.shape == (1000, 3)
    assert draws[:, 0].std() > 20 * NOISE_SCALE
    assert np.corrcoef(draws[:, 0], draws[:, 1])[0, 1] > 0.99
    assert np.corrcoef(draws[:, 0], draws[:, 2])[0, 1] < -0.99
    for name, value in expected.items():
        assert getattr(parted, name) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("level", [0, 1, -0.1, 90])
def test_level_is_a_probability(level, held_out):
    with pytest.raises(tbr.DataError, match=f"level={level}"):
        held_out.predict(FAR, "leaf3", level=level)
    with pytest.raises(tbr.DataError, match=f"level={level}"):
        held_out.deltas(level=level)


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_numbers_of_draws_are_whole(number, held_out):
    with pytest.raises(tbr.DataError, match="num_draws"):
        held_out.predict(FAR, "leaf3", num_draws=number)
    with pytest.raises(tbr.DataError, match="n="):
        held_out.predict(FAR, "leaf3").sample(number)


SURE = {"rate": 0.1, "slab": 2.0, "root": 3.0, "noise": 0.5}


@pytest.fixture(scope="module")
def mirrored():
    """Weights known to 0.05; nobody has rows at d; the second outcome is the first, negated."""
    x, y, env = toy("abc", num_rows=100, shift=dict.fromkeys("abc", 1.0))
    return known_fit(BALANCED, x, np.stack([y, -y], axis=1), env, **SURE)


def test_mean_and_sd_are_those_of_the_weights_in_closed_form(mirrored):
    """At a leaf with rows, one without, an inner node, a new leaf and an unknown environment."""
    x = np.array([[1.0], [-2.0], [0.0]])
    table = mirrored.node_weights().set_index(["node", "outcome"])
    rate, slab, noise = SURE["rate"], SURE["slab"], SURE["noise"]
    new = tbr.NewLeaf("new", "v")
    for q, outcome in enumerate(mirrored.outcome_names):
        for env, node, change in [("a", "a", 0), ("d", "d", 0), ("v", "v", 0), (new, "v", 1)]:
            mean, sd = table.loc[(node, outcome), ["mean", "sd"]]
            var = sd**2 + change * rate * slab**2
            found = mirrored.predict(x, env, num_draws=1)
            assert found.mean[:, q] == pytest.approx(x[:, 0] * mean, abs=1e-9)
            expected = np.sqrt(x[:, 0] ** 2 * var + noise**2)
            assert found.sd[:, q] == pytest.approx(expected, rel=1e-6)
        mean, sd = (
            table.loc[[(leaf, outcome) for leaf in "abc"], name].to_numpy()
            for name in ("mean", "sd")
        )
        found = mirrored.predict(x, None, num_draws=1)
        assert found.mean[:, q] == pytest.approx(x[:, 0] * mean.mean(), abs=1e-9)
        var = (sd**2).mean() + mean.var()
        assert found.sd[:, q] == pytest.approx(np.sqrt(x[:, 0] ** 2 * var + noise**2), rel=1e-6)


def test_leaf_without_rows_has_the_mean_of_its_ancestor(mirrored):
    """Its change is as likely to go up as down; with three draws, which a mean of draws shows."""
    x = np.array([[1.0]])
    at_leaf, at_parent = (mirrored.predict(x, node, num_draws=3) for node in ("d", "v"))
    assert at_leaf.mean == pytest.approx(at_parent.mean, abs=1e-6)
    assert (at_leaf.sd > 1.1 * at_parent.sd).all()


@pytest.mark.parametrize("env", ["a", "d", None, tbr.NewLeaf("new", "v")])
def test_outcomes_that_are_each_others_negative_mirror_each_other(mirrored, env):
    found = mirrored.predict(np.array([[1.0], [-2.0], [0.3]]), env)
    assert found.mean[:, 1] == pytest.approx(-found.mean[:, 0], abs=1e-12)
    assert found.sd[:, 1] == pytest.approx(found.sd[:, 0], rel=1e-12)


@pytest.mark.parametrize("env", ["a", "d", None, tbr.NewLeaf("new", "v")])
def test_quantiles_of_draws_fit_the_moments(mirrored, env):
    x = np.array([[1.0], [-2.0], [0.3]])
    found = mirrored.predict(x, env, level=0.8, num_draws=4000)
    assert (found.lower < found.mean).all()
    assert (found.mean < found.upper).all()
    inside = mirrored.predict(x, env, level=0.5, num_draws=4000)
    assert (found.lower < inside.lower).all()
    assert (inside.upper < found.upper).all()
    if env == "a":  # one normal
        z = stats.norm.ppf(0.9)
        for end, sign in ((found.lower, -1), (found.upper, 1)):
            assert np.abs(end - (found.mean + sign * z * found.sd)).max() < 0.01 * found.sd.max()


def test_moments_need_no_draws(mirrored, monkeypatch):
    """So that a million rows take seconds; quantiles are made when they are asked for."""

    def none(*_):
        raise AssertionError("drawn")

    monkeypatch.setattr(type(mirrored.guide), "sample", none)
    other = mirrored.copy()
    found = [other.predict(np.ones((2, 1)), env) for env in ("d", None, tbr.NewLeaf("n", "a"))]
    for one in found:
        assert np.isfinite([one.mean, one.sd]).all()
        with pytest.raises(AssertionError, match="drawn"):
            _ = one.lower


def test_prediction_is_pickled_with_all_it_can_be_asked(mirrored):
    found = mirrored.predict(np.ones((2, 1)), "d")
    again = pickle.loads(pickle.dumps(found))
    assert again.lower.tolist() == found.lower.tolist()
    assert again.sample(3, seed=2).tolist() == found.sample(3, seed=2).tolist()


def test_lower_and_upper_are_pandas_where_the_features_are(several, frames):
    x, _, env = frames
    found = several.predict(x[:5], env[:5])
    for value in (found.mean, found.sd, found.lower, found.upper):
        assert isinstance(value, pd.DataFrame)
        assert value.index.equals(x.index[:5])


def variance(posterior, env, x=FAR):
    """Of the predictor: without the noise, which is known."""
    return posterior.predict(x, env).sd ** 2 - NOISE_SCALE**2


def assert_adds(more, less, added):
    """Variances differ by what they should, up to single precision."""
    assert more - less == pytest.approx(added, rel=1e-4)


def test_each_arc_without_data_adds_its_prior_variance(held_out):
    """Rate times squared slab scale times the squared length of the row, an arc."""
    an_arc = RATE * SLAB_SCALE**2 * design_square(held_out)
    parent = held_out.tree.parent("leaf5")
    at_parent = variance(held_out, parent)
    at_leaf = variance(held_out, "leaf5")
    assert_adds(at_leaf, at_parent, an_arc)
    assert_adds(variance(held_out, tbr.NewLeaf("new", parent)), at_parent, an_arc)
    assert_adds(variance(held_out, tbr.NewLeaf("new", "leaf5")), at_leaf, an_arc)
    for seen in ("leaf0", "leaf3"):
        assert (variance(held_out, seen) < 0.2 * at_leaf).all()
        assert_adds(variance(held_out, tbr.NewLeaf("new", seen)), variance(held_out, seen), an_arc)


PRIORS = {
    "spike of some width": (tbr.SpikeSlabPrior(0.3 * 6, slab_scale=2.0, spike_scale=0.3), "tree"),
    "all learnt": (None, "tree"),
    "dense": (tbr.GaussianPrior(), "tree"),
    "horseshoe": (tbr.HorseshoePrior(2), "tree"),
    "mean field": (tbr.SpikeSlabPrior(0.3 * 6, slab_scale=2.0), "mean_field"),
    "dense, mean field": (tbr.GaussianPrior(), "mean_field"),
    "horseshoe, mean field": (tbr.HorseshoePrior(2), "mean_field"),
}


QUICK = [name for name in PRIORS if name not in ("mean field", "horseshoe, mean field")]


@pytest.mark.parametrize(("prior", "guide"), mostly_slow(PRIORS, *QUICK))
def test_a_new_leaf_has_the_variance_of_draws_of_its_change(prior, guide):
    x, y, env = toy("abcd", num_rows=40, shift={"a": 2.0, "d": -1.0})
    posterior = known_fit(BALANCED, x, y, env, prior=prior, guide=guide)
    num = 20_000
    hyper = posterior.draws(num, torch.Generator().manual_seed(0))
    generator, prior = torch.Generator().manual_seed(1), posterior.model.prior
    change = prior.draw_changes(hyper, generator, torch.ones(1))["deltas"][:, 0, 0, 0].numpy()
    found = posterior.guide.change_var(torch.ones(1)).item()
    error = 5 * (change**2).std() / math.sqrt(num)
    assert found == pytest.approx((change**2).mean(), abs=error, rel=0.02)
    one = np.ones((1, 1))
    at_parent, at_leaf = (posterior.predict(one, e).sd for e in ("a", tbr.NewLeaf("new", "a")))
    added = found * posterior.weight_unit[0, 0].item() ** 2
    assert at_leaf**2 - at_parent**2 == pytest.approx(added, rel=1e-6)


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
    seen = [posterior.predict(FAR, f"leaf{i}") for i in range(5)]
    means, sds = np.stack([p.mean for p in seen]), np.stack([p.sd for p in seen])
    mean = share @ means
    sd = np.sqrt(share @ (sds**2 + (means - mean) ** 2))
    found = posterior.predict(FAR, None, num_draws=NUM_DRAWS)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.sd == pytest.approx(sd, rel=1e-9)
    draws = found.sample(NUM_DRAWS)
    for value, probability in [(found.lower, 0.05), (found.upper, 0.95)]:
        assert (draws < value).mean(0) == pytest.approx(np.full(3, probability), abs=0.02)


def test_unknown_environment_of_binary_outcomes_is_a_mixture_of_probabilities(binary, binary_sim):
    x = 3 * binary_sim.z[:20]
    seen = np.stack([binary.predict(x, leaf).mean for leaf in binary.tree.leaves])
    share = binary.row_counts[binary.tree.leaf_index].numpy() / binary.row_counts.sum().item()
    found = binary.predict(x, None)
    assert found.mean == pytest.approx(share @ seen, rel=1e-9)
    assert found.sd == pytest.approx(np.sqrt(found.mean * (1 - found.mean)), rel=1e-9)
    draws = found.sample(4000)
    assert np.abs(draws.mean(0) - found.mean).max() < 0.08


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
    at_parent = with_lengths.predict(FAR, "leaf3")
    none = with_lengths.predict(FAR, tbr.NewLeaf("new", "leaf3", length=0))
    assert none.mean.tolist() == at_parent.mean.tolist()
    assert none.sd.tolist() == at_parent.sd.tolist()
    mean_length = 11 / 10
    for length, relative in [(None, 1.0), (mean_length, 1.0), (3.3, 3.0)]:
        change = (1 - (1 - RATE) ** relative) * SLAB_SCALE**2 * design_square(with_lengths)
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
