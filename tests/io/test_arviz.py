"""ArviZ reads a posterior: labels, numbers, and its own summary, loo and predictive plots."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.io.arviz import to_datatree
from tests.posterior.small_fits import BALANCED, known_fit, toy

with warnings.catch_warnings():  # they announce their next versions
    warnings.simplefilter("ignore")
    reason = "needs ArviZ: pip install pyro-tbr[arviz]"
    pytest.importorskip("arviz_base", reason=reason)
    arviz_stats = pytest.importorskip("arviz_stats", reason=reason)

NUM_DRAWS = 400


@pytest.fixture(scope="module")
def rows():
    return toy(BALANCED.leaves, num_rows=15, shift={"a": 3.0, "b": 3.0})


@pytest.fixture(scope="module")
def fitted(rows):
    return known_fit(BALANCED, *rows, intercept=True)


@pytest.fixture(scope="module")
def tree(rows, fitted):
    return to_datatree(fitted, *rows, num_draws=NUM_DRAWS)


@pytest.fixture(scope="module")
def framed(rows):
    """pandas objects, two outcomes, one value missing: x, y, env."""
    x, y, env = rows
    index = pd.Index([f"cell{i}" for i in range(len(y))])
    y = pd.DataFrame({"height": y, "mass": 10 - 2 * y}, index=index)
    y.iloc[2, 1] = np.nan
    return pd.DataFrame(x, index=index, columns=["size"]), y, pd.Series(env, index=index)


def test_draws_carry_the_users_labels(tree, fitted):
    group = tree["posterior"]
    assert dict(group["deltas"].sizes) == {
        "chain": 1, "draw": NUM_DRAWS, "arc": 6, "latent": 2, "outcome": 1,
    }  # fmt: skip
    assert group["arc"].values.tolist() == [f"{p} -> {c}" for p, c in BALANCED.arcs]
    assert group["latent"].values.tolist() == ["z0", "intercept"]
    assert group["noise_scale"].dims == ("chain", "draw", "outcome")
    assert group["gates"].dtype == np.int8
    draws = fitted.sample(NUM_DRAWS, seed=0)
    np.testing.assert_array_equal(group["deltas"].values[0], draws["deltas"])
    jump = group["deltas"].sel(arc="r -> u", latent="z0", outcome="y0")
    exact = fitted.deltas().query("child == 'u' and latent == 'z0'")
    assert float(jump.mean()) == pytest.approx(exact["mean"].item(), abs=0.3)


def test_log_likelihood_and_predictive_agree_with_the_prediction(tree, rows, fitted):
    x, y, env = rows
    assert dict(tree["log_likelihood"]["y"].sizes) == {"chain": 1, "draw": NUM_DRAWS, "row": 60}
    log_lik = torch.from_numpy(tree["log_likelihood"]["y"].values[0])
    score = (log_lik.logsumexp(0) - np.log(NUM_DRAWS)).mean()
    prediction = fitted.predict(x, env)
    assert score.item() == pytest.approx(prediction.log_score(y), abs=0.01)
    made = tree["posterior_predictive"]["y"].values[0]
    error = prediction.sd / NUM_DRAWS**0.5
    assert (np.abs(made.mean(0) - prediction.mean) < 5 * error).all()
    np.testing.assert_allclose(made.std(0), prediction.sd, rtol=0.25)
    np.testing.assert_array_equal(tree["observed_data"]["y"].values, y)
    assert tree["constant_data"]["env"].values.tolist() == env.tolist()


def test_summary_and_loo_run(tree, rows):
    table = arviz_stats.summary(tree, var_names=["root_weights", "noise_scale"], round_to="none")
    assert len(table) == 3
    assert (table["ess_bulk"] > 0.5 * NUM_DRAWS).any()
    with warnings.catch_warnings():  # of single rows that matter much
        warnings.filterwarnings("ignore", "Estimated shape parameter")
        loo = arviz_stats.loo(tree)
    assert (loo.pareto_k < 0.7).mean() > 0.9
    assert loo.n_data_points == len(rows[1])
    in_sample = np.log(np.exp(tree["log_likelihood"]["y"].values[0]).mean(0)).sum()
    assert in_sample - 12 < loo.elpd < in_sample  # some 9 weights and a noise scale are learnt


def test_ppc_plot_draws(tree):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of versions to come
        plots = pytest.importorskip("arviz_plots")
        from matplotlib import pyplot

        backend = pyplot.get_backend()
        pyplot.switch_backend("agg")
        plot = plots.plot_ppc_dist(tree, num_samples=20, backend="matplotlib")
        figure = plot.viz["figure"].item()
        figure.canvas.draw()
    assert len(figure.axes[0].lines) >= 21  # draws and what was observed
    pyplot.close(figure)
    pyplot.switch_backend(backend)


def test_several_outcomes_with_gaps_are_listed(framed):
    posterior = known_fit(BALANCED, *framed)
    tree = to_datatree(posterior, *framed, num_draws=50)
    observed = tree["observed_data"]["y"]
    names = observed["observation"].values.tolist()
    assert len(names) == 119
    assert names[:5] == [
        "cell0, height", "cell0, mass", "cell1, height", "cell1, mass", "cell2, height",
    ]  # fmt: skip
    assert float(observed.sel(observation="cell3, mass")) == framed[1].loc["cell3", "mass"]
    for group in ("log_likelihood", "posterior_predictive"):
        assert np.isfinite(tree[group]["y"].values).all()
    full = to_datatree(posterior, framed[0], framed[1].fillna(0.0), framed[2], num_draws=50)
    assert full["log_likelihood"]["y"].dims == ("chain", "draw", "row", "outcome")
    assert full["observed_data"]["outcome"].values.tolist() == ["height", "mass"]
    assert full["observed_data"]["row"].values[0] == "cell0"
    picked = full["log_likelihood"]["y"].sel(row="cell3", outcome="mass").values
    listed = tree["log_likelihood"]["y"].sel(observation="cell3, mass").values
    np.testing.assert_allclose(picked, listed)


def test_rows_without_the_one_outcome_are_left_out(rows, fitted):
    x, y, env = rows
    y = np.where(np.arange(len(y)) == 1, np.nan, y)
    tree = to_datatree(fitted, x, y, env, num_draws=10)
    assert tree["observed_data"]["row"].values[:3].tolist() == [0, 2, 3]
    assert tree["constant_data"]["env"].shape == (59,)


def test_binary_outcomes(rows):
    x, y, env = rows
    labels = (y > 0).astype(float)
    posterior = known_fit(BALANCED, x, labels, env, likelihood="bernoulli")
    tree = to_datatree(posterior, x, labels, env, num_draws=NUM_DRAWS)
    assert set(np.unique(tree["posterior_predictive"]["y"])) == {0.0, 1.0}
    log_lik = torch.from_numpy(tree["log_likelihood"]["y"].values[0])
    score = (log_lik.logsumexp(0) - np.log(NUM_DRAWS)).mean()
    assert score.item() == pytest.approx(posterior.predict(x, env).log_score(labels), abs=0.02)


@pytest.mark.parametrize("prior", [tbr.HorseshoePrior(), tbr.GaussianPrior()])
def test_other_priors_have_their_own_sites(prior, rows):
    posterior = known_fit(BALANCED, *rows, prior=prior)
    group = to_datatree(posterior, num_draws=20)
    assert list(group.children) == ["posterior"]
    sites = posterior.sample(2)
    assert set(group["posterior"].data_vars) == set(sites)
    assert all(group["posterior"][name].dims[:2] == ("chain", "draw") for name in sites)


def test_arcs_of_nodes_that_share_a_label_stay_apart():
    tree = tbr.Tree.from_newick("((a,b)x,(c,d)x,(e,f)x)x;")
    x, y, env = toy(tree.leaves, num_rows=5)
    group = to_datatree(known_fit(tree, x, y, env), num_draws=5)["posterior"]
    assert len(set(group["arc"].values.tolist())) == tree.num_arcs


def test_the_same_seed_gives_the_same_draws(rows, fitted):
    first, again, other = (to_datatree(fitted, *rows, num_draws=5, seed=seed) for seed in (1, 1, 2))
    for group, name in (("posterior", "deltas"), ("posterior_predictive", "y")):
        np.testing.assert_array_equal(first[group][name], again[group][name])
        assert (first[group][name].values != other[group][name].values).any()


def test_wrong_calls_say_what_and_how(rows, fitted):
    x, y, env = rows
    with pytest.raises(DataError, match="y and env missing: give x, y and env, or none"):
        to_datatree(fitted, x)
    with pytest.raises(DataError, match="num_draws=0 must be at least 1"):
        to_datatree(fitted, num_draws=0)
    with pytest.raises(DataError, match="y has no observed value"):
        to_datatree(fitted, x, np.full_like(y, np.nan), env)
    with pytest.raises(ShapeError):
        to_datatree(fitted, x, y[1:], env)


def test_without_arviz_one_line_says_what_to_install(monkeypatch, fitted):
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r"^to_datatree needs arviz-base: pip install .*arviz\]$"):
        to_datatree(fitted)
