"""Mixtures of what guides say, component by component, with weights (C,) that sum to 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.moments import DeltaMoments

_LEAST = 1e-300


def mixed(weight: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The weighted mean of tensors of one shape."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack([share * part for share, part in zip(weight, parts, strict=True)]).sum(0)


def mixed_deltas(weight: Tensor, parts: Sequence[DeltaMoments]) -> DeltaMoments:
    """Moments of the mixture's changes; those given inclusion weigh components by theirs too."""
    if len(parts) == 1:
        return parts[0]
    double = [DeltaMoments(*(value.double() for value in part)) for part in parts]
    inclusion = mixed(weight, [part.inclusion for part in double])
    mean = mixed(weight, [part.mean for part in double])
    var = mixed(weight, [part.var + (part.mean - mean).square() for part in double])
    safe = inclusion.clamp(min=_LEAST)
    on = mixed(weight, [part.inclusion * part.slab_mean for part in double]) / safe
    spread = [part.inclusion * (part.slab_var + (part.slab_mean - on).square()) for part in double]
    prior = mixed(weight, [part.prior_inclusion for part in double])
    found = DeltaMoments(mean, var, inclusion, prior, on, mixed(weight, spread) / safe)
    return DeltaMoments(*(value.to(parts[0].mean) for value in found))


def mixed_log_odds(weight: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Log odds of the mean of probabilities, from theirs; exact where these round to 0 or 1."""
    if len(parts) == 1:
        return parts[0]
    odds, share = torch.stack([part.double() for part in parts]), weight.clamp(min=_LEAST).log()
    share = share.reshape(-1, *[1] * (odds.dim() - 1))
    on, off = (torch.nn.functional.logsigmoid(sign * odds) for sign in (1, -1))
    return (share + on).logsumexp(0) - (share + off).logsumexp(0)


def allotted(weight: Tensor, number: int, generator: Generator) -> list[int]:
    """How many of so many draws are of each component: expected ones, less or more by one.

    Source:
        Systematic resampling: Kitagawa, J. Comput. Graph. Stat. 5 (1996) 1.
    """
    edges = number * weight.cpu().double().cumsum(0) / weight.sum().item()
    edges = (edges + torch.rand((), generator=generator, dtype=torch.float64)).floor().long()
    edges[-1] = number
    return torch.diff(edges, prepend=edges.new_zeros(1)).clamp(min=0).tolist()
