"""Slice sampling of many numbers at once, each from a density of its own."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

_WIDTH = 1.0  # of the first interval, in the unit of the number
_MOST_OUT, _MOST_IN = 12, 200  # widths an interval grows to; tries inside it


def slice_draw(
    log_density: Callable[[Tensor], Tensor],
    now: Tensor,
    generator: Generator,
    width: float = _WIDTH,
) -> Tensor:
    """One step of every number, which leaves its density as it is.

    Args:
        log_density: From values (*B) to log densities up to a constant, (*B); of each value alone.
            May be minus infinity, not at ``now``.
        now: Where the chains stand, (*B).
        generator: On the CPU, from which all noise comes.
        width: Of the first interval around each value.

    Source:
        Neal, Annals of Statistics 31 (2003) 705: stepping out, then shrinking.
    """

    def uniform() -> Tensor:
        return torch.rand(now.shape, generator=generator, dtype=torch.float64)

    height = log_density(now) + torch.log1p(-uniform())
    low = now - width * uniform()
    high = low + width
    # How many widths each end may still move: shared out at random, or the step is no fair one.
    left = (_MOST_OUT * uniform()).floor()
    right = _MOST_OUT - 1 - left
    for _ in range(_MOST_OUT):
        grow_low = (left > 0) & (log_density(low) > height)
        grow_high = (right > 0) & (log_density(high) > height)
        if not bool((grow_low | grow_high).any()):
            break
        low, high = low - width * grow_low, high + width * grow_high
        left, right = left - grow_low.double(), right - grow_high.double()
    found, done = now.clone(), torch.zeros_like(now, dtype=torch.bool)
    for _ in range(_MOST_IN):
        tried = low + (high - low) * uniform()
        good = log_density(tried) > height
        found = torch.where(good & ~done, tried, found)
        done = done | good
        if bool(done.all()):
            break
        low = torch.where(tried < now, tried, low)
        high = torch.where(tried < now, high, tried)
    return found
