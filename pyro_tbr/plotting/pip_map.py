"""Heat map of inclusion probabilities, arcs by latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import CHANGED_FROM, inclusion, pick_outcome
from pyro_tbr.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_pips(
    posterior: Posterior, outcome: str | int | None = None, *, ax: Axes | None = None
) -> Axes:
    """Heat map of inclusion probabilities, arcs by latents.

    An arc is named by its child; arcs come as a walk through the drawn tree meets them, so a clade
    is a block of rows. Where not all names fit, arcs with a PIP of 1/2 or more have theirs first.
    Rows without data below, and columns of latents that are constant, are left white: their PIP is
    the prior's.

    Args:
        posterior: Whose PIPs.
        outcome: Name or number; ``None``: the only one, or the largest PIP of all.
        ax: Where to draw; ``None``: a new figure, its height by the number of arcs.

    Returns:
        The axes.

    Raises:
        DataError: No such outcome, or a prior without inclusion probabilities.
    """
    tree = posterior.tree
    pips, of_outcome = pick_outcome(posterior, inclusion(posterior), outcome)
    pips = np.where(posterior.weights_that_exist[posterior.gate_places], pips, np.nan)
    rows = tree_layout(tree).order[1:] - 1
    names = posterior.gate_names
    labels = [text.node_text(tree, tree.nodes[arc + 1]) for arc in rows]
    longest = max(map(len, labels)) * text.WIDTH * 8 / 72  # inches
    width = float(np.clip(0.5 * len(names) + 2.6 + longest, 4.2, 14.0))
    columns = [text.short(name) for name in names]
    below = canvas.height_of_columns(columns, width)
    ax = canvas.new_axes(ax, width, canvas.height_for(tree.num_arcs) + below)
    fine = tree.num_arcs <= 130
    lines = {"edgecolors": "white", "linewidth": 0.8} if fine else {"linewidth": 0}
    colours = canvas.probability_colours()
    image = ax.pcolormesh(pips[rows], cmap=colours, vmin=0, vmax=1, **lines)
    informed = posterior.guide.informed_arcs.cpu().numpy()[rows]
    _blank(ax, np.flatnonzero(~informed), len(names), "//////" if fine else "")
    ax.set_ylim(len(rows), 0)
    ax.spines[:].set_visible(False)
    largest = np.nanmax(pips[rows], axis=1)
    importance = np.where(informed & (largest >= CHANGED_FROM), largest, 0.0)
    text.label_rows(ax, np.arange(len(rows)) + 0.5, labels, importance)
    canvas.label_columns(ax, columns)
    ax.set_ylabel("arc into")
    canvas.colour_bar(ax, image, f"PIP, {of_outcome}" if of_outcome else "PIP")
    return ax


def _blank(ax: Axes, rows: NDArray[np.int64], width: int, hatch: str) -> None:
    """White bars over rows whose numbers say nothing of the data, hatched where there is room."""
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    if not len(rows):
        return
    style: dict[str, Any] = {"hatch": hatch, "edgecolor": "#b0b0b0"}
    corners = np.array([(0, 0), (width, 0), (width, 1), (0, 1)], dtype=float)
    bars = corners[None] + np.stack([np.zeros(len(rows)), rows], -1)[:, None, :]
    ax.add_collection(PolyCollection(bars, facecolor="white", zorder=2, linewidth=0, **style))
    key, place = Patch(facecolor="white", linewidth=0.6, **style), {"bbox_to_anchor": (0, 1)}
    ax.legend([key], ["no data below"], loc="lower left", **place, **canvas.KEY)
