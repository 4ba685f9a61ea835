"""What was compared before or beside a fit: numbers of latents, and trees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_tbr.errors import DataError
from pyro_tbr.evaluation import TreeComparison
from pyro_tbr.plotting.canvas import (
    ALARM,
    GREY,
    INK,
    height_for,
    key_above,
    new_axes,
    open_frame,
    shortfall_axis,
)
from pyro_tbr.plotting.text import short
from pyro_tbr.posterior import LatentDimChoice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_EVIDENCE = 1.0  # nats: nearer than this to the best, numbers lie on one line


def plot_latent_dims(choice: LatentDimChoice, *, ax: Axes | None = None) -> Axes:
    """By how much each number of latents falls short of the best one, in nats on a log scale.

    Squares: log evidence. Dots: log score of held-out rows, summed over the rows, with one standard
    error of the difference both ways. The number that was taken has a line.

    Args:
        choice: What ``choose_latent_dim`` gave, or ``posterior.report.latent_choice``.
        ax: Where to draw; ``None``: a new figure.
    """
    if not isinstance(choice, LatentDimChoice):
        raise DataError(
            f"choice must be what choose_latent_dim gives, got {type(choice).__name__}: for a fit "
            "that chose, posterior.report.latent_choice"
        )
    ax, table = new_axes(ax, 4.8, 3.2), choice.table
    dims = table["latent_dim"].to_numpy()
    lost = -choice.num_rows * table["difference"].to_numpy()
    error = np.nan_to_num(choice.num_rows * table["difference_se"].to_numpy())
    ax.axvline(choice.best, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    style = {"fmt": "o", "color": INK, "markersize": 4, "linewidth": 1, "capsize": 2}
    ax.errorbar(dims - 0.06, lost, error, label="held-out log score", **style)
    shortfall = -table["evidence"].to_numpy()
    ax.plot(dims + 0.06, shortfall, "s-", color=ALARM, markersize=4, linewidth=1, label="evidence")
    most = max(float((lost + error).max()), float(shortfall.max()), 10.0)
    shortfall_axis(ax, most, _LEAST_EVIDENCE)
    ax.set_xticks(dims)
    ax.set_xlabel("number of latents")
    ax.set_ylabel("below the best, nats")
    open_frame(ax)
    key_above(ax)
    return ax


def plot_trees(comparison: TreeComparison, *, ax: Axes | None = None) -> Axes:
    """By how much each tree predicts held-out rows better or worse than the given one.

    Differences of the log score of a row, with one standard error (thick) and two; at the right the
    difference of log evidence.

    Args:
        comparison: What ``compare_trees`` gave.
        ax: Where to draw; ``None``: a new figure.
    """
    if not isinstance(comparison, TreeComparison):
        raise DataError(
            f"comparison must be what compare_trees gives, got {type(comparison).__name__}"
        )
    table = comparison.table
    ax = new_axes(ax, 5.2, height_for(len(table)))
    places, mean = np.arange(len(table)), table["difference"].to_numpy()
    error = np.nan_to_num(table["difference_se"].to_numpy())
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    ax.hlines(places, mean - 2 * error, mean + 2 * error, color=INK, linewidth=1)
    ax.hlines(places, mean - error, mean + error, color=INK, linewidth=3)
    ax.plot(mean, places, "o", color=INK, markersize=5)
    beside = {"xycoords": ("axes fraction", "data"), "fontsize": 7}
    for place, evidence in zip(places, table["evidence"], strict=True):
        ax.annotate(f"{evidence:+.1f}", (1.02, place), va="center", **beside)
    ax.annotate("evidence", (1.02, -0.55), color="#666666", **beside)
    ax.set_yticks(places, [short(name) for name in table.index], fontsize=9, parse_math=False)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel(
        f"log score of a row, {comparison.hold_out} held out,\nless that by the given tree"
    )
    open_frame(ax)
    return ax
