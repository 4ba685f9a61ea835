"""Probabilities as hyperparameters, and their logit-normal factor of q."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_tbr.heads.hyper.base import HyperFactor, Hyperparameter

LOGITS = (-14.0, 8.0, 441)  # the grid on which a rate's posterior is summed


class Rate(Hyperparameter):
    """A probability with hyperprior ``Beta(concentration1, concentration0)``.

    Args:
        concentration1: Pseudo-count of changes.
        concentration0: Pseudo-count of arcs without change.
    """

    concentration1: Tensor
    concentration0: Tensor

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        fixed: Tensor | None,
        *,
        concentration1: float,
        concentration0: float,
    ) -> None:
        super().__init__(name, shape, fixed)
        self.register_buffer("concentration1", torch.full(self.shape, float(concentration1)))
        self.register_buffer("concentration0", torch.full(self.shape, float(concentration0)))

    def prior(self) -> dist.Independent:
        """Beta over the whole shape."""
        return dist.Beta(self.concentration1, self.concentration0).to_event(len(self.shape))

    def middle(self) -> Tensor:
        """The mean."""
        return self.concentration1 / (self.concentration1 + self.concentration0)

    def factor(self) -> RateFactor:
        """See :meth:`Hyperparameter.factor`."""
        return RateFactor(self)


class RateFactor(HyperFactor):
    """Logit-normal q of a probability."""

    @staticmethod
    def to_real(value: Tensor) -> Tensor:
        """See :meth:`HyperFactor.to_real`."""
        return torch.logit(value)

    @staticmethod
    def to_support(real: Tensor) -> Tensor:
        """See :meth:`HyperFactor.to_support`."""
        tiny = torch.finfo(real.dtype).eps  # logarithms of a rate and of its rest are finite
        return torch.sigmoid(real).clamp(tiny, 1 - tiny)

    @staticmethod
    def _log_jacobian(real: Tensor) -> Tensor:
        return logsigmoid(real) - softplus(real)

    def log_prior(self, real: Tensor) -> Tensor:
        """See :meth:`HyperFactor.log_prior`."""
        hyper = self.hyper
        assert isinstance(hyper, Rate)
        one, zero = hyper.concentration1, hyper.concentration0
        norm = torch.lgamma(one + zero) - torch.lgamma(one) - torch.lgamma(zero)
        return norm + one * logsigmoid(real) + zero * logsigmoid(-real)

    def _distribution(self) -> dist.TorchDistribution:
        normal = dist.Normal(self.loc, self.scale)
        return dist.TransformedDistribution(normal, [dist.transforms.SigmoidTransform()])

    @torch.no_grad()
    def update(self, on: Tensor, off: Tensor, relative_length: Tensor) -> None:
        r"""The logit-normal q that matches the posterior given expected gates, by a grid of logits.

        The log posterior of the rate r is :math:`\log p(r) + \sum_a on_a \log(1-(1-r)^{l_a}) +
        off_a l_a \log(1-r)`, :math:`l_a` the arc's length over the mean.

        Args:
            on: Expected gates that are on, summed over the outcomes that share the rate, (A, W, .).
            off: Expected gates that are off, likewise.
            relative_length: (A, 1, 1).
        """
        hyper = self.hyper
        if hyper.fixed is not None:
            return
        assert isinstance(hyper, Rate)
        logit = torch.linspace(*LOGITS, dtype=torch.float64, device=on.device)
        # Arcs of one length as one: a grid for every arc of a large tree takes gigabytes.
        lengths, place = relative_length.double().flatten().unique(return_inverse=True)
        empty = on.new_zeros(len(lengths), *on.shape[1:], dtype=torch.float64)
        on, off = (empty.index_add(0, place, part.double()) for part in (on, off))
        log_off = lengths[:, None] * logsigmoid(-logit)
        log_on = torch.log(-torch.expm1(log_off.clamp(max=-1e-300)))
        log_lik = torch.einsum("a...,ag->...g", on, log_on)
        log_lik = log_lik + torch.einsum("a...,ag->...g", off, log_off)
        one = hyper.concentration1.double()[..., None]
        zero = hyper.concentration0.double()[..., None]
        log_post = log_lik + one * logsigmoid(logit) + zero * logsigmoid(-logit)
        self.match_grid(logit, log_post)
