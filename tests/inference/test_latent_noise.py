"""Fits of noisy latents, from tables to answers."""

import functools
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.io.arviz import to_datatree

OMEGA, NOISE = 0.5, 0.3
NOISY = tbr.GaussianLikelihood(latent_noise=True)
FAST = tbr.FitOptions(restarts=4, sparse_steps=50)


@functools.cache
def simulated(num_outcomes=3):
    """Data of two noisy latents, in units of their own; a tenth of the outcomes not observed."""
    sim = tbr.simulate(
        num_leaves=10, latent_dim=2, num_features=6, num_outcomes=num_outcomes, rows_per_leaf=60,
        noise_scale=NOISE, latent_noise=OMEGA, seed=4,
    )  # fmt: skip
    missing = np.random.default_rng(0).random(sim.y.shape) < 0.1
    names = [f"y{q}" for q in range(num_outcomes)]
    y = np.where(missing, np.nan, sim.y).reshape(-1, num_outcomes)
    return sim, 100.0 + 7.0 * pd.DataFrame(y, columns=names)


@functools.cache
def fitted(noisy=True, prior=None):
    sim, y = simulated()
    likelihood = tbr.GaussianLikelihood(latent_noise=noisy)
    model = tbr.TreeModel(sim.tree, 2, "identity", prior=prior, likelihood=likelihood)
    x = pd.DataFrame(50 + 4 * sim.z, columns=["age", "dose"])
    return tbr.fit(model, x, y, sim.env, progress=False)


def test_noise_of_latents_is_in_their_unit_and_that_of_outcomes_in_theirs():
    table = fitted().latent_noise()
    assert list(table.index) == ["age", "dose"]
    assert list(table.columns) == ["mean", "lower", "upper"]
    assert (np.abs(table["mean"] / (4 * OMEGA) - 1) < 0.2).all()
    assert ((table["lower"] < table["mean"]) & (table["mean"] < table["upper"])).all()
    noise = fitted().noise().groupby("outcome")["mean"].mean()
    assert (np.abs(noise / (7 * NOISE) - 1) < 0.2).all()
    with pytest.raises(tbr.DataError, match="have none: fit with"):
        fitted(noisy=False).latent_noise()
    with pytest.raises(tbr.DataError, match="differ between environments"):
        fitted().noise_correlation()


def new_rows(leaves, num=300):
    sim = simulated()[0]
    drawn = [sim.rows(leaf, num, seed=9) for leaf in leaves]
    y, z = (np.concatenate([rows[i] for rows in drawn]) for i in (1, 2))
    env = np.repeat(np.array(leaves, dtype=object), num)
    return pd.DataFrame(50 + 4 * z, columns=["age", "dose"]), 100 + 7 * y, env


def test_intervals_of_outcomes_and_of_their_mean_hold_and_none_is_warned_of():
    sim = simulated()[0]
    x, y, env = new_rows(sim.tree.leaves)
    found = fitted().predict(x, env, level=0.9)
    inside = (found.lower <= y) & (y <= found.upper)
    assert abs(inside.to_numpy().mean() - 0.9) < 0.02
    by_leaf = inside.groupby(env).mean().to_numpy()
    assert by_leaf.min() > 0.8
    means = np.asarray(found.sample(300, seed=0)).mean(-1)
    low, high = np.quantile(means, [0.05, 0.95], axis=0)
    assert abs(np.mean((low <= y.mean(1)) & (y.mean(1) <= high)) - 0.9) < 0.03
    assert not fitted().check().reasons
    draws = found.sample(2000, seed=1)
    off = (draws.mean(0) - found.mean) / found.sd
    assert off.abs().to_numpy().max() < 0.2  # of 2,000 draws, with those of 400 sets of weights
    np.testing.assert_allclose(draws.std(0), found.sd, rtol=0.15)


def test_outcomes_of_several_do_better_together():
    x, y, env = new_rows(simulated()[0].tree.leaves)
    one, two = (fitted(noisy).predict(x, env).log_score(y) for noisy in (True, False))
    assert one > two
    sd = [np.mean(fitted(noisy).user_moments().var.numpy() ** 0.5) for noisy in (True, False)]
    assert sd[0] < 1.1 * sd[1]


def test_a_new_leaf_and_an_unknown_place_have_their_weights_noise():
    posterior, sim = fitted(), simulated()[0]
    x = new_rows(sim.tree.leaves[:1], 3)[0]
    for env in (tbr.NewLeaf("new", sim.tree.root), None):
        found = posterior.predict(x, env)
        draws = np.asarray(found.sample(4000, seed=2))
        np.testing.assert_allclose(draws.std(0), found.sd, rtol=0.2)
        assert (found.sd > 2 * 7 * NOISE).to_numpy().all()


def test_a_file_gives_the_same_answers_and_takes_more_rows(tmp_path):
    posterior, sim = fitted(), simulated()[0]
    path = tmp_path / "fit.tbr"
    posterior.save(path)
    again = tbr.load(path)
    leaf = sim.tree.leaves[3]
    x, y, env = new_rows([leaf], 40)
    one, two = (p.update(x, y, env) for p in (posterior, again))
    for before, after in ((posterior, again), (one, two)):
        left, right = (p.predict(x, env) for p in (before, after))
        np.testing.assert_array_equal(left.mean, right.mean)
        np.testing.assert_array_equal(left.sd, right.sd)
        np.testing.assert_array_equal(left.sample(3, seed=1), right.sample(3, seed=1))
        pd.testing.assert_frame_equal(before.latent_noise(), after.latent_noise())
    pd.testing.assert_frame_equal(one.latent_noise(), posterior.latent_noise())  # of all, so kept
    node = sim.tree.index(leaf)
    before, after = (p.user_moments() for p in (posterior, one))
    assert (after.var[node] < before.var[node]).all()
    error = np.abs(after.mean[node, :2].numpy() - sim.node_weights[node] * 7 / 4)
    assert (error < 4 * after.var[node, :2].numpy() ** 0.5).all()


def test_an_environments_first_rows_bring_its_noise_along():
    sim, y = simulated()
    leaf = sim.tree.leaves[0]
    out = sim.env == leaf
    x = pd.DataFrame(50 + 4 * sim.z, columns=["age", "dose"])
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=NOISY)
    without = tbr.fit(model, x[~out], y[~out], sim.env[~out], progress=False)
    updated = without.update(x[out], y[out], sim.env[out])
    node = sim.tree.index(leaf)
    whole = fitted().user_moments()
    error = (updated.user_moments().mean - whole.mean)[node].abs().numpy()
    assert (error < 1.0 * whole.var[node].numpy() ** 0.5).all()
    left, right = (p.predict(x[out][:5], leaf).sd for p in (updated, fitted()))
    np.testing.assert_allclose(left, right, rtol=0.05)


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_learnt_latents(encoder):
    sim, y = simulated()
    model = tbr.TreeModel(sim.tree, 2, encoder, likelihood=NOISY)
    options = FAST if encoder == "linear" else tbr.FitOptions(restarts=4, max_steps=150)
    posterior = tbr.fit(model, sim.x, y, sim.env, progress=False, options=options)
    assert (np.abs(posterior.latent_noise()["mean"] / OMEGA - 1) < 0.3).all()
    assert tbr.mcc(sim.z, posterior.encode(sim.x)) > 0.95


def test_latents_that_are_not_needed_have_no_noise():
    sim, y = simulated()
    model = tbr.TreeModel(sim.tree, 4, "linear", likelihood=NOISY)
    posterior = tbr.fit(model, sim.x, y, sim.env, progress=False, options=FAST)
    table, unused = posterior.latent_noise(), posterior.identification().unused
    assert len(unused) == 2
    assert (table.loc[list(unused)] == 0).all().all()
    x, new, env = new_rows(sim.tree.leaves)
    x = np.concatenate([sim.rows(leaf, 300, seed=9)[0] for leaf in sim.tree.leaves])
    found = posterior.predict(x, env)
    assert abs(np.mean((found.lower <= new) & (new <= found.upper)) - 0.9) < 0.03


@pytest.mark.parametrize(
    "prior",
    [tbr.GaussianPrior(), tbr.SpikeSlabPrior(gates="grouped"), tbr.HorseshoePrior()],
    ids=["gaussian", "grouped", "horseshoe"],
)
@pytest.mark.slow
def test_every_prior(prior):
    x, y, env = new_rows(simulated()[0].tree.leaves)
    found = fitted(prior=prior).predict(x, env)
    assert abs(np.mean((found.lower <= y) & (y <= found.upper)) - 0.9) < 0.03


def test_noise_of_latents_beside_that_of_each_environment():
    sim, y = simulated()
    likelihood = tbr.GaussianLikelihood(noise="by_environment", latent_noise=2.0)
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=likelihood)
    posterior = tbr.fit(model, 50 + 4 * sim.z, y, sim.env, progress=False)
    np.testing.assert_allclose(posterior.latent_noise()["mean"], 2.0)
    seen = posterior.noise()["node"].isin(sim.tree.leaves)
    noise = posterior.noise()[seen].groupby("outcome")["mean"].mean()
    assert (np.abs(noise / (7 * NOISE) - 1) < 0.2).all()


def test_one_outcome():
    sim = simulated(1)[0]
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=NOISY)
    posterior = tbr.fit(model, sim.z, sim.y, sim.env, progress=False)
    leaves = [sim.tree.index(leaf) for leaf in sim.tree.leaves]
    mean, var = (part[leaves, :2].numpy() for part in posterior.user_moments())
    truth = sim.node_weights[leaves].reshape(mean.shape)
    reach = NormalDist().inv_cdf(0.95) * var**0.5
    assert np.mean(np.abs(mean - truth) < reach) > 0.8
    new = [sim.rows(leaf, 200, seed=3) for leaf in sim.tree.leaves]
    inside = []
    for leaf, (_, y, z) in zip(sim.tree.leaves, new, strict=True):
        found = posterior.predict(z, leaf)
        inside.append(np.mean((found.lower <= y) & (y <= found.upper)))
    assert abs(np.mean(inside) - 0.9) < 0.025


def test_what_takes_each_outcome_alone_says_so():
    sim, y = simulated()
    given = (sim.z, y, sim.env)
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=NOISY)
    with pytest.raises(tbr.DataError, match="latent_noise"):
        tbr.fit(model, *given, guide="mean_field", progress=False)
    with pytest.raises(tbr.DataError, match="groups together with latent_noise"):
        tbr.fit(model, *given, groups=np.arange(len(y)) // 2, progress=False)
    with pytest.raises(tbr.DataError, match="latent_noise together with y_se"):
        tbr.fit(model, *given, y_se=0.1 * np.ones(len(y)), progress=False)
    weights = np.ones(y.shape)
    weights[3, 1] = 2.0
    with pytest.raises(tbr.DataError, match="row_weights.*leave latent_noise out"):
        tbr.fit(model, *given, row_weights=weights, progress=False)
    with pytest.raises(tbr.DataError, match="sample_posterior takes each outcome alone"):
        tbr.sample_posterior(fitted())
    mixed = {"y0": NOISY, "y1": "student_t", "y2": "gaussian"}
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=mixed)
    with pytest.raises(tbr.DataError, match="latent_noise for 'y0' beside outcomes"):
        tbr.fit(model, *given, progress=False)


def test_bases_are_not_averaged():
    sim, y = simulated()
    model = tbr.TreeModel(sim.tree, 2, "linear", likelihood=NOISY)
    posterior = tbr.fit(model, sim.x, y, sim.env, progress=False, options=FAST)
    with pytest.raises(tbr.DataError, match="latent_noise"):
        tbr.average_bases(posterior, progress=False)


def test_draws_for_arviz_name_the_latents():
    pytest.importorskip("arviz_base")
    sim, y = simulated()
    x = pd.DataFrame(50 + 4 * sim.z[:12], columns=["age", "dose"])
    tree = to_datatree(fitted(), x, y[:12], sim.env[:12], num_draws=300)
    noise = tree["posterior"]["latent_noise_scale"]
    assert list(noise.coords["noisy_latent"].values) == ["age", "dose"]
    table = fitted().latent_noise()["mean"]
    np.testing.assert_allclose(noise.mean(("chain", "draw")), table, rtol=0.05)
    drawn = tree["posterior_predictive"]["y"].std(("chain", "draw")).values
    assert np.isfinite(drawn).all()
