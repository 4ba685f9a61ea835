"""Latents of all rows: how they are kept, their moments, maps from one encoder's to another's.

They are the one thing beside labels that there is of every row, so where there are very many they
are kept in single precision and gone through block by block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.rows import BLOCK_ROWS

_MOST_DOUBLE = 4_000_000  # numbers that are kept in double precision


def as_kept(z: Tensor) -> Tensor:
    """Latents (N, K) in the precision they are kept in."""
    return z.double() if z.numel() <= _MOST_DOUBLE else z


class Moments(NamedTuple):
    """Mean (K,) and covariance (K, K) of latents, double precision."""

    mean: Tensor
    cov: Tensor


def moments_of(z: Tensor) -> Moments:
    """Of latents (N, K)."""
    mean = sum(block.double().sum(0) for block in z.split(BLOCK_ROWS)) / len(z)
    parts = ((block.double() - mean) for block in z.split(BLOCK_ROWS))
    return Moments(mean, sum(part.T @ part for part in parts) / len(z))


def mapped(z: Tensor, centre: Tensor, linear: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """``(z - centre) @ linear - offset`` in the precision of z, made in double; (N, J)."""
    out = z.new_empty(len(z), linear.shape[1])
    for block, part in zip(z.split(BLOCK_ROWS), out.split(BLOCK_ROWS), strict=True):
        part.copy_((block.double() - centre) @ linear - offset)
    return out


def align(theirs: Tensor, reference: Tensor, new: Tensor) -> Tensor:
    """``new`` moved by the affine map that takes ``theirs`` nearest to ``reference``.

    All are latents, of the same rows the first two. Of latents that do not exist, columns of zeros,
    nothing is taken.
    """
    (centre, cov), aim = moments_of(theirs), moments_of(reference).mean
    # In units of their spread, so that what counts as nothing does not hang on a latent's scale.
    unit = torch.where(cov.diagonal() > 0, cov.diagonal().rsqrt(), 0.0)
    pairs = zip(theirs.split(BLOCK_ROWS), reference.split(BLOCK_ROWS), strict=True)
    total = sum((one.double() - centre).T @ (two.double() - aim) for one, two in pairs)
    inverse = torch.linalg.pinv(unit[:, None] * cov * unit, hermitian=True)
    linear = unit[:, None] * (inverse @ (unit[:, None] * total / len(theirs)))
    return mapped(new, centre, linear, -aim)
