"""Curves of a latent's effect, where a model has a basis."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

import numpy as np

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.errors import DataError
from pyro_tbr.plotting.selection import outcome_place, slope_places
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.view import check_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 7  # curves with a colour and a name: of the categories those that are no grey


def plot_curves(
    posterior: Posterior,
    latent: str | int = 0,
    outcome: str | int | None = None,
    *,
    nodes: Iterable[Hashable] | None = None,
    level: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """What a latent adds to an outcome along its values, at the root and at leaves.

    The root is dashed. Leaves whose curves are furthest from it have colours, names and their
    intervals, others are grey. For a model with a ``basis``.

    Args:
        posterior: Whose curves.
        latent: Name or number.
        outcome: Name or number; may be left out where there is one.
        nodes: These nodes in place of the leaves, at most 7 of them.
        level: Probability of the intervals.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        DataError: The model has no basis, no such latent or outcome, or too many nodes.
        TreeError: No such node.
    """
    check_level(level)
    tree, q = posterior.tree, outcome_place(posterior, outcome)
    name = posterior.latent_names[slope_places(posterior, [latent])[0]]
    wanted = list(tree.leaves if nodes is None else nodes)
    if nodes is not None and not 0 < len(wanted) <= _MOST:
        raise DataError(f"nodes: {len(wanted)} given, and 1 to {_MOST} curves have a colour each")
    table = posterior.curves(name, [tree.root, *wanted], level=level)
    table = table[table["outcome"] == posterior.outcome_names[q]]
    value = table["value"].unique()
    shape = (1 + len(wanted), len(value))
    mean, lower, upper = (table[part].to_numpy().reshape(shape) for part in
                          ("mean", "lower", "upper"))  # fmt: skip
    away = np.abs(mean[1:] - mean[0]).max(1)
    named = np.sort(np.argsort(-away, kind="stable")[:_MOST])
    ax = canvas.new_axes(ax)
    for row in np.setdiff1d(np.arange(len(wanted)), named):
        ax.plot(value, mean[1 + row], color=canvas.MUTED, linewidth=0.8, zorder=1)
    for place, row in enumerate(named):
        colour = canvas.CATEGORIES[place]
        label = text.short(text.node_text(tree, wanted[row]))
        ax.fill_between(value, lower[1 + row], upper[1 + row], color=colour, alpha=0.15, lw=0)
        ax.plot(value, mean[1 + row], color=colour, linewidth=1.4, label=label, zorder=3)
    style = {"color": "black", "linewidth": 1.2, "linestyle": "--", "zorder": 4}
    ax.plot(value, mean[0], label="root", **style)
    several = len(posterior.outcome_names) > 1
    on = f" on {text.short(posterior.outcome_names[q])}" if several else ""
    ax.set_xlabel(text.short(name), parse_math=False)
    ax.set_ylabel(f"effect{on}, mean and {level:.0%} interval", parse_math=False)
    canvas.open_frame(ax)
    canvas.key_above(ax)
    return ax
