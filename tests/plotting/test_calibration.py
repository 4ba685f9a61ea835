"""A posterior and its simulation: latents are matched, whatever their order and signs."""

from dataclasses import replace

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.evaluation import reliability, true_changes
from pyro_tbr.plotting import plot_reliability


def _points(ax):
    return np.asarray(ax.collections[-1].get_offsets())


def test_reliability_of_a_posterior_is_that_of_its_matched_changes(learnt):
    sim, posterior = learnt
    truth = true_changes(sim, posterior)
    table = reliability(posterior.deltas()["pip"], truth["change"])
    table = table[table["count"] > 0]
    ax = plot_reliability(posterior, sim)
    np.testing.assert_allclose(_points(ax), table[["mean_pip", "true_share"]])
    assert [int(one.get_text()) for one in ax.texts] == sorted(table["count"], reverse=True)


def test_order_and_signs_of_the_true_latents_make_no_difference(learnt):
    sim, posterior = learnt
    turned = replace(
        sim, z=sim.z[:, ::-1] * [-1, 1], gates=sim.gates[:, ::-1], deltas=-sim.deltas[:, ::-1]
    )
    np.testing.assert_allclose(
        _points(plot_reliability(posterior, turned)), _points(plot_reliability(posterior, sim))
    )
    # Not so where only the changes are turned: then the truth is another one.
    wrong = replace(sim, gates=sim.gates[:, ::-1])
    assert not np.array_equal(
        _points(plot_reliability(posterior, wrong)), _points(plot_reliability(posterior, sim))
    )


def test_arcs_without_data_are_left_out(crowded):
    *_, posterior = crowded
    sim = tbr.simulate(
        num_leaves=300, shape="random", latent_dim=2, num_features=2, rows_per_leaf=2, seed=1
    )
    counts = [int(one.get_text()) for one in plot_reliability(posterior, sim).texts]
    known = int(posterior.guide.informed_arcs.sum())
    assert known < posterior.tree.num_arcs
    assert sum(counts) == 2 * known


def test_what_does_not_go_together_is_refused(learnt):
    sim, posterior = learnt
    with pytest.raises(DataError, match="pips and gates are Posterior and ndarray: give a posteri"):
        plot_reliability(posterior, sim.gates)
    with pytest.raises(DataError, match="are DataFrame and Simulation"):
        plot_reliability(posterior.pips(), sim)
    other = tbr.simulate(num_leaves=3, latent_dim=2, num_features=4, rows_per_leaf=2)
    with pytest.raises(DataError, match="another tree"):
        plot_reliability(posterior, other)
