"""Environment by environment: the effect of a latent, and outcomes observed beside made up ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pyro_tbr.plotting.canvas as canvas
from pyro_tbr.data import RowOrder, align_env, align_features
from pyro_tbr.errors import DataError
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import latent_place, outcome_place
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.view import check_level, weights_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATISTICS = ("mean", "sd")


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

    Leaves without data are hollow: they are predicted through the tree. The dashed line is the
    weight at the root.

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
    tree = posterior.tree
    k, q = latent_place(posterior, latent), outcome_place(posterior, outcome)
    leaves = tree_layout(tree).leaf_order
    draws = posterior.draws(num_draws, torch.Generator().manual_seed(seed))
    # Summed along the tree in the model's units, as there a change of the intercept is one.
    nodes = torch.tensor([0, *leaves.tolist()])  # the root stands first
    weights = posterior.user_weights(weights_at(tree, nodes, draws))[..., k, q].numpy()
    tail = (1 - level) / 2
    lower, middle, upper = np.quantile(weights[:, 1:], [tail, 0.5, 1 - tail], axis=0)
    seen = posterior.row_counts.cpu().numpy()[leaves] > 0
    ax = canvas.new_axes(ax, 6.0, canvas.height_for(len(leaves)))
    height = np.arange(len(leaves))
    size = float(np.clip(300 / len(leaves), 2.4, 5.0))
    thin: dict[str, Any] = {"linewidth": max(size / 3, 0.6), "alpha": 0.6}
    point: dict[str, Any] = {"markersize": size, "markeredgewidth": min(1.0, size / 3)}
    at_root = float(np.median(weights[:, 0]))
    ax.axvline(at_root, color=canvas.GREY, linewidth=1, linestyle="--", zorder=0, label="root")
    for rows, colour, fill, text in (
        (seen, canvas.INK, canvas.INK, "leaf with data"),
        (~seen, canvas.GREY, "white", "leaf without data"),
    ):
        if rows.any():
            style: dict[str, Any] = {"color": colour, "markerfacecolor": fill, "label": text}
            ax.hlines(height[rows], lower[rows], upper[rows], color=colour, **thin)
            ax.plot(middle[rows], height[rows], "o", **style, **point)
    names = posterior.outcome_names
    of = f" on {names[q]}" if len(names) > 1 else ""
    quantity = f"weight of {posterior.latent_names[k]}{of} ({level:.0%} interval)"
    canvas.finish_rows(ax, [tree.labels[tree.nodes[leaf]] for leaf in leaves], quantity, size)
    return ax


def plot_predictive_check(
    posterior: Posterior,
    x: Any,
    y: Any,
    env: Any,
    outcome: str | int | None = None,
    *,
    statistic: str = "mean",
    level: float = 0.9,
    num_draws: int = 400,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Mean outcome of each environment, observed and as the posterior predicts it.

    Grey bars are central intervals of the statistic over outcomes drawn for the same rows, points
    what was observed; those outside their interval are drawn as diamonds. Of a true model a share
    of 1 - level is outside.

    Args:
        posterior: What is checked.
        x: Features, (N, D), as in ``posterior.predict``; rows of training or others.
        y: Outcomes, NaN where not observed.
        env: Node labels (N,), or one for all rows.
        outcome: Name or number; may be left out where there is one.
        statistic: ``"mean"`` or ``"sd"`` of an environment's outcomes; environments with a single
            outcome have no sd and are left out.
        level: Probability of the intervals.
        num_draws: Draws of the outcomes.
        seed: Of these draws.
        ax: Where to draw; ``None``: a new figure, its height by the number of environments.

    Returns:
        The axes.

    Raises:
        DataError: Nothing is observed, or an argument is unknown.
        ShapeError: Arrays do not fit together.
        TreeError: A label is not in the tree.
    """
    check_level(level)
    if statistic not in _STATISTICS:
        raise DataError(f"statistic={statistic!r} is not known: use one of {_STATISTICS}")
    q, tree = outcome_place(posterior, outcome), posterior.tree
    features, _ = align_features(posterior.schema, x)
    order = RowOrder(len(features)).or_of(x=x, y=y, env=env)
    nodes = align_env(tree, env, order).numpy()
    values = posterior.align_outcomes(y, order).numpy()[:, q]
    drawn = posterior.predict(x, env, seed=seed).sample(num_draws, seed=seed)
    drawn = drawn if drawn.ndim == 2 else drawn[..., q]
    least, take = (1, np.mean) if statistic == "mean" else (2, np.std)
    seen = ~np.isnan(values)
    rows = {node: np.flatnonzero(seen & (nodes == node)) for node in tree_layout(tree).order}
    rows = {node: part for node, part in rows.items() if len(part) >= least}
    if not rows:
        raise DataError(f"y has no environment with {least} or more observed outcomes to check")
    made = np.stack([take(drawn[:, part], axis=1) for part in rows.values()], axis=1)
    real = np.array([take(values[part]) for part in rows.values()])
    lower, upper = np.quantile(made, [(1 - level) / 2, (1 + level) / 2], axis=0)
    ax = canvas.new_axes(ax, 6.0, canvas.height_for(len(rows)))
    height = np.arange(len(rows))
    size = float(np.clip(300 / len(rows), 2.6, 5.0))
    thick = 1.5 * size if len(rows) < 100 else 2.0
    label = f"predicted, {level:.0%} interval"
    ax.hlines(height, lower, upper, color="#c4c4c4", linewidth=thick, label=label)
    out = (real < lower) | (real > upper)
    for which, marker, colour, text in (
        (~out, "o", canvas.INK, "observed"),
        (out, "D", canvas.ALARM, f"observed, outside ({out.sum()} of {len(rows)})"),
    ):
        if which.any():
            style: dict[str, Any] = {"color": colour, "markeredgewidth": 0, "label": text}
            ax.plot(real[which], height[which], marker, markersize=size, **style)
    quantity = f"{statistic} of {posterior.outcome_names[q]}"
    canvas.finish_rows(ax, [tree.labels[tree.nodes[node]] for node in rows], quantity, size)
    return ax
