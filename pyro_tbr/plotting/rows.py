"""Training of the encoder, and the latents of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import pyro_tbr.plotting.canvas as canvas
from pyro_tbr.data import RowOrder, align_env
from pyro_tbr.errors import DataError
from pyro_tbr.plotting.layout import tree_layout
from pyro_tbr.plotting.selection import latent_place
from pyro_tbr.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_history(posterior: Posterior, *, ax: Axes | None = None) -> Axes:
    """Loss of the encoder's training, on the rows of training and on rows held out.

    Encoders that come in closed form have no such steps; then the plot says so.

    Args:
        posterior: Whose training.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.
    """
    ax = canvas.new_axes(ax)
    history = posterior.history
    ax.set_xlabel("step")
    ax.set_ylabel("loss a row (negative ELBO, nats)")
    canvas.open_frame(ax)
    if history.empty:
        text = "the encoder came in closed form: no training steps"
        ax.text(0.5, 0.5, text, ha="center", va="center", color="#666666", transform=ax.transAxes)
        ax.set_axis_off()
        return ax
    start = 0.0
    for number, (stage, part) in enumerate(history.groupby("stage", sort=False)):
        colour = canvas.CATEGORIES[number % len(canvas.CATEGORIES)]
        step = part["step"].to_numpy(float)
        ax.plot(start + step, part["loss"], color=colour, label=f"{stage}: rows of training")
        if part["held_out"].notna().any():
            label = f"{stage}: held-out rows"
            ax.plot(start + step, part["held_out"], "--", color=colour, label=label)
        if number:
            ax.axvline(start, color=canvas.GREY, linewidth=0.6)
        start += step.max()
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_latents(
    posterior: Posterior,
    x: Any,
    env: Any,
    latents: tuple[str | int, str | int] = (0, 1),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Two latents of rows, coloured by environment.

    Up to ten environments have a colour each; more have the colours of their place in the drawn
    tree, so close relatives look alike.

    Args:
        posterior: Whose encoder.
        x: Features, (N, D), as in ``posterior.encode``.
        env: Node labels (N,), or one for all rows.
        latents: Names or numbers of the two axes.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        DataError: No such latents, or the intercept among them.
        TreeError: A label is not in the tree.
    """
    if len(latents) != 2:
        raise DataError(f"latents={latents!r} must be two names or numbers")
    places = [latent_place(posterior, latent) for latent in latents]
    if any(place >= posterior.model.latent_dim for place in places):
        raise DataError(f"latents={latents!r}: the intercept is the same in every row; use z0, ...")
    z = posterior.encode(x)
    values = np.asarray(z)[:, places]
    rows = RowOrder(len(values)).or_of(x=x)
    nodes = align_env(posterior.tree, env, rows).numpy()
    place = np.argsort(tree_layout(posterior.tree).order)  # of each node in the drawing
    present, rank = np.unique(place[nodes], return_inverse=True)
    walk = [posterior.tree.nodes[node] for node in tree_layout(posterior.tree).order[present]]
    labels = [posterior.tree.labels[node] for node in walk]
    ax = canvas.new_axes(ax, 6.8, 4.8)
    shuffled = np.random.default_rng(0).permutation(len(values))  # no environment lies on top
    _scatter(ax, values[shuffled], rank[shuffled], labels)
    names = posterior.latent_names
    ax.set_xlabel(names[places[0]])
    ax.set_ylabel(names[places[1]])
    canvas.open_frame(ax)
    return ax


def _scatter(ax: Axes, values: Any, rank: Any, labels: list[str]) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {
        "s": float(np.clip(6000 / max(len(values), 1), 5, 16)),
        "alpha": float(np.clip(2000 / max(len(values), 1), 0.5, 0.9)),
        "linewidths": 0,
        "rasterized": len(values) > 5000,
    }
    if len(labels) <= len(canvas.CATEGORIES):
        colours = ListedColormap(canvas.CATEGORIES[: len(labels)])
        norm = BoundaryNorm(np.arange(len(labels) + 1) - 0.5, max(len(labels), 1))
        ax.scatter(*values.T, c=rank, cmap=colours, norm=norm, **style)
        keys = [Line2D([], [], marker="o", linestyle="", color=c) for c in colours.colors]
        names = [f"environment {i}" for i in range(len(labels))]
        place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
        legend = ax.legend(keys, names, frameon=False, fontsize=8, **place)
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set_parse_math(False)
            text.set_text(canvas.short(label))
        return
    points = ax.scatter(*values.T, c=rank, cmap="viridis", vmin=0, vmax=len(labels) - 1, **style)
    bar = ax.figure.colorbar(points, ax=ax, aspect=30)
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    bar.ax.invert_yaxis()
    size, least = canvas.room_for_text(bar.ax, len(labels))
    shown = canvas.spread_out(np.arange(len(labels)), None, least)
    ticks = [canvas.short(labels[i]) for i in shown]
    bar.set_ticks(shown)
    bar.ax.set_yticklabels(ticks, fontsize=size, parse_math=False)
    bar.set_label(f"environment, in tree order ({len(labels)})")
