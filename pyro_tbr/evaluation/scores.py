"""How good predictive distributions are: coverage of intervals, CRPS, log score."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation.checks import Array, as_float, check_same_shape


def interval_coverage(y: Any, lower: Any, upper: Any) -> float:
    """Share of the observed outcomes within their intervals, ends included.

    Args:
        y: Outcomes, any shape; NaN where not observed.
        lower: Lower ends, same shape.
        upper: Upper ends, same shape.

    Raises:
        ShapeError: The shapes differ.
        DataError: Nothing is observed, or an interval is NaN.
    """
    y, lower, upper = as_float(y), as_float(lower), as_float(upper)
    check_same_shape("lower", lower, "y", y)
    check_same_shape("upper", upper, "y", y)
    seen = _observed(y)
    lower, upper = _no_nan("lower", lower[seen]), _no_nan("upper", upper[seen])
    return float(((lower <= y[seen]) & (y[seen] <= upper)).mean())


def crps(y: Any, draws: Any) -> float:
    r"""Continuous ranked probability score of draws, mean over the observed outcomes.

    ``E|X - y| - E|X - X'|/2`` by the unbiased ("fair") estimate, so the number of draws changes
    its spread, not its mean. In the unit of y; smaller is better.

    Args:
        y: Outcomes, any shape; NaN where not observed.
        draws: Draws from the predictive distribution, (S, \*y.shape), S at least 2.

    Raises:
        ShapeError: ``draws`` does not fit ``y``, or is a single draw.
        DataError: Nothing is observed, or a draw is NaN.

    Source:
        Ferro, Q. J. R. Meteorol. Soc. 140 (2014) 1917.
    """
    y, draws = as_float(y), as_float(draws)
    if draws.ndim != y.ndim + 1 or draws.shape[1:] != y.shape or len(draws) < 2:
        raise ShapeError(
            f"draws has shape {draws.shape}, y {y.shape}: give (S, *y.shape) with S at least 2"
        )
    seen = _observed(y)
    sample = np.sort(_no_nan("draws", draws[:, seen]), axis=0)
    size = len(sample)
    rank = 2 * np.arange(size) - size + 1  # the sum over pairs of their distance, in O(S log S)
    spread = rank @ sample / (size * (size - 1))
    return float((np.abs(sample - y[seen]).mean(axis=0) - spread).mean())


def log_score(y: Any, mean: Any, sd: Any) -> float:
    r"""Mean log predictive density of the observed outcomes, for Gaussian predictives.

    Args:
        y: Outcomes, any shape; NaN where not observed.
        mean: Means, y's shape, or (S, \*y.shape) for an equal mixture of S Gaussians.
        sd: Standard deviations, positive; broadcast against ``mean``.

    Returns:
        Nats per observed outcome; larger is better.

    Raises:
        ShapeError: ``mean`` does not fit ``y``.
        DataError: Nothing is observed, or ``sd`` is not positive.
    """
    y, mean, sd = as_float(y), as_float(mean), as_float(sd)
    mean = mean if mean.ndim > y.ndim else mean[None]
    check_same_shape("mean", mean[0], "y", y)
    if not (sd > 0).all():
        raise DataError(f"sd must be positive, its smallest value is {sd.min()!r}")
    seen = _observed(y)
    sd = np.broadcast_to(sd, mean.shape)[:, seen]
    residual = (y[seen] - _no_nan("mean", mean[:, seen])) / sd
    density = -0.5 * residual**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    return float((np.logaddexp.reduce(density, axis=0) - np.log(len(density))).mean())


def _no_nan(name: str, value: Array) -> Array:
    if np.isnan(value).any():
        raise DataError(f"{name} has {np.isnan(value).sum()} NaN value(s) where y is observed")
    return value


def _observed(y: Array) -> NDArray[np.bool_]:
    seen = ~np.isnan(y)
    if not seen.any():
        raise DataError(f"y has no observed value among {y.size}; there is nothing to score")
    return seen
