"""Inclusion probabilities on the drawn tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pyro_tbr.plotting.canvas as canvas
from pyro_tbr.plotting.layout import Layout, tree_layout
from pyro_tbr.plotting.node_names import name_nodes
from pyro_tbr.plotting.selection import CHANGED_FROM, arc_pips, arc_values
from pyro_tbr.posterior import Posterior
from pyro_tbr.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_tree(
    posterior: Posterior,
    latent: str | int | None = None,
    outcome: str | int | None = None,
    *,
    values: Any = None,
    label: str = "PIP",
    use_lengths: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The tree, every arc coloured and sized by the probability that a latent's effect changed.

    Arcs without data below are dotted: their PIP is the prior's. Inner nodes are named where the
    PIP of their arc is 1/2 or more. Where not all leaves can be named, those are that changed
    themselves, that come first or last in a clade that did, or that have no data.

    Args:
        posterior: Whose tree and PIPs.
        latent: Name or number; ``None``: for each arc the largest PIP of the latents; ``"any"``:
            the probability that the effect of some latent or the intercept changed, or
            ``"any_slope"``, of some latent, see ``posterior.arc_pips``.
        outcome: Name or number; ``None``: the only one, or the largest PIP of all, of ``"any"``
            and ``"any_slope"`` the probability for whichever.
        values: Numbers from 0 to 1 to show instead of PIPs, (A,) in arc order or a Series by
            (parent, child); for priors without inclusion probabilities.
        label: What the colour bar says the numbers are.
        use_lengths: Draw arcs to their lengths; ``None``: where all have one, else by level.
        ax: Where to draw; ``None``: a new figure, its height by the number of leaves.

    Returns:
        The axes.

    Raises:
        DataError: No such latent or outcome, a prior without inclusion probabilities, or unusable
            ``values``.
        ShapeError: ``values`` are not one an arc.
        TreeError: ``use_lengths`` and an arc without a length.
    """
    tree = posterior.tree
    if values is None:
        shown, words = arc_pips(posterior, latent, outcome)
        label = ", ".join(part for part in (label, *words) if part)
    else:
        shown = arc_values(posterior, values)
    layout = tree_layout(tree, use_lengths)
    ax = canvas.new_axes(ax, 7.0, canvas.height_for(tree.num_leaves))
    informed = posterior.guide.informed_arcs.cpu().numpy()
    canvas.colour_bar(ax, _draw_arcs(ax, tree, layout, shown, informed), label)
    span = float(np.ptp(layout.x)) or 1.0
    ax.set_xlim(layout.x.min() - 0.01 * span, layout.x.max() + 0.01 * span)
    canvas.rank_axes(ax, tree.num_leaves)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if tree.has_lengths if use_lengths is None else use_lengths:
        ax.set_xlabel("length from the root")
    else:
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
    changed = np.append(False, (shown >= CHANGED_FROM) & informed)
    name_nodes(ax, tree, layout, changed, np.append(0.0, shown), np.append(True, informed))
    return ax


def _draw_arcs(
    ax: Axes, tree: Tree, layout: Layout, shown: NDArray[np.float64], informed: NDArray[np.bool_]
) -> Any:
    """The arcs with data below, in colour, which are returned; others are dotted."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    parent, child = tree.arc_parent.numpy(), tree.arc_child.numpy()
    corners = [(parent, parent), (parent, child), (child, child)]
    elbows = np.stack([np.stack([layout.x[i], layout.y[j]], -1) for i, j in corners], axis=1)
    thick = float(np.clip(200 / tree.num_leaves, 1.5, 4.0))
    # The likelier lie on top, so where arcs share a stretch nothing that changed is hidden.
    order = np.argsort(shown, kind="stable")
    order = order[informed[order]]
    colours = {"cmap": canvas.probability_colours(), "array": shown[order], "clim": (0, 1)}
    ends = {"capstyle": "butt", "joinstyle": "miter"}
    widths = 0.7 + thick * shown[order]
    arcs = LineCollection(elbows[order], linewidths=widths, zorder=2, **colours, **ends)
    ax.add_collection(arcs)
    if not informed.all():
        style: dict[str, Any] = {"color": canvas.GREY, "linewidth": 0.8, "linestyle": ":"}
        ax.add_collection(LineCollection(elbows[~informed], zorder=1, **style))
        text = "no data below: PIP is the prior's"
        place = {"loc": "upper left", "bbox_to_anchor": (0, 0)}
        ax.legend([Line2D([], [], **style)], [text], **place, **canvas.KEY)
    return arcs
