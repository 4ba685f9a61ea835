"""Names beside rows and nodes: those that matter where not all fit, and none upon another."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_tbr.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE: dict[str, Any] = {"loc": "right", "fontsize": 7, "color": "#666666"}
PLAIN, FAINT = "#000000", "#8c8c8c"  # names that matter, and others
_MAX_LENGTH = 42  # characters of a name: those of a node without one say what is below it
_SMALL, _LARGE = 6.0, 9.0  # points
LEADER = 12.0  # points from the axes to names that had to move
WIDTH = 0.6  # of a letter by the size of its font, about


def short(label: object, most: int = _MAX_LENGTH) -> str:
    """A label on one line, its middle left out where it is long."""
    text = " ".join(str(label).split())
    keep = (most - 1) // 2
    return text if len(text) <= most else f"{text[:keep]}…{text[-keep:]}"


def node_text(tree: Tree, node: Hashable) -> str:
    """A node on one line; one without a name of its own by the leaves below it."""
    return short(tree.describe(node))


def room_for_text(ax: Axes, num_rows: int) -> tuple[float, float]:
    """Font size in points, and the least distance of two labels in rows."""
    points = 0.97 * ax.get_window_extent().height / ax.figure.dpi * 72
    a_row = points / max(num_rows, 1)
    size = float(np.clip(0.8 * a_row, _SMALL, _LARGE))
    return size, 1.15 * size / a_row


def spread_out(
    positions: NDArray[Any], importance: NDArray[Any] | None, least: float
) -> NDArray[np.int64]:
    """Which labels to show so that none overlap: the important ones first, then what fits.

    Args:
        positions: Where the labels would be, one apart from the first on.
        importance: Of each; ``None``: all alike, then they are evenly thinned.
        least: Distance that two labels must have.

    Returns:
        Their places, by position.
    """
    if importance is None:
        return np.arange(0, len(positions), max(1, ceil(least)))
    free = np.ones(len(positions), dtype=bool)
    kept = np.zeros_like(free)
    for place in np.lexsort((positions, -importance)):
        if free[place]:
            kept[place] = True
            free &= np.abs(positions - positions[place]) >= least - 1e-9
    return np.flatnonzero(kept)


def moved_apart(
    positions: NDArray[Any], least: float, ends: tuple[float, float]
) -> NDArray[np.float64]:
    """The nearest positions, in squares, that are a least distance apart and between two ends.

    Args:
        positions: Increasing, (n,), no more than fit.
        least: Distance between neighbours.
        ends: Of the first and the last position.

    Source:
        Pool adjacent violators: Ayer et al., Annals of Mathematical Statistics 26 (1955) 641.
    """
    steps = least * np.arange(len(positions))
    pools: list[tuple[float, int]] = []  # mean and size; means may not decrease
    for value in np.asarray(positions, float) - steps:
        mean, size = float(value), 1
        while pools and pools[-1][0] > mean:
            before, number = pools.pop()
            mean, size = (before * number + mean * size) / (number + size), number + size
        pools.append((mean, size))
    level = np.repeat([mean for mean, _ in pools], [size for _, size in pools])
    last = max(ends[0], ends[1] - (steps[-1] if len(steps) else 0.0))
    return np.clip(level, ends[0], last) + steps


def chosen_labels(
    positions: NDArray[Any],
    importance: NDArray[Any],
    least: float,
    others: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels to show, and where to put them so that none overlap.

    Args:
        positions: Of the rows, one apart, (n,).
        importance: Of each, (n,); 0: it does not matter.
        least: Distance that two labels must have.
        others: Those that may stand where there is room left, (n,); ``None``: all that do not
            matter.

    Returns:
        Places of those shown, and their positions, increasing: moved apart where those that matter
        would overlap. Of more than fit those go first that are apart by themselves.
    """
    if least <= 1:
        return np.arange(len(positions)), positions.astype(float)
    most = max(1, int((len(positions) - 1) / least) + 1)
    apart = spread_out(positions, importance, least)
    matter = np.flatnonzero(importance > 0)
    order = matter[np.argsort(-importance[matter], kind="stable")]
    order = np.concatenate([order[np.isin(order, apart)], order[~np.isin(order, apart)]])
    shown = np.sort(order[:most])
    moved = moved_apart(positions[shown], least, (positions[0], positions[-1]))
    free = importance <= 0 if others is None else others & (importance <= 0)
    free &= np.abs(positions[:, None] - moved).min(1, initial=np.inf) >= least
    more = np.flatnonzero(free)
    more = more[_thinned(positions[more], least)]
    shown, moved = np.concatenate([shown, more]), np.concatenate([moved, positions[more]])
    order = np.argsort(moved)
    return shown[order], moved[order]


def label_rows(
    ax: Axes,
    positions: NDArray[Any],
    labels: Sequence[str],
    importance: NDArray[Any] | None = None,
    colours: Sequence[str] | None = None,
) -> None:
    """Labels at the left of rows one apart; where not all fit those that matter, and a note.

    Those that matter are joined to their rows where they had to move; where there is room left
    others stand between them, faint.

    Args:
        ax: Axes whose rows they are.
        positions: Of the rows, (n,).
        labels: Of the rows, on one line each.
        importance: Of each, (n,); 0, or ``None``: it does not matter.
        colours: Of each label; ``None``: black.
    """
    size, least = room_for_text(ax, len(labels))
    if importance is None:
        importance = np.zeros(len(labels))
    shown, moved = chosen_labels(positions, importance, least)
    crowded = bool((np.abs(moved - positions[shown]) > 0.25).any())
    ax.set_yticks(moved, [labels[i] for i in shown], fontsize=size, parse_math=False)
    length = {"length": 0, "pad": LEADER + 1} if crowded else {"length": 2}
    ax.tick_params(axis="y", **length)
    for text, place in zip(ax.get_yticklabels(), shown, strict=True):
        faint = least > 1 and importance[place] <= 0 and importance.any()
        text.set_color(FAINT if faint else PLAIN if colours is None else colours[place])
    if crowded:
        draw_leaders(ax, positions[shown], moved)
    note_cut(ax, len(shown), len(labels), "labels")


def _thinned(positions: NDArray[Any], least: float) -> list[int]:
    """Places of positions, increasing, that are a least distance apart, the first one first."""
    kept: list[int] = []
    for place, position in enumerate(positions):
        if not kept or position - positions[kept[-1]] >= least - 1e-9:
            kept.append(place)
    return kept


def points_beside(ax: Axes, *, right: bool = False) -> Any:
    """Transform of points to the left (or right) of the axes, and of data along their side.

    It holds wherever a layout will put them.
    """
    from matplotlib.transforms import Affine2D, ScaledTranslation, blended_transform_factory

    points = Affine2D().scale((1 if right else -1) / 72) + ax.figure.dpi_scale_trans
    points = points + ScaledTranslation(float(right), 0, ax.transAxes)
    return blended_transform_factory(points, ax.transData)


def draw_leaders(ax: Axes, rows: NDArray[Any], moved: NDArray[Any], *, right: bool = False) -> None:
    """Lines from rows at the left (or right) edge of the axes to labels that have moved."""
    from matplotlib.collections import LineCollection

    x = np.broadcast_to([0.0, 2.0, LEADER - 1], (len(rows), 3))
    lines = np.stack([x, np.stack([rows, rows, moved], 1)], -1)
    style: dict[str, Any] = {"colors": FAINT, "linewidths": 0.4, "clip_on": False}
    style["transform"] = points_beside(ax, right=right)
    ax.add_collection(LineCollection(lines, **style), autolim=False)


def note_cut(ax: Axes, shown: int, total: int, what: str) -> None:
    """A note in the line of the title, at its right end, where not all is shown; after others."""
    if shown < total:
        notes = [note for note in (ax.get_title(loc="right"),) if note]
        ax.set_title(", ".join([*notes, f"{shown} of {total} {what} shown"]), **NOTE)


class TextBoxes:
    """Boxes that texts and lines take up, about, so that none need cover another.

    Args:
        ax: Where they stand, its limits as they will be.
    """

    def __init__(self, ax: Axes) -> None:
        box = ax.get_window_extent()
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        self._origin = np.array([left, bottom])
        points = np.array([0.9 * box.width, 0.97 * box.height]) / ax.figure.dpi * 72
        self._scale = points / [right - left, top - bottom]
        # Lower left and upper right corners, in points: what no text may cover, and what some may.
        self._taken, self._soft = np.empty((0, 2, 2)), np.empty((0, 2, 2))

    def block(
        self, one: NDArray[Any], other: NDArray[Any], width: float, *, soft: bool = False
    ) -> None:
        """Takes the places of lines along an axis.

        Args:
            one: One end of each, in data, (n, 2).
            other: The other end, (n, 2).
            width: Of all, in points.
            soft: Texts that need not be clear may cover them.
        """
        ends = np.stack([(part - self._origin) * self._scale for part in (one, other)])
        boxes = np.stack([ends.min(0) - width / 2, ends.max(0) + width / 2], 1)
        if soft:
            self._soft = np.append(self._soft, boxes, axis=0)
        else:
            self._taken = np.append(self._taken, boxes, axis=0)

    def add(
        self,
        text: str,
        at: NDArray[np.float64],
        size: float,
        offset: tuple[float, float],
        *,
        right: bool = False,
        clear: bool = False,
        always: bool = False,
    ) -> bool:
        """Takes the place of a text if it is free.

        Args:
            text: The text.
            at: Where it is anchored, in data, (2,).
            size: Of the font, in points.
            offset: From there to its lower left (or right) corner, in points.
            right: It ends there rather than begins; then it has to begin inside the axes.
            clear: It must not cover soft lines either.
            always: Take it anyway.

        Returns:
            Whether it was free.
        """
        extent = np.array([WIDTH * size * len(text), size])
        low = (at - self._origin) * self._scale + offset - [extent[0] if right else 0, 0]
        high = low + extent
        boxes = np.concatenate([self._taken, self._soft]) if clear else self._taken
        meets = bool(((low < boxes[:, 1]) & (boxes[:, 0] < high)).all(1).any())
        free = not meets and not (right and low[0] < 0)
        if free or always:
            self._taken = np.append(self._taken, [[low, high]], axis=0)
        return free
