"""Known latents: whether changes may be small where gates are off is asked of the rows."""

import functools

import numpy as np
import pytest

import pyro_tbr as tbr


@functools.cache
def simulated(small):
    return tbr.simulate(
        num_leaves=20, shape="random", latent_dim=2, changes="bernoulli", change_prob=0.15,
        rows_per_leaf=80, noise_scale=0.2, small_changes=small, seed=11,
    )  # fmt: skip


@functools.cache
def fitted(small=0.0, prior=None, **given):
    sim = simulated(small)
    model = tbr.TreeModel(
        sim.tree, 2, "identity", prior=prior and tbr.SpikeSlabPrior(**dict(prior))
    )
    return tbr.fit(model, sim.z, sim.y, sim.env, progress=False, **given)


def pips(posterior):
    return posterior.deltas()["pip"].to_numpy()


def test_without_any_the_fit_is_that_of_a_prior_without():
    posterior = fitted()
    assert posterior.report.small_changes is False
    assert "spike_scale=0.0" in repr(posterior.model.prior_spec)
    given = fitted(prior=(("spike_scale", 0.0),))
    assert given.report.small_changes is None
    np.testing.assert_array_equal(pips(posterior), pips(given))


def test_where_there_are_some_they_are_found():
    posterior = fitted(0.1)
    assert posterior.report.small_changes is True
    assert posterior.model.prior.has_spike
    without = fitted(0.1, prior=(("spike_scale", 0.0),))
    slopes = posterior.deltas()["latent"] != "intercept"
    number = (simulated(0.1).gates != 0).sum()
    more = pips(without)[slopes].sum() - number
    assert abs(pips(posterior)[slopes].sum() - number) < 0.5 * more


def test_the_report_says_so():
    assert "by the rows: none" in repr(fitted().report)
    assert "by the rows: there may be some" in repr(fitted(0.1).report)


def test_a_file_and_a_start_keep_the_answer(tmp_path):
    posterior, sim = fitted(), simulated(0.0)
    posterior.save(tmp_path / "fit.pt")
    again = tbr.load(tmp_path / "fit.pt")
    assert again.report.small_changes is False
    np.testing.assert_array_equal(pips(again), pips(posterior))
    model = tbr.TreeModel(sim.tree, 2, "identity")
    more = tbr.fit(model, sim.z, sim.y, sim.env, start=again, progress=False)
    assert more.report.small_changes is False
    assert not more.model.prior.has_spike
    np.testing.assert_allclose(pips(more), pips(posterior), atol=0.01)


def test_the_given_model_is_left_as_it_is():
    sim = simulated(0.0)
    model = tbr.TreeModel(sim.tree, 2, "identity")
    tbr.fit(model, sim.z, sim.y, sim.env, progress=False)
    assert model.prior_spec.has_spike
    assert "spike_scale" not in repr(model.prior_spec)


@pytest.mark.parametrize(
    "prior", [(("spike_scale", 0.05),), (("slab_scale", 1.0),)], ids=["width given", "slab given"]
)
def test_it_is_not_asked_where_the_prior_says(prior):
    assert fitted(prior=prior).report.small_changes is None


def test_it_is_not_asked_of_mean_field():
    assert fitted(guide="mean_field").report.small_changes is None


def test_it_is_not_asked_of_learnt_latents():
    sim = simulated(0.0)
    options = tbr.FitOptions(restarts=2, sparse_steps=5)
    model = tbr.TreeModel(sim.tree, 2)
    found = tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)
    assert found.report.small_changes is None
    assert found.model.prior.has_spike


@pytest.mark.parametrize(("likelihood", "expected"), [("student_t", False), ("bernoulli", True)])
def test_rows_that_say_little_leave_it_open(likelihood, expected):
    """A binary outcome tells too little of a weight to exclude changes that are small."""
    sim = simulated(0.0)
    y = sim.y > np.median(sim.y) if likelihood == "bernoulli" else sim.y
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=likelihood)
    found = tbr.fit(model, sim.z, y.astype(float), sim.env, progress=False)
    assert found.report.small_changes is expected


def test_it_is_not_asked_of_curves():
    sim = simulated(0.0)
    model = tbr.TreeModel(sim.tree, 2, "identity", basis="polynomial")
    found = tbr.fit(model, sim.z[::2], sim.y[::2], sim.env[::2], progress=False)
    assert found.report.small_changes is None
    assert found.model.prior.has_spike


def test_it_is_not_asked_of_latents_that_correlate():
    """Expectation propagation is too sure of their weights, which small changes make up for."""
    sim = simulated(0.0)
    z = sim.z @ np.array([[1.0, 0.8], [0.0, 0.6]])
    found = tbr.fit(tbr.TreeModel(sim.tree, 2, "identity"), z, sim.y, sim.env, progress=False)
    assert found.report.small_changes is None
    assert found.model.prior.has_spike
