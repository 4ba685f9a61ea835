import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.posterior import effects as module
from tests.posterior.small_fits import FAST

ENDS = ["mean", "sd", "lower", "upper"]


@pytest.fixture(scope="module")
def mlp(sim):
    options = tbr.FitOptions(restarts=2, max_steps=40, sparse_steps=0, cross_fit=0)
    model = tbr.TreeModel(sim.tree, 2, encoder="mlp")
    with warnings.catch_warnings(action="ignore"):  # so few steps do not find the latents
        return tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)


def test_loadings_of_a_linear_encoder_are_its_slopes(linear, sim):
    loadings = linear.loadings()
    assert list(loadings.index) == ["x0", "x1", "x2", "x3"]
    assert list(loadings.columns) == ["z0", "z1"]
    here = linear.encode(sim.x[:5])
    for d in range(4):
        moved = sim.x[:5].copy()
        moved[:, d] += 2.0
        slope = (linear.encode(moved) - here) / 2.0
        np.testing.assert_allclose(slope, np.tile(loadings.iloc[d], (5, 1)), atol=1e-5)
    per_sd = linear.loadings(per="sd")
    np.testing.assert_allclose(per_sd, loadings.mul(sim.x.std(0), axis=0), rtol=1e-6)


def test_loadings_of_another_encoder_are_slopes_averaged_over_rows(mlp, sim):
    with pytest.raises(DataError, match="MLPEncoder are not linear in the features.*give x="):
        mlp.loadings()
    rows, step = sim.x[:40].astype(float), 1e-3
    loadings = mlp.copy()  # in double precision, so differences of latents have their digits
    loadings.model.encoder.double()
    table = loadings.loadings(rows)
    for d in range(4):
        up, down = rows.copy(), rows.copy()
        up[:, d] += step
        down[:, d] -= step
        slope = (loadings.encode(up) - loadings.encode(down)).mean(0) / (2 * step)
        np.testing.assert_allclose(table.iloc[d], slope, rtol=1e-4, atol=1e-6)
    sparse = mlp.loadings(scipy.sparse.csr_array(rows))
    pd.testing.assert_frame_equal(sparse, mlp.loadings(rows), rtol=1e-5)
    with pytest.raises(DataError, match="no rows"):
        mlp.loadings(rows[:0])


def test_latents_that_are_the_features_bear_their_names_and_have_their_effects(several):
    assert several.latent_names == ("size", "depth", "intercept")
    assert list(several.pips()["a"].columns) == ["size", "depth", "intercept"]
    np.testing.assert_array_equal(several.loadings(), np.eye(2))
    weights = several.node_weights().query("latent != 'intercept'")
    effects = several.effects()
    assert list(effects.columns) == ["node", "feature", "outcome", *ENDS]
    pairs = weights.rename(columns={"latent": "feature"})[["node", "feature", "outcome"]]
    pd.testing.assert_frame_equal(effects[pairs.columns].reset_index(drop=True),
                                  pairs.reset_index(drop=True))  # fmt: skip
    np.testing.assert_allclose(effects[["mean", "sd"]], weights[["mean", "sd"]], rtol=1e-5)
    assert (effects["lower"] <= effects["upper"]).all()
    changes, deltas = several.effect_changes(), several.deltas().query("latent != 'intercept'")
    np.testing.assert_allclose(changes[["mean", "sd"]], deltas[["mean", "sd"]], rtol=1e-5)
    per_sd = several.effects("size", per="sd")
    scale = several.report.feature_scale[0].item()
    one = effects.query("feature == 'size'")
    np.testing.assert_allclose(per_sd[ENDS], one[ENDS] * scale, rtol=1e-6)


def test_names_of_latents_stay_where_those_of_features_could_be_mistaken(frame_sim):
    for columns in (["intercept", "depth"], [2019, 2021], ["size", ("a", "b")]):
        model = tbr.TreeModel(frame_sim.tree, 2, encoder="identity")
        model.build(2, 3, feature_names=columns)
        assert model.weight_names == ("z0", "z1", "intercept")


def test_effects_are_what_predictions_do_as_a_feature_moves(linear, sim):
    effects = linear.effects().pivot(index="node", columns="feature", values="mean")
    here = sim.x[:1]
    for leaf in ("leaf0", "leaf5"):
        for d in range(4):
            moved = here.copy()
            moved[:, d] += 1.0
            slope = linear.predict(moved, leaf).mean - linear.predict(here, leaf).mean
            assert slope[0] == pytest.approx(effects.loc[leaf, f"x{d}"], abs=1e-4)


def test_changes_along_arcs_add_up_to_effects_and_have_the_pips_of_slopes(linear):
    effects = linear.effects().set_index(["node", "feature"])["mean"]
    changes = linear.effect_changes().set_index(["child", "feature"])
    tree = linear.tree
    for parent, child in tree.arcs:
        difference = effects[child] - effects[parent]
        np.testing.assert_allclose(changes.loc[child, "mean"], difference, atol=1e-4)
    pips = linear.arc_pips()["any_slope"].to_numpy()
    np.testing.assert_allclose(changes["pip"].to_numpy().reshape(-1, 4)[:, 0], pips)


def test_intervals_are_those_of_draws_of_weights_in_the_units_of_the_user(linear):
    draws = linear.sample(4000, seed=1)
    tree, loadings = linear.tree, linear.loadings().to_numpy()
    leaf = "leaf3"
    weights = draws["root_weights"] + draws["deltas"][:, tree.path(leaf)].sum(1)
    effects = np.einsum("fk,skq->sfq", loadings, weights[:, :2])
    table = linear.effects(nodes=leaf)
    assert set(table["node"]) == {leaf}
    sd = effects.std(0).ravel()
    for column, value in (("lower", 0.05), ("upper", 0.95)):
        # 400 draws: a standard error of an end of some 0.1 standard deviations.
        off = (table[column] - np.quantile(effects, value, axis=0).ravel()) / sd
        assert abs(off).max() < 0.4
    np.testing.assert_allclose(table["sd"], sd, rtol=0.1)


def test_effects_of_an_average_over_bases_are_its_mixture(linear):
    averaged = tbr.average_bases(linear)
    table = averaged.effects()
    draws = averaged.sample(4000, seed=2)
    node = "leaf1"
    weights = draws["root_weights"] + draws["deltas"][:, averaged.tree.path(node)].sum(1)
    effects = np.einsum("fk,skq->sfq", averaged.loadings().to_numpy(), weights[:, :2])
    one = table.query("node == @node")
    error = effects.std(0).ravel() / np.sqrt(len(effects))
    assert (abs(one["mean"] - effects.mean(0).ravel()) < 5 * error + 1e-6).all()
    np.testing.assert_allclose(one["sd"], effects.std(0).ravel(), rtol=0.1)


def test_a_posterior_by_sampling_knows_how_its_latents_go_together(several):
    with warnings.catch_warnings(action="ignore"):  # so few sweeps do not agree yet
        sampled = tbr.sample_posterior(several, num_chains=4, num_sweeps=60, seed=0)
    assert sampled.guide.delta_cov().shape == (several.tree.num_arcs, 3, 3, 3)
    changes = sampled.effect_changes()
    deltas = sampled.deltas().query("latent != 'intercept'")
    np.testing.assert_allclose(changes["mean"], deltas["mean"], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(changes["sd"], deltas["sd"], rtol=1e-2)


def test_what_cannot_be_asked_is_refused_by_name(linear, monkeypatch):
    with pytest.raises(DataError, match="features: 'x9'.*nearest|features: 'x9'"):
        linear.effects("x9")
    with pytest.raises(TreeError, match="'leaf99'"):
        linear.effects(nodes=["leaf0", "leaf99"])
    with pytest.raises(DataError, match="per='standard'.*'unit', 'sd'"):
        linear.effects(per="standard")
    with pytest.raises(DataError, match="level=90"):
        linear.effect_changes(level=90)
    old = dataclasses.replace(linear, report=dataclasses.replace(linear.report, feature_scale=None))
    with pytest.raises(DataError, match="per='sd'.*earlier version"):
        old.loadings(per="sd")
    monkeypatch.setattr(module, "_MOST_ROWS", 10)
    with pytest.raises(DataError, match="ask for some by features= or nodes="):
        linear.effects()
    with pytest.raises(DataError, match="ask for some by features="):
        linear.effect_changes()


def test_blocks_of_features_and_nodes_change_nothing(linear, monkeypatch):
    whole = linear.effects()
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)
    pd.testing.assert_frame_equal(linear.effects(), whole)


@pytest.mark.own_random_state  # torch draws the layer
def test_own_linear_layer_is_exact_and_files_keep_all(sim, tmp_path):
    layer = torch.nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    model = tbr.TreeModel(sim.tree, 2, encoder=layer)
    options = dataclasses.replace(FAST, max_steps=20, sparse_steps=0)
    with warnings.catch_warnings(action="ignore"):
        posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)
    exact = posterior.loadings()
    encoder = posterior.model.encoder
    encoder.linear_map = lambda: None
    np.testing.assert_allclose(exact, posterior.loadings(sim.x[:3]), rtol=1e-4, atol=1e-6)
    posterior.save(tmp_path / "fit.pt")
    again = tbr.load(tmp_path / "fit.pt", encoder=layer)
    pd.testing.assert_frame_equal(again.effects(per="sd"), posterior.effects(x=sim.x, per="sd"),
                                  rtol=1e-4, atol=1e-5)  # fmt: skip
