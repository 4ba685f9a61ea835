"""Methods side by side: a panel a metric, settings along the axis, means with standard errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vPXh<>"


def plot_methods(table: pd.DataFrame, panels: Mapping[str, str]) -> list[Axes]:
    """Means of some metrics by setting and method.

    A bar is a standard error on either side; methods stand side by side within a setting, in the
    order of the table. What a method does not have is left out.

    Args:
        table: As of :func:`parts.runs.summarise_runs`: rows (setting, method, metric),
            columns ``mean`` and ``se``.
        panels: Label of the axis by metric, in the order of the panels.

    Returns:
        The axes of one new figure, one a panel.

    Raises:
        DataError: A metric is not in the table.
    """
    known = table.index.get_level_values(2).unique()
    absent = [metric for metric in panels if metric not in known]
    if absent:
        raise DataError(f"table has no metric(s) {absent}; it has {list(known)}")
    settings = list(table.index.get_level_values(0).unique())
    methods = list(table.index.get_level_values(1).unique())
    panel = 0.8 + len(settings) * max(0.55, 0.16 * len(methods))  # inches
    figure = canvas.new_figure(1.4 + panel * len(panels), 3.6)
    axes = list(np.ravel(figure.subplots(1, len(panels))))
    place = {setting: x for x, setting in enumerate(settings)}
    shift = np.linspace(-0.3, 0.3, len(methods)) if len(methods) > 1 else np.zeros(1)
    for ax, (metric, label) in zip(axes, panels.items(), strict=True):
        for number, method in enumerate(methods):
            rows = table.xs((method, metric), level=(1, 2))
            rows = rows[rows["mean"].notna()]
            if rows.empty:
                continue
            ax.errorbar(
                [place[setting] + shift[number] for setting in rows.index],
                rows["mean"].to_numpy(),
                yerr=rows["se"].fillna(0).to_numpy(),
                color=canvas.CATEGORIES[number % len(canvas.CATEGORIES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4.5,
                linestyle="none",
                elinewidth=1,
                label=str(method),
                zorder=len(methods) - number,
            )
        _setting_axis(ax, settings)
        ax.set_ylabel(label)
    _key(axes, methods)
    return axes


def _setting_axis(ax: Axes, settings: list[object]) -> None:
    slanted = max(len(text.short(setting)) for setting in settings) > 5
    ax.set_xticks(
        range(len(settings)),
        [text.short(setting) for setting in settings],
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        fontsize=8,
    )
    ax.set_xlim(-0.6, len(settings) - 0.4)
    for x in np.arange(len(settings) - 1) + 0.5:
        ax.axvline(x, color="#eeeeee", linewidth=0.8, zorder=0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _key(axes: list[Axes], methods: list[object]) -> None:
    """One key for all panels, each method in it that some panel has."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = [str(method) for method in methods if str(method) in handles]
    axes[0].figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside right center",
        frameon=False,
        fontsize=8,
    )
