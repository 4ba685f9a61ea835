"""The law of changes that are not zero."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.priors.even_mixture import EvenMixture


def slab_halves(scale: Tensor, separation: Tensor | None) -> tuple[Tensor, Tensor]:
    """Distance of a slab's halves from zero and the standard deviation of each.

    Args:
        scale: Root mean square of a change.
        separation: Broadcastable against it; ``None``: 0.
    """
    if separation is None:
        return torch.zeros_like(scale), scale
    each = scale / (1 + separation.square()).sqrt()
    return separation * each, each


def slab_law(scale: Tensor, separation: Tensor | None) -> dist.TorchDistribution:
    """The law of changes that are not zero; arguments as in :func:`slab_halves`."""
    loc, each = slab_halves(scale, separation)
    return dist.Normal(loc, each) if separation is None else EvenMixture(loc, -loc, each)
