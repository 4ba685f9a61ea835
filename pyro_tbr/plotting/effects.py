"""What latents and features do: leaf by leaf, and which features make a latent."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import latent_place, outcome_place, slope_places
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.effects import feature_names, features_asked
from pyro_tbr.posterior.view import check_level, check_number, weights_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAR = 0.25  # of the largest effect: leaves where effects step so far from the root's are named
_MOST_FEATURES = 20  # in a heat map
_MOST_BARS = 60  # of loadings, all latents together


def plot_effect(
    posterior: Posterior,
    latent: str | int = 0,
    outcome: str | int | None = None,
    *,
    level: float = 0.9,
    num_draws: int = 400,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Weight of a latent at every leaf, with intervals, leaves in the order of the drawn tree.

    A bar is the interval, the stroke in it the median. Leaves without data are grey: they are
    predicted through the tree. The dashed line is the weight at the root. Where not all leaves can
    be named, those are where the weight steps away from it, and those without data.

    Args:
        posterior: Whose weights.
        latent: Name or number; ``"intercept"`` too.
        outcome: Name or number; may be left out where there is one.
        level: Probability of the intervals.
        num_draws: Joint draws the intervals and medians are made of.
        seed: Of these draws.
        ax: Where to draw; ``None``: a new figure, its height by the number of leaves.

    Returns:
        The axes.

    Raises:
        DataError: No such latent or outcome, or no usable level.
    """
    check_level(level)
    k, q = latent_place(posterior, latent), outcome_place(posterior, outcome)
    draws = posterior.draws(num_draws, torch.Generator().manual_seed(seed))
    # Summed along the tree in the model's units, as there a change of the intercept is one.
    nodes = torch.tensor([0, *tree_layout(posterior.tree).leaf_order.tolist()])  # the root first
    every = posterior.user_weight_draws(weights_at(posterior.tree, nodes, draws))
    weights = every[..., k, q].numpy()
    tail = (1 - level) / 2
    ends = np.quantile(weights, [tail, 0.5, 1 - tail], axis=0)
    quantity = f"weight of {posterior.latent_names[k]}{_on(posterior, q)} ({level:.0%} interval)"
    return _draw_leaves(posterior, ends, quantity, ax)


def plot_effects(
    posterior: Posterior,
    features: Any = None,
    outcome: str | int | None = None,
    *,
    x: Any = None,
    per: str = "sd",
    num_features: int = _MOST_FEATURES,
    level: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """What features do to an outcome at every leaf, leaves in the order of the drawn tree.

    Several features are a heat map of posterior means, blue up, orange down, white nothing; leaves
    with a ring have no data and are predicted through the tree. A single one has intervals, drawn
    as those of :func:`plot_effect`. Unlike latents, effects of features need no basis.

    Args:
        posterior: Whose effects.
        features: Names, in this order, or one; ``None``: the strongest, strongest first.
        outcome: Name or number; may be left out where there is one.
        x: As in ``posterior.effects``: rows, where latents are not linear in the features.
        per: ``"sd"``: outcome per standard deviation of a feature, or ``"unit"``.
        num_features: How many of the strongest.
        level: Probability of the intervals of a single feature.
        ax: Where to draw; ``None``: a new figure, its height by the number of leaves.

    Returns:
        The axes.

    Raises:
        DataError: No such feature, outcome or ``per``, no usable level or number, or ``x`` is
            needed.
    """
    check_level(level)
    check_number(num_features, "num_features")
    q = outcome_place(posterior, outcome)
    places, wanted = features_asked(posterior, features)
    tree, leaves = posterior.tree, tree_layout(posterior.tree).leaf_order
    nodes = [0, *leaves.tolist()]
    unit = "a standard deviation" if per == "sd" else "a unit"
    if features is not None and len(wanted) == 1:
        labels = [tree.nodes[node] for node in nodes]
        table = posterior.effects(list(wanted), labels, x, per=per, level=level)
        table = table[table["outcome"] == posterior.outcome_names[q]]
        ends = table[["lower", "mean", "upper"]].to_numpy().T
        what = f"effect of {unit} of {text.short(wanted[0])}{_on(posterior, q)}"
        return _draw_leaves(posterior, ends, f"{what} ({level:.0%} interval)", ax)
    # Means alone, for all features at once: intervals of thousands would take long.
    loadings = posterior.loadings(x, per=per).to_numpy()[places]
    slopes = posterior.user_moments().mean[nodes, : loadings.shape[1], q].numpy()
    effects = slopes @ loadings.T  # (1 + L, F)
    if features is None:
        strongest = np.argsort(-np.abs(effects[1:]).max(0), kind="stable")[:num_features]
        effects, wanted = effects[:, strongest], tuple(wanted[i] for i in strongest)
    total = len(feature_names(posterior)) if features is None else len(wanted)
    label = f"effect of {unit}{_on(posterior, q)}"
    return _draw_heat_map(posterior, effects, wanted, total, label, ax)


def plot_loadings(
    posterior: Posterior,
    latent: str | int | None = None,
    *,
    x: Any = None,
    per: str = "sd",
    num_features: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Which features make a latent: by how much it moves with each, the strongest of them.

    Blue bars go up with the feature, orange ones down.

    Args:
        posterior: Whose encoder.
        latent: Name or number; ``None``: all that are used, one below the other.
        x: As in ``posterior.loadings``: rows, where latents are not linear in the features.
        per: ``"sd"``: latent per standard deviation of a feature, or ``"unit"``.
        num_features: How many features of each latent; ``None``: 3 to 10, by the number of latents.
        ax: Where to draw; ``None``: a new figure, its height by the number of bars.

    Returns:
        The axes.

    Raises:
        DataError: No such latent or ``per``, the intercept, which no feature makes, no usable
            number, or ``x`` is needed.
    """
    table = posterior.loadings(x, per=per)
    latents: list[Any] = [latent]
    if latent is None:
        unused = posterior.identification().unused
        latents = [name for name in table if name not in unused] or list(table)
    which = slope_places(posterior, latents)
    if num_features is None:
        num_features = int(np.clip(_MOST_BARS // len(which), 3, 10))
    check_number(num_features, "num_features")
    labels: list[str] = []
    sizes: list[float] = []
    for k in which:
        values = table.iloc[:, k].to_numpy()
        strongest = np.argsort(-np.abs(values), kind="stable")[:num_features]
        if len(which) > 1:
            labels, sizes = [*labels, posterior.latent_names[k]], [*sizes, np.nan]
        labels += [text.short(table.index[d]) for d in strongest]
        sizes += values[strongest].tolist()
    length, rows = np.array(sizes), np.arange(len(sizes))
    ax = canvas.new_axes(ax, 5.6, canvas.height_for(len(sizes)))
    ax.barh(rows, length, 0.7, color=np.where(length > 0, canvas.INK, canvas.ALARM))
    ax.axvline(0, color=canvas.GREY, linewidth=0.8)
    canvas.rank_axes(ax, len(sizes))
    heads = np.isnan(length)
    text.label_rows(ax, rows, labels, heads + np.nan_to_num(np.abs(length)))
    for tick in ax.get_yticklabels():
        tick.set_fontweight("bold" if heads[round(tick.get_position()[1])] else "normal")
    text.note_cut(ax, min(num_features, len(table)), len(table), "features")
    one = posterior.latent_names[which[0]] if len(which) == 1 else "latent"
    ax.set_xlabel(f"{one} per {'sd' if per == 'sd' else 'unit'} of the feature", parse_math=False)
    return ax


def _on(posterior: Posterior, outcome: int) -> str:
    """Words for one of several outcomes."""
    names = posterior.outcome_names
    return f" on {text.short(names[outcome])}" if len(names) > 1 else ""


def _beside(steps: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows (n,) at either side of a step from a row to the next, (n - 1,)."""
    return np.append(False, steps) | np.append(steps, False)


def _draw_leaves(
    posterior: Posterior, ends: NDArray[np.float64], quantity: str, ax: Axes | None
) -> Axes:
    """Lower end, middle and upper end (3, 1 + L) at the root and every leaf, in drawn order."""
    tree, leaves = posterior.tree, tree_layout(posterior.tree).leaf_order
    at_root, (lower, middle, upper) = ends[1, 0], ends[:, 1:]
    seen = posterior.row_counts.cpu().numpy()[leaves] > 0
    ax = canvas.new_axes(ax, 6.0, canvas.height_for(len(leaves)))
    height, thick = np.arange(len(leaves)), canvas.bar_width(ax, len(leaves))
    ax.axvline(at_root, color=canvas.GREY, linewidth=1, linestyle="--", zorder=0, label="root")
    for rows, bar, stroke, words in (
        (seen, canvas.PALE, canvas.INK, "leaf with data"),
        (~seen, canvas.MUTED, "#6e6e6e", "leaf without data"),
    ):
        if rows.any():
            ax.hlines(height[rows], lower[rows], upper[rows], color=bar, linewidth=thick)
            canvas.strokes(
                ax, middle[rows], height[rows], thick, color=stroke, label=words, bar=bar
            )
    differs = np.maximum(lower - at_root, at_root - upper)
    outside = (middle[1:] < lower[:-1]) | (middle[1:] > upper[:-1])
    outside &= (middle[:-1] < lower[1:]) | (middle[:-1] > upper[1:])
    named = (differs > 0) & _beside(outside)
    importance = np.where(named, 1 + differs, np.where(seen, 0, 0.5))
    labels = [text.node_text(tree, tree.nodes[leaf]) for leaf in leaves]
    canvas.finish_rows(ax, labels, quantity, importance)
    return ax


def _draw_heat_map(
    posterior: Posterior,
    effects: NDArray[np.float64],
    features: tuple[Hashable, ...],
    total: int,
    label: str,
    ax: Axes | None,
) -> Axes:
    """Effects (1 + L, F) at the root and the leaves, which are shown, of F of so many features."""
    tree, leaves = posterior.tree, tree_layout(posterior.tree).leaf_order
    shown, number, rows = effects[1:], len(features), np.arange(len(leaves))
    columns = [text.short(name) for name in features]
    width = float(np.clip(0.28 * number + 3.4, 4.6, 14.0))
    below = canvas.height_of_columns(columns, width)
    ax = canvas.new_axes(ax, width, canvas.height_for(len(leaves)) + below)
    most = float(np.abs(shown).max()) or 1.0
    style: dict[str, Any] = {"cmap": canvas.signed_colours(), "vmin": -most, "vmax": most}
    if len(leaves) <= 130:
        style |= {"edgecolors": "white", "linewidth": 0.6}
    mesh = ax.pcolormesh(np.arange(number + 1), np.arange(len(leaves) + 1) - 0.5, shown, **style)
    without = np.flatnonzero(posterior.row_counts.cpu().numpy()[leaves] == 0)
    if len(without):
        ring: dict[str, Any] = {"color": canvas.GREY, "markerfacecolor": "white", "marker": "o"}
        ring |= {"linestyle": "", "transform": text.points_beside(ax, right=True)}
        size = float(np.clip(600 / len(leaves), 2.0, 4.0))
        ax.plot(np.full(len(without), 5.0), without, markersize=size, clip_on=False, **ring)
        ax.plot([], [], markersize=4.0, label="leaf without data", **ring)
    ax.set(xlim=(0, number), ylim=(len(leaves) - 0.5, -0.5))
    ax.spines[:].set_visible(False)
    labels = [text.node_text(tree, tree.nodes[leaf]) for leaf in leaves]
    far = np.abs(shown - effects[0]).max(1)
    named = (far > _FAR * most) & _beside(np.abs(np.diff(shown, axis=0)).max(1) > _FAR * most)
    text.label_rows(ax, rows, labels, np.where(named, far, 0.0))
    canvas.label_columns(ax, columns)
    text.note_cut(ax, number, total, "features")
    if len(without):
        canvas.key_above(ax)
    canvas.colour_bar(ax, mesh, label)
    return ax
