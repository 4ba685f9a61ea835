"""How close latents come to the true ones: which estimate is which, and how well they agree."""

from typing import Any, NamedTuple

import numpy as np

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation.checks import Array, as_float, require


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
    assignment = require("scipy.optimize").linear_sum_assignment
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


def _latents(z_true: Any, z_hat: Any) -> tuple[Array, Array]:
    true, hat = as_float(z_true), as_float(z_hat)
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
