r"""Mixtures of Gaussians as messages on a tree, batched.

Two forms, each where it cannot fail. What data below say about a weight :math:`u` is a *message*,
a sum of :math:`\exp(h - \lambda (u - m)^2 / 2)`: it may be constant (:math:`\lambda = 0`, no data)
and need not be normalisable. What the prior and the other data say is a *density*, a weighted sum
of :math:`N(a, v)`: it may be a point (:math:`v = 0`). In natural parameters the log height would
be a difference of terms such as :math:`\eta^2 / 2 \lambda`, of size 1e7 for a leaf with standard
error 0.005 far from zero; with heights and means nothing large is subtracted.

Components lie along the last dimension. A dead component has log height or weight ``DEAD``, finite
so that neither values nor gradients become NaN.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

DEAD = -1e30  # log of zero; sums of thousands of them stay finite


class Message(NamedTuple):
    r"""Sum over components of :math:`\exp(h - \lambda (u - m)^2 / 2)`; each ``(..., C)``."""

    log_height: Tensor
    mean: Tensor
    precision: Tensor

    @property
    def members(self) -> int:
        """How many neighbours of the batch are one, see :func:`joined`."""
        return 1


class Density(NamedTuple):
    r"""Sum over components of :math:`e^w N(u; a, v)`, not normalised; each ``(..., C)``."""

    log_weight: Tensor
    mean: Tensor
    var: Tensor

    @property
    def members(self) -> int:
        """How many neighbours of the batch are one, see :func:`joined`."""
        return 1


_Parts = TypeVar("_Parts", Message, Density)
_Rows = TypeVar("_Rows", bound=tuple[Tensor, ...])


@functools.cache
def joined(kind: type[_Parts], members: int) -> type[_Parts]:
    """Messages or densities about several weights at once whose changes have the same classes.

    So many neighbours in the batch, the second dimension, are one: a component is a normal for each
    of them, independent, with one height or weight for all, which each of them holds.
    """
    if members == 1:
        return kind
    return type(kind.__name__, (kind,), {"members": members, "__slots__": ()})


def summed(parts: _Parts, value: Tensor, dim: int = 1) -> Tensor:
    """What heights and weights change by: of all members together, at each of them."""
    if parts.members == 1:
        return value
    each = value.unflatten(dim, (-1, parts.members))
    return each.sum(dim + 1, keepdim=True).expand_as(each).flatten(dim, dim + 1)


def take(parts: _Parts, index: Tensor) -> _Parts:
    """Rows by index, along the first dimension."""
    return type(parts)(*(part.index_select(0, index) for part in parts))


def rows(parts: _Rows, start: int, stop: int) -> _Rows:
    """A run of rows, without a copy; of any named tuple of tensors."""
    return type(parts)(*(part[start:stop] for part in parts))


def leading(parts: _Parts, num: int) -> _Parts:
    """The first components, without a copy."""
    return type(parts)(*(part[..., :num] for part in parts))


def concatenate(blocks: Sequence[_Parts], num: int = 0) -> _Parts:
    """Blocks of rows one after the other, filled up with dead components to ``num`` or more."""
    if len(blocks) == 1 and blocks[0].mean.shape[-1] >= num:
        return blocks[0]
    num = max(num, *(block.mean.shape[-1] for block in blocks))
    padded = [
        (
            pad(part, (0, num - part.shape[-1]), value=DEAD if i == 0 else 0.0)
            for i, part in enumerate(block)
        )
        if block.mean.shape[-1] < num
        else block
        for block in blocks
    ]
    return type(blocks[0])(*(torch.cat(parts) for parts in zip(*padded, strict=True)))


def multiply(one: Message, other: Message) -> Message:
    """Product of two messages about the same weight, ``C1 * C2`` components."""
    log_height, mean, precision = (part.unsqueeze(-1) for part in one)
    log_height2, mean2, precision2 = (part.unsqueeze(-2) for part in other)
    total = precision + precision2
    share = precision2 / torch.where(total > 0, total, 1.0)
    gap = mean2 - mean
    change = summed(one, precision * share * gap.square())
    log_height = log_height + log_height2 - 0.5 * change
    return type(one)(log_height.flatten(-2), (mean + share * gap).flatten(-2), total.flatten(-2))


def blur(message: Message, var: Tensor) -> Message:
    """The message about a weight that differs from the known one by a draw from N(0, var)."""
    spread = 1 + message.precision * var
    log_height = message.log_height - 0.5 * summed(message, spread.log())
    return type(message)(log_height, message.mean, message.precision / spread)


def absorb(density: Density, message: Message) -> Density:
    """Product of a density and a message, ``C1 * C2`` components: a Kalman update of each."""
    log_weight, prior_mean, var = (part.unsqueeze(-1) for part in density)
    log_height, mean, precision = (part.unsqueeze(-2) for part in message)
    spread = 1 + precision * var
    precision = precision / spread
    gap = mean - prior_mean
    change = summed(message, spread.log() + precision * gap.square())
    log_weight = log_weight + log_height - 0.5 * change
    mean = prior_mean + var * precision * gap
    return type(density)(log_weight.flatten(-2), mean.flatten(-2), (var / spread).flatten(-2))


def log_overlap(density: Density, message: Message) -> Tensor:
    """Log integral of every density component times the whole message, ``(..., C1)``."""
    log_weight, prior_mean, var = (part.unsqueeze(-1) for part in density)
    log_height, mean, precision = (part.unsqueeze(-2) for part in message)
    spread = 1 + precision * var
    gap = mean - prior_mean
    change = summed(message, spread.log() + precision / spread * gap.square())
    log_mass = log_height - 0.5 * change
    return (log_weight + log_mass).logsumexp(-1)


def log_relevance(message: Message, density: Density) -> Tensor:
    """Log integral of every message component times the whole density, ``(..., C)``."""
    log_height, mean, precision = (part.unsqueeze(-1) for part in message)
    log_weight, prior_mean, var = (part.unsqueeze(-2) for part in density)
    spread = 1 + precision * var
    gap = mean - prior_mean
    change = summed(message, spread.log() + precision / spread * gap.square())
    log_mass = log_weight - 0.5 * change
    return log_height.squeeze(-1) + log_mass.logsumexp(-1)


def collapse(density: Density, dim: int) -> Density:
    """One Gaussian with the weight and the moments of the components along a dimension."""
    log_weight = density.log_weight.logsumexp(dim, keepdim=True)
    weight = (density.log_weight - log_weight).exp()
    mean = (weight * density.mean).sum(dim, keepdim=True)
    gap = density.mean - mean
    var = (weight * (density.var + gap.square())).sum(dim)
    return type(density)(log_weight.squeeze(dim), mean.squeeze(dim), var)
