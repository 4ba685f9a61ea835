"""What all plots share: figures of their own, scales of colours, rows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pyro_tbr.plotting.text as text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

GREY, MUTED, INK, ALARM = "#9a9a9a", "#d4d4d4", "#1e5093", "#c8501e"
PALE = "#9fb9de"  # of bars that a stroke of ink lies on
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
# From orange over white to blue, so that signs are told apart by all.
_SIGNED = ("#7a2c05", "#c8501e", "#e9a98c", "#f5f5f5", "#93b3dc", "#1e5093", "#2b2c71")
_COLUMN_SIZE = 8.0  # points of names below columns
KEY: dict[str, Any] = {"frameon": False, "fontsize": 7, "borderaxespad": 0.2}  # of small legends


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


def signed_colours() -> Colormap:
    """The scale for numbers of both signs, 0 in its middle."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("signed", _SIGNED)


def colour_bar(ax: Axes, coloured: Any, label: str) -> None:
    """What the colours mean, in a bar of three inches at most; a long label on several lines."""
    inches = min(3.0, ax.get_window_extent().height / ax.figure.dpi)
    share = inches * ax.figure.dpi / ax.get_window_extent().height
    bar = ax.figure.colorbar(coloured, ax=ax, shrink=share, aspect=18)
    size = 9.0
    lines = textwrap.wrap(label, max(12, int(0.9 * inches * 72 / (text.WIDTH * size))))
    bar.set_label("\n".join(lines), parse_math=False, fontsize=size)
    bar.ax.tick_params(labelsize=size)
    bar.outline.set_visible(False)


def rank_axes(ax: Axes, num_rows: int) -> None:
    """Rows one apart from the top down, a plain frame."""
    ax.set_ylim(num_rows - 0.4, -0.6)
    open_frame(ax)


def shortfall_axis(ax: Axes, most: float, least: float) -> None:
    """An axis for how far things are behind the best, which is at the top, on a log scale.

    What is nearer to the best than ``least`` is on a scale as given.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator

    ax.set_yscale("symlog", linthresh=least)
    ax.set_ylim(2 * most, -0.4 * least)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_minor_locator(NullLocator())


def key_above(ax: Axes, columns: int = 3, **style: Any) -> None:
    """The key in a line above the axes; a note that stands there goes a line higher."""
    if note := ax.get_title(loc="right"):
        ax.set_title(note, pad=18, **text.NOTE)
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": columns, "columnspacing": 1}
    ax.legend(**place, **KEY, **style)


def bar_width(ax: Axes, num_rows: int) -> float:
    """Width in points of a bar along each of so many rows."""
    points = ax.get_window_extent().height / ax.figure.dpi * 72
    return float(np.clip(0.45 * points / num_rows, 1.6, 5.0))


def strokes(
    ax: Axes, x: Any, y: Any, width: float, *, color: str, label: str, bar: str = "none"
) -> None:
    """Strokes across bars of a width: unlike dots they hide no bar, however short.

    In the key they lie on a bar of a colour, if one is given.
    """
    edge: dict[str, Any] = {"markeredgewidth": 1.3, "markeredgecolor": color, "marker": "|"}
    ax.plot(x, y, linestyle="", markersize=width + 2.5, zorder=3, **edge)
    ax.plot([], [], color=bar, linewidth=4.5, markersize=8, label=label, **edge)


def height_of_columns(names: Sequence[str], width: float) -> float:
    """Inches for names below columns in a figure of a width: some turned by a right angle."""
    longest = max(map(len, names)) * text.WIDTH * _COLUMN_SIZE / 72
    return longest if longest > 0.6 * width / len(names) else 0.0


def label_columns(ax: Axes, names: Sequence[str]) -> None:
    """Names below columns one apart, turned where they would not fit beside each other."""
    turned = height_of_columns(names, ax.figure.bbox.width / ax.figure.dpi) > 0
    style: dict[str, Any] = {"rotation": 90 if turned else 0, "parse_math": False}
    ax.set_xticks(np.arange(len(names)) + 0.5, names, fontsize=_COLUMN_SIZE, **style)
    ax.tick_params(axis="x", length=0)


def finish_rows(
    ax: Axes,
    labels: Sequence[str],
    quantity: str,
    importance: NDArray[Any] | None = None,
    colours: Sequence[str] | None = None,
) -> None:
    """Labels of rows one apart, what is shown along them, and the key above the axes.

    ``importance`` and ``colours`` are as in :func:`pyro_tbr.plotting.text.label_rows`.
    """
    rank_axes(ax, len(labels))
    text.label_rows(ax, np.arange(len(labels)), labels, importance, colours)
    ax.set_xlabel(quantity, parse_math=False)
    key_above(ax)
