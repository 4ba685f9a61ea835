"""Outcomes observed beside made up ones, environment by environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.data import RowOrder, align_env, align_features
from pyro_tbr.errors import DataError
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import outcome_place
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.view import check_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATISTICS = ("mean", "sd")


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

    Grey bars are central intervals of the statistic over outcomes drawn for the same rows, strokes
    what was observed; those outside their interval are diamonds, and named first where not all
    names fit. Of a true model a share of 1 - level is outside.

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
    out = (real < lower) | (real > upper)
    ax = canvas.new_axes(ax, 6.0, canvas.height_for(len(rows)))
    height, thick = np.arange(len(rows)), canvas.bar_width(ax, len(rows))
    label = f"predicted, {level:.0%} interval"
    ax.hlines(height, lower, upper, color="#c4c4c4", linewidth=thick, label=label)
    if not out.all():
        canvas.strokes(ax, real[~out], height[~out], thick, color=canvas.INK, label="observed")
    if out.any():
        words = f"observed, outside ({out.sum()} of {len(rows)})"
        style: dict[str, Any] = {"color": canvas.ALARM, "markeredgewidth": 0, "label": words}
        ax.plot(real[out], height[out], "D", markersize=max(0.8 * thick, 3.0), zorder=4, **style)
    quantity = f"{statistic} of {text.short(posterior.outcome_names[q])}"
    # The further outside, the sooner it is named.
    importance = np.maximum(np.maximum(lower - real, real - upper) / (upper - lower + 1e-300), 0)
    labels = [text.node_text(tree, tree.nodes[node]) for node in rows]
    colours = [canvas.ALARM if one else text.PLAIN for one in out]
    canvas.finish_rows(ax, labels, quantity, importance, colours)
    return ax
