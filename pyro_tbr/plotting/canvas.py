"""What all plots share: figures of their own, a scale for probabilities, labels that fit."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

GREY, MUTED, INK, ALARM = "#9a9a9a", "#d4d4d4", "#1e5093", "#c8501e"
# Ten steps of equal length in CIELAB from light grey to indigo: as far apart as they look.
_PROBABILITY = (
    *("#d4d4d4", "#bbcad5", "#9fbed5", "#83b0d2", "#659fcc", "#478dc2", "#2d78b4", "#1e64a4"),
    *("#1e5093", "#253e82", "#2b2c71"),
)
# Okabe & Ito's, which colour-blind readers can tell apart, and two greys.
CATEGORIES = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a7a00"),
    *("#000000", "#7f7f7f", "#c0c0c0"),
)
KEY: dict[str, Any] = {"frameon": False, "fontsize": 7, "borderaxespad": 0.2}  # of small legends
_NOTE: dict[str, Any] = {"loc": "right", "fontsize": 7, "color": "#666666"}
_MAX_LENGTH = 32  # characters of a label
_SMALL, _LARGE = 6.0, 9.0  # points


def new_axes(ax: Axes | None, width: float = 6.4, height: float = 4.8) -> Axes:
    """The axes given, or those of a new figure that pyplot does not know of; sizes in inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know of; sizes in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure, SubplotParams
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install pyro-tbr[plot]") from error
    # About where the layout will put the axes: labels are chosen before it is known.
    about = SubplotParams(left=0.15, right=0.85, bottom=0.5 / height, top=1 - 0.3 / height)
    figure = Figure(figsize=(width, height), layout="constrained", subplotpars=about)
    FigureCanvasAgg(figure)
    return figure


def height_for(num_rows: int) -> float:
    """Inches for so many rows of text; from some 70 on they share a page."""
    return float(np.clip(0.19 * num_rows + 1.4, 3.2, 14.0))


def open_frame(ax: Axes) -> None:
    """Axes without a line at the top and at the right."""
    ax.spines[["top", "right"]].set_visible(False)


def probability_colours() -> Colormap:
    """The scale from 0 (light grey) to 1 (indigo)."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("pip", _PROBABILITY)


def colour_bar(ax: Axes, coloured: Any, label: str) -> None:
    """What the colours mean, in a bar of three inches at most."""
    inches = ax.get_window_extent().height / ax.figure.dpi
    bar = ax.figure.colorbar(coloured, ax=ax, shrink=min(1.0, 3.0 / inches), aspect=18)
    bar.set_label(label, parse_math=False)
    bar.outline.set_visible(False)


def short(label: object) -> str:
    """A label on one line, its middle left out where it is long."""
    text = " ".join(str(label).split())
    keep = (_MAX_LENGTH - 1) // 2
    return text if len(text) <= _MAX_LENGTH else f"{text[:keep]}…{text[-keep:]}"


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


def label_rows(
    ax: Axes,
    positions: NDArray[Any],
    labels: Sequence[object],
    importance: NDArray[Any] | None = None,
) -> None:
    """Labels at the left of rows one apart, as many as fit, with a note where some do not."""
    size, least = room_for_text(ax, len(labels))
    shown = spread_out(positions, importance, least)
    texts = [short(labels[i]) for i in shown]
    ax.set_yticks(positions[shown], texts, fontsize=size, parse_math=False)
    ax.tick_params(axis="y", length=2)
    note_cut(ax, len(shown), len(labels), "labels")


def note_cut(ax: Axes, shown: int, total: int, what: str) -> None:
    """A note in the line of the title, at its right end, where not all is labelled."""
    if shown < total:
        ax.set_title(f"{shown} of {total} {what} shown", **_NOTE)


def rank_axes(ax: Axes, num_rows: int) -> None:
    """Rows one apart from the top down, a plain frame."""
    ax.set_ylim(num_rows - 0.4, -0.6)
    open_frame(ax)


def finish_rows(ax: Axes, labels: Sequence[object], quantity: str, marker_size: float) -> None:
    """Labels of rows one apart, what is shown along them, and the key in a line above the axes.

    A note that stands there goes a line higher.
    """
    rank_axes(ax, len(labels))
    label_rows(ax, np.arange(len(labels)), labels)
    ax.set_xlabel(quantity, parse_math=False)
    if text := ax.get_title(loc="right"):
        ax.set_title(text, pad=18, **_NOTE)
    key = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "columnspacing": 1}
    # Markers large enough to tell apart.
    ax.legend(markerscale=max(1.0, 4 / marker_size), **key, **KEY)


class TextBoxes:
    """Boxes that texts take up, about, so that a text that would cover another can be left out.

    Args:
        ax: Where they stand, its limits as they will be.
    """

    def __init__(self, ax: Axes) -> None:
        box = ax.get_window_extent()
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        self._origin = np.array([left, bottom])
        points = np.array([0.9 * box.width, 0.97 * box.height]) / ax.figure.dpi * 72
        self._scale = points / [right - left, top - bottom]
        self._taken = np.empty((0, 2, 2))  # lower left and upper right corners, in points

    def add(
        self,
        text: str,
        at: NDArray[np.float64],
        size: float,
        offset: tuple[float, float],
        *,
        right: bool = False,
    ) -> bool:
        """Takes the place of a text if it is free.

        Args:
            text: The text.
            at: Where it is anchored, in data, (2,).
            size: Of the font, in points.
            offset: From there to its lower left (or right) corner, in points.
            right: It ends there rather than begins.

        Returns:
            Whether it was free.
        """
        extent = np.array([0.6 * size * len(text), size])
        low = (at - self._origin) * self._scale + offset - [extent[0] if right else 0, 0]
        high = low + extent
        free = not ((low < self._taken[:, 1]) & (self._taken[:, 0] < high)).all(1).any()
        if free:
            self._taken = np.append(self._taken, [[low, high]], axis=0)
        return free
