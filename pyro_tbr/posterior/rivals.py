"""Other bases of the latents that a search found: which of their latents are ours, and how close.

A basis is (K, K) relative to white latents ``z``: its latents are ``z @ basis``, columns of unit
length, so products of columns are correlations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_tbr.posterior.fit_report import FitReport

SAME_LATENT = 0.95  # correlation above which a latent of another solution is the same one
# Share of the search's solutions that have to agree. A latent that few of them have may be one of
# many that the search came by, unless one other has it and those without are far behind.
LEAST_AGREEMENT = 0.25
LEAST_TIMES, FAR_BEHIND = 1, 3.0
SAME_BASIS = 0.98  # mean correlation of latents above which two bases count as one


class Pairs(NamedTuple):
    """Which latents of another basis are ours.

    Attributes:
        partner: Column of the other basis that goes with each of ours, (K,) int64.
        sign: By which it is turned, so that the two correlate positively, (K,).
        correlation: Its absolute correlation with ours, (K,), double precision.
    """

    partner: Tensor
    sign: Tensor
    correlation: Tensor


def paired(one: Tensor, other: Tensor) -> Pairs:
    """Latents ``z @ one`` (K, n) with their partners among ``z @ other`` (K, m), n at most m.

    Pairs are taken greedily: scipy's optimal matching is an optional package, and solutions that
    are the same have no ties.
    """
    correlation = (one.T @ other).cpu().double()
    left = correlation.abs().clone()
    partner = torch.zeros(len(left), dtype=torch.int64)
    for _ in range(len(left)):
        i, j = divmod(int(left.argmax()), left.shape[1])
        partner[i] = j
        left[i], left[:, j] = -1, -1
    own = correlation.gather(1, partner[:, None])[:, 0]
    return Pairs(partner, torch.where(own < 0, -1.0, 1.0), own.abs())


def latent_match(one: Tensor, other: Tensor) -> float:
    """Mean absolute correlation of latents ``z @ one`` and ``z @ other``, z white, best pairing."""
    return float(paired(one, other).correlation.mean())


def distinct(ours: Tensor, others: Tensor, same: float) -> list[int]:
    """Places of those of other bases (T, K, K), best first, that are neither ours nor each other.

    Args:
        ours: Columns of our basis that count, (K, n).
        others: The other bases.
        same: Mean correlation of latents above which two bases count as one.
    """
    kept: list[int] = []
    known = [ours]
    for place, other in enumerate(others):
        # Of another basis those latents count that stand in for ours.
        own = other[:, paired(ours, other).partner.to(other.device)]
        if all(latent_match(one, own) <= same for one in known):
            kept.append(place)
            known.append(own)
    return kept


def aligned(ours: Tensor, other: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Another basis (K, K) in the order and with the signs of ours, and correlations (K,).

    Latents where ``first`` (K,) is true choose their partners before the others do.
    """
    partner = torch.zeros(len(ours), dtype=torch.int64)
    sign, correlation = torch.ones(len(ours)), torch.ones(len(ours), dtype=torch.float64)
    left = torch.arange(len(ours))
    for some in (first.nonzero()[:, 0], (~first).nonzero()[:, 0]):
        found = paired(ours[:, some], other[:, left])
        partner[some], sign[some] = left[found.partner], found.sign
        correlation[some] = found.correlation
        left = left[~torch.isin(left, partner[some])]
    return other[:, partner] * sign.to(other), correlation


class Rivals(NamedTuple):
    """What the search's other solutions say of the latents in use.

    Attributes:
        agreement: Share of them that have all.
        gap: Log evidence to the best one that has not.
        match: Mean correlation of its latents with ours; NaN where there is none.
        shares: Share of them that have each latent, (K,); 1 for those not in use.
        times: How many of them that are, (K,); 0 for those not in use.
        gaps: Log evidence to the best one without each latent, (K,); infinite if there is none.
        expected: Correlation that each latent is expected to have with its partner in a solution
            drawn by evidence, ours among them, (K,); 1 for those not in use.
    """

    agreement: float
    gap: float
    match: float
    shares: np.ndarray
    times: np.ndarray
    gaps: np.ndarray
    expected: np.ndarray

    def rare(self) -> np.ndarray:
        """Latents that few solutions have, unless some do and others are far behind, (K,)."""
        clear = (self.times >= LEAST_TIMES) & (self.gaps >= FAR_BEHIND)
        return (self.shares < LEAST_AGREEMENT) & ~clear


def rivals_of(report: FitReport, used: np.ndarray, *, share: float) -> Rivals:
    """See :class:`Rivals`; evidence counts by a share, and latents that are in use (K,)."""
    shares, expected, times = np.ones(len(used)), np.ones(len(used)), np.zeros(len(used))
    gaps = np.full(len(used), np.inf)
    if not len(report.alternatives) or not len(report.basis) or not used.any():
        return Rivals(1.0, math.inf, math.nan, shares, times, gaps, expected)
    ours = report.basis[:, torch.tensor(used[: len(report.basis)])]
    pairs = [paired(ours, other) for other in report.alternatives]
    found = np.stack([pair.correlation.numpy() for pair in pairs])  # (T, used)
    behind = share * (report.evidence - report.alternative_evidence.cpu().numpy()).clip(min=0)
    missing = found <= SAME_LATENT
    shares[used], times[used] = 1 - missing.mean(0), (~missing).sum(0)
    gaps[used] = np.where(missing, behind[:, None], np.inf).min(0)
    # A solution counts once, however many starts have found it.
    kept = distinct(ours, report.alternatives, SAME_BASIS)
    weight = np.exp(-np.append(0.0, behind[kept]))
    alike = np.concatenate([np.ones((1, int(used.sum()))), found[kept]])
    expected[used] = weight @ alike / weight.sum()
    other = found.mean(1) <= SAME_LATENT
    agreement, gap = 1 - other.mean(), np.where(other, behind, np.inf)
    best = int(gap.argmin())
    match = math.nan if not other.any() else float(found[best].mean())
    return Rivals(float(agreement), float(gap[best]), match, shares, times, gaps, expected)
