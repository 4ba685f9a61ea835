"""Variational factors of hyperparameters: log-normal for scales, logit-normal for rates.

Expectations that have no closed form are Gauss-Hermite sums over a fixed grid, so an ELBO built of
them is deterministic and its gradient has no noise.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from pyro_tbr.heads.hyper.hyperparameters import Hyperparameter, PositiveScale, Rate

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_SETTLED = 1e-9  # moves of a logarithm below which an update ends


def quadrature(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Points (T, *shape) and weights (T,) for expectations under Normal(loc, scale)."""
    nodes = loc.new_tensor(_NODES).reshape(-1, *[1] * loc.dim())
    return loc + scale * nodes, loc.new_tensor(_WEIGHTS)


class HyperFactor(nn.Module):
    """q of one hyperparameter on the real line, moved to its support; abstract.

    Args:
        hyper: The hyperparameter; where it is fixed the factor has no parameters.
        init: Where the factor starts, on the support.
    """

    def __init__(self, hyper: Hyperparameter, init: float) -> None:
        super().__init__()
        self._hyper = (hyper,)  # in a tuple: the model owns the module, not we
        if hyper.fixed is None:
            self.loc = nn.Parameter(torch.full(hyper.shape, self._to_real(init)))
            self.log_scale = nn.Parameter(torch.full(hyper.shape, math.log(0.2)))

    @property
    def hyper(self) -> Hyperparameter:
        """The hyperparameter in the model."""
        return self._hyper[0]

    @property
    def scale(self) -> Tensor:
        """Standard deviation on the real line."""
        return self.log_scale.exp()

    @staticmethod
    def _to_real(value: float) -> float:
        raise NotImplementedError

    def _distribution(self) -> dist.TorchDistribution:
        raise NotImplementedError

    @torch.no_grad()
    def initialise(self, value: Tensor, scale: float = 0.1) -> None:
        """Starts at ``value`` (broadcast), with a spread on the real line."""
        if self.hyper.fixed is None:
            real = torch.as_tensor(value, dtype=self.loc.dtype)
            real = real.log() if not isinstance(self.hyper, Rate) else torch.logit(real)
            self.loc.copy_(real.expand_as(self.loc))
            self.log_scale.fill_(math.log(scale))

    def forward(self) -> Tensor:
        """The Pyro site in a guide; a fixed value has none there, Pyro warns of it."""
        hyper = self.hyper
        if hyper.fixed is not None:
            return hyper.fixed
        return pyro.sample(hyper.name, self._distribution().to_event(len(hyper.shape)))

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (S, *shape) from a generator of the caller's."""
        hyper = self.hyper
        if hyper.fixed is not None:
            return hyper.fixed.expand(num_samples, *hyper.shape)
        noise = torch.randn(
            num_samples, *hyper.shape, generator=generator, dtype=self.loc.dtype
        ).to(self.loc.device)
        return self._to_support(self.loc + self.scale * noise)

    def _to_support(self, real: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_jacobian(self, real: Tensor) -> Tensor:
        """Log |d support / d real|."""
        raise NotImplementedError

    def kl(self) -> Tensor:
        """KL to the hyperprior, of the hyperparameter's shape; zero where fixed."""
        hyper = self.hyper
        if hyper.fixed is not None:
            return torch.zeros_like(hyper.fixed)
        real, weights = quadrature(self.loc, self.scale)
        entropy = self.log_scale + 0.5 * math.log(2 * math.pi * math.e)
        each = hyper.prior()
        assert isinstance(each, dist.Independent)
        log_prior = each.base_dist.log_prob(self._to_support(real))
        log_prior = log_prior + self._log_jacobian(real)
        return -entropy - torch.tensordot(weights, log_prior, 1)


class ScaleFactor(HyperFactor):
    """Log-normal q of a positive scale."""

    @staticmethod
    def _to_real(value: float) -> float:
        return math.log(value)

    def _to_support(self, real: Tensor) -> Tensor:
        return real.exp()

    def _log_jacobian(self, real: Tensor) -> Tensor:
        return real

    def _distribution(self) -> dist.TorchDistribution:
        return dist.LogNormal(self.loc, self.scale)

    def log_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logarithm."""
        if self.hyper.fixed is not None:
            return self.hyper.fixed.log(), torch.zeros_like(self.hyper.fixed)
        return self.loc, (2 * self.log_scale).exp()

    def mean_log(self) -> Tensor:
        """E[log scale]."""
        return self.log_moments()[0]

    def mean_power(self, power: float) -> Tensor:
        """E[scale ** power]."""
        loc, var = self.log_moments()
        return torch.exp(power * loc + 0.5 * power**2 * var)

    @torch.no_grad()
    def match(self, loc: Tensor, spread: Tensor) -> None:
        """Takes mean and standard deviation of the logarithm from a posterior held elsewhere."""
        self.loc.copy_(loc)
        self.log_scale.copy_(spread.log())

    @torch.no_grad()
    def update(self, square: Tensor, count: Tensor, size: Tensor | float = 0.0) -> None:
        r"""The best log-normal q given normal draws of this scale, under a log-normal hyperprior.

        With :math:`l, v` the mean and variance of the logarithm it climbs
        :math:`-\tfrac12 S e^{-2l+2v} + C e^{-l+v/2} - n l - \frac{(l-\mu)^2 + v}{2 s^2}
        + \tfrac12 \log v`.

        Args:
            square: S, sum of expected squares of the draws, the hyperparameter's shape.
            count: n, expected number of draws, likewise.
            size: C, likewise: of draws around a mean that is a multiple of the scale, the sum of
                expected products with that mean over the scale; 0 for draws around 0.
        """
        if self.hyper.fixed is not None:
            return
        hyper = self.hyper
        assert isinstance(hyper, PositiveScale)  # others have no closed form and never come here
        prior_loc, precision = hyper.prior_loc.double(), hyper.prior_scale.double() ** -2
        square, count = square.double().clamp(min=1e-300), count.double()
        size = torch.as_tensor(size).to(square).clamp(min=0)
        loc, var = self.loc.double(), (2 * self.log_scale).exp().double()
        for _ in range(50):
            pull = square * torch.exp((-2 * loc + 2 * var).clamp(max=80))
            push = size * torch.exp((-loc + 0.5 * var).clamp(max=40))
            slope = pull - push - count - precision * (loc - prior_loc)
            # Near the optimum pull - push is n: the curvature is positive there, not everywhere.
            bend = torch.maximum(2 * pull - push, pull) + precision
            step = (slope / bend).clamp(-1.0, 1.0)
            loc = loc + step
            pull = square * torch.exp((-2 * loc + 2 * var).clamp(max=80))
            push = size * torch.exp((-loc + 0.5 * var).clamp(max=40))
            change = 0.5 / (torch.maximum(2 * pull - push, pull) + precision) - 0.5 * var
            moved = torch.maximum(step.abs(), change.abs() / var).max()
            var = var + change
            if moved < _SETTLED:
                break
        self.loc.copy_(loc)
        self.log_scale.copy_(0.5 * var.log())


class RateFactor(HyperFactor):
    """Logit-normal q of a probability."""

    @staticmethod
    def _to_real(value: float) -> float:
        return math.log(value / (1 - value))

    def _to_support(self, real: Tensor) -> Tensor:
        return torch.sigmoid(real)

    def _log_jacobian(self, real: Tensor) -> Tensor:
        return logsigmoid(real) - softplus(real)

    def _distribution(self) -> dist.TorchDistribution:
        normal = dist.Normal(self.loc, self.scale)
        return dist.TransformedDistribution(normal, [dist.transforms.SigmoidTransform()])

    def grid(self) -> tuple[Tensor, Tensor]:
        """Rates (T, *shape) and weights (T,) for expectations; one point where fixed."""
        fixed = self.hyper.fixed
        if fixed is not None:
            return fixed[None], torch.ones(1, dtype=fixed.dtype, device=fixed.device)
        real, weights = quadrature(self.loc, self.scale)
        tiny = torch.finfo(real.dtype).eps
        return self._to_support(real).clamp(tiny, 1 - tiny), weights

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
        if self.hyper.fixed is not None:
            return
        logit = torch.linspace(-14.0, 8.0, 441, dtype=torch.float64, device=on.device)
        log_off = relative_length.double()[..., None] * logsigmoid(-logit)
        log_on = torch.log(-torch.expm1(log_off.clamp(max=-1e-300)))
        log_lik = (on.double()[..., None] * log_on + off.double()[..., None] * log_off).sum(0)
        hyper = self.hyper
        assert isinstance(hyper, Rate)
        one = hyper.concentration1.double()[..., None]
        zero = hyper.concentration0.double()[..., None]
        log_post = log_lik + one * logsigmoid(logit) + zero * logsigmoid(-logit)
        weight = log_post.softmax(-1)
        mean = (weight * logit).sum(-1)
        var = (weight * (logit - mean[..., None]).square()).sum(-1)
        self.loc.copy_(mean)
        self.log_scale.copy_(0.5 * var.clamp(min=1e-6).log())
