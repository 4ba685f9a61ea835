"""A hyperparameter, fixed or learnt under a proper hyperprior, and its factor of q.

A hyperparameter is one object with a site name, a shape and either a value or a hyperprior. A model
asks it for its Pyro site, a guide for its factor of q: a normal on the real line, moved to the
hyperparameter's support. Expectations under a factor that have no closed form are Gauss-Hermite
sums over few points, so what is built of them is deterministic and its gradient has no noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Generator, Tensor, nn

from pyro_tbr.errors import DataError, ShapeError, TrainingError
from pyro_tbr.heads.local_params import LocalParamsModule

_NUM_POINTS = 15  # of a quadrature over one hyperparameter
_LEAST_VAR = 1e-6  # of a factor that is matched to a grid
_SPREAD = 0.2  # of a factor at its start, on the real line


def as_fixed(
    value: float | Tensor | None, argument: str, *, below: float = math.inf
) -> Tensor | None:
    """A user's fixed hyperparameter as a tensor, checked; ``None`` stays ``None`` (learnt).

    Args:
        value: A number, or an array that broadcasts against the hyperparameter's shape.
        argument: The argument's name for the error.
        below: Upper bound, exclusive.

    Raises:
        DataError: A value is not finite, not positive, or not below the bound.
    """
    if value is None:
        return None
    try:
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype())
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{argument}={value!r} is no number: give a positive one, or None to learn it"
        ) from error
    bad = tensor[~(torch.isfinite(tensor) & (tensor > 0) & (tensor < below))]
    if bad.numel():
        upper = "" if below == math.inf else f" and below {below:g}"
        raise DataError(
            f"{argument} must be positive{upper}, got {value!r}: give such a number, or None to "
            f"learn it"
        )
    return tensor


def spread_fixed(value: Tensor, shape: tuple[int, ...], argument: str) -> Tensor:
    """A fixed value for every weight and outcome it stands for.

    Raises:
        ShapeError: It does not broadcast to the shape.
    """
    try:
        return value.expand(shape)
    except RuntimeError as error:
        raise ShapeError(
            f"{argument} has shape {tuple(value.shape)}: give a number, or what broadcasts to "
            f"{shape}: weights (latents, then the intercept), then outcomes"
        ) from error


def check_finite(name: str, *values: Tensor) -> None:
    """Raises TrainingError where a hyperparameter would be learnt from what is not finite."""
    bad = sum(int((~torch.isfinite(value)).sum()) for value in values)
    if bad:
        raise TrainingError(
            f"{name} cannot be learnt: {bad} of {sum(value.numel() for value in values)} number(s) "
            "that it depends on are not finite; give the outcomes in another unit, or fix it"
        )


@functools.lru_cache
def gauss_hermite(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights, each (T,), for expectations under a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_points)
    return nodes, weights / weights.sum()


def quadrature(loc: Tensor, scale: Tensor, num_points: int = _NUM_POINTS) -> tuple[Tensor, Tensor]:
    """Points (T, *shape) and weights (T,) for expectations under Normal(loc, scale)."""
    nodes, weights = (loc.new_tensor(part) for part in gauss_hermite(num_points))
    return loc + scale * nodes.reshape(-1, *[1] * loc.dim()), weights


class Hyperparameter(nn.Module):
    """A named value of shape ``shape``, fixed or with a hyperprior; abstract.

    Args:
        name: What its owner calls it, and the Pyro site, unless an owner of the owner sets another
            ``site``.
        shape: Shape of the site.
        fixed: Fixed value, then in a buffer, or ``None``.
        unit: ``"outcome"`` where the value is in units of the outcome, ``"latent"`` where it is in
            those of the latents, so that it changes with them; ``None`` where it has no unit.
    """

    fixed: Tensor | None

    def __init__(
        self, name: str, shape: tuple[int, ...], fixed: Tensor | None, unit: str | None = None
    ) -> None:
        super().__init__()
        self.name, self.site, self.shape, self.unit = name, name, tuple(shape), unit
        value = None if fixed is None else torch.as_tensor(fixed).expand(self.shape).clone()
        self.register_buffer("fixed", value)

    def prior(self) -> dist.Independent:
        """The hyperprior, with every dimension an event dimension."""
        raise NotImplementedError

    def middle(self) -> Tensor:
        """A typical value under the hyperprior."""
        raise NotImplementedError

    def factor(self) -> HyperFactor:
        """A factor of q for it, started at the middle of the hyperprior."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The Pyro site: a sample, or a deterministic site where the value is fixed."""
        if self.fixed is not None:
            return pyro.deterministic(self.site, self.fixed, event_dim=len(self.shape))
        return pyro.sample(self.site, self.prior())


class Described(LocalParamsModule):
    """Made again from its ``description``, the arguments of its constructor; abstract."""

    def __init__(self, **description: Any) -> None:
        super().__init__()
        self.description = description

    def hyperparameters(self) -> list[Hyperparameter]:
        """Its hyperparameters, in the order of their sites."""
        return [module for module in self.children() if isinstance(module, Hyperparameter)]

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.description.items() if v is not None)
        return f"{type(self).__name__}({given})"


class FactorState(NamedTuple):
    """Where a factor stands on the real line; a fixed value has a log scale of minus infinity."""

    loc: Tensor
    log_scale: Tensor


class HyperFactor(nn.Module):
    """q of one hyperparameter: a normal on the real line, moved to its support; abstract.

    Where the hyperparameter is fixed the factor has no parameters and says that value.
    """

    def __init__(self, hyper: Hyperparameter) -> None:
        super().__init__()
        self._hyper = (hyper,)  # in a tuple: a prior or likelihood owns it, not we
        if self.learnt:
            self.loc = nn.Parameter(self.to_real(hyper.middle()).clone())
            self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(_SPREAD)))

    @property
    def hyper(self) -> Hyperparameter:
        """What this is a factor of."""
        return self._hyper[0]

    @property
    def learnt(self) -> bool:
        """Whether there is anything to learn: the hyperparameter is not fixed."""
        return self.hyper.fixed is None

    @property
    def scale(self) -> Tensor:
        """Standard deviation on the real line, zero where fixed."""
        return self._place().log_scale.exp()

    def state(self) -> FactorState:
        """A copy of where the factor stands, without gradients."""
        return FactorState(*(part.detach().clone() for part in self._place()))

    def _place(self) -> FactorState:
        """Where the factor stands, differentiable."""
        if self.hyper.fixed is None:
            return FactorState(self.loc, self.log_scale)
        loc = self.to_real(self.hyper.fixed)
        return FactorState(loc, torch.full_like(loc, -math.inf))

    @torch.no_grad()
    def restore(self, state: FactorState) -> None:
        """Goes where another factor of such a hyperparameter stood; nothing where fixed."""
        if self.learnt:
            self.loc.copy_(state.loc)
            self.log_scale.copy_(state.log_scale)

    @torch.no_grad()
    def initialise(self, value: Tensor, scale: float = 0.1) -> None:
        """Starts at ``value`` (broadcast), with a spread on the real line."""
        if self.learnt:
            real = self.to_real(torch.as_tensor(value, dtype=self.loc.dtype))
            self.loc.copy_(real.expand_as(self.loc))
            self.log_scale.fill_(math.log(scale))

    @torch.no_grad()
    def match(self, loc: Tensor, spread: Tensor) -> None:
        """Takes mean and standard deviation on the real line from a posterior held elsewhere."""
        self.restore(FactorState(loc, spread.log()))

    def match_grid(self, real: Tensor, log_post: Tensor) -> None:
        """The same from a log posterior on a grid of the real line, (..., T), up to a constant."""
        weight = log_post.softmax(-1)
        mean = (weight * real).sum(-1)
        var = (weight * (real - mean[..., None]).square()).sum(-1)
        self.restore(FactorState(mean, 0.5 * var.clamp(min=_LEAST_VAR).log()))

    def at(self, standard: Tensor) -> Tensor:
        """Values on the support so many standard deviations (*B, *shape) from the mean."""
        if self.hyper.fixed is not None:
            return self.hyper.fixed.expand(torch.broadcast_shapes(standard.shape, self.hyper.shape))
        return self.to_support(self.loc + self.log_scale.exp() * standard)

    def points(self, num_points: int = _NUM_POINTS) -> tuple[Tensor, Tensor]:
        """Values (T, *shape) and weights (T,) for expectations; one point where fixed."""
        like = self._place().loc
        found = gauss_hermite(num_points if self.learnt else 1)
        nodes, weights = (like.new_tensor(part) for part in found)
        return self.at(nodes.reshape(-1, *[1] * like.dim())), weights

    def forward(self) -> Tensor:
        """The Pyro site in a guide; a fixed value has none there, Pyro warns of it."""
        hyper = self.hyper
        if hyper.fixed is not None:
            return hyper.fixed
        return pyro.sample(hyper.site, self._distribution().to_event(len(hyper.shape)))

    def sample(self, num_samples: int, generator: Generator) -> Tensor:
        """Draws (S, *shape) from a generator of the caller's."""
        shape = (num_samples, *self.hyper.shape)
        if not self.learnt:
            return self.at(torch.zeros(shape, device=self._place().loc.device))
        noise = torch.randn(shape, generator=generator, dtype=self.loc.dtype)
        return self.at(noise.to(self.loc.device))

    def kl(self) -> Tensor:
        """KL to the hyperprior, of the hyperparameter's shape; zero where fixed."""
        if not self.learnt:
            return torch.zeros_like(self._place().loc)
        real, weights = quadrature(self.loc, self.log_scale.exp())
        entropy = self.log_scale + 0.5 * math.log(2 * math.pi * math.e)
        return -entropy - torch.tensordot(weights, self.log_prior(real), 1)

    def log_prior(self, real: Tensor) -> Tensor:
        """Log density of the hyperprior on the real line, elementwise."""
        log_prior = self.hyper.prior().base_dist.log_prob(self.to_support(real))
        return log_prior + self._log_jacobian(real)

    @staticmethod
    def to_real(value: Tensor) -> Tensor:
        """From the support to the real line."""
        raise NotImplementedError

    @staticmethod
    def to_support(real: Tensor) -> Tensor:
        """From the real line to the support."""
        raise NotImplementedError

    @staticmethod
    def _log_jacobian(real: Tensor) -> Tensor:
        """Log |d support / d real|."""
        raise NotImplementedError

    def _distribution(self) -> dist.TorchDistribution:
        """The factor as a distribution on the support, every dimension a batch dimension."""
        raise NotImplementedError


HyperFactors = Mapping[str, HyperFactor] | nn.ModuleDict  # by site name


def by_name(factors: HyperFactors) -> dict[str, HyperFactor]:
    """The factors as a dict, whatever holds them."""
    return {name: cast(HyperFactor, factor) for name, factor in factors.items()}
