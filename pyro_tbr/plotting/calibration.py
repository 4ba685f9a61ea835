"""Whether probabilities and intervals are true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import pyro_tbr.plotting.canvas as canvas
import pyro_tbr.plotting.text as text
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation import Simulation, reliability, true_changes
from pyro_tbr.evaluation.checks import as_float
from pyro_tbr.plotting.selection import inclusion
from pyro_tbr.posterior import Posterior, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TWO_SIGMA = 1.96


def plot_reliability(
    pips: Any, gates: Any, bins: int | Sequence[float] = 10, *, ax: Axes | None = None
) -> Axes:
    """Share of true changes against the mean PIP of a bin; true PIPs lie on the diagonal.

    A bar is the 95 % interval of the share (Wilson's, for independent places), the area of a point
    goes with the number of PIPs in its bin, which stands above it. Works as well for predicted
    probabilities and binary outcomes.

    ``plot_reliability(posterior, simulation)`` matches the latents of a fit with the true ones
    first, whatever their order and signs (:func:`pyro_tbr.evaluation.true_changes`), and leaves
    out arcs without data below, whose PIPs are the prior's.

    Args:
        pips: Inclusion probabilities, any shape, or a posterior.
        gates: Whether there is a change, same shape; of a posterior the simulation it was fitted
            to.
        bins: As in :func:`pyro_tbr.evaluation.reliability`.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        ShapeError: The shapes differ.
        DataError: PIPs outside [0, 1], gates that are not 0 or 1, or unusable bins; a posterior
            without a simulation, on another tree, or whose prior has no inclusion probabilities.
    """
    if isinstance(pips, Posterior) or isinstance(gates, Simulation):
        pips, gates = _pips_and_truth(pips, gates)
    table = reliability(pips, gates, bins)
    table = table[table["count"] > 0]
    count, share = table["count"].to_numpy(float), table["true_share"].to_numpy()
    # Wilson's interval.
    z2 = _TWO_SIGMA**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = _TWO_SIGMA * np.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    ax = _square_axes(ax, 0.03, "mean PIP of the bin (above: how many)", "share of true changes")
    ends = centre - half, centre + half
    ax.vlines(table["mean_pip"], *ends, color=canvas.INK, linewidth=1.2, zorder=2)
    area = 12 + 150 * count / count.max()
    ax.scatter(table["mean_pip"], share, s=area, color=canvas.INK, alpha=0.8, zorder=3)
    boxes = text.TextBoxes(ax)
    for x, n in sorted(zip(table["mean_pip"], count, strict=True), key=lambda pair: -pair[1]):
        number, size = f"{n:.0f}", 7.0
        half = len(number) * text.WIDTH * size / 2
        if boxes.add(number, np.array([x, 1.03]), size, (-half, 2.0)):
            style = {"textcoords": "offset points", "fontsize": size, "color": "#444444"}
            ax.annotate(number, (x, 1.03), xytext=(0, 2), ha="center", va="bottom", **style)
    return ax


def _pips_and_truth(posterior: Any, simulation: Any) -> tuple[Any, Any]:
    """PIPs of a posterior, and whether there is a change, where there are data below."""
    if not (isinstance(posterior, Posterior) and isinstance(simulation, Simulation)):
        kinds = type(posterior).__name__, type(simulation).__name__
        raise DataError(
            f"pips and gates are {kinds[0]} and {kinds[1]}: give a posterior and the simulation it "
            "was fitted to, or two arrays"
        )
    truth = true_changes(simulation, posterior)
    known = truth["informed"].to_numpy()
    return inclusion(posterior).ravel()[known], truth["change"].to_numpy()[known]


def plot_coverage(
    y: Any, prediction: Any, *, num_draws: int = 400, seed: int = 0, ax: Axes | None = None
) -> Axes:
    """Share of outcomes inside central intervals against the probability the intervals claim.

    Below the diagonal intervals are too narrow, above too wide. The band is where 95 % of true
    predictions lie at each level if outcomes are independent; rows of one environment share the
    errors of its weights, so a curve may leave the band without fault.

    Args:
        y: Observed outcomes, (N,) or (N, Q), continuous; NaN where not observed.
        prediction: What ``predict`` gave for these rows in this order, or draws of outcomes,
            (S, N) or (S, N, Q).
        num_draws: Draws from a prediction; a level is resolved to 1 / num_draws.
        seed: Of these draws.
        ax: Where to draw; ``None``: a new figure.

    Returns:
        The axes.

    Raises:
        ShapeError: Draws do not fit the outcomes.
        DataError: Nothing is observed, or outcomes are binary.
    """
    draws = prediction
    if isinstance(prediction, Prediction):
        draws = prediction.sample(num_draws, seed=seed)
    observed, draws = as_float(y), as_float(draws)
    if draws.shape[1:] != observed.shape or draws.ndim < 2:
        raise ShapeError(
            f"prediction has draws of shape {draws.shape}, y {observed.shape}: give (S, *y.shape)"
        )
    seen = ~np.isnan(observed)
    if not seen.any():
        raise DataError("y has no observed value; there is nothing to cover")
    values, draws = observed[seen], draws[:, seen]
    if np.isin(draws, (0, 1)).all():
        raise DataError(
            "prediction is of binary outcomes, which have no intervals: use "
            "plot_reliability(prediction.mean, y)"
        )
    rank = ((draws < values).sum(0) + 0.5 * (draws == values).sum(0) + 0.5) / (len(draws) + 1)
    reached = np.abs(2 * rank - 1)  # the level whose interval ends at the outcome
    levels = np.linspace(0, 1, 101)
    share = np.searchsorted(np.sort(reached), levels, side="right") / len(reached)
    half = _TWO_SIGMA * np.sqrt(levels * (1 - levels) / len(reached))
    ax = _square_axes(ax, 0, "probability of the interval", "share of outcomes inside")
    band = np.clip(levels - half, 0, 1), np.clip(levels + half, 0, 1)
    words = f"if true (n={len(reached)})"
    ax.fill_between(levels, *band, color=canvas.MUTED, linewidth=0, label=words, zorder=0.5)
    ax.plot(levels, share, color=canvas.INK, linewidth=1.6, label="observed")
    ax.legend(loc="upper left", frameon=False, fontsize=7)
    return ax


def _square_axes(ax: Axes | None, margin: float, x: str, y: str) -> Axes:
    """Both axes from 0 to 1 with the diagonal, and what they show."""
    ax = canvas.new_axes(ax, 4.8, 4.9)
    ax.plot([0, 1], [0, 1], color=canvas.GREY, linewidth=1, linestyle="--", zorder=1)
    limits = (-margin, 1 + margin)
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=x, ylabel=y)
    canvas.open_frame(ax)
    return ax
