"""Inclusion probabilities: on the tree, and as a heat map of arcs by latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pyro_tbr.plotting.canvas as canvas
from pyro_tbr.plotting.layout import Layout, tree_layout
from pyro_tbr.plotting.selection import arc_values, inclusion, pick, pick_outcome
from pyro_tbr.posterior import Posterior
from pyro_tbr.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED_FROM = 0.5  # inner nodes are named from this PIP on


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
    PIP of their arc is 1/2 or more.

    Args:
        posterior: Whose tree and PIPs.
        latent: Name or number; ``None``: for each arc the largest PIP of the latents.
        outcome: Name or number; ``None``: the only one, or the largest PIP of all.
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
        pips, of_outcome = pick_outcome(posterior, inclusion(posterior), outcome)
        shown, of_latent = pick(posterior.latent_names, pips, latent, "latent")
        label = ", ".join(part for part in (label, of_latent, of_outcome) if part)
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
    _name_nodes(ax, tree, layout, shown, informed)
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


def _name_nodes(
    ax: Axes, tree: Tree, layout: Layout, shown: NDArray[np.float64], informed: NDArray[np.bool_]
) -> None:
    """Leaves at their tips, as many as fit; inner nodes above their arcs where these changed."""
    from matplotlib.patheffects import withStroke

    boxes, at = canvas.TextBoxes(ax), np.stack([layout.x, layout.y], -1)
    texts = [canvas.short(tree.labels[node]) for node in tree.nodes]

    def write(node: int, size: float, offset: tuple[float, float], **style: Any) -> None:
        around = withStroke(linewidth=1.5 if style["zorder"] == 3 else 2, foreground="white")
        style |= {"textcoords": "offset points", "path_effects": [around], "parse_math": False}
        ax.annotate(texts[node], at[node], xytext=offset, fontsize=size, **style)

    size, least = canvas.room_for_text(ax, tree.num_leaves)
    leaves = layout.leaf_order
    arc = leaves - 1
    importance = np.where(informed[arc], shown[arc], 0.0) if least > 1 else None
    places = canvas.spread_out(layout.y[leaves], importance, least)
    for node in leaves[places]:
        boxes.add(texts[node], at[node], size, (3.0, -size / 2))
        write(node, size, (3, 0), va="center", zorder=3)
    canvas.note_cut(ax, len(places), len(leaves), "leaf names")
    inner = np.setdiff1d(np.arange(1, tree.num_nodes), leaves)
    inner = inner[(shown[inner - 1] >= _NAMED_FROM) & informed[inner - 1]]
    size = max(size - 1, 6)
    for node in inner[np.argsort(-shown[inner - 1], kind="stable")]:
        if boxes.add(texts[node], at[node], size, (-3.0, 2.0), right=True):
            write(node, size, (-3, 2), ha="right", va="bottom", color=canvas.INK, zorder=4)


def plot_pips(
    posterior: Posterior, outcome: str | int | None = None, *, ax: Axes | None = None
) -> Axes:
    """Heat map of inclusion probabilities, arcs by latents.

    An arc is named by its child; arcs come as a walk through the drawn tree meets them, so a clade
    is a block of rows. Rows without data below are left white: their PIP is the prior's.

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
    rows = tree_layout(tree).order[1:] - 1
    names = posterior.latent_names
    width = float(np.clip(0.5 * len(names) + 3.2, 4.2, 12.0))
    ax = canvas.new_axes(ax, width, canvas.height_for(tree.num_arcs))
    fine = tree.num_arcs <= 130
    lines = {"edgecolors": "white", "linewidth": 0.8} if fine else {"linewidth": 0}
    colours = canvas.probability_colours()
    image = ax.pcolormesh(pips[rows], cmap=colours, vmin=0, vmax=1, **lines)
    informed = posterior.guide.informed_arcs.cpu().numpy()[rows]
    _blank(ax, np.flatnonzero(~informed), len(names), "//////" if fine else "")
    ax.set_ylim(len(rows), 0)
    ax.spines[:].set_visible(False)
    labels = [tree.labels[tree.nodes[arc + 1]] for arc in rows]
    importance = np.where(informed, pips[rows].max(1), 0.0)
    centres = np.arange(len(rows)) + 0.5
    _, least = canvas.room_for_text(ax, len(rows))
    canvas.label_rows(ax, centres, labels, importance if least > 1 else None)
    turned = max(map(len, names)) * 0.065 > 0.6 * width / len(names)  # inches
    style: dict[str, Any] = {"rotation": 90 if turned else 0, "parse_math": False, "fontsize": 8}
    ax.set_xticks(np.arange(len(names)) + 0.5, names, **style)
    ax.tick_params(axis="x", length=0)
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
