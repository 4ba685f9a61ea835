"""Names of the nodes of a drawn tree, so that none lies upon another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.plotting.layout import Layout
from pyro_tbr.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def name_nodes(
    ax: Axes,
    tree: Tree,
    layout: Layout,
    changed: NDArray[np.bool_],
    shown: NDArray[np.float64],
    informed: NDArray[np.bool_],
) -> None:
    """Leaves at their tips, or those that matter in a column; inner nodes whose arcs changed.

    Args:
        ax: Where the tree is drawn, its limits as they will be.
        tree: The tree.
        layout: As it is drawn.
        changed: Whether the arc into a node changed, (V,), false for the root.
        shown: The number shown for it, (V,).
        informed: Whether there are data below, (V,).
    """
    boxes = text.TextBoxes(ax)
    _block_arcs(boxes, tree, layout, changed)
    leaves = layout.leaf_order
    size, least = text.room_for_text(ax, len(leaves))
    names = [text.node_text(tree, tree.nodes[leaf]) for leaf in leaves]
    if least <= 1:
        at = np.stack([layout.x, layout.y], -1)[leaves]
        for name, place in zip(names, at, strict=True):
            boxes.add(name, place, size, (3.0, -size / 2), always=True)
            _write(ax, name, place, size, (3, 0), va="center", zorder=3)
    else:
        matters = _leaf_importance(tree, layout, changed, shown, informed)
        _name_in_column(ax, layout, names, matters, size)
    _name_clades(ax, tree, layout, boxes, changed, shown, max(size - 1, 6))


def _write(
    ax: Axes, name: str, at: Any, size: float, offset: tuple[float, float], **style: Any
) -> None:
    """A name on a white rim, its offset in points."""
    from matplotlib.patheffects import withStroke

    style |= {"textcoords": "offset points", "parse_math": False, "fontsize": size}
    rim = [withStroke(linewidth=1.5, foreground="white")]
    ax.annotate(name, at, xytext=offset, path_effects=rim, **style)


def _leaf_importance(
    tree: Tree,
    layout: Layout,
    changed: NDArray[np.bool_],
    shown: NDArray[np.float64],
    informed: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How much the names of leaves matter, in drawn order, (L,), and who may fill gaps, (L,).

    Leaves that changed come first, then the first and the last one of a clade that did, then those
    without data. Others on a path that changed may fill gaps; or all, where nothing changed.
    """
    leaves, parents = layout.leaf_order, tree.arc_parent.tolist()
    first, last = np.full(tree.num_nodes, len(leaves)), np.full(tree.num_nodes, -1)
    first[leaves] = last[leaves] = np.arange(len(leaves))
    for node in range(tree.num_nodes - 1, 0, -1):  # children stand behind their parents
        parent = parents[node - 1]
        first[parent] = min(first[parent], first[node])
        last[parent] = max(last[parent], last[node])
    importance = np.where(informed[leaves], 0.0, 1.0)
    below = changed.copy()  # an arc on the way from the root changed
    for node in range(1, tree.num_nodes):
        below[node] |= below[parents[node - 1]]
        for place in (first[node], last[node]) if changed[node] else ():
            weight = (3 if first[node] == last[node] else 2) + shown[node]
            importance[place] = max(importance[place], weight)
    fills = below[leaves] if changed.any() else np.ones(len(leaves), dtype=bool)
    return importance, fills


def _name_in_column(
    ax: Axes,
    layout: Layout,
    names: list[str],
    matters: tuple[NDArray[np.float64], NDArray[np.bool_]],
    size: float,
) -> None:
    """Names at the right, each joined to its tip: right of a tip there are no arcs."""
    from matplotlib.collections import LineCollection

    importance, fills = matters
    _, least = text.room_for_text(ax, len(names))
    rows = layout.y[layout.leaf_order]
    places, moved = text.chosen_labels(rows, importance, least, fills)
    tips, edge = layout.x[layout.leaf_order][places], ax.get_xlim()[1]
    ends = np.stack([tips, np.full(len(tips), edge)], 1)
    lines = np.stack([ends, np.repeat(rows[places][:, None], 2, 1)], -1)
    style: dict[str, Any] = {"colors": text.FAINT, "linewidths": 0.3, "linestyles": (0, (1, 3))}
    ax.add_collection(LineCollection(lines, zorder=0.5, **style), autolim=False)
    text.draw_leaders(ax, rows[places], moved, right=True)
    for place, y in zip(places, moved, strict=True):
        colour = text.PLAIN if importance[place] > 0 else text.FAINT
        at, style = (1.0, y), {"xycoords": ax.get_yaxis_transform(), "color": colour}
        _write(ax, names[place], at, size, (text.LEADER, 0), va="center", zorder=3, **style)
    text.note_cut(ax, len(places), len(names), "leaf names")


def _block_arcs(
    boxes: text.TextBoxes, tree: Tree, layout: Layout, changed: NDArray[np.bool_]
) -> None:
    """Arcs that changed, which no name may cover, and others, which only short ones may."""
    at = np.stack([layout.x, layout.y], -1)
    for which, soft in ((changed[1:], False), (~changed[1:], True)):
        parents, nodes = tree.arc_parent.numpy()[which], tree.arc_child.numpy()[which]
        corner = np.stack([layout.x[parents], layout.y[nodes]], -1)
        boxes.block(at[parents], corner, 2.0, soft=soft)
        boxes.block(corner, at[nodes], 2.0, soft=soft)


def _name_clades(
    ax: Axes,
    tree: Tree,
    layout: Layout,
    boxes: text.TextBoxes,
    changed: NDArray[np.bool_],
    shown: NDArray[np.float64],
    size: float,
) -> None:
    """Inner nodes that changed, above or below their arcs where these or others leave room.

    The likeliest first. One without a name of its own by the leaves below it where that covers no
    arc, else by their number and its name in tables, else by that alone.
    """
    inner = np.setdiff1d(np.flatnonzero(changed), layout.leaf_order)
    sides = (2.0, -size - 3.0)
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "color": canvas.INK, "zorder": 4}
    for node in inner[np.argsort(-shown[inner], kind="stable")]:
        label, at = tree.nodes[node], np.array([layout.x[node], layout.y[node]])
        full, brief = text.node_text(tree, label), text.short(tree.labels[label])
        names = [brief]
        if full != brief:  # no name of its own
            names = [full, f"{brief} ({len(tree.descendant_leaves(label))} leaves)", brief]
        for name, side in ((name, side) for name in names for side in sides):
            clear = name == full != brief
            if boxes.add(name, at, size, (-3.0, side), right=True, clear=clear):
                _write(ax, name, at, size, (-3, side), **style)
                break
