"""Two normals at even odds: a slab in two halves, one for each sign."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

_ONE = torch.Size()


class EvenMixture(dist.TorchDistribution):
    r"""Half of :math:`N(a, s^2)`, half of :math:`N(b, s^2)`; draws are reparametrised.

    Which half a draw is in depends on no parameter, so the gradient through a draw is unbiased,
    which a mixture with learnt odds does not offer.

    Args:
        first: a.
        second: b, broadcastable against it.
        scale: s, likewise.
    """

    arg_constraints = {
        "first": constraints.real,
        "second": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self, first: Tensor, second: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.first, self.second, self.scale = torch.broadcast_tensors(first, second, scale)
        super().__init__(self.scale.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: EvenMixture | None = None) -> EvenMixture:
        """The same for a larger batch."""
        new = self._get_checked_instance(EvenMixture, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(EvenMixture, new).__init__(batch_shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = _ONE) -> Tensor:
        """Draws, ``(*sample_shape, *batch_shape)``."""
        shape = self._extended_shape(sample_shape)
        heads = torch.rand(shape, dtype=self.scale.dtype, device=self.scale.device) < 0.5
        noise = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        return torch.where(heads, self.first, self.second) + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        one, other = (
            dist.Normal(loc, self.scale).log_prob(value) for loc in (self.first, self.second)
        )
        return torch.logaddexp(one, other) - torch.log(torch.full_like(one, 2.0))

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return (self.first + self.second) / 2

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self.scale.square() + (self.first - self.second).square() / 4
