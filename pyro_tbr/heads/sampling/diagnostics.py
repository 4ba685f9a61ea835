"""Have chains converged, and how many independent draws are they worth?

Both numbers are of ranks put on a normal scale, so heavy tails and gates that are on or off do no
harm, and of halves of chains, so a chain that drifts is seen.

Source:
    Vehtari, Gelman, Simpson, Carpenter & Bürkner, Bayesian Analysis 16 (2021) 667.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rank_normalised(draws: Array) -> Array:
    """Normal scores of the ranks of all draws (C, n, M) of each quantity; ties share a rank."""
    flat = draws.reshape(-1, draws.shape[-1])
    number, order = len(flat), flat.argsort(0, kind="stable")
    values = np.take_along_axis(flat, order, 0)
    place = np.arange(number)[:, None]
    new = np.ones(values.shape, dtype=bool)
    new[1:] = values[1:] != values[:-1]
    first = np.maximum.accumulate(np.where(new, place, 0), 0)
    ends = np.ones_like(new)
    ends[:-1] = new[1:]
    last = np.minimum.accumulate(np.where(ends, place, number)[::-1], 0)[::-1]
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, 0.5 * (first + last) + 1, 0)
    share = torch.from_numpy((ranks - 0.375) / (number + 0.25))
    return torch.special.ndtri(share).numpy().reshape(draws.shape)


def split_chains(draws: Array) -> Array:
    """First and second halves of chains as chains, (2 C, n // 2, M)."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def rhat(draws: Array) -> Array:
    """Largest of the rank-normalised split R-hats of place and spread, (M,), from (C, n, M).

    1 where chains agree; NaN where a quantity never changes.
    """
    halves = split_chains(draws)
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    return np.fmax(*(_rhat(rank_normalised(part)) for part in (halves, folded)))


def _rhat(chains: Array) -> Array:
    number = chains.shape[1]
    within = chains.var(1, ddof=1).mean(0)
    between = number * chains.mean(1).var(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((between / within + number - 1) / number)


def bulk_ess(draws: Array) -> Array:
    """Effective number of independent draws behind a mean, (M,), from (C, n, M) with n of 8 up.

    NaN where a quantity never changes. The sum over lags ends where a pair of autocorrelations is
    negative, and pairs may only fall.

    Source:
        Geyer, Statistical Science 7 (1992) 473.
    """
    chains = rank_normalised(split_chains(draws))
    num_chains, number, _ = chains.shape
    cov = _autocovariance(chains).mean(0)  # (n, M)
    within = cov[0] * number / (number - 1)
    total = within * (number - 1) / number + chains.mean(1).var(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = 1 - (within - cov) / total
    rho[0] = 1.0
    pairs = rho[: number // 2 * 2].reshape(-1, 2, rho.shape[-1]).sum(1)
    pairs = pairs[: max(1, (number - 3) // 2 + 1)]
    alive = np.logical_and.accumulate(pairs > 0, 0)
    falling = np.minimum.accumulate(np.where(alive, pairs, 0.0), 0)
    # Where the sum ends the first of the two still counts if it is positive.
    end = np.minimum(alive.sum(0), len(pairs) - 1)
    rest = np.take_along_axis(rho, 2 * end[None], 0)[0]
    time = -1 + 2 * falling.sum(0) + np.where(alive.all(0), 0.0, np.maximum(rest, 0.0))
    size = num_chains * number
    return np.where(total > 0, size / np.maximum(time, 1 / np.log10(size)), np.nan)


def _autocovariance(chains: Array) -> Array:
    """Of (C, n, M) along n, by lag, divided by n."""
    number = chains.shape[1]
    centred = chains - chains.mean(1, keepdims=True)
    power = np.abs(np.fft.rfft(centred, 2 * number, axis=1)) ** 2
    return np.fft.irfft(power, 2 * number, axis=1)[:, :number] / number
