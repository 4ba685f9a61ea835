"""Names: those that matter are there, joined to what they name, and none lies upon another."""

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr import plotting
from pyro_tbr.plotting import text
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import CHANGED_FROM


def test_thinned_labels_keep_the_important_ones():
    positions = np.arange(100.0)
    importance = np.zeros(100)
    importance[[17, 18, 50]] = [0.9, 0.8, 0.7]
    kept = text.spread_out(positions, importance, 3.0)
    assert {17, 50} <= set(kept)
    assert 18 not in kept
    assert (np.diff(kept) >= 3).all()
    even = text.spread_out(positions, None, 2.5)
    assert (np.diff(even) == 3).all()


def test_moved_labels_are_as_near_as_they_can_be():
    regression = pytest.importorskip("sklearn.isotonic").IsotonicRegression
    positions = np.sort(np.random.default_rng(0).uniform(0, 40, 25))
    moved = text.moved_apart(positions, 1.4, (0.0, 40.0))
    assert (np.diff(moved) >= 1.4 - 1e-9).all()
    assert 0 <= moved[0] < moved[-1] <= 40
    steps = 1.4 * np.arange(25)
    nearest = regression(y_min=0.0, y_max=40 - steps[-1]).fit_transform(
        np.arange(25), positions - steps
    )
    np.testing.assert_allclose(moved, nearest + steps)
    apart = np.array([1.0, 5.0, 9.0])
    np.testing.assert_array_equal(text.moved_apart(apart, 2.0, (0.0, 10.0)), apart)


def test_labels_that_matter_come_before_others_and_all_keep_their_distance():
    positions, importance = np.arange(60.0), np.zeros(60)
    importance[[20, 21, 22, 40]] = 1.0
    shown, moved = text.chosen_labels(positions, importance, 4.0)
    assert {20, 21, 22, 40} <= set(shown)
    assert (np.diff(moved) >= 4 - 1e-9).all()
    others = importance[shown] == 0
    np.testing.assert_array_equal(moved[others], positions[shown[others]])  # these did not move
    few, _ = text.chosen_labels(positions, importance, 4.0, np.zeros(60, dtype=bool))
    assert list(few) == [20, 21, 22, 40]
    all_of_them, _ = text.chosen_labels(positions, 1.0 + importance, 4.0)
    assert len(all_of_them) == 15
    assert {20, 40} <= set(all_of_them)  # of those that are too many the most important


def _boxes(texts):
    boxes = [one.get_window_extent() for one in texts if one.get_text()]
    return np.array([[[box.x0, box.y0], [box.x1, box.y1]] for box in boxes])


def _overlaps(boxes, others, by=1.5):
    """Number of pairs that overlap by more than so many pixels both ways."""
    low = np.maximum(boxes[:, None, 0], others[None, :, 0])
    high = np.minimum(boxes[:, None, 1], others[None, :, 1])
    return int((high - low > by).all(-1).sum())


@pytest.fixture(scope="module")
def drawn(crowded):
    *_, posterior = crowded
    ax = plotting.plot_tree(posterior, "z0")
    ax.figure.draw_without_rendering()
    return posterior, ax


def test_no_name_in_a_tree_of_300_leaves_covers_another(drawn):
    _, ax = drawn
    boxes = _boxes(ax.texts)
    assert len(boxes) > 50
    assert _overlaps(boxes, boxes) == len(boxes)  # each with itself


def test_no_name_in_a_tree_of_300_leaves_covers_an_arc_that_changed(drawn):
    posterior, ax = drawn
    tree, layout = posterior.tree, tree_layout(posterior.tree)
    pips = posterior.pips()["z0"].to_numpy()
    changed = np.flatnonzero((pips >= CHANGED_FROM) & posterior.guide.informed_arcs.numpy()) + 1
    parents = tree.arc_parent.numpy()[changed - 1]
    ends = [
        ax.transData.transform(np.stack([layout.x[nodes], layout.y[changed]], 1))
        for nodes in (parents, changed)
    ]
    arcs = np.stack([np.minimum(*ends) - 1, np.maximum(*ends) + 1], 1)
    assert len(arcs) > 20
    assert _overlaps(_boxes(ax.texts), arcs, by=2.0) == 0


def test_leaves_that_changed_and_the_ends_of_clades_that_did_are_named(drawn):
    posterior, ax = drawn
    tree, layout = posterior.tree, tree_layout(posterior.tree)
    pips = posterior.pips()["z0"].to_numpy()
    known = posterior.guide.informed_arcs.numpy()
    shown = {one.get_text() for one in ax.texts}
    changed = [tree.nodes[arc + 1] for arc in np.flatnonzero((pips >= CHANGED_FROM) & known)]
    drawn_order = [tree.nodes[node] for node in layout.leaf_order]
    place = {leaf: i for i, leaf in enumerate(drawn_order)}
    assert len(changed) > 20
    for node in changed:
        leaves = sorted(tree.descendant_leaves(node), key=place.get)
        assert {leaves[0], leaves[-1]} <= shown
    without = [leaf for leaf in tree.leaves if not known[tree.index(leaf) - 1]]
    assert len(set(without) & shown) > 0.9 * len(without)
    assert f"{len(shown & set(tree.leaves))} of 300 leaf names" in ax.get_title(loc="right")


def test_names_of_a_crowded_tree_are_at_the_height_of_their_leaves_or_joined_to_it(drawn):
    posterior, ax = drawn
    tree, layout = posterior.tree, tree_layout(posterior.tree)
    height = {tree.nodes[node]: i for i, node in enumerate(layout.leaf_order)}
    names = {one.get_text(): one.xy[1] for one in ax.texts if one.get_text() in height}
    leaders = [part for part in ax.collections if part.get_clip_on() is False]
    assert len(leaders) == 1
    joined = {line[0, 1]: line[-1, 1] for line in leaders[0].get_segments()}
    assert {height[name]: y for name, y in names.items()} == pytest.approx(joined)
    np.testing.assert_array_equal(np.argsort(list(joined)), np.argsort(list(joined.values())))


def test_nodes_without_a_name_are_told_by_their_leaves():
    tree = tbr.Tree.from_newick("(((A,B),(C,D),E),(F,G)Good)r;")
    texts = [text.node_text(tree, node) for node in ("inner1", "inner2", "Good", "A")]
    assert texts == ["inner1 (5 leaves: A to E)", "inner2 (A, B)", "Good", "A"]


def test_rows_of_a_heat_map_name_the_arcs_that_changed(crowded):
    *_, posterior = crowded
    ax = plotting.plot_pips(posterior)
    ax.figure.draw_without_rendering()
    named = {label.get_text() for label in ax.get_yticklabels()}
    tree = posterior.tree
    pips = posterior.pips().max(axis=1).to_numpy()
    changed = np.flatnonzero((pips >= CHANGED_FROM) & posterior.guide.informed_arcs.numpy())
    wanted = [text.node_text(tree, tree.nodes[arc + 1]) for arc in changed]
    most = 544 / text.room_for_text(ax, 544)[1]
    assert len(set(wanted) & named) > min(len(wanted), most) - 3
    assert any("leaves: " in label for label in named)


def test_environments_outside_their_interval_are_named(crowded):
    x, y, env, posterior = crowded
    shifted = y.copy()
    chosen = list(dict.fromkeys(env))[30:60:4]
    shifted[np.isin(env, chosen)] += 40.0
    ax = plotting.plot_predictive_check(posterior, x, shifted, env, num_draws=50)
    black = {label.get_text(): label.get_color() for label in ax.get_yticklabels()}
    assert set(chosen) <= set(black)
    assert {black[name] for name in chosen} == {"#c8501e"}


def test_the_label_of_a_colour_bar_lies_within_a_small_figure(awkward):
    *_, posterior = awkward
    for ax in (plotting.plot_tree(posterior), plotting.plot_pips(posterior)):
        figure = ax.figure
        figure.draw_without_rendering()
        bar = figure.axes[-1]
        label = bar.yaxis.label.get_window_extent()
        assert "largest of 2" in " ".join(bar.get_ylabel().split())
        assert figure.bbox.x0 <= label.x0 < label.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= label.y0 < label.y1 <= figure.bbox.y1
