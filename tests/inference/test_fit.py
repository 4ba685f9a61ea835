import copy
import dataclasses
import importlib
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

import pyro_tbr as tbr
from tests.brief import mostly_slow
from tests.inference.problems import BRIEF, QUICK
from tests.oracles import dense_paths, enumerate_posterior
from tests.tree.small_trees import SMALL_TREES


def simulated(**kwargs):
    sizes = {"num_leaves": 16, "latent_dim": 3, "num_features": 8, "num_outcomes": 2}
    return tbr.simulate(**(sizes | {"rows_per_leaf": 40, "seed": 1} | kwargs))


def fitted(data, encoder="linear", options=QUICK, **kwargs):
    model_kwargs = {k: kwargs.pop(k) for k in ("prior", "likelihood", "intercept") if k in kwargs}
    model = tbr.TreeModel(data.tree, data.z.shape[1], encoder, **model_kwargs)
    return tbr.fit(model, data.x, data.y, data.env, progress=False, options=options, **kwargs)


def test_latents_changes_and_noise_are_recovered():
    data = simulated(latent_dim=2)
    posterior = fitted(data)
    assert tbr.mcc(data.z, posterior.encode(data.x)) > 0.99
    noise = posterior.summary().noise_scale
    # 640 rows: the standard error of a noise sd is 3 % of it.
    np.testing.assert_allclose(noise, data.noise_scale, rtol=0.13)
    predicted = posterior.predict(data.x, data.env).mean
    assert np.mean((predicted - data.y) ** 2) < 1.1 * data.noise_scale**2


EVERY = {
    f"{prior!r}-{guide}": (prior, guide)
    for prior in (tbr.SpikeSlabPrior(), tbr.HorseshoePrior(), tbr.GaussianPrior())
    for guide in ("tree", "mean_field")
}


@pytest.mark.parametrize(
    ("prior", "guide"),
    mostly_slow(
        EVERY,
        *(name for name in EVERY if name.endswith("tree")),
        f"{tbr.GaussianPrior()!r}-mean_field",
    ),
)
def test_every_prior_goes_through_the_same_fit(prior, guide):
    data = simulated(num_leaves=8, latent_dim=2, num_outcomes=3, missing=0.1)
    posterior = fitted(data, prior=prior, guide=guide)
    truth = data.node_weights
    assert tbr.mcc(data.z, posterior.encode(data.x)) > 0.98
    moments = posterior.user_moments()
    assert moments.mean.shape == (*truth.shape[:1], 3, 3)
    predicted = posterior.predict(data.x, data.env)
    error = np.nanmean((predicted.mean - data.y) ** 2)
    assert error < 1.2 * data.noise_scale**2


def test_binary_outcomes():
    data = simulated(
        likelihood="bernoulli", num_leaves=8, rows_per_leaf=100, num_outcomes=4, latent_dim=2
    )
    posterior = fitted(data, likelihood="bernoulli")
    assert tbr.mcc(data.z, posterior.encode(data.x)) > 0.95
    prediction = posterior.predict(data.x, data.env)
    assert ((prediction.mean > 0) & (prediction.mean < 1)).all()
    logits = (data.z[:, :, None] * data.node_weights[[data.tree.index(e) for e in data.env]]).sum(1)
    best = np.mean((1 / (1 + np.exp(-logits)) - data.y) ** 2)
    assert np.mean((prediction.mean - data.y) ** 2) < best + 0.01


@pytest.mark.parametrize("shape", ["cherry", "balanced", "star", "unary chain"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_known_encoder_and_fixed_hyperparameters_match_enumeration(shape, scale):
    tree = SMALL_TREES[shape]
    generator = np.random.default_rng(0)
    leaves = np.array(tree.leaves, dtype=object)
    env = np.repeat(leaves, 30)
    x = generator.normal(size=(len(env), 1))
    weights = generator.normal(size=len(leaves)) * 0.4
    y = scale * (np.repeat(weights, 30) * x[:, 0] + 0.5 * generator.normal(size=len(env)))
    prior = tbr.SpikeSlabPrior(inclusion_prob=0.3, slab_scale=0.7 * scale, root_scale=2.0 * scale)
    model = tbr.TreeModel(
        tree,
        1,
        encoder="identity",
        prior=prior,
        likelihood=tbr.GaussianLikelihood(scale=0.5 * scale),
        intercept=False,
    )
    posterior = tbr.fit(model, x, y, env, progress=False)
    lam, eta = np.zeros(tree.num_nodes), np.zeros(tree.num_nodes)
    for leaf in leaves:
        rows = env == leaf
        lam[tree.index(leaf)] = (x[rows, 0] ** 2).sum() / 0.25
        eta[tree.index(leaf)] = (x[rows, 0] * y[rows] / scale).sum() / 0.25
    exact = enumerate_posterior(
        dense_paths(tree),
        torch.tensor(eta),
        torch.tensor(lam),
        inclusion_prob=0.3,
        slab_scale=0.7,
        root_scale=2.0,
    )
    np.testing.assert_allclose(posterior.pips()["z0"], exact.pips, atol=0.02)
    mean = posterior.node_weights()["mean"] / scale
    np.testing.assert_allclose(mean, exact.node_mean, atol=0.02)


def test_same_seed_same_result_whatever_ran_before(tmp_path):
    """Bit for bit, in this process and in another."""
    script = textwrap.dedent(
        """
        import sys
        import torch
        import pyro_tbr as tbr
        from tests.brief import search_steps
        from tests.inference.problems import BRIEF
        torch.set_num_threads(1)
        data = tbr.simulate(num_leaves=4, latent_dim=2, num_features=5, num_outcomes=2,
                            rows_per_leaf=30, seed=1)
        model = tbr.TreeModel(data.tree, 2, "linear")
        with search_steps(200):  # as in this process
            fit = tbr.fit(model, data.x, data.y, data.env, progress=False, seed=3, options=BRIEF)
        fit.deltas().to_pickle(sys.argv[1])
        """
    )
    path = tmp_path / "deltas.pkl"
    run = [sys.executable, "-c", script, str(path)]
    subprocess.run(run, check=True, cwd=Path(__file__).parents[2])
    data = tbr.simulate(
        num_leaves=4, latent_dim=2, num_features=5, num_outcomes=2, rows_per_leaf=30, seed=1
    )
    first = fitted(data, seed=3, options=BRIEF)
    other = fitted(data, seed=4, options=BRIEF)
    again = fitted(data, seed=3, options=BRIEF)
    pd.testing.assert_frame_equal(first.deltas(), again.deltas(), check_exact=True)
    pd.testing.assert_frame_equal(first.deltas(), pd.read_pickle(path), check_exact=True)
    np.testing.assert_array_equal(
        first.predict(data.x, data.env).lower, again.predict(data.x, data.env).lower
    )
    assert (first.deltas()["mean"] != other.deltas()["mean"]).any()


def test_fit_leaves_model_data_and_param_store_alone():
    pyro.get_param_store()["user.weight"] = torch.ones(2)
    try:
        data = simulated(num_leaves=4, latent_dim=2)
        model = tbr.TreeModel(data.tree, 2, "linear")
        x, y = data.x.copy(), data.y.copy()
        tbr.fit(model, data.x, data.y, data.env, progress=False, options=BRIEF)
        assert model.num_features is None
        assert list(pyro.get_param_store().keys()) == ["user.weight"]
        np.testing.assert_array_equal(x, data.x)
        np.testing.assert_array_equal(y, data.y)
    finally:
        pyro.get_param_store().clear()


def test_held_out_leaf_keeps_the_prior_and_inner_rows_inform():
    data = simulated(num_leaves=8, latent_dim=2)
    leaf = data.tree.leaves[3]
    x, y, env = data.without([leaf])
    inner = data.tree.parent(leaf)
    extra_x, extra_y, _ = data.rows(inner, 30, seed=5)
    env = np.concatenate([np.asarray(env, dtype=object), np.repeat(np.array([inner], object), 30)])
    model = tbr.TreeModel(data.tree, 2, "linear")
    posterior = tbr.fit(
        model,
        np.concatenate([x, extra_x]),
        np.concatenate([y, extra_y]),
        env,
        progress=False,
        options=QUICK,
    )
    deltas = posterior.deltas()
    held = deltas[deltas["child"] == leaf]
    np.testing.assert_allclose(held["pip"], held["prior_pip"], rtol=1e-6)
    np.testing.assert_allclose(held["mean"], 0, atol=1e-9)
    new_x, new_y, _ = data.rows(inner, 200, seed=6)
    at_inner = posterior.predict(new_x, inner)
    error = np.mean((at_inner.mean - new_y) ** 2, axis=0)
    assert (error < 1.5 * data.noise_scale**2).all()
    assert (posterior.predict(new_x, leaf).sd > at_inner.sd).all()


KINDS = {
    f"{encoder}-{guide}-{likelihood}": (encoder, guide, likelihood)
    for encoder in ("linear", "identity")
    for guide in ("tree", "mean_field")
    for likelihood in ("gaussian", "bernoulli")
}


@pytest.mark.parametrize(
    ("encoder", "guide", "likelihood"),
    mostly_slow(KINDS, "linear-tree-gaussian", "identity-mean_field-bernoulli"),
)
def test_double_precision(encoder, guide, likelihood):
    data = simulated(num_leaves=4, latent_dim=2, likelihood=likelihood)
    options = dataclasses.replace(BRIEF, dtype="float64")
    model = tbr.TreeModel(data.tree, 2, encoder, likelihood=likelihood)
    x = data.z if encoder == "identity" else data.x
    posterior = tbr.fit(model, x, data.y, data.env, progress=False, guide=guide, options=options)
    assert {p.dtype for p in posterior.guide.parameters()} == {torch.float64}
    assert np.isfinite(posterior.predict(x, data.env).upper).all()


def test_leaf_with_one_row_and_tiny_data():
    data = simulated(num_leaves=4, latent_dim=1, rows_per_leaf=[1, 2, 3, 4], num_outcomes=1)
    posterior = fitted(data, options=BRIEF)
    deltas = posterior.deltas()
    assert np.isfinite(deltas.drop(columns=["parent", "child", "latent", "outcome"])).all().all()
    assert np.isfinite(posterior.predict(data.x[:1], data.env[:1]).upper).all()


def test_more_latents_than_the_features_carry_are_unused():
    data = simulated(num_leaves=8, latent_dim=2, num_features=2)
    model = tbr.TreeModel(data.tree, 4, "linear")
    posterior = tbr.fit(model, data.x, data.y, data.env, progress=False, options=QUICK)
    assert posterior.summary().latents["used"].tolist() == [True, True, False, False, True]
    np.testing.assert_allclose(posterior.encode(data.x)[:, 2:], 0, atol=1e-6)
    assert tbr.mcc(data.z, posterior.encode(data.x)[:, :2]) > 0.98


def test_posterior_survives_pickle_and_deepcopy():
    data = simulated(num_leaves=4, latent_dim=2)
    posterior = fitted(data, options=BRIEF)
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        pd.testing.assert_frame_equal(posterior.deltas(), other.deltas(), check_exact=True)


def bad_calls():
    data = simulated(num_leaves=4, latent_dim=2)
    nan_x = data.x.copy()
    nan_x[3, 2] = np.nan
    ok = {"x": data.x, "y": data.y, "env": data.env}
    wrong = np.where(data.env == data.env[0], "leef0", data.env)
    return data, [
        (ok | {"x": nan_x}, tbr.DataError, "x"),
        (ok | {"y": data.y[:-1]}, tbr.ShapeError, "y"),
        (ok | {"env": wrong}, tbr.TreeError, "leef0"),
        (ok | {"guide": "exact"}, tbr.DataError, "guide='exact'"),
    ]


@pytest.mark.parametrize("case", range(4))
def test_bad_calls_are_refused_before_training(case, monkeypatch):
    data, cases = bad_calls()
    call, error, message = cases[case]
    module = importlib.import_module("pyro_tbr.inference.fit")  # not the function of that name
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("trained"))
    model = tbr.TreeModel(data.tree, 2, "linear")
    with pytest.raises(error, match=message):
        tbr.fit(model, call.pop("x"), call.pop("y"), call.pop("env"), progress=False, **call)
