"""Effects and loadings as they are drawn are those of the tables."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh

from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.plotting import plot_effect, plot_effects, plot_loadings, plot_tree
from pyro_tbr.plotting.layout import tree_layout


def _leaves(posterior):
    return [posterior.tree.nodes[node] for node in tree_layout(posterior.tree).leaf_order]


def _names(ticks):
    return [tick.get_text() for tick in ticks]


def test_heat_map_shows_the_means_of_the_strongest_features(learnt):
    _, posterior = learnt
    leaves = _leaves(posterior)
    table = posterior.effects(nodes=leaves, per="sd").pivot(
        index="node", columns="feature", values="mean"
    )
    size = table.abs().max().sort_values(ascending=False)
    ax = plot_effects(posterior, num_features=3)
    mesh = next(part for part in ax.collections if isinstance(part, QuadMesh))
    assert _names(ax.get_xticklabels()) == list(size.index[:3])
    assert _names(ax.get_yticklabels()) == leaves
    shown = mesh.get_array().reshape(len(leaves), 3)
    np.testing.assert_allclose(shown, table.loc[leaves, size.index[:3]], rtol=1e-4, atol=1e-6)
    low, high = mesh.get_clim()
    assert -low == high == pytest.approx(np.abs(shown).max())
    assert "3 of 4 features" in ax.get_title(loc="right")
    chosen = plot_effects(posterior, ["x3", "x0"], per="unit")
    mesh = next(part for part in chosen.collections if isinstance(part, QuadMesh))
    unit = posterior.effects(["x3", "x0"], leaves)["mean"].to_numpy().reshape(-1, 2)
    np.testing.assert_allclose(mesh.get_array().reshape(-1, 2), unit, rtol=1e-4, atol=1e-6)
    assert not chosen.get_title(loc="right")


def test_a_single_feature_has_its_intervals_by_leaf(learnt):
    _, posterior = learnt
    table = posterior.effects("x2", per="sd", level=0.8).set_index("node")
    for one in ("x2", ["x2"]):
        ax = plot_effects(posterior, one, level=0.8)
        bars = [part for part in ax.collections if isinstance(part, LineCollection)]
        segments = {line[0, 1]: line[:, 0] for part in bars for line in part.get_segments()}
        leaves = _leaves(posterior)
        found = np.array([segments[height] for height in range(len(leaves))])
        np.testing.assert_allclose(found, table.loc[leaves, ["lower", "upper"]])
        root = next(line for line in ax.lines if line.get_label() == "root")
        assert root.get_xdata()[0] == table.loc[posterior.tree.root, "mean"]
        assert "x2 (80% interval)" in ax.get_xlabel()


def test_leaves_without_data_have_a_ring(crowded):
    x, y, env, posterior = crowded
    ax = plot_effects(posterior)
    rings = next(line for line in ax.lines if line.get_marker() == "o")
    leaves = _leaves(posterior)
    without = [height for height, leaf in enumerate(leaves) if leaf not in set(env)]
    assert list(rings.get_ydata()) == without


def test_bars_are_the_strongest_loadings(learnt):
    _, posterior = learnt
    table = posterior.loadings(per="sd")
    ax = plot_loadings(posterior, "z1", num_features=2)
    strongest = table["z1"].abs().sort_values(ascending=False).index[:2]
    assert _names(ax.get_yticklabels()) == list(strongest)
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths, table.loc[strongest, "z1"])
    colours = {bar.get_facecolor() for bar in ax.patches if bar.get_width() > 0}
    assert not colours & {bar.get_facecolor() for bar in ax.patches if bar.get_width() < 0}
    assert ax.get_xlabel() == "z1 per sd of the feature"
    every = plot_loadings(posterior, per="unit")
    heads = [tick.get_text() for tick in every.get_yticklabels() if tick.get_weight() == "bold"]
    assert heads == ["z0", "z1"]
    assert len(every.get_yticklabels()) == 2 + 2 * 4


def test_networks_need_rows(trained):
    sim, posterior = trained
    with pytest.raises(DataError, match="give x="):
        plot_loadings(posterior)
    ax = plot_loadings(posterior, x=sim.x)
    table = posterior.loadings(sim.x, per="sd")["z0"]
    assert ax.patches[0].get_width() == pytest.approx(table[table.abs().idxmax()])
    mesh = plot_effects(posterior, x=sim.x).collections[0]
    means = posterior.effects(nodes=_leaves(posterior), x=sim.x, per="sd")["mean"]
    assert np.abs(mesh.get_array()).max() == pytest.approx(means.abs().max(), rel=1e-4)


def test_tree_of_whether_anything_changed(awkward):
    *_, posterior = awkward
    known = posterior.guide.informed_arcs.numpy()
    for which in ("any", "any_slope"):
        ax = plot_tree(posterior, which)
        arcs = next(part for part in ax.collections if isinstance(part, LineCollection))
        table = posterior.arc_pips()[which].to_numpy()
        np.testing.assert_allclose(arcs.get_array(), np.sort(table[known]))
        one = plot_tree(posterior, which, 1)
        arcs = next(part for part in one.collections if isinstance(part, LineCollection))
        table = posterior.arc_pips("y1")[which].to_numpy()
        np.testing.assert_allclose(arcs.get_array(), np.sort(table[known]))


WRONG = {
    "feature": (lambda p: plot_effects(p, ["x9"]), "features: 'x9' .* is none of the 4 features"),
    "number": (lambda p: plot_effects(p, 3), "features: 3 .* is none of the 4 features"),
    "how many": (lambda p: plot_effects(p, num_features=0), "num_features=0 must be"),
    "how many bars": (lambda p: plot_loadings(p, num_features=0), "num_features=0 must be"),
    "level": (lambda p: plot_effects(p, level=90), "level=90 must be"),
    "per": (lambda p: plot_effects(p, per="z"), "per='z' is not known"),
    "outcome": (lambda p: plot_effects(p, outcome="y9"), "outcome='y9' is not"),
    "latent": (lambda p: plot_loadings(p, "z9"), "latent='z9' is not"),
    "intercept": (lambda p: plot_loadings(p, "intercept"), "the intercept is the same in every"),
    "any": (lambda p: plot_tree(p, "all"), "latent='all' is not"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_calls_say_what_and_how(call, message, learnt):
    with pytest.raises((DataError, TreeError), match=message):
        call(learnt[1])


def test_leaves_where_the_effect_steps_are_named(crowded):
    *_, posterior = crowded
    ax = plot_effect(posterior, "z0")
    leaves = _leaves(posterior)
    bars = [part for part in ax.collections if isinstance(part, LineCollection)][:2]
    segments = {line[0, 1]: line[:, 0] for part in bars for line in part.get_segments()}
    lower, upper = np.array([segments[height] for height in range(len(leaves))]).T
    root = next(line for line in ax.lines if line.get_label() == "root").get_xdata()[0]
    apart = (lower[1:] > upper[:-1]) | (upper[1:] < lower[:-1])
    alone = np.append(True, apart) & np.append(apart, True) & ((lower > root) | (upper < root))
    black = {one.get_text() for one in ax.get_yticklabels() if one.get_color() == "#000000"}
    assert alone.sum() > 5
    assert {leaf for leaf, one in zip(leaves, alone, strict=True) if one} <= black
    assert len(black) < 250
