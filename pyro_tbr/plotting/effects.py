"""The effect of a latent on an outcome across the leaves of the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import pyro_tbr.plotting.canvas as canvas
from pyro_tbr.errors import DataError
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import latent_place, outcome_place
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.view import weights_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_level(level: float) -> None:
    """Refuses what is no probability of an interval."""
    if not 0 < level < 1:
        raise DataError(f"level={level!r} must be above 0 and below 1, such as 0.9")


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
    everything = posterior.user_weights(weights_at(tree, nodes, draws))
    weights = everything[..., k, q].numpy()
    tail = (1 - level) / 2
    lower, middle, upper = np.quantile(weights[:, 1:], [tail, 0.5, 1 - tail], axis=0)
    seen = posterior.row_counts.cpu().numpy()[leaves] > 0
    ax = canvas.new_axes(ax, 6.0, canvas.height_for(len(leaves)))
    height = np.arange(len(leaves))
    size = float(np.clip(300 / len(leaves), 2.4, 5.0))
    at_root = float(np.median(weights[:, 0]))
    ax.axvline(at_root, color=canvas.GREY, linewidth=1, linestyle="--", zorder=0, label="root")
    for rows, colour, fill, text in (
        (seen, canvas.INK, canvas.INK, "leaf with data"),
        (~seen, canvas.GREY, "white", "leaf without data"),
    ):
        if rows.any():
            ax.hlines(
                height[rows],
                lower[rows],
                upper[rows],
                color=colour,
                linewidth=max(size / 3, 0.6),
                alpha=0.6,
            )
            ax.plot(
                middle[rows],
                height[rows],
                "o",
                markersize=size,
                color=colour,
                markerfacecolor=fill,
                markeredgewidth=min(1.0, size / 3),
                label=text,
            )
    canvas.rank_axes(ax, len(leaves))
    canvas.label_rows(ax, height, [tree.labels[tree.nodes[leaf]] for leaf in leaves])
    names = posterior.outcome_names
    of = f" on {names[q]}" if len(names) > 1 else ""
    ax.set_xlabel(
        f"weight of {posterior.latent_names[k]}{of} ({level:.0%} interval)", parse_math=False
    )
    canvas.legend_above(ax, size)
    return ax
