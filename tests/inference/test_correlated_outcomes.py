"""Fits with a residual covariance, from tables to answers."""

import functools

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr

RHO, NOISE = 0.7, 0.3
FULL = tbr.GaussianLikelihood(covariance="full")
FAST = tbr.FitOptions(restarts=4, sparse_steps=50)


@functools.cache
def simulated(seed=0):
    """Data of three outcomes whose noise goes together, a tenth of them not observed."""
    sim = tbr.simulate(
        num_leaves=8, latent_dim=2, num_features=6, num_outcomes=3, rows_per_leaf=50,
        noise_correlation=RHO, noise_scale=NOISE, seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    y = pd.DataFrame(np.where(rng.random(sim.y.shape) < 0.1, np.nan, sim.y), columns=list("abc"))
    return sim, y


@functools.cache
def fitted(covariance="full", prior=None):
    sim, y = simulated()
    likelihood = tbr.GaussianLikelihood(covariance=covariance)
    model = tbr.TreeModel(sim.tree, 2, "identity", prior=prior, likelihood=likelihood)
    rows = np.arange(len(y)) % 2 == 0
    return tbr.fit(model, sim.z[rows], y[rows], sim.env[rows], progress=False), rows


def covered(posterior, rows):
    """Shares of outcomes and of their means in 90 % intervals, of rows held out."""
    sim = simulated()[0]
    new = np.concatenate([sim.rows(leaf, 100, seed=9)[1] for leaf in sim.tree.leaves])
    z = np.concatenate([sim.rows(leaf, 100, seed=9)[2] for leaf in sim.tree.leaves])
    env = np.repeat(np.array(sim.tree.leaves, dtype=object), 100)
    found = posterior.predict(z, env, level=0.9)
    inside = np.mean((found.lower <= new) & (new <= found.upper))
    low, high = np.quantile(np.asarray(found.sample(300, seed=0)).mean(-1), [0.05, 0.95], axis=0)
    return inside, np.mean((low <= new.mean(1)) & (new.mean(1) <= high))


def test_intervals_of_outcomes_and_of_their_mean_hold():
    posterior, rows = fitted()
    inside, joint = covered(posterior, rows)
    assert abs(inside - 0.9) < 0.03
    assert abs(joint - 0.9) < 0.04
    assert covered(fitted("diagonal")[0], rows)[1] < 0.8


def test_correlations_are_named_and_nothing_is_warned_of():
    posterior, rows = fitted()
    table = posterior.noise_correlation()
    assert list(table.index) == list(table.columns) == list("abc")
    off = table.to_numpy()[np.triu_indices(3, 1)]
    assert (abs(off - RHO) < 4 * (1 - RHO**2) / rows.sum() ** 0.5).all()
    assert not any("worth" in reason for reason in posterior.check().reasons)
    assert posterior.check().worth < 2
    apart = fitted("diagonal")[0]
    np.testing.assert_array_equal(apart.noise_correlation(), np.eye(3))
    assert any("covariance='full'" in reason for reason in apart.check().reasons)


def test_a_file_gives_the_same_answers_and_takes_more_rows(tmp_path):
    posterior, rows = fitted()
    sim, y = simulated()
    path = tmp_path / "fit.tbr"
    posterior.save(path)
    again = tbr.load(path)
    more = sim.z[~rows], y[~rows], sim.env[~rows]
    one, two = (p.update(*more) for p in (posterior, again))
    for before, after in ((posterior, again), (one, two)):
        left, right = (p.predict(sim.z[:20], sim.env[:20]) for p in (before, after))
        np.testing.assert_array_equal(left.mean, right.mean)
        np.testing.assert_array_equal(left.sample(4, seed=1), right.sample(4, seed=1))
        pd.testing.assert_frame_equal(before.noise_correlation(), after.noise_correlation())
    whole = tbr.fit(_model(), sim.z, y, sim.env, progress=False)
    here, there = (p.predict(sim.z, sim.env).mean for p in (one, whole))
    assert np.abs(here - there).mean() < 0.1 * NOISE  # scales stay those of before


def _model():
    return tbr.TreeModel(simulated()[0].tree, 2, "identity", likelihood=FULL)


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_learnt_latents(encoder):
    sim, y = simulated()
    model = tbr.TreeModel(sim.tree, 2, encoder, likelihood=FULL)
    options = FAST if encoder == "linear" else tbr.FitOptions(restarts=4, max_steps=150)
    posterior = tbr.fit(model, sim.x, y, sim.env, progress=False, options=options)
    off = posterior.noise_correlation().to_numpy()[np.triu_indices(3, 1)]
    assert (off > 0.5).all()
    assert posterior.predict(sim.x, sim.env).score(y)["r2"].min() > 0.9


def test_bases_are_averaged():
    sim, y = simulated()
    model = tbr.TreeModel(sim.tree, 2, "linear", likelihood=FULL)
    posterior = tbr.fit(model, sim.x, y, sim.env, progress=False, options=FAST)
    averaged = tbr.average_bases(posterior, max_bases=2, max_gap=1e6, progress=False)
    pd.testing.assert_frame_equal(averaged.noise_correlation(), posterior.noise_correlation())
    score = averaged.predict(sim.x, sim.env).log_score(y)
    assert score == pytest.approx(posterior.predict(sim.x, sim.env).log_score(y), abs=0.05)


@pytest.mark.parametrize(
    "prior",
    [
        tbr.GaussianPrior(),
        tbr.SpikeSlabPrior(gates="grouped"),
        pytest.param(tbr.HorseshoePrior(), marks=pytest.mark.slow),
    ],
    ids=["gaussian", "grouped", "horseshoe"],
)
def test_every_prior(prior):
    posterior, rows = fitted(prior=prior)
    assert abs(covered(posterior, rows)[1] - 0.9) < 0.05


def test_copies_of_an_outcome_say_what_one_says_and_are_named():
    sim, y = simulated()
    rng = np.random.default_rng(1)
    copies = sim.y[:, :1] + 0.2 * NOISE * rng.standard_normal((len(y), 5))
    found = {}
    for name, outcomes, covariance in (("one", copies[:, 0], None), ("all", copies, "full")):
        likelihood = tbr.GaussianLikelihood(covariance=covariance)
        model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=likelihood)
        posterior = tbr.fit(model, sim.z, outcomes, sim.env, progress=False)
        mean, var = (part[..., 0].numpy() for part in posterior.user_moments())
        found[name] = mean, var**0.5
    (mean, sd), (other, other_sd) = found["one"], found["all"]
    leaves = sim.tree.leaf_index.numpy()
    assert (np.abs(mean - other)[leaves] < 2 * sd[leaves]).all()
    assert np.median(other_sd[leaves] / sd[leaves]) > 5**-0.5  # else each would count
    assert any("y0 and y1" in reason for reason in posterior.check().reasons)


def test_one_outcome_is_alone():
    sim, y = simulated()
    scores = []
    for likelihood in (FULL, "gaussian"):
        model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=likelihood)
        posterior = tbr.fit(model, sim.z, y["a"], sim.env, progress=False)
        scores.append(posterior.predict(sim.z, sim.env).log_score(y["a"]))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("y_se", 0.1, "y_se"),
        ("groups", np.arange(400) % 7, "groups together with"),
        ("guide", "mean_field", "guide='tree'"),
        ("row_weights", np.random.default_rng(0).random((400, 3)), "row_weights has"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_training(argument, value, said):
    sim, y = simulated()
    with pytest.raises(tbr.DataError, match=said):
        tbr.fit(_model(), sim.z, y, sim.env, progress=False, **{argument: value})


def test_other_refusals():
    sim, y = simulated()
    mixed = {"a": FULL, "b": FULL, "c": "student_t"}
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=mixed)
    with pytest.raises(tbr.DataError, match="'a', 'b' beside outcomes of other kinds"):
        tbr.fit(model, sim.z, y, sim.env, progress=False)
    with pytest.raises(tbr.DataError, match="sample_posterior takes each outcome alone"):
        tbr.sample_posterior(fitted()[0])


@pytest.mark.parametrize(
    "likelihood",
    [FULL, tbr.GaussianLikelihood(latent_noise=True)],
    ids=["covariance", "latent noise"],
)
def test_a_latent_that_is_there_twice_leaves_predictions_as_they_are(likelihood):
    """Weights of copies are not told apart, so their trees hear little; their sum is known."""
    sim = tbr.simulate(
        num_leaves=16, shape="random", latent_dim=3, num_outcomes=2, rows_per_leaf=60,
        noise_scale=NOISE, latent_noise=0.3, seed=1,
    )  # fmt: skip
    twice = np.concatenate([sim.z, sim.z[:, :1]], axis=1)
    model = tbr.TreeModel(sim.tree, 4, "identity", likelihood=likelihood)
    with pytest.warns(tbr.ModelWarning, match="correlate"):
        found = tbr.fit(model, twice, sim.y, sim.env, progress=False).predict(twice, sim.env)
    errors = []
    for leaf in sim.tree.leaves:
        here = sim.env == leaf
        design = np.column_stack([sim.z[here], np.ones(here.sum())])
        own = design @ np.linalg.lstsq(design, sim.y[here], rcond=None)[0]
        errors.append(np.sqrt(np.mean((np.asarray(found.mean)[here] - own) ** 2)))
    assert np.median(errors) < 0.3
    assert max(errors) < 1
