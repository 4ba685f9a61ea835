"""Fits of models with a basis, from tables to answers."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.evaluation import pip_auroc, true_changes

NOISE, CURVATURE = 0.3, 0.5
FAST = tbr.FitOptions(restarts=8)


@functools.cache
def simulated(likelihood="gaussian", num_outcomes=2, seed=1):
    """Data of two latents whose effects are curves, as two columns in units of their own."""
    sim = tbr.simulate(
        num_leaves=10, latent_dim=2, num_features=6, num_outcomes=num_outcomes, rows_per_leaf=60,
        noise_scale=NOISE, curvature=CURVATURE, changes="bernoulli", change_prob=0.2,
        likelihood=likelihood, seed=seed,
    )  # fmt: skip
    x = pd.DataFrame(50 + 4 * sim.z, columns=["age", "dose"])
    return sim, x


@functools.cache
def fitted(basis="polynomial", prior=None, likelihood="gaussian"):
    sim, x = simulated(likelihood)
    model = tbr.TreeModel(sim.tree, 2, "identity", prior, likelihood, basis=basis)
    return tbr.fit(model, x, sim.y, sim.env, progress=False)


def new_rows(likelihood="gaussian", num=100):
    sim = simulated(likelihood)[0]
    drawn = [sim.rows(leaf, num, seed=9) for leaf in sim.tree.leaves]
    y, z = (np.concatenate([rows[i] for rows in drawn]) for i in (1, 2))
    env = np.repeat(np.array(sim.tree.leaves, dtype=object), num)
    return pd.DataFrame(50 + 4 * z, columns=["age", "dose"]), y, env


@pytest.mark.parametrize("basis", ["polynomial", "spline", tbr.SplineBasis(3)], ids=str)
def test_new_rows_are_predicted_where_lines_are_not(basis):
    x, y, env = new_rows()
    scores = {}
    for name in (basis, None):
        found = fitted(name).predict(x, env)
        scores[name] = found.score(y)
    assert (scores[basis]["r2"] > 0.93).all()
    assert (scores[None]["r2"] < 0.85).all()
    assert (scores[basis]["log_score"] > scores[None]["log_score"] + 0.3).all()
    if basis == "polynomial":  # the truth
        assert (scores[basis]["coverage"] - 0.9).abs().max() < 0.03
        assert (scores[basis]["r2"] > 0.97).all()


def test_a_latent_has_one_probability_for_all_its_functions():
    sim, _ = simulated()
    posterior = fitted()
    names = ["age", "dose", "intercept"]
    assert posterior.latent_names == ("age", "dose", "age.curve1", "dose.curve1", "intercept")
    pips = posterior.pips()
    assert list(pips.columns.unique("latent")) == names
    deltas = posterior.deltas().pivot_table(
        index=["parent", "child", "outcome"], columns="latent", values="pip"
    )
    np.testing.assert_allclose(deltas["age"], deltas["age.curve1"])
    some = posterior.arc_pips()
    assert list(some.columns) == [*names, "any_slope", "any"]
    assert (some["any_slope"] >= some[["age", "dose"]].max(axis=1) - 1e-9).all()
    leaf = sim.tree.leaves[0]
    assert list(posterior.path_pips(leaf).index) == names
    assert set(posterior.credible_sets()["latent"]) <= set(names)
    chosen = posterior.select()
    assert set(chosen["latent"]) <= set(names)
    assert len(chosen) == len(chosen[["parent", "child", "latent", "outcome"]].drop_duplicates())
    of_latents = chosen[chosen["latent"] != "intercept"]
    assert (of_latents["size"] > 4 * of_latents["mean"].abs() * 0.5).all()  # age moves by 4
    summary = posterior.summary()
    assert list(summary.latents.index) == names
    assert summary.latents["variance_share"].sum() == pytest.approx(1)
    assert "age" in str(summary)
    assert posterior.identification().determined


def test_changes_are_found_where_they_are():
    sim, x = simulated()
    posterior = fitted()
    # Latents are the features' own, so no other column is a better match.
    truth = true_changes(_known(sim, x), posterior)
    table = posterior.deltas().set_index(["parent", "child", "latent", "outcome"])
    rows = pd.MultiIndex.from_frame(truth[["parent", "child", "latent", "outcome"]])
    pips = table.loc[rows, "pip"].to_numpy()
    slopes = (truth["latent"] != "intercept").to_numpy()
    change = truth["change"].to_numpy()
    assert pips[slopes & ~change].mean() < 0.15  # neighbours of true ones share with them
    lines = fitted(None).deltas().set_index(["parent", "child", "latent", "outcome"])
    plain = lines.loc[rows, "pip"].to_numpy()
    assert pips[slopes & change].mean() > plain[slopes & change].mean() + 0.1
    one, two = (pip_auroc(values[slopes], change[slopes]) for values in (pips, plain))
    assert one > two + 0.02


def _known(sim, x):
    class Known:
        tree, z, gates, intercept_deltas = sim.tree, sim.z, sim.gates, sim.intercept_deltas

    Known.x = x
    return Known


def test_curves_are_those_of_the_truth():
    sim, _ = simulated()
    posterior = fitted()
    values = np.array([44.0, 47.0, 50.0, 53.0, 56.0])
    leaves = list(sim.tree.leaves[:3])
    table = posterior.curves("dose", leaves, values)
    assert list(table.columns) == [
        *("node", "latent", "outcome", "value", "mean", "sd", "lower", "upper")
    ]
    assert len(table) == 3 * 5 * 2
    z, mean = (values - 50) / 4, sim.z[:, 1].mean()
    for place, leaf in enumerate(leaves):
        weights = sim.node_weights[sim.tree.index(leaf)][1]  # (Q,)
        shape = z + CURVATURE * (z**2 - 1)
        every = sim.z[:, 1] + CURVATURE * (sim.z[:, 1] ** 2 - 1)
        true = (shape - every.mean())[:, None] * weights
        own = table[table["node"] == leaves[place]]
        found, sd = (own[name].to_numpy().reshape(5, 2) for name in ("mean", "sd"))
        assert (np.abs(found - true) < 4.5 * sd + 0.02).all()
    assert np.isfinite(mean)
    whole = posterior.curves(num_points=7)
    assert len(whole) == 2 * sim.tree.num_nodes * 7 * 2
    assert (whole["lower"] <= whole["mean"] + 2 * whole["sd"]).all()
    with pytest.raises(tbr.DataError, match="latent='weight' is no latent: give one of"):
        posterior.curves("weight")
    with pytest.raises(tbr.DataError, match=r"fit with TreeModel\(basis='spline'\)"):
        fitted(None).curves()
    with pytest.raises(tbr.ShapeError, match="at has shape"):
        posterior.curves("age", at=[[1.0]])
    with pytest.raises(tbr.DataError, match="not finite"):
        posterior.curves("age", at=[np.nan])


def test_slopes_stay_slopes():
    effects = fitted().effects(nodes=simulated()[0].tree.root)
    weights = fitted().node_weights()
    root = weights[weights["node"] == simulated()[0].tree.root]
    for name in ("age", "dose"):
        np.testing.assert_allclose(
            effects[effects["feature"] == name]["mean"], root[root["latent"] == name]["mean"]
        )


def test_predictions_follow_the_curves_wherever_rows_are():
    sim, x = simulated()
    posterior = fitted()
    for env in (list(sim.env[:5]), tbr.NewLeaf("new", sim.tree.root), None):
        found = posterior.predict(x[:5], env)
        draws = np.asarray(found.sample(4000, seed=2))
        # Of a new place by few draws of large changes.
        np.testing.assert_allclose(
            draws.std(0), found.sd, rtol=0.1 if isinstance(env, list) else 0.4
        )
        off = (draws.mean(0) - found.mean.to_numpy()) / found.sd.to_numpy()
        assert np.abs(off).max() < 0.25


class Square(tbr.LatentBasis):
    """A basis of one's own."""

    def __init__(self, power=2):
        super().__init__(1, power=power)

    def curves(self, z):
        return (((z - 50) / 4) ** self.description["power"]).unsqueeze(-1)


@pytest.mark.parametrize("basis", ["spline", Square()], ids=["spline", "own"])
def test_a_file_gives_the_same_answers_and_takes_more_rows(tmp_path, basis):
    sim, x = simulated()
    posterior = fitted(basis)
    path = tmp_path / "fit.tbr"
    posterior.save(path)
    again = tbr.load(path)
    more, y, env = new_rows(num=10)
    one, two = (p.update(more, y, env) for p in (posterior, again))
    kept = pickle.loads(pickle.dumps(posterior))
    for before, after in ((posterior, again), (one, two), (posterior, kept)):
        left, right = (p.predict(x[:20], sim.env[:20]) for p in (before, after))
        np.testing.assert_array_equal(left.mean, right.mean)
        np.testing.assert_array_equal(left.sample(4, seed=1), right.sample(4, seed=1))
        pd.testing.assert_frame_equal(before.curves("age"), after.curves("age"))
    error = [np.abs(p.predict(more, env).mean - y).to_numpy().mean() for p in (posterior, one)]
    assert error[1] < error[0]


class Seen(tbr.LatentBasis):
    """Keeps what it was asked for."""

    def __init__(self):
        super().__init__(1)
        self.values = []

    def curves(self, z):
        self.values.append(z.detach().clone())
        return z.unsqueeze(-1) ** 2


def test_functions_of_ones_own_see_the_users_values():
    sim, x = simulated()
    model = tbr.TreeModel(sim.tree, 2, "identity", basis=Seen())
    posterior = tbr.fit(model, x + 1000.0, sim.y, sim.env, progress=False)
    posterior.model.basis.values.clear()
    posterior.predict(x[:7] + 1000.0, sim.env[:7])
    np.testing.assert_allclose(posterior.model.basis.values[0], x[:7] + 1000.0, rtol=1e-6)
    posterior.model.basis.values.clear()
    posterior.curves("age", sim.tree.root, at=[1044.0, 1051.0])
    np.testing.assert_allclose(posterior.model.basis.values[0][:, 0], [1044.0, 1051.0], rtol=1e-6)


def test_features_in_a_file_give_the_same(tmp_path):
    sim, _ = simulated()
    path = tmp_path / "x.npy"
    np.save(path, sim.x)
    model = tbr.TreeModel(sim.tree, 2, "linear", basis="polynomial")
    given = {"progress": False, "options": tbr.FitOptions(restarts=4, sparse_steps=0)}
    one, two = (
        tbr.fit(model, x, sim.y, sim.env, **given) for x in (sim.x, np.load(path, mmap_mode="r"))
    )
    np.testing.assert_allclose(one.pips(), two.pips(), atol=0.02)
    left, right = (p.predict(sim.x, sim.env).mean for p in (one, two))
    np.testing.assert_allclose(left, right, atol=0.02)


@pytest.mark.parametrize("encoder", ["linear", pytest.param("mlp", marks=pytest.mark.slow)])
def test_latents_are_learnt_through_their_curves(encoder):
    sim, _ = simulated()
    options = FAST if encoder == "linear" else tbr.FitOptions(restarts=8, max_steps=300)
    found = {}
    for basis in ("polynomial", None):
        model = tbr.TreeModel(sim.tree, 2, encoder, basis=basis)
        posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)
        found[basis] = tbr.mcc(sim.z, posterior.encode(sim.x)), posterior
    drawn = [sim.rows(leaf, 60, seed=9) for leaf in sim.tree.leaves]
    x, y = (np.concatenate([rows[i] for rows in drawn]) for i in (0, 1))
    env = np.repeat(np.array(sim.tree.leaves, dtype=object), 60)
    r2 = {basis: p.predict(x, env).score(y)["r2"].min() for basis, (_, p) in found.items()}
    assert r2["polynomial"] > r2[None] - 0.01
    assert found["polynomial"][0] > found[None][0] - 0.002
    if encoder == "linear":  # a network bends its latents by itself, where all leaves bend alike
        assert r2["polynomial"] > r2[None] + 0.1
        assert found["polynomial"][0] > 0.995
        assert r2["polynomial"] > 0.97


def test_shared_gates_are_of_all_outcomes_too():
    posterior = fitted(prior=tbr.SpikeSlabPrior(gates="shared"))
    pips = posterior.pips()
    np.testing.assert_allclose(pips["y0"], pips["y1"])
    x, y, env = new_rows()
    assert (posterior.predict(x, env).score(y)["r2"] > 0.97).all()


@pytest.mark.parametrize(
    "prior",
    [
        tbr.GaussianPrior(),
        tbr.SpikeSlabPrior(0.5, slab_scale=1.0, root_scale=2.0),
        pytest.param(tbr.HorseshoePrior(), marks=pytest.mark.slow),
    ],
    ids=["gaussian", "fixed", "horseshoe"],
)
def test_every_prior(prior):
    posterior = fitted(prior=prior)
    x, y, env = new_rows()
    score = posterior.predict(x, env).score(y)
    assert (score["r2"] > 0.97).all()
    assert (score["coverage"] - 0.9).abs().max() < 0.05
    assert len(posterior.curves("age", simulated()[0].tree.root)) == 50


@pytest.mark.parametrize(
    "likelihood", ["bernoulli", pytest.param("student_t", marks=pytest.mark.slow)]
)
def test_other_likelihoods(likelihood):
    of_data = "gaussian" if likelihood == "student_t" else likelihood
    sim, x = simulated(of_data)
    more, y, env = new_rows(of_data)
    scores = []
    for basis in ("polynomial", None):
        model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=likelihood, basis=basis)
        posterior = tbr.fit(model, x, sim.y, sim.env, progress=False)
        scores.append(posterior.predict(more, env).log_score(y))
    assert scores[0] > scores[1] + 0.02


def test_a_covariance_of_outcomes():
    sim, x = simulated()
    likelihood = tbr.GaussianLikelihood(covariance="full")
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=likelihood, basis="polynomial")
    posterior = tbr.fit(model, x, sim.y, sim.env, progress=False)
    more, y, env = new_rows()
    assert (posterior.predict(more, env).score(y)["r2"] > 0.97).all()


def test_no_intercept():
    sim, _ = simulated()
    y = np.einsum("nk,nkq->nq", sim.z, sim.node_weights[[sim.tree.index(e) for e in sim.env]])
    model = tbr.TreeModel(sim.tree, 2, "identity", intercept=False, basis="polynomial")
    noise = NOISE * np.random.default_rng(0).standard_normal(y.shape)
    posterior = tbr.fit(model, sim.z, y + noise, sim.env, progress=False)
    assert posterior.latent_names == ("z0", "z1", "z0.curve1", "z1.curve1")
    assert (posterior.predict(sim.z, sim.env).score(y + noise)["r2"] > 0.9).all()
    assert list(posterior.pips().columns.unique("latent")) == ["z0", "z1"]


@pytest.mark.slow
def test_number_of_latents_and_trees():
    sim, x = simulated()
    model = tbr.TreeModel(sim.tree, None, "linear", basis="polynomial")
    choice = tbr.choose_latent_dim(model, sim.x, sim.y, sim.env, [1, 2], progress=False)
    assert choice.best == 2
    model = tbr.TreeModel(sim.tree, 2, "identity", basis="polynomial")
    found = tbr.compare_trees(model, x, sim.y, sim.env, num_folds=2, progress=False)
    assert found.table["log_score"].max() > -1.5


def test_a_fit_cut_short_goes_on_to_the_same(tmp_path):
    sim, _ = simulated()
    model = tbr.TreeModel(sim.tree, 2, "linear", basis="polynomial")
    path = tmp_path / "fit.ckpt"
    given = {"progress": False, "options": tbr.FitOptions(restarts=4, sparse_steps=0)}
    one = tbr.fit(model, sim.x, sim.y, sim.env, checkpoint=path, **given)
    two = tbr.fit(model, sim.x, sim.y, sim.env, resume=path, **given)
    np.testing.assert_array_equal(one.encode(sim.x), two.encode(sim.x))
    pd.testing.assert_frame_equal(one.pips(), two.pips())
    other = tbr.TreeModel(sim.tree, 2, "linear", basis="spline")
    with pytest.raises(tbr.DataError, match="basis"):
        tbr.fit(other, sim.x, sim.y, sim.env, resume=path, **given)


def test_a_loop_of_ones_own():
    sim, _ = simulated()
    model = tbr.TreeModel(sim.tree, 2, "linear", basis="polynomial", num_features=6, num_outcomes=2)
    x, y = (torch.as_tensor(part, dtype=torch.float32) for part in (sim.x, sim.y))
    env = torch.tensor([sim.tree.index(leaf) for leaf in sim.env])
    with pytest.raises(tbr.DataError, match=r"model.basis.place\(model.encoder\(x\)\) first"):
        model(x, env)
    model.basis.place(model.encoder(x).detach())
    guide = tbr.TreeGuide(model)
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = tbr.TreeELBO()(model, guide)(x, env, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_what_has_no_place_beside_a_basis_is_refused():
    sim, x = simulated()
    given = (x, sim.y, sim.env)
    model = tbr.TreeModel(sim.tree, 2, "identity", basis="spline")
    with pytest.raises(tbr.DataError, match="start together with a basis"):
        tbr.fit(model, *given, start=fitted(None), progress=False)
    with pytest.raises(tbr.DataError, match="start together with a basis"):
        tbr.fit(tbr.TreeModel(sim.tree, 2, "identity"), *given, start=fitted(), progress=False)
    with pytest.raises(tbr.DataError, match="those of the functions of a basis are one"):
        tbr.fit(model, *given, guide="mean_field", progress=False)
    with pytest.raises(tbr.DataError, match="with a basis those of a latent's functions are one"):
        tbr.sample_posterior(fitted())
    prior = tbr.SpikeSlabPrior(gates="grouped")
    model = tbr.TreeModel(sim.tree, 2, "identity", prior, basis="spline")
    with pytest.raises(tbr.DataError, match="gates='grouped' together with a basis"):
        tbr.fit(model, *given, progress=False)


def test_check_tells_of_curves_until_there_is_a_basis():
    assert any("basis" in reason for reason in fitted(None).check().reasons)
    assert not fitted().check().reasons
