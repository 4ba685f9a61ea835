"""A sampled posterior answers whatever a fitted one does, from its draws, and refuses the rest."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.posterior.convergence import warn_unconverged
from tests.posterior.small_fits import BALANCED, FAST, NOISE_SCALE, known_fit, toy


def quiet(posterior, **kwargs):
    """Sampled with few sweeps, so a warning may come and says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.ConvergenceWarning)
        return tbr.sample_posterior(posterior, **kwargs)


@pytest.fixture(scope="module")
def sampled(held_out):
    """Two known latents and an intercept, all scales known; no rows at leaf5."""
    return quiet(held_out, num_sweeps=120, seed=1)


def test_every_answer_is_that_of_the_draws(sampled, sim):
    draws = sampled.sample(sampled.guide.num_chains * sampled.guide.num_draws)
    table, pips = sampled.deltas(0.8), sampled.pips()
    known = sampled.guide.informed_arcs.numpy()
    flat = draws["deltas"].reshape(len(draws["deltas"]), -1)
    np.testing.assert_allclose(table["mean"], flat.mean(0), atol=1e-5)
    np.testing.assert_allclose(table["sd"], flat.std(0), rtol=1e-3, atol=1e-5)
    inner = (flat >= table["lower"].to_numpy() - 1e-6) & (flat <= table["upper"].to_numpy() + 1e-6)
    assert inner.mean(0).min() > 0.78
    gates = draws["gates"].mean(0)[..., 0]
    np.testing.assert_allclose(pips[known], gates[known], atol=0.06)
    path = sampled.tree.path("leaf0")
    share = draws["gates"][:, path].any(1).mean(0)[:, 0]
    np.testing.assert_allclose(sampled.path_pips("leaf0"), share, atol=0.06)
    above = np.abs(draws["deltas"]).reshape(len(flat), -1) > 0.5
    np.testing.assert_allclose(sampled.exceedance(0.5)["exceedance"], above.mean(0), atol=0.05)
    root = sampled.node_weights().query("node == @sampled.tree.root")
    np.testing.assert_allclose(root["mean"], draws["root_weights"].mean(0).ravel(), atol=1e-4)
    assert (sampled.select(0.1)["fdr"] <= 0.1).all()
    assert (sampled.credible_sets()["coverage"] >= 0.95).all()
    assert str(round(NOISE_SCALE, 4)) in str(sampled.summary())


@pytest.mark.parametrize("where", ["leaf0", "leaf5", None, "new"])
def test_predictions_are_those_of_the_draws(sampled, sim, where):
    env = tbr.NewLeaf("new", "leaf5") if where == "new" else where
    x = np.array([[1.0, -2.0], [0.3, 0.3], [0.0, 3.0]])
    found = sampled.predict(x, env, num_draws=960)
    draws = found.sample(30_000)
    np.testing.assert_allclose(found.mean, draws.mean(0), atol=0.05 * draws.std(0).max())
    np.testing.assert_allclose(found.sd, draws.std(0), rtol=0.06)
    assert ((found.lower < found.mean) & (found.mean < found.upper)).all()


def correlated(seed=0):
    """Two latents whose weights are known together, not apart."""
    x, y, env = toy("abcd", num_rows=30, shift={"a": 1.0}, seed=seed)
    rng = np.random.default_rng(seed)
    return np.concatenate([x, x + 0.1 * rng.standard_normal(x.shape)], 1), y, env


def test_predictions_know_how_latents_go_together():
    """Where the rows are, their predictor is known, though neither weight is."""
    x, y, env = correlated()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.ConvergenceWarning)
        fit = known_fit(BALANCED, x, y, env)
    sampled = quiet(fit, num_sweeps=100)
    weights = sampled.guide.node_moments()
    leaf = BALANCED.index("b")
    apart = weights.var[leaf].sum().sqrt().item()
    spread = np.sqrt(sampled.predict([[1.0, 1.0]], "b").sd ** 2 - 0.5**2)
    assert spread < 0.4 * apart
    cov = sampled.guide.node_cov(torch.tensor([leaf]))[0, 0]
    assert torch.allclose(cov.diagonal(), weights.var[leaf, :, 0].double(), rtol=1e-3)


def test_a_file_gives_the_same_answers(sampled, tmp_path):
    sampled.save(tmp_path / "sampled.pt")
    again = tbr.load(tmp_path / "sampled.pt")
    assert again.pips().equals(sampled.pips())
    assert again.deltas().equals(sampled.deltas())
    assert again.convergence().equals(sampled.convergence())
    same = zip(again.sample(5, seed=2).values(), sampled.sample(5, seed=2).values(), strict=True)
    assert all((one == two).all() for one, two in same)


def test_the_fit_stays_and_the_seed_decides(held_out):
    before = held_out.deltas()
    one, two, other = (
        quiet(held_out, num_chains=2, num_sweeps=40, seed=seed) for seed in (0, 0, 1)
    )
    assert one.pips().equals(two.pips())
    assert not one.pips().equals(other.pips())
    assert held_out.deltas().equals(before)
    assert held_out.guide.factor is not one.guide.factor


def test_several_outcomes_in_the_users_units(several, frames):
    sampled = quiet(several, num_chains=2, num_sweeps=50)
    assert list(sampled.pips().columns) == list(several.pips().columns)
    x, y, env = frames
    found, own = sampled.predict(x, env), several.predict(x, env)
    assert (found.mean - own.mean).abs().max().max() < 0.5 * own.sd.max().max()
    assert list(sampled.convergence().index)[:2] == ["gates", "node weights"]


def test_rows_at_the_root_alone_leave_every_change_its_prior():
    x, y, env = toy([BALANCED.root], num_rows=40)
    sampled = quiet(known_fit(BALANCED, x, y, env, rate=0.2), num_sweeps=60)
    assert (sampled.pips() - 0.2).abs().to_numpy().max() < 1e-6
    root = sampled.node_weights().set_index("node").loc[BALANCED.root]
    assert abs(root["mean"]) < 5 * root["sd"]
    assert root["sd"] == pytest.approx(0.5 / 40**0.5, rel=0.3)


def test_a_warning_says_what_where_and_what_to_do(held_out):
    with pytest.warns(tbr.ConvergenceWarning, match=r"node weights: R-hat up to .*num_sweeps=160"):
        tbr.sample_posterior(held_out, num_chains=2, num_sweeps=40)


def test_gates_alone_and_good_chains_do_not_warn(sampled):
    table = sampled.convergence()
    table.loc[:, "max_rhat"], table.loc[:, "min_ess"] = 1.002, 900.0
    table.loc["gates", "max_rhat"] = 1.2
    warn_unconverged(table, 100)
    table.loc["node weights", "min_ess"] = 300.0
    with pytest.warns(tbr.ConvergenceWarning, match="effective draws down to 300"):
        warn_unconverged(table, 100)


def other_prior(posterior, prior, **kwargs):
    x, y, env = toy("abcd", num_rows=20, shift={"a": 1.0})
    return known_fit(BALANCED, x, y, env, prior=prior, **kwargs)


class Own(tbr.SpikeSlabPrior):
    """A user's, of which nobody knows what it changes."""


@pytest.mark.parametrize(("prior", "message"), [
    (tbr.HorseshoePrior(), "HorseshoePrior: fit with one"),
    (Own(), "the prior is Own"),
    (tbr.GaussianPrior(pooled=True), "pooled=False"),
])  # fmt: skip
def test_other_priors_are_refused(prior, message):
    fit = other_prior(None, prior, restarts=4, sparse_steps=20)
    with pytest.raises(tbr.DataError, match=message):
        tbr.sample_posterior(fit)


@pytest.mark.parametrize(("call", "message"), [
    (lambda s, f, b: tbr.sample_posterior(b), "normal outcomes"),
    (lambda s, f, b: tbr.sample_posterior(f, num_chains=1), "num_chains=1"),
    (lambda s, f, b: tbr.sample_posterior(f, num_sweeps=2.5), "num_sweeps=2.5"),
    (lambda s, f, b: s.update([[0.0, 1.0]], [1.0], "leaf0"), "sample_posterior\\(\\) again"),
    (lambda s, f, b: s.guide.elbo(s.stats), "holds draws"),
    (lambda s, f, b: s.guide(), "holds draws"),
    (lambda s, f, b: f.convergence(), "sample_posterior\\(posterior\\).convergence"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused(call, message, sampled, held_out, binary):
    with pytest.raises(tbr.DataError, match=message):
        call(sampled, held_out, binary)


def test_dense_changes_have_intervals_from_draws(sim):
    prior = tbr.GaussianPrior()
    model = tbr.TreeModel(sim.tree, 2, encoder="identity", prior=prior)
    fit = tbr.fit(model, sim.z, sim.y, sim.env, progress=False, options=FAST)
    sampled = quiet(fit, num_sweeps=100)
    assert (sampled.pips() == 1).all().all()
    gap = sampled.node_weights()["mean"] - fit.node_weights()["mean"]
    assert (gap.abs() < 0.7 * fit.node_weights()["sd"]).all()
    with pytest.raises(tbr.DataError, match="gates"):
        sampled.path_pips("leaf0")
    assert replace(sampled).convergence().index[0] == "node weights"
