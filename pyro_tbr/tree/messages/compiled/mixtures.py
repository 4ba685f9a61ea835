"""Mixtures of Gaussians in compiled loops: as :mod:`~pyro_tbr.tree.messages.mixtures`, ragged.

A mixture is the first ``n`` entries of three arrays: log heights, means and precisions of a
message; log weights, means and variances of a density. What is dead is left out, so there is
nothing to fill up.
"""

from __future__ import annotations

from math import exp, inf, log
from typing import Any

from pyro_tbr.jit import jit

Array = Any  # numpy's, or the compiler's


@jit
def product(
    height: float, mean: float, precision: float, height2: float, mean2: float, precision2: float
) -> tuple[float, float, float]:
    """Product of two components of messages about the same weight."""
    total = precision + precision2
    share = precision2 / total if total > 0 else precision2
    gap = mean2 - mean
    return height + height2 - 0.5 * precision * share * gap * gap, mean + share * gap, total


@jit
def log_sum(values: Array, n: int) -> float:
    """Log of the sum of exponentials."""
    most = -inf
    for i in range(n):
        most = max(most, values[i])
    if most == -inf:
        return most
    total = 0.0
    for i in range(n):
        total += exp(values[i] - most)
    return most + log(total)


@jit
def mass(precision: float, mean: float, other_mean: float, var: float) -> float:
    """Log integral of a message's component of height 0 times N(other_mean, var)."""
    spread = 1 + precision * var
    gap = mean - other_mean
    return -0.5 * (log(spread) + precision / spread * gap * gap)


@jit
def relevance(mean: float, precision: float, density: Array, n: int, values: Array) -> float:
    """Log integral of a message's component of height 0 times a density of n components."""
    for d in range(n):
        values[d] = density[0, d] + mass(precision, mean, density[1, d], density[2, d])
    return log_sum(values, n)


@jit
def collapse(parts: Array, first: int, step: int, n: int, out: Array, place: int) -> None:
    """One Gaussian with weight and moments of ``n`` components, ``step`` apart."""
    total, mean = 0.0, 0.0
    for i in range(n):
        w = parts[0, first + i * step]
        total += w
        mean += w * parts[1, first + i * step]
    if total > 0:
        mean /= total
    else:  # too faint to be told
        mean = parts[1, first]
    var = 0.0
    for i in range(n):
        at = first + i * step
        gap = parts[1, at] - mean
        var += parts[0, at] * (parts[2, at] + gap * gap)
    out[0, place] = total
    out[1, place] = mean
    out[2, place] = var / total if total > 0 else parts[2, first]


@jit
def copied(parts: Array, start: int, n: int, out: Array, place: int) -> None:
    """The same components at another place."""
    for row in range(3):
        for i in range(n):
            out[row, place + i] = parts[row, start + i]
