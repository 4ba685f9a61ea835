"""Means of scores of rows, with standard errors that know which rows belong together."""

from __future__ import annotations

import math

from torch import Tensor


def mean_and_error(values: Tensor, unit: Tensor | None = None) -> tuple[float, float]:
    """Mean of one number a row, and its standard error.

    Args:
        values: (N,).
        unit: Which rows are no independent draws, as they share a number, (N,) int64; ``None``:
            all are.

    Returns:
        The error is NaN where there are fewer than two units.

    Source:
        Sums by cluster: Liang & Zeger, Biometrika 73 (1986) 13.
    """
    values = values.double()
    mean = values.mean()
    sums = values - mean
    if unit is not None:
        place = unit.unique(return_inverse=True)[1]
        sums = sums.new_zeros(int(place.max()) + 1).index_add(0, place, sums)
    number = len(sums)
    if number < 2:
        return mean.item(), math.nan
    error = (sums.square().sum() * number / (number - 1)).sqrt() / len(values)
    return mean.item(), error.item()
