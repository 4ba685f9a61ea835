"""Positive hyperparameters and their log-normal factor of q.

Hyperpriors are proper and vanish at zero (or are bounded there), so that a learnt scale cannot
collapse and explain nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.heads.hyper.base import HyperFactor, Hyperparameter, check_finite

Array = NDArray[np.float64]

_SETTLED = 1e-9  # moves of a logarithm below which an update ends
_MOST_STEPS = 200  # of an update; each moves the logarithm by at most one
_ROUNDING = torch.finfo(torch.float64).eps
_SEPARATIONS = (-4.0, 4.0, 401)  # the grid of their logarithms


class Scale(Hyperparameter):
    """A positive value; abstract. What its class documents is the hyperprior and its arguments."""

    prior_scale: Tensor

    def middle(self) -> Tensor:
        """Where the hyperprior has its middle, or its own scale."""
        return self.prior_scale

    def factor(self) -> ScaleFactor:
        """See :meth:`Hyperparameter.factor`."""
        return ScaleFactor(self)


class PositiveScale(Scale):
    """A scale with hyperprior ``LogNormal(log(median), spread)``.

    Args:
        median: Median of the hyperprior, in the model's unit.
        spread: Standard deviation of the logarithm.
    """

    prior_loc: Tensor

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        fixed: Tensor | None,
        *,
        median: float = 1.0,
        spread: float = 1.0,
        unit: str | None = None,
    ) -> None:
        super().__init__(name, shape, fixed, unit)
        self.register_buffer("prior_loc", torch.full(self.shape, math.log(median)))
        self.register_buffer("prior_scale", torch.full(self.shape, float(spread)))

    def prior(self) -> dist.Independent:
        """Log-normal over the whole shape."""
        return dist.LogNormal(self.prior_loc, self.prior_scale).to_event(len(self.shape))

    def middle(self) -> Tensor:
        """The median."""
        return self.prior_loc.exp()


class HalfCauchyScale(Scale):
    """A scale with hyperprior ``HalfCauchy(scale)``.

    Args:
        scale: Median of the hyperprior, in the model's unit.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        fixed: Tensor | None,
        *,
        scale: float,
        unit: str | None = None,
    ) -> None:
        super().__init__(name, shape, fixed, unit)
        self.register_buffer("prior_scale", torch.full(self.shape, float(scale)))

    def prior(self) -> dist.Independent:
        """Half-Cauchy over the whole shape."""
        return dist.HalfCauchy(self.prior_scale).to_event(len(self.shape))


class SlabScale(Scale):
    """A scale whose square is inverse gamma: a Student-t slab once it is integrated out.

    Args:
        scale: Scale of the Student-t, broadcastable to ``shape``, in the model's unit.
        df: Its degrees of freedom.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        fixed: Tensor | None,
        *,
        scale: Tensor,
        df: float,
        unit: str | None = None,
    ) -> None:
        super().__init__(name, shape, fixed, unit)
        self.register_buffer("prior_scale", scale.expand(self.shape).clone())
        self.df = float(df)

    def prior(self) -> dist.Independent:
        """Square root of an inverse gamma, over the whole shape."""
        square = dist.InverseGamma(
            torch.full_like(self.prior_scale, self.df / 2), self.df / 2 * self.prior_scale**2
        )
        root = dist.transforms.PowerTransform(torch.tensor(0.5))
        return dist.TransformedDistribution(square, [root]).to_event(len(self.shape))


class LogNormalMoments(NamedTuple):
    """Expectations under log-normals, by mean and variance of their logarithm."""

    loc: Tensor
    var: Tensor

    def log_moments(self) -> LogNormalMoments:
        """Itself."""
        return self

    def mean_log(self) -> Tensor:
        """E[log scale]."""
        return self.loc

    def mean_power(self, power: float) -> Tensor:
        """E[scale ** power]."""
        return torch.exp(power * self.loc + 0.5 * power**2 * self.var)


class ScaleFactor(HyperFactor):
    """Log-normal q of a positive scale."""

    @staticmethod
    def to_real(value: Tensor) -> Tensor:
        """See :meth:`HyperFactor.to_real`."""
        return value.log()

    @staticmethod
    def to_support(real: Tensor) -> Tensor:
        """See :meth:`HyperFactor.to_support`."""
        return real.exp()

    @staticmethod
    def _log_jacobian(real: Tensor) -> Tensor:
        return real

    def log_prior(self, real: Tensor) -> Tensor:
        """See :meth:`HyperFactor.log_prior`; of a log-normal hyperprior without a distribution."""
        hyper = self.hyper
        if not isinstance(hyper, PositiveScale):
            return super().log_prior(real)
        standard = (real - hyper.prior_loc) / hyper.prior_scale
        return -0.5 * (standard.square() + math.log(2 * math.pi)) - hyper.prior_scale.log()

    def _distribution(self) -> dist.TorchDistribution:
        return dist.LogNormal(self.loc, self.scale)

    def log_moments(self) -> LogNormalMoments:
        """Mean and variance of the logarithm; variance zero where fixed."""
        loc, log_scale = self._place()
        return LogNormalMoments(loc, (2 * log_scale).exp())

    def mean_log(self) -> Tensor:
        """E[log scale]."""
        return self._place().loc

    def mean_power(self, power: float) -> Tensor:
        """E[scale ** power]."""
        return self.log_moments().mean_power(power)

    @torch.no_grad()
    def update(self, square: Tensor, count: Tensor, size: Tensor | float = 0.0) -> None:
        r"""The best log-normal q given normal draws of this scale, under a log-normal hyperprior.

        With :math:`l, v` the mean and variance of the logarithm it climbs
        :math:`-\tfrac12 S e^{-2l+2v} + C e^{-l+v/2} - n l - \frac{(l-\mu)^2 + v}{2 s^2}
        + \tfrac12 \log v`.

        Many draws that are all zero would send the logarithm to :math:`\mu - n s^2`, far beyond
        what a float can hold. Sums of squares are differences of larger ones and known only to
        their rounding, so S counts as no less than that share of n squares of the hyperprior's
        median: the scale stays above some :math:`10^{-8}` medians.

        Args:
            square: S, sum of expected squares of the draws, the hyperparameter's shape.
            count: n, expected number of draws, likewise.
            size: C, likewise: of draws around a mean that is a multiple of the scale, the sum of
                expected products with that mean over the scale; 0 for draws around 0.

        Raises:
            TrainingError: The sums are not finite.
        """
        hyper = self.hyper
        if hyper.fixed is not None:
            return
        assert isinstance(hyper, PositiveScale)  # others have no closed form and never come here
        size = torch.as_tensor(size).to(square).clamp(min=0)
        check_finite(hyper.name, square + count + size)
        given = (hyper.prior_loc, hyper.prior_scale, self.loc, self.log_scale, square, count, size)
        with np.errstate(over="ignore", divide="ignore"):  # of absurd sums; what is huge is capped
            loc, var = best_log_normal(*(part.detach().double().cpu().numpy() for part in given))
        self.loc.copy_(torch.from_numpy(loc))
        self.log_scale.copy_(0.5 * torch.from_numpy(var).log())


def best_log_normal(
    prior_loc: Array,
    prior_scale: Array,
    loc: Array,
    log_scale: Array,
    square: Array,
    count: Array,
    size: Array,
) -> tuple[Array, Array]:
    """Mean and variance of the logarithm, by Newton steps, as of :meth:`ScaleFactor.update`.

    In NumPy, as the arrays are tiny and it takes a fifth of torch's time for one operation.
    """
    precision, var = prior_scale**-2, np.exp(2 * log_scale)
    square = np.maximum(np.maximum(square, _ROUNDING * count * np.exp(2 * prior_loc)), 1e-300)

    def forces(loc: Array, var: Array) -> tuple[Array, Array, Array]:
        pull = square * np.exp(np.minimum(-2 * loc + 2 * var, 80))
        push = size * np.exp(np.minimum(-loc + 0.5 * var, 40))
        # Near the optimum pull - push is n: the curvature is positive there, not everywhere.
        return pull, push, np.maximum(2 * pull - push, pull) + precision

    for _ in range(_MOST_STEPS):
        pull, push, bend = forces(loc, var)
        step = (pull - push - count - precision * (loc - prior_loc)) / bend
        step = np.minimum(np.maximum(step, -1.0), 1.0)
        loc = loc + step
        pull, push, bend = forces(loc, var)
        change = 1 / bend - var
        moved = np.maximum(np.abs(step), np.abs(change) / var).max()
        var = var + change
        # The mean goes along, so that pull and push, and with them the variance, hold.
        along = (2 * pull - 0.5 * push) / bend * change
        loc = loc + np.minimum(np.maximum(along, -1.0), 1.0)
        if moved < _SETTLED:
            break
    return loc, var


class Separation(PositiveScale):
    r"""How far the halves of a slab lie from zero, in standard deviations of each: log-normal.

    A change :math:`d` in the half of sign :math:`s` has the log density

    .. math::
        -\frac{(1 + c^2) d^2}{2 \tau^2} + \frac{c \sqrt{1 + c^2} \, s d}{\tau} - \frac{c^2}{2}
        - \log \tau + \frac12 \log \frac{1 + c^2}{2 \pi}

    with :math:`\tau` the slab's scale and :math:`c` its separation.
    """

    def factor(self) -> SeparationFactor:
        """See :meth:`Hyperparameter.factor`."""
        return SeparationFactor(self)


class SeparationFactor(ScaleFactor):
    """Log-normal q of the separation c."""

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """E[1 + c^2], E[c sqrt(1 + c^2)] and E[log(1 + c^2)]."""
        values, weights = self.points()
        square = values.square()
        cross = (square * (1 + square)).sqrt()
        first, second, third = (
            torch.tensordot(weights, term, 1) for term in (1 + square, cross, torch.log1p(square))
        )
        return first, second, third

    @torch.no_grad()
    def learn(self, square: Tensor, size: Tensor, count: Tensor) -> None:
        """The log-normal q that matches the posterior given the changes, by a grid.

        Args:
            square: Sum of expected squares of the changes over the slab's scale squared, ().
            size: Sum of expected changes times the sign of their half, over the slab's scale, ().
            count: Expected number of changes, ().
        """
        hyper = self.hyper
        if hyper.fixed is not None:
            return
        assert isinstance(hyper, PositiveScale)
        log_c = torch.linspace(*_SEPARATIONS, dtype=torch.float64, device=self.loc.device)
        c2 = (2 * log_c).exp()
        log_post = -0.5 * square.double() * (1 + c2) + size.double() * (c2 * (1 + c2)).sqrt()
        log_post = log_post + 0.5 * count.double() * (torch.log1p(c2) - c2)
        standard = (log_c - hyper.prior_loc.double().sum()) / hyper.prior_scale.double().sum()
        self.match_grid(log_c, log_post - 0.5 * standard.square())
