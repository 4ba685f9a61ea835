"""How a fit came about: training of the encoder, and the search for the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import pyro_tbr.plotting.canvas as canvas
from pyro_tbr.errors import DataError
from pyro_tbr.posterior import Posterior
from pyro_tbr.posterior.rivals import SAME_BASIS, latent_match
from pyro_tbr.tree.readers.naming import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = ("training", "search")
_LEAST_EVIDENCE = 1.0  # nats: nearer than this to the best, solutions lie on one line


def plot_history(posterior: Posterior, part: str | None = None, *, ax: Axes | None = None) -> Axes:
    """How the fit came about.

    *Training* of an encoder: its loss by step, stage after stage, on the rows of training and,
    while rows were held out, dashed on these. *Search* for the latents: by how much the log
    evidence of every solution is behind that of the best, best first; many with the latents of
    the fit, and none of the others close, say that the search has found what there is.

    Args:
        posterior: Whose fit.
        part: ``"training"`` or ``"search"``; ``None``: the training where there was one, which a
            linear encoder of all features has not, else the search.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        DataError: The fit had no such part, and with known latents (``encoder="identity"``) none.
    """
    if part is not None and part not in _PARTS:
        raise DataError(f"part={part!r} is not known: use one of {listed(_PARTS)}, or None")
    history, report = posterior.history, posterior.report
    had = [not history.empty, len(report.basis) > 0]
    found = [name for name, there in zip(_PARTS, had, strict=True) if there]
    if not found or (part is not None and part not in found):
        which = "nothing to show" if part is None else f"no {part}"
        others = f"part={found[0]!r} is there" if found else "its latents were known from the start"
        raise DataError(f"plot_history: the fit had {which}; {others}")
    ax = canvas.new_axes(ax)
    if (part or found[0]) == "training":
        _draw_training(ax, history)
    else:
        _draw_search(ax, posterior)
    canvas.open_frame(ax)
    return ax


def _draw_training(ax: Axes, history: pd.DataFrame) -> None:
    """Losses of the stages one behind the other, each with its own colour and name."""
    start = 0.0
    for number, (stage, rows) in enumerate(history.groupby("stage", sort=False)):
        colour = canvas.CATEGORIES[number % len(canvas.CATEGORIES)]
        step = start + rows["step"].to_numpy(float)
        style = {"color": colour, "markersize": 3, "linewidth": 1.2}
        ax.plot(step, rows["loss"], "o-", label=f"{stage}: rows of training", **style)
        if rows["held_out"].notna().any():
            label = f"{stage}: held-out rows"
            ax.plot(step, rows["held_out"], "o--", markerfacecolor="white", label=label, **style)
        if number:
            ax.axvline(start, color=canvas.GREY, linewidth=0.6, zorder=0)
        start = float(step.max())
    ax.set_xlabel("step, stage after stage")
    ax.set_ylabel("loss a row, nats (training: negative ELBO;\nheld out: negative log score)")
    canvas.key_above(ax, columns=2)


def _draw_search(ax: Axes, posterior: Posterior) -> None:
    """Solutions by rank, those with the latents of the fit apart from others."""
    report = posterior.report
    behind = np.append(0.0, report.evidence - report.alternative_evidence.cpu().numpy())
    match = [latent_match(report.basis, other) for other in report.alternatives]
    same = np.append(True, np.array(match) > SAME_BASIS)
    rank = np.arange(1, len(behind) + 1)
    for which, marker, colour, words in (
        (same, "o", canvas.INK, "latents of the fit"),
        (~same, "s", canvas.ALARM, "other latents"),
    ):
        if which.any():
            label = f"{words} ({which.sum()} of {len(same)})"
            style = {"color": colour, "markersize": 4, "clip_on": False, "label": label}
            ax.plot(rank[which], behind[which], marker, **style)
    canvas.shortfall_axis(ax, max(10.0, float(behind.max())), _LEAST_EVIDENCE)
    ax.set_xlabel("solution of the search, best first")
    ax.set_ylabel("log evidence behind the best, nats")
    ax.xaxis.get_major_locator().set_params(integer=True)
    canvas.key_above(ax)
