"""What all plots share: figures of their own, a scale for probabilities, labels that fit."""

from __future__ import annotations

from collections.abc import Sequence
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
_MAX_LENGTH = 32  # characters of a label
_SMALL, _LARGE = 6.0, 9.0  # points


def _require_matplotlib() -> None:
    """An ImportError that says how to get matplotlib, if it is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install pyro-tbr[plot]") from error


def new_axes(ax: Axes | None, width: float = 6.4, height: float = 4.8) -> Axes:
    """The axes given, or those of a new figure that pyplot does not know of; sizes in inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know of; sizes in inches."""
    _require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, SubplotParams

    # About where the layout will put the axes: labels are chosen before it is known.
    about = SubplotParams(left=0.15, right=0.85, bottom=0.5 / height, top=1 - 0.3 / height)
    figure = Figure(figsize=(width, height), layout="constrained", subplotpars=about)
    FigureCanvasAgg(figure)
    return figure


def height_for(num_rows: int) -> float:
    """Inches for so many rows of text; from some 70 on they share a page."""
    return float(np.clip(0.19 * num_rows + 1.4, 3.2, 14.0))


def probability_colours() -> Colormap:
    """The scale from 0 (light grey) to 1 (indigo)."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("pip", _PROBABILITY)


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
        positions: Where the labels would be.
        importance: Of each; ``None``: all alike, then they are evenly thinned.
        least: Distance that two labels must have.

    Returns:
        Their places, by position.
    """
    if importance is None:
        every = max(1, int(np.ceil(least / _step(positions))))
        return np.argsort(positions, kind="stable")[::every]
    kept: list[int] = []
    # By cells of width `least`, so that only neighbours are compared.
    cells = np.floor(positions / least).astype(int)
    by_cell: dict[int, list[float]] = {}
    for place in np.lexsort((positions, -importance)):
        cell, here = int(cells[place]), positions[place]
        near = [p for c in (cell - 1, cell, cell + 1) for p in by_cell.get(c, [])]
        if all(abs(p - here) >= least - 1e-9 for p in near):
            kept.append(int(place))
            by_cell.setdefault(cell, []).append(here)
    return np.array(sorted(kept, key=lambda place: positions[place]), dtype=np.int64)


def _step(positions: NDArray[Any]) -> float:
    gaps = np.diff(np.sort(positions))
    return float(gaps.min()) if len(gaps) and gaps.min() > 0 else 1.0


def label_rows(
    ax: Axes,
    positions: NDArray[Any],
    labels: Sequence[object],
    importance: NDArray[Any] | None = None,
) -> None:
    """Labels at the left of rows one apart, as many as fit, with a note where some do not."""
    size, least = room_for_text(ax, len(labels))
    shown = spread_out(np.asarray(positions, float), importance, least)
    ax.set_yticks(
        np.asarray(positions)[shown],
        [short(labels[i]) for i in shown],
        fontsize=size,
        parse_math=False,
    )
    ax.tick_params(axis="y", length=2)
    note_cut(ax, len(shown), len(labels), "labels")


def note_cut(ax: Axes, shown: int, total: int, what: str) -> None:
    """A note at the upper right that not all is labelled."""
    if shown < total:
        note(ax, f"{shown} of {total} {what} shown")


def note(ax: Axes, text: str) -> None:
    """Small grey text in the line of the title, at its right end."""
    title = ax.get_title(loc="right")
    _set_note(ax, f"{title}; {text}" if title else text)


def _set_note(ax: Axes, text: str, pad: float | None = None) -> None:
    ax.set_title(text, loc="right", fontsize=7, color="#666666", pad=pad)


def legend_above(ax: Axes, marker_size: float) -> None:
    """The key in a line above the axes, its markers large enough to tell apart.

    A note that stands there already goes a line higher.
    """
    if text := ax.get_title(loc="right"):
        _set_note(ax, text, pad=18)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=7,
        borderaxespad=0.2,
        columnspacing=1,
        markerscale=max(1.0, 4 / marker_size),
    )


def rank_axes(ax: Axes, num_rows: int) -> None:
    """Rows one apart from the top down, a plain frame."""
    ax.set_ylim(num_rows - 0.4, -0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


class TextBoxes:
    """Boxes that texts take up, about, so that a text that would cover another can be left out.

    Args:
        ax: Where they stand, its limits as they will be.
    """

    def __init__(self, ax: Axes) -> None:
        box, dpi = ax.get_window_extent(), ax.figure.dpi
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        self._origin = left, bottom
        self._scale = (
            0.9 * box.width / dpi * 72 / (right - left),
            0.97 * box.height / dpi * 72 / (top - bottom),
        )
        self._cells: dict[int, list[tuple[float, float, float, float]]] = {}

    def add(
        self,
        text: str,
        x: float,
        y: float,
        size: float,
        offset: tuple[float, float],
        *,
        right: bool = False,
    ) -> bool:
        """Takes the place of a text if it is free.

        Args:
            text: The text.
            x: Where it is anchored, in data.
            y: Likewise.
            size: Of the font, in points.
            offset: From there to its lower left (or right) corner, in points.
            right: It ends there rather than begins.

        Returns:
            Whether it was free.
        """
        width = 0.6 * size * len(text)
        x0 = (x - self._origin[0]) * self._scale[0] + offset[0] - (width if right else 0)
        y0 = (y - self._origin[1]) * self._scale[1] + offset[1]
        x1, y1 = x0 + width, y0 + size
        cells = range(int(y0 // 10), int(y1 // 10) + 1)
        for cell in cells:
            for a0, b0, a1, b1 in self._cells.get(cell, ()):
                if x0 < a1 and a0 < x1 and y0 < b1 and b0 < y1:
                    return False
        for cell in cells:
            self._cells.setdefault(cell, []).append((x0, y0, x1, y1))
        return True
