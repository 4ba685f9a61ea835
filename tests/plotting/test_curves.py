"""Curves as they are drawn are those of the table."""

import functools

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.plotting import plot_curves, plot_effect, plot_pips, plot_tree


@functools.cache
def curved():
    sim = tbr.simulate(
        num_leaves=9, latent_dim=2, num_features=2, num_outcomes=2, rows_per_leaf=30,
        curvature=0.5, seed=0,
    )  # fmt: skip
    model = tbr.TreeModel(sim.tree, 2, "identity", basis=tbr.PolynomialBasis(2))
    return tbr.fit(model, sim.z, sim.y, sim.env, progress=False)


def test_curves_of_the_leaves_furthest_from_the_root_have_names():
    posterior = curved()
    ax = plot_curves(posterior, "z1", "y1", level=0.8)
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert len(lines) == 8
    table = posterior.curves("z1", level=0.8)
    table = table[table["outcome"] == "y1"].set_index("node")
    root = table.loc[posterior.tree.root]
    np.testing.assert_allclose(lines["root"].get_xdata(), root["value"])
    np.testing.assert_allclose(lines["root"].get_ydata(), root["mean"])
    away = {leaf: np.abs(table.loc[leaf, "mean"].to_numpy() - root["mean"].to_numpy()).max()
            for leaf in posterior.tree.leaves}  # fmt: skip
    named = set(lines) - {"root"}
    assert named == set(sorted(away, key=away.get)[-7:])
    for leaf in named:
        np.testing.assert_allclose(lines[leaf].get_ydata(), table.loc[leaf, "mean"])
    assert len(ax.lines) == 1 + 9
    assert len(ax.collections) == 7
    assert ax.get_xlabel() == "z1"
    assert "80%" in ax.get_ylabel()
    assert "y1" in ax.get_ylabel()


def test_nodes_can_be_chosen():
    posterior = curved()
    some = [posterior.tree.nodes[1], posterior.tree.leaves[0]]
    ax = plot_curves(posterior, 0, 0, nodes=some)
    assert len(ax.lines) == 3
    with pytest.raises(tbr.DataError, match="1 to 7 curves"):
        plot_curves(posterior, 0, 0, nodes=posterior.tree.nodes)
    with pytest.raises(tbr.DataError, match="intercept is the same in every row"):
        plot_curves(posterior, "intercept", 0)
    with pytest.raises(tbr.DataError, match="name one of"):
        plot_curves(posterior, 0)


def test_other_plots_show_latents_not_their_curves():
    posterior = curved()
    ax = plot_pips(posterior, "y0")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["z0", "z1", "intercept"]
    assert plot_tree(posterior, "z1", "y0") is not None
    assert plot_tree(posterior, "any", "y0") is not None
    assert "z0" in plot_effect(posterior, "z0", "y0").get_xlabel()
