"""Data in which every arc changes a little and few by much: a spike whose width is learnt."""

import functools

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError

SMALL, LARGE, ROWS = 0.08, 1.2, 60
CHANGED = [3, 9, 20]  # arcs that change by much, one a latent
OPTIONS = tbr.FitOptions(restarts=4)


@functools.cache
def rows(often=False):
    """With ``often`` a larger tree and six large changes a latent, which determine the latents."""
    num_leaves, seed = (32, 2) if often else (16, 4)
    tree = tbr.simulate(num_leaves=num_leaves, latent_dim=3, rows_per_leaf=2, seed=0).tree
    rng = np.random.default_rng(seed)
    deltas = SMALL * rng.standard_normal((tree.num_arcs, 3))
    if often:
        arcs = rng.permutation(tree.num_arcs)[:18].reshape(6, 3)
        deltas[arcs, range(3)] = LARGE * rng.choice([-1, 1], (6, 3))
    else:
        deltas[CHANGED, range(3)] = LARGE
    weights = {tree.nodes[0]: np.array([1.0, -0.5, 0.3])}
    for (parent, child), delta in zip(tree.arcs, deltas, strict=True):
        weights[child] = weights[parent] + delta
    env = np.repeat(tree.leaves, ROWS)
    x = rng.standard_normal((len(env), 3))
    y = (x * np.stack([weights[leaf] for leaf in env])).sum(1)
    return tree, x, y + 0.1 * rng.standard_normal(len(env)), env


@functools.cache
def fitted(spike_scale, encoder="identity", often=False):
    tree, x, y, env = rows(often)
    prior = tbr.SpikeSlabPrior(spike_scale=spike_scale)
    model = tbr.TreeModel(tree, 3, encoder=encoder, prior=prior)
    return tbr.fit(model, x, y, env, progress=False, options=OPTIONS)


def selected(posterior):
    """Arcs and latents chosen at a false discovery rate of 0.05, intercepts apart."""
    chosen = posterior.select(fdr=0.05)
    chosen = chosen[chosen["latent"] != "intercept"]
    rows = chosen[["parent", "child", "latent"]].itertuples(index=False)
    return {(posterior.tree.arcs.index((parent, child)), latent) for parent, child, latent in rows}


def test_only_large_changes_are_selected():
    wide, none = fitted(None), fitted(0.0)
    true = set(zip(CHANGED, wide.latent_names, strict=False))
    assert selected(wide) == true
    assert len(selected(none)) > len(true)  # there a small change is a change or none
    assert none.deltas()["pip"].sum() > wide.deltas()["pip"].sum() + 3


def log_ratio(posterior):
    """Logarithm of the width found over the true one, draws (200, 3, 1)."""
    scale = posterior.sample(200)["spike_scale"][:, :3] * posterior.scaling.scale.item()
    return np.log(scale) - np.log(SMALL)


@pytest.mark.slow
def test_its_width_is_found_with_learnt_latents():
    """Their fit starts at sparse estimates, without any small change."""
    posterior, x = fitted(None, "linear", often=True), rows(often=True)[1]
    assert tbr.mcc(x, posterior.encode(x)) > 0.99
    assert (abs(log_ratio(posterior).mean(0)) < np.log(2)).all()


def test_its_width_is_found():
    log = log_ratio(fitted(None))
    assert (abs(log.mean(0)) < 3 * log.std(0) + 0.1).all()


def test_small_changes_are_in_the_table_and_in_the_draws():
    posterior = fitted(None)
    table = posterior.deltas(level=0.9).query("latent != 'intercept' and pip < 0.05")
    assert (table["sd"] > 0.01).all()
    assert ((table["lower"] < table["mean"]) & (table["mean"] < table["upper"])).all()
    gates, deltas = (posterior.sample(50)[name] for name in ("gates", "deltas"))
    assert (np.asarray(deltas)[np.asarray(gates) == 0] != 0).all()


def test_new_leaves_have_small_changes():
    tree, x, _, _ = rows()
    parent = tree.nodes[0]
    wide, none = (
        fitted(spike).predict(x[:50], tbr.NewLeaf("new", parent=parent)) for spike in (None, 0.0)
    )
    assert np.isfinite(wide.sd).all()
    assert np.isfinite(none.sd).all()


def test_it_is_saved(tmp_path):
    posterior = fitted(None)
    posterior.save(tmp_path / "fit.pt")
    again = tbr.load(tmp_path / "fit.pt")
    np.testing.assert_array_equal(again.deltas()["pip"], posterior.deltas()["pip"])
    assert again.model.prior.has_spike


@pytest.mark.slow
def test_mean_field_has_them_too():
    tree, x, y, env = rows()
    model = tbr.TreeModel(tree, 3, encoder="identity")
    posterior = tbr.fit(model, x, y, env, guide="mean_field", progress=False, options=OPTIONS)
    true = set(zip(CHANGED, posterior.latent_names, strict=False))
    assert selected(posterior) >= true
    off = posterior.deltas().query("latent != 'intercept' and pip < 0.05")
    assert (off["sd"] > 0.002).all()
    draws = posterior.sample(200)
    gates, deltas = np.asarray(draws["gates"]), np.asarray(draws["deltas"])
    assert (deltas[gates == 0] != 0).all()
    mean = posterior.deltas()["mean"].to_numpy().reshape(deltas.shape[1:])
    error = deltas.std(0) / len(deltas) ** 0.5
    assert (abs(deltas.mean(0) - mean) < 5 * error).all()


def test_where_the_slab_is_fixed_there_is_none_unless_given():
    assert not tbr.SpikeSlabPrior(slab_scale=1.0).has_spike
    assert tbr.SpikeSlabPrior(slab_scale=1.0, spike_scale=0.1).has_spike
    assert tbr.SpikeSlabPrior().has_spike


@pytest.mark.parametrize("value", [-0.1, float("nan"), "small"])
def test_no_width_is_refused(value):
    with pytest.raises(DataError, match="spike_scale"):
        tbr.SpikeSlabPrior(spike_scale=value)
