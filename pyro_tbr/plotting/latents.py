"""The latents of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.data import RowOrder, align_env
from pyro_tbr.errors import DataError
from pyro_tbr.plotting.layout import even_clades, lowest_common, tree_layout
from pyro_tbr.plotting.selection import slope_places
from pyro_tbr.posterior import Posterior
from pyro_tbr.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_latents(
    posterior: Posterior,
    x: Any,
    env: Any,
    latents: tuple[str | int, str | int] = (0, 1),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Two latents of rows, coloured by environment.

    Up to ten environments have a colour each; more are coloured by clade: the tree is cut into at
    most ten, as even in environments as they get, and the key says how many each has. Where one
    would have more than half of them, runs of the drawn order stand in for clades.

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
    places = slope_places(posterior, latents)
    z = posterior.encode(x)
    values = np.asarray(z)[:, places]
    rows = RowOrder(len(values)).or_of(x=x)
    nodes = align_env(posterior.tree, env, rows).numpy()
    colours, keys, title = _coloured(posterior.tree, nodes)
    ax = canvas.new_axes(ax, 7.2, 4.8)
    shuffled = np.random.default_rng(0).permutation(len(values))  # no environment lies on top
    _scatter(ax, values[shuffled], colours[shuffled], keys, title)
    names = posterior.latent_names
    ax.set_xlabel(text.short(names[places[0]]), parse_math=False)
    ax.set_ylabel(text.short(names[places[1]]), parse_math=False)
    canvas.open_frame(ax)
    return ax


def _coloured(
    tree: Tree, nodes: NDArray[np.int64]
) -> tuple[NDArray[np.str_], list[tuple[str, str]], str]:
    """Colours of all rows, (N,), words for each colour in the order of the key, and for all."""
    present, which = np.unique(nodes, return_inverse=True)
    place = np.argsort(tree_layout(tree).order)  # of each node in the drawing
    present_walk = present[np.argsort(place[present])]
    names = {node: text.node_text(tree, tree.nodes[node]) for node in present.tolist()}
    parts, title = [present_walk[i : i + 1] for i in range(len(present))], "environment"
    keys = [names[part[0]] for part in parts]
    if len(present) > len(canvas.CATEGORIES):
        parts = even_clades(tree, present, len(canvas.CATEGORIES))
        tops = [tree.nodes[lowest_common(tree, part)] for part in parts]
        keys = [f"{text.node_text(tree, top)}: {len(part)}"
                for top, part in zip(tops, parts, strict=True)]  # fmt: skip
        title = "clade: environments with rows"
    if 2 * max(map(len, parts)) > len(present) > len(canvas.CATEGORIES):  # no clades to speak of
        parts = np.array_split(present_walk, len(canvas.CATEGORIES))
        keys = [text.short(f"{names[part[0]]} to {names[part[-1]]}") + f": {len(part)}"
                for part in parts]  # fmt: skip
        title = "in tree order: environments with rows"
    colours = np.empty(tree.num_nodes, dtype="<U7")
    # The greys at the end go to the smallest.
    for colour, part in zip(canvas.CATEGORIES, sorted(parts, key=len, reverse=True), strict=False):
        colours[part] = colour
    pairs = [(colours[part[0]], key) for part, key in zip(parts, keys, strict=True)]
    return colours[present][which], pairs, title


def _scatter(
    ax: Axes,
    values: NDArray[np.float64],
    colours: NDArray[np.str_],
    keys: list[tuple[str, str]],
    title: str,
) -> None:
    """Points (N, 2) in their colours (N,), and a key of colours and words."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {
        "s": float(np.clip(6000 / max(len(values), 1), 5, 16)),
        "alpha": float(np.clip(2000 / max(len(values), 1), 0.5, 0.9)),
        "linewidths": 0,
        "rasterized": len(values) > 5000,
    }
    ax.scatter(*values.T, c=colours, **style)
    dots = [Line2D([], [], marker="o", linestyle="", color=colour) for colour, _ in keys]
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "alignment": "left"}
    names = [f"group {i}" for i in range(len(keys))]
    legend = ax.legend(dots, names, title=title, title_fontsize=8, **place, **canvas.KEY)
    for line, (_, key) in zip(legend.get_texts(), keys, strict=True):
        line.set_parse_math(False)  # before the text, which may hold signs of its own
        line.set_text(key)
