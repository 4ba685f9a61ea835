"""Every plot draws at every size, says what it shows, and leaves pyplot and the state alone."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure

import pyro_tbr as tbr
from pyro_tbr import plotting
from pyro_tbr.errors import DataError, ShapeError, TreeError
from pyro_tbr.plotting import canvas, text
from pyro_tbr.plotting.layout import tree_layout
from tests.plotting.conftest import AWKWARD
from tests.posterior.small_fits import CHERRY, known_fit, toy

PLOTS = {
    "tree": lambda x, y, env, p, **kw: plotting.plot_tree(p, "z0", **kw),
    "pips": lambda x, y, env, p, **kw: plotting.plot_pips(p, **kw),
    "effect": lambda x, y, env, p, **kw: plotting.plot_effect(
        p, "z0", p.outcome_names[0], num_draws=50, **kw
    ),
    "any change": lambda x, y, env, p, **kw: plotting.plot_tree(p, "any", **kw),
    "effects": lambda x, y, env, p, **kw: plotting.plot_effects(p, None, p.outcome_names[0], **kw),
    "one effect": lambda x, y, env, p, **kw: plotting.plot_effects(
        p, "x1", p.outcome_names[0], **kw
    ),
    "loadings": lambda x, y, env, p, **kw: plotting.plot_loadings(p, **kw),
    "latents": lambda x, y, env, p, **kw: plotting.plot_latents(p, x, env, **kw),
    "reliability": lambda x, y, env, p, **kw: plotting.plot_reliability(
        p.pips(), p.pips() > 0.5, **kw
    ),
    "coverage": lambda x, y, env, p, **kw: plotting.plot_coverage(
        y, p.predict(x, env, num_draws=50), num_draws=50, **kw
    ),
    "check": lambda x, y, env, p, **kw: plotting.plot_predictive_check(
        p, x, y, env, 0, num_draws=50, **kw
    ),
}


@pytest.mark.parametrize("name", PLOTS)
def test_draws_at_every_size_without_overlap(name, sized):
    ax = PLOTS[name](*sized)
    assert isinstance(ax.figure, Figure)
    ax.figure.draw_without_rendering()
    _assert_labels_apart(ax)
    _assert_inside(ax)


@pytest.mark.parametrize("name", PLOTS)
def test_draws_awkward_labels_into_given_axes(name, awkward):
    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.subplots(1, 2)[1]
    assert PLOTS[name](*awkward, ax=ax) is ax
    figure.draw_without_rendering()
    _assert_labels_apart(ax)


def _assert_labels_apart(ax):
    """Labels of rows do not cover one another, but for a pixel."""
    boxes = [text.get_window_extent() for text in ax.get_yticklabels() if text.get_text()]
    ordered = sorted(boxes, key=lambda box: box.y0)
    for low, high in zip(ordered, ordered[1:], strict=False):
        assert high.y0 - low.y1 > -1.5


def _assert_inside(ax):
    """Nothing is clipped by the edge of the figure."""
    box, page = ax.get_tightbbox(), ax.figure.bbox
    assert box.x0 > -1
    assert box.y0 > -1
    assert box.x1 < page.x1 + 1
    assert box.y1 < page.y1 + 1
    key = ax.get_legend()
    if key is not None and ax.get_title(loc="right"):
        assert not key.get_window_extent().overlaps(ax._right_title.get_window_extent())


def test_pyplot_is_not_touched_and_missing_matplotlib_says_what_to_install():
    code = """
import sys
import pyro_tbr, pyro_tbr.io, pyro_tbr.plotting
extras = {"matplotlib", "sklearn", "scipy", "arviz_base", "arviz", "xarray", "anndata", "treedata"}
assert not extras & set(sys.modules), extras & set(sys.modules)
from pyro_tbr.plotting import plot_reliability
plot_reliability([0.2, 0.9], [0, 1]).figure.draw_without_rendering()
assert "matplotlib.pyplot" not in sys.modules
for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
    del sys.modules[name]
sys.modules["matplotlib"] = None
try:
    plot_reliability([0.2, 0.9], [0, 1])
except ImportError as error:
    assert str(error) == "plots need matplotlib: pip install pyro-tbr[plot]", error
else:
    raise AssertionError("no error")
"""
    # scipy and scikit-learn may be asked for by torch or pyro themselves, if they are there.
    code = code.replace('"sklearn", "scipy", ', '"sklearn", ')
    subprocess.run([sys.executable, "-c", code], check=True)


def test_layout_is_that_of_the_tree():
    tree = tbr.Tree.from_newick("((a:1,b:2)u:0.5,c:3)r;")
    by_name = {name: place for place, name in enumerate(tree.nodes)}
    layout = tree_layout(tree)
    leaves = [tree.nodes[node] for node in layout.leaf_order]
    at = {name: (layout.x[i], layout.y[i]) for name, i in by_name.items()}
    assert leaves == ["a", "b", "c"]
    assert at == {"r": (0, 1.25), "u": (0.5, 0.5), "c": (3, 2), "a": (1.5, 0), "b": (2.5, 1)}
    assert [tree.nodes[node] for node in layout.order] == ["r", "u", "a", "b", "c"]
    assert tree_layout(tree, use_lengths=False).x[by_name["a"]] == 2


def test_layout_of_a_deep_chain_needs_no_recursion():
    depth = 20_000
    tree = tbr.Tree.from_parents({i + 1: i for i in range(depth)})
    layout = tree_layout(tree)
    assert layout.x.max() == depth
    assert (layout.y == 0).all()


def test_layout_without_lengths_refuses_lengths():
    with pytest.raises(TreeError, match="2 of 2 arcs have no length"):
        tree_layout(CHERRY, use_lengths=True)


def test_tree_arcs_have_the_colours_of_their_pips(awkward):
    *_, posterior = awkward
    ax = plotting.plot_tree(posterior, "z0", "y0")
    arcs, dotted = (part for part in ax.collections if isinstance(part, LineCollection))
    known = posterior.guide.informed_arcs.numpy()
    pips = posterior.pips()["y0"]["z0"].to_numpy()
    assert arcs.get_clim() == (0, 1)
    np.testing.assert_allclose(arcs.get_array(), np.sort(pips[known]))
    assert len(dotted.get_paths()) == (~known).sum() == 1  # the arc to the leaf without rows
    texts = {one.get_text() for one in ax.texts}
    assert {"it's_me $x^2$ $", "_under", "d", "100.0:g__C"} <= texts  # and the clade that changed
    assert any(one.startswith("p__A; c__B") and "…" in one for one in texts)


def test_pips_rows_are_in_tree_order_and_largest_over_outcomes(awkward):
    *_, posterior = awkward
    ax = plotting.plot_pips(posterior)
    mesh = next(part for part in ax.collections if isinstance(part, QuadMesh))
    shown = mesh.get_array().reshape(posterior.tree.num_arcs, -1)
    order = [child for _, child in posterior.tree.arcs]
    walk = [posterior.tree.nodes[node] for node in tree_layout(posterior.tree).order[1:]]
    pips = posterior.guide.delta_moments().inclusion.detach().numpy().max(2)
    np.testing.assert_allclose(shown, pips[[order.index(child) for child in walk]])
    white = next(part for part in ax.collections if isinstance(part, PolyCollection))
    assert len(white.get_paths()) == 1
    one = plotting.plot_pips(posterior, "y1")
    mesh = next(part for part in one.collections if isinstance(part, QuadMesh))
    assert mesh.get_array().max() < shown.max()


def test_effect_shows_node_weights(awkward):
    *_, posterior = awkward
    ax = plotting.plot_effect(posterior, "z0", "y0")
    table = posterior.node_weights().query("latent == 'z0' and outcome == 'y0'")
    mean = table.set_index("node")["mean"]
    leaves = tree_layout(posterior.tree).leaf_order
    intervals = {
        segment[0, 1]: segment[:, 0]
        for part in ax.collections
        if isinstance(part, LineCollection)
        for segment in part.get_segments()
    }
    assert len(intervals) == 4
    for height, node in enumerate(leaves):
        lower, upper = intervals[height]
        assert lower < mean[posterior.tree.nodes[node]] < upper
        assert upper - lower < 4
    assert "leaf without data" in {text.get_text() for text in ax.get_legend().get_texts()}


def test_check_finds_a_shifted_environment(awkward):
    x, y, env, posterior = awkward
    plain = plotting.plot_predictive_check(posterior, x, y, env, "y0")
    shifted = y + 5.0 * (env == "_under")[:, None]
    found = plotting.plot_predictive_check(posterior, x, shifted, env, "y0")
    texts = [text.get_text() for text in found.get_legend().get_texts()]
    assert any("outside (1 of 3)" in text for text in texts)
    assert plain.get_xlabel() == "mean of y0"
    spread = y * np.where(env == "_under", 5.0, 1.0)[:, None]
    sd = plotting.plot_predictive_check(posterior, x, spread, env, "y0", statistic="sd")
    assert any("(1 of 3)" in text.get_text() for text in sd.get_legend().get_texts())


def test_coverage_lies_on_the_diagonal_for_true_draws_only():
    rng = np.random.default_rng(0)
    y, draws = rng.standard_normal(4000), rng.standard_normal((500, 4000))
    curve = plotting.plot_coverage(y, draws).lines[1].get_ydata()
    assert np.abs(curve - np.linspace(0, 1, 101)).max() < 0.03
    narrow = plotting.plot_coverage(y, 0.5 * draws).lines[1].get_ydata()
    assert narrow[90] < 0.7


def test_reliability_points_are_those_of_the_table():
    pips, gates = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 0, 1, 0])
    ax = plotting.plot_reliability(pips, gates)
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), [(0.05, 0), (0.95, 0.5)])
    assert [text.get_text() for text in ax.texts] == ["2", "2"]


def test_probability_colours_are_evenly_spaced():
    lab = _lab(canvas.probability_colours()(np.linspace(0, 1, 11))[:, :3])
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() < 1.15 * steps.min()
    assert (np.diff(lab[:, 0]) < 0).all()


def _lab(rgb):
    """CIELAB (D65) of sRGB in [0, 1]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def test_large_tree_notes_what_it_does_not_label(sized):
    *_, posterior = sized
    ax = plotting.plot_tree(posterior, "z0")
    many = posterior.tree.num_leaves > 100
    assert ("of 300 leaf names shown" in ax.get_title(loc="right")) == many


@pytest.fixture(scope="module")
def gateless():
    x, y, env = toy(CHERRY.leaves, num_rows=20)
    return known_fit(CHERRY, x, y, env, prior=tbr.GaussianPrior(scale=1.0))


def test_priors_without_gates_need_values(gateless):
    for plot in (plotting.plot_tree, plotting.plot_pips):
        with pytest.raises(DataError, match="GaussianPrior has no inclusion probabilities"):
            plot(gateless)
    table = gateless.exceedance(0.5).set_index(["parent", "child"])["exceedance"]
    ax = plotting.plot_tree(gateless, values=table.iloc[::-1], label="P(|change| > 0.5)")
    arcs = next(part for part in ax.collections if isinstance(part, LineCollection))
    np.testing.assert_allclose(arcs.get_array(), np.sort(table.to_numpy()))
    plotting.plot_effect(gateless)


WRONG = {
    "latent": (lambda p: plotting.plot_tree(p, "z9"), DataError, r"latent='z9' .* 'z0', 'z1'"),
    "outcome": (lambda p: plotting.plot_pips(p, "z"), DataError, r"outcome='z' .* 'y0', 'y1'"),
    "which outcome": (lambda p: plotting.plot_effect(p), DataError, "outcome=None, but .* has 2"),
    "level": (lambda p: plotting.plot_effect(p, 0, 0, level=90), DataError, "level=90 must be"),
    "intercept": (
        lambda p: plotting.plot_latents(p, np.zeros((1, 2)), "d", ("z0", 7)),
        DataError,
        "latent=7 is not in the posterior",
    ),
    "values": (lambda p: plotting.plot_tree(p, values=[0.5]), ShapeError, r"shape \(1,\): give"),
    "range": (lambda p: plotting.plot_tree(p, values=[2.0] * 5), DataError, "5 number.* first"),
    "index": (
        lambda p: plotting.plot_tree(p, values=pd.Series([0.1] * 5)),
        DataError,
        "lacks 5 of 5",
    ),
    "statistic": (
        lambda p: plotting.plot_predictive_check(p, [[0, 0]], [[0, 0]], "d", 0, statistic="max"),
        DataError,
        "statistic='max' is not known",
    ),
    "unobserved": (
        lambda p: plotting.plot_predictive_check(p, [[0, 0]], [[np.nan, 0]], "d", 0),
        DataError,
        "no environment with 1 or more",
    ),
    "draws": (lambda p: plotting.plot_coverage([1.0], [[1, 2]]), ShapeError, r"give \(S, "),
    "binary": (lambda p: plotting.plot_coverage([1.0], [[1], [0]]), DataError, "plot_reliability"),
    "nothing": (lambda p: plotting.plot_coverage([np.nan], [[1], [2]]), DataError, "no observed"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_calls_say_what_and_how(call, error, message, awkward):
    with pytest.raises(error, match=message):
        call(awkward[-1])


def test_labels_of_the_test_are_awkward():
    assert text.short(AWKWARD[0]) != AWKWARD[0]
    assert text.short("a\nb") == "a b"
