"""Observed outcomes beside outcomes the posterior makes up, environment by environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import pyro_tbr.plotting.canvas as canvas
from pyro_tbr.data import RowOrder, align_env, align_features, align_outcomes
from pyro_tbr.errors import DataError
from pyro_tbr.plotting.effects import check_level
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import outcome_place
from pyro_tbr.posterior import Posterior

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
    q = outcome_place(posterior, outcome)
    tree = posterior.tree
    features, index = align_features(posterior.schema, x)
    order = RowOrder(len(features), index).or_of(y=y, env=env)
    nodes = align_env(tree, env, order).numpy()
    likelihood = posterior.model.likelihood
    observed = align_outcomes(posterior.schema, y, order, check=likelihood.check)
    values = observed.numpy()[:, q]
    drawn = posterior.predict(x, env, seed=seed).sample(num_draws, seed=seed)
    drawn = drawn if drawn.ndim == 2 else drawn[..., q]
    least = 1 if statistic == "mean" else 2
    seen = ~np.isnan(values)
    rows = {node: np.flatnonzero(seen & (nodes == node)) for node in tree_layout(tree).order}
    rows = {node: part for node, part in rows.items() if len(part) >= least}
    if not rows:
        raise DataError(f"y has no environment with {least} or more observed outcomes to check")
    take = np.mean if statistic == "mean" else np.std
    made = np.stack([take(drawn[:, part], axis=1) for part in rows.values()], axis=1)
    real = np.array([take(values[part]) for part in rows.values()])
    tail = (1 - level) / 2
    lower, upper = np.quantile(made, [tail, 1 - tail], axis=0)
    ax = canvas.new_axes(ax, 6.0, canvas.height_for(len(rows)))
    height = np.arange(len(rows))
    size = float(np.clip(300 / len(rows), 2.6, 5.0))
    ax.hlines(
        *(height, lower, upper),
        color="#c4c4c4",
        linewidth=1.5 * size if len(rows) < 100 else 2.0,
        label=f"predicted, {level:.0%} interval",
    )
    out = (real < lower) | (real > upper)
    marks: tuple[tuple[Any, str, str, str], ...] = (
        (~out, "o", canvas.INK, "observed"),
        (out, "D", canvas.ALARM, f"observed, outside ({out.sum()} of {len(rows)})"),
    )
    for which, marker, colour, text in marks:
        if which.any():
            ax.plot(
                *(real[which], height[which], marker),
                markersize=size,
                color=colour,
                markeredgewidth=0,
                label=text,
            )
    canvas.rank_axes(ax, len(rows))
    labels = [tree.labels[tree.nodes[node]] for node in rows]
    canvas.label_rows(ax, height, labels)
    names = posterior.outcome_names
    ax.set_xlabel(f"{statistic} of {names[q]}", parse_math=False)
    canvas.legend_above(ax, size)
    return ax
