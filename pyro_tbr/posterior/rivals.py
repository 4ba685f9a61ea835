"""Other bases of the latents that a search found: which of their latents are ours, and how close.

A basis is (K, K) relative to white latents ``z``: its latents are ``z @ basis``, columns of unit
length, so products of columns are correlations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
