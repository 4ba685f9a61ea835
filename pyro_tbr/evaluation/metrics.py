"""How close latents, inclusion probabilities and predictions come to the truth.

Everything takes arrays, tensors or tables of any matching shape and returns plain numbers. Where
scipy or scikit-learn is needed it is imported in the function (extra ``evaluation``).
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_tbr.errors import DataError, ShapeError

Array = NDArray[Any]


class LatentMatch(NamedTuple):
    """The one-to-one matching of true with estimated latents.

    Attributes:
        permutation: Estimated latent matched to each true one, (K,) int64; -1 for true latents
            left over where there are fewer estimates.
        sign: Sign of each correlation, (K,), 1 or -1.
        correlations: Absolute Pearson correlation of each pair, (K,); 0 for those left over.
    """

    permutation: Array
    sign: Array
    correlations: Array


def match_latents(z_true: Any, z_hat: Any) -> LatentMatch:
    """Match latents one to one so that the absolute correlations have the largest sum.

    Args:
        z_true: True latents, (N, K).
        z_hat: Estimates, (N, K'); K' may differ from K.

    Returns:
        ``z_hat[:, permutation] * sign`` is lined up with ``z_true``. A constant column correlates
        with nothing.

    Raises:
        ShapeError: The two have not the same number of rows, at least 2.
        DataError: Values are NaN or infinite.
    """
    true, hat = _latents(z_true, z_hat)
    correlation = _standardised(true).T @ _standardised(hat)
    assignment = _require("scipy.optimize").linear_sum_assignment
    rows, columns = assignment(np.abs(correlation), maximize=True)
    permutation = np.full(true.shape[1], -1)
    matched = np.zeros(true.shape[1])
    permutation[rows], matched[rows] = columns, correlation[rows, columns]
    return LatentMatch(permutation, np.where(matched < 0, -1, 1), np.abs(matched))


def mcc(z_true: Any, z_hat: Any) -> float:
    """Mean correlation coefficient: mean absolute correlation of the matched latents.

    1 means that each true latent is one estimate up to sign and scale. True latents without a
    partner count as 0. Arguments and errors as :func:`match_latents`.

    Example:
        >>> z = [[0.0, 1.0], [1.0, 3.0], [2.0, -1.0]]
        >>> round(mcc(z, [[-2.0, 0.0], [-6.0, 1.0], [2.0, 2.0]]), 6)
        1.0

    Source:
        Hyvarinen & Morioka, NeurIPS 2016.
    """
    return float(match_latents(z_true, z_hat).correlations.mean())


def linear_r2(z_true: Any, z_hat: Any) -> float:
    """R2 of the true latents from a linear map, with intercept, of the estimates; mean over K.

    In-sample. 1 with an MCC below 1 means that only the rotation is wrong. Arguments and errors
    as :func:`match_latents`; a constant true latent is a DataError.
    """
    true, hat = _latents(z_true, z_hat)
    total = true.var(axis=0)
    if (total == 0).any():
        raise DataError(
            f"z_true is constant in column {int(np.flatnonzero(total == 0)[0])}, so its R2 is not "
            "defined: leave it out"
        )
    true, hat = true - true.mean(axis=0), _standardised(hat)
    fitted = hat @ np.linalg.lstsq(hat, true, rcond=None)[0]
    return float((1 - (true - fitted).var(axis=0) / total).mean())


def pip_auroc(pips: Any, gates: Any) -> float:
    """Probability that a true change has a higher PIP than a place without one.

    Args:
        pips: Inclusion probabilities, any shape.
        gates: Whether there is a change, same shape.

    Raises:
        ShapeError: The shapes differ.
        DataError: PIPs outside [0, 1], gates that are not 0 or 1, or no change, or changes only.
    """
    pips, gates = _pips_and_gates(pips, gates, both=True)
    return float(_require("sklearn.metrics").roc_auc_score(gates, pips))


def pip_average_precision(pips: Any, gates: Any) -> float:
    """Average precision of the PIPs; arguments and errors as :func:`pip_auroc`."""
    pips, gates = _pips_and_gates(pips, gates, both=True)
    return float(_require("sklearn.metrics").average_precision_score(gates, pips))


def reliability(pips: Any, gates: Any, bins: int | Sequence[float] = 10) -> pd.DataFrame:
    """What PIPs of a size are worth: the share of true changes among them.

    Args:
        pips: Inclusion probabilities, any shape.
        gates: Whether there is a change, same shape.
        bins: Number of bins of equal width, or increasing edges from 0 to 1. A bin holds its
            lower edge, the last one its upper edge too.

    Returns:
        A row for each bin: ``lower``, ``upper``, ``mean_pip``, ``true_share``, ``count``; the
        means of an empty bin are NaN.

    Raises:
        ShapeError: The shapes differ.
        DataError: PIPs outside [0, 1], gates that are not 0 or 1, or unusable bins.
    """
    pips, gates = _pips_and_gates(pips, gates)
    edges = np.linspace(0, 1, bins + 1) if isinstance(bins, int) else np.asarray(bins, float)
    if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or (np.diff(edges) <= 0).any():
        raise DataError(f"bins is {bins!r}: give a number of bins, or increasing edges from 0 to 1")
    place = np.searchsorted(edges[1:-1], pips, side="right")
    count = np.bincount(place, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        mean_pip = np.bincount(place, pips, len(count)) / count
        true_share = np.bincount(place, gates, len(count)) / count
    return pd.DataFrame(
        {
            "lower": edges[:-1],
            "upper": edges[1:],
            "mean_pip": mean_pip,
            "true_share": true_share,
            "count": count,
        }
    )


def expected_calibration_error(pips: Any, gates: Any, bins: int | Sequence[float] = 10) -> float:
    """Mean over PIPs of the gap between mean PIP and true share of their bin.

    Arguments and errors as :func:`reliability`. It cannot fall to 0 with few PIPs a bin, even
    for perfect ones.
    """
    table = reliability(pips, gates, bins)
    gaps = (table["mean_pip"] - table["true_share"]).abs() * table["count"]
    return float(gaps.sum() / table["count"].sum())


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
    y, lower, upper = _float(y), _float(lower), _float(upper)
    _same_shape("lower", lower, "y", y)
    _same_shape("upper", upper, "y", y)
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
    y, draws = _float(y), _float(draws)
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
    y, mean, sd = _float(y), _float(mean), _float(sd)
    mean = mean if mean.ndim > y.ndim else mean[None]
    _same_shape("mean", mean[0], "y", y)
    if not (sd > 0).all():
        raise DataError(f"sd must be positive, its smallest value is {sd.min()!r}")
    seen = _observed(y)
    sd = np.broadcast_to(sd, mean.shape)[:, seen]
    residual = (y[seen] - _no_nan("mean", mean[:, seen])) / sd
    density = -0.5 * residual**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    return float((np.logaddexp.reduce(density, axis=0) - np.log(len(density))).mean())


def _require(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        name = {"scipy": "scipy", "sklearn": "scikit-learn"}[module.split(".")[0]]
        raise ImportError(f"this metric needs {name}: pip install pyro-tbr[evaluation]") from error


def _float(value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _same_shape(name: str, value: Array, other: str, reference: Array) -> None:
    if value.shape != reference.shape:
        raise ShapeError(
            f"{name} has shape {value.shape}, {other} {reference.shape}: they must be the same"
        )


def _no_nan(name: str, value: Array) -> Array:
    if np.isnan(value).any():
        raise DataError(f"{name} has {np.isnan(value).sum()} NaN value(s) where y is observed")
    return value


def _observed(y: Array) -> NDArray[np.bool_]:
    seen = ~np.isnan(y)
    if not seen.any():
        raise DataError(f"y has no observed value among {y.size}; there is nothing to score")
    return seen


def _latents(z_true: Any, z_hat: Any) -> tuple[Array, Array]:
    true, hat = _float(z_true), _float(z_hat)
    if true.ndim != 2 or hat.ndim != 2 or len(true) != len(hat) or len(true) < 2:
        raise ShapeError(
            f"z_true has shape {true.shape}, z_hat {hat.shape}: give (N, K) and (N, K'), N > 1"
        )
    for name, value in (("z_true", true), ("z_hat", hat)):
        bad = ~np.isfinite(value)
        if bad.any():
            row, column = map(int, np.argwhere(bad)[0])
            raise DataError(
                f"{name} has {bad.sum()} value(s) that are NaN or infinite, first "
                f"{float(value[row, column])!r} at row {row}, column {column}"
            )
    return true, hat


def _standardised(z: Array) -> Array:
    """Columns of mean 0 and length 1; constant columns (but for rounding) are 0."""
    centred = z - z.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    constant = length <= 1e-12 * np.sqrt(len(z)) * np.abs(z).max(axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, length))


def _pips_and_gates(pips: Any, gates: Any, both: bool = False) -> tuple[Array, Array]:
    pips, gates = _float(pips), _float(gates)
    _same_shape("pips", pips, "gates", gates)
    for name, value, bad in (
        ("pips", pips, ~((pips >= 0) & (pips <= 1))),
        ("gates", gates, (gates != 0) & (gates != 1)),
    ):
        if bad.any():
            raise DataError(
                f"{name} has {bad.sum()} value(s) out of range, first {float(value[bad][0])!r} at "
                f"{tuple(map(int, np.argwhere(bad)[0]))}: PIPs lie in [0, 1], gates are 0 or 1"
            )
    if pips.size == 0 or (both and gates.min() == gates.max()):
        raise DataError(
            f"gates has {int(gates.sum())} change(s) among {gates.size}: "
            "ranking needs places with and without"
        )
    return pips.ravel(), gates.ravel()
