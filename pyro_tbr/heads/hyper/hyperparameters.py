"""Hyperparameters that are either fixed by the user or learnt under a proper hyperprior.

A hyperparameter is one object with a site name, a shape and either a value or a hyperprior. The
model asks it for its Pyro site; a guide asks for its variational factor (``guides/factors.py``).
Positive scales have log-normal hyperpriors and rates have beta hyperpriors: both are proper and
vanish at 0, so that a learnt rate or slab cannot collapse and select nothing.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_tbr.errors import DataError, ShapeError


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


class Hyperparameter(nn.Module):
    """A named value of shape ``shape``, fixed or with a hyperprior; abstract.

    Attributes:
        name: The Pyro site.
        shape: Shape of the site.
        fixed: The fixed value in a buffer, else ``None``.
    """

    name: str
    shape: tuple[int, ...]
    fixed: Tensor | None

    def __init__(self, name: str, shape: tuple[int, ...], fixed: Tensor | None) -> None:
        super().__init__()
        self.name, self.shape = name, tuple(shape)
        value = None if fixed is None else torch.as_tensor(fixed).expand(self.shape).clone()
        self.register_buffer("fixed", value)

    def prior(self) -> dist.TorchDistribution:
        """The hyperprior, with every dimension an event dimension."""
        raise NotImplementedError

    def middle(self) -> Tensor:
        """A typical value under the hyperprior."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The Pyro site: a sample, or a deterministic site where the value is fixed."""
        if self.fixed is not None:
            return pyro.deterministic(self.name, self.fixed, event_dim=len(self.shape))
        return pyro.sample(self.name, self.prior())


class PositiveScale(Hyperparameter):
    """A scale with hyperprior ``LogNormal(log(median), spread)``.

    Args:
        name: Site name.
        shape: Shape.
        fixed: Fixed value, or ``None``.
        median: Median of the hyperprior, in the model's unit.
        spread: Standard deviation of the logarithm.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        fixed: Tensor | None,
        *,
        median: float = 1.0,
        spread: float = 1.0,
    ) -> None:
        super().__init__(name, shape, fixed)
        self.register_buffer("prior_loc", torch.full(self.shape, math.log(median)))
        self.register_buffer("prior_scale", torch.full(self.shape, float(spread)))

    def prior(self) -> dist.TorchDistribution:
        """Log-normal over the whole shape."""
        return dist.LogNormal(self.prior_loc, self.prior_scale).to_event(len(self.shape))

    def middle(self) -> Tensor:
        """The median."""
        return self.prior_loc.exp()


class Separation(PositiveScale):
    """How far the halves of a slab lie from zero, in standard deviations of each: log-normal."""


class Rate(Hyperparameter):
    """A probability with hyperprior ``Beta(concentration1, concentration0)``.

    Args:
        name: Site name.
        shape: Shape.
        fixed: Fixed value, or ``None``.
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

    def prior(self) -> dist.TorchDistribution:
        """Beta over the whole shape."""
        return dist.Beta(self.concentration1, self.concentration0).to_event(len(self.shape))

    def middle(self) -> Tensor:
        """The mean."""
        return self.concentration1 / (self.concentration1 + self.concentration0)


class HalfCauchyScale(Hyperparameter):
    """A scale with hyperprior ``HalfCauchy(scale)``.

    Args:
        name: Site name.
        shape: Shape.
        fixed: Fixed value, or ``None``.
        scale: Median of the hyperprior, in the model's unit.
    """

    prior_scale: Tensor

    def __init__(
        self, name: str, shape: tuple[int, ...], fixed: Tensor | None, *, scale: float
    ) -> None:
        super().__init__(name, shape, fixed)
        self.register_buffer("prior_scale", torch.full(self.shape, float(scale)))

    def prior(self) -> dist.TorchDistribution:
        """Half-Cauchy over the whole shape."""
        return dist.HalfCauchy(self.prior_scale).to_event(len(self.shape))

    def middle(self) -> Tensor:
        """The median."""
        return self.prior_scale


class SlabScale(Hyperparameter):
    """A scale whose square is inverse gamma: a Student-t slab once it is integrated out.

    Args:
        name: Site name.
        shape: Shape.
        fixed: Fixed value, or ``None``.
        scale: Scale of the Student-t, broadcastable to ``shape``, in the model's unit.
        df: Its degrees of freedom.
    """

    prior_scale: Tensor

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        fixed: Tensor | None,
        *,
        scale: Tensor,
        df: float,
    ) -> None:
        super().__init__(name, shape, fixed)
        self.register_buffer("prior_scale", scale.expand(self.shape).clone())
        self.df = float(df)

    def prior(self) -> dist.TorchDistribution:
        """Square root of an inverse gamma, over the whole shape."""
        square = dist.InverseGamma(
            torch.full_like(self.prior_scale, self.df / 2), self.df / 2 * self.prior_scale**2
        )
        root = dist.transforms.PowerTransform(torch.tensor(0.5))
        return dist.TransformedDistribution(square, [root]).to_event(len(self.shape))

    def middle(self) -> Tensor:
        """The scale."""
        return self.prior_scale
