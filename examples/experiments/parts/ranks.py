"""Simulation-based calibration: where true values rank among draws from their posteriors.

If parameters are drawn from the prior, data from the model and draws from the exact posterior, the
rank of a parameter among its draws is uniform. What it cannot see: a posterior that is the prior
passes too.

Source:
    Talts et al., arXiv 1804.06788; bands of the ECDF: Sailynoja, Burkner & Vehtari, Stat. Comput.
    32 (2022) 32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation.checks import Array, as_float, require

_SIMULATIONS = 2000  # behind a band; the standard error of its level is 0.005


class Band(NamedTuple):
    """Where an empirical distribution function of uniform ranks lies, all of it at once.

    Attributes:
        points: Shares of the range, (P,).
        lower: Lowest value of the ECDF, (P,).
        upper: Highest, (P,).
    """

    points: Array
    lower: Array
    upper: Array


def rank_among(truth: Any, draws: Any, generator: np.random.Generator) -> Array:
    r"""How many draws are below a true value; among equal ones a random place.

    Args:
        truth: True values, (\*B).
        draws: Draws from the posterior, (S, \*B), nearly independent of each other.
        generator: For ties, as at a change that is exactly 0.

    Returns:
        Ranks from 0 to S, (\*B) int64.

    Raises:
        ShapeError: The draws do not fit the true values.
    """
    true, sample = as_float(truth), as_float(draws)
    if sample.ndim != true.ndim + 1 or sample.shape[1:] != true.shape:
        raise ShapeError(f"draws has shape {sample.shape}, truth {true.shape}: give (S, *B)")
    ties = (sample == true).sum(axis=0)
    return (sample < true).sum(axis=0) + generator.integers(0, ties + 1)


def uniformity(ranks: Any, num_draws: int, *, bins: int = 10) -> float:
    """P-value of a chi-square test that ranks are uniform.

    Args:
        ranks: Independent ranks from 0 to ``num_draws``, (n,); 5 a bin at least.
        num_draws: S; S + 1 a multiple of ``bins``.
        bins: Of equal width.

    Raises:
        DataError: Ranks out of range, too few, or bins of unequal width.
    """
    ranks = _checked(ranks, num_draws)
    if (num_draws + 1) % bins or len(ranks) < 5 * bins:
        raise DataError(
            f"{len(ranks)} ranks of {num_draws} draws in {bins} bins: give {5 * bins} ranks or "
            f"more, and a number of draws that is one below a multiple of {bins}"
        )
    counts = np.bincount(ranks * bins // (num_draws + 1), minlength=bins)
    return float(require("scipy.stats").chisquare(counts).pvalue)


def ecdf(ranks: Any, num_draws: int, points: Array) -> Array:
    """Share of the ranks, scaled to [0, 1], that are at or below each point, (P,)."""
    ranks = _checked(ranks, num_draws)
    scaled = (ranks + 1) / (num_draws + 1)
    return (scaled[:, None] <= np.asarray(points) + 1e-12).mean(axis=0)


def ecdf_band(
    num_ranks: int, num_draws: int, *, level: float = 0.95, num_points: int = 20, seed: int = 0
) -> Band:
    """The band that the ECDF of uniform ranks stays in, everywhere, with some probability.

    Pointwise binomial intervals, widened until simulated ECDFs stay in all of them.

    Args:
        num_ranks: n.
        num_draws: S; S + 1 a multiple of ``num_points``.
        level: Probability.
        num_points: P; the last one is 1, where every ECDF ends.
        seed: Of the simulations.
    """
    binom = require("scipy.stats").binom
    points = np.arange(1, num_points + 1) / num_points
    rng = np.random.default_rng(seed)
    ranks = rng.integers(0, num_draws + 1, (_SIMULATIONS, num_ranks))
    cell = ranks * num_points // (num_draws + 1)
    counts = (cell[:, :, None] <= np.arange(num_points - 1)).sum(axis=1)  # (M, P - 1)
    inner = points[:-1]
    tail = np.minimum(binom.cdf(counts, num_ranks, inner), binom.sf(counts - 1, num_ranks, inner))
    least = np.quantile(tail.min(axis=1), 1 - level)
    lower = binom.ppf(least, num_ranks, inner) / num_ranks
    upper = binom.isf(least, num_ranks, inner) / num_ranks
    return Band(points, np.append(lower, 1.0), np.append(upper, 1.0))


def _checked(ranks: Any, num_draws: int) -> Array:
    values = np.asarray(ranks)
    if values.ndim != 1 or not len(values) or values.min() < 0 or values.max() > num_draws:
        raise DataError(f"ranks of shape {values.shape}: give (n,) numbers from 0 to {num_draws}")
    return values.astype(np.int64)
