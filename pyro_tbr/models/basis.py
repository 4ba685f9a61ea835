"""Curves of the latents between encoder and weights: outcomes that are no lines in a latent.

A basis gives each latent B functions of its own: the latent itself, so that its weight is a slope
as it is without a basis, and B - 1 *curves*. Over the rows of the fit these are orthogonal to lines
and to each other, and of variance 1: a weight of one says how much the curve moves outcomes, and
curves do not trade with slopes.
"""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads.hyper.base import Described

_MOST_ROWS = 100_000  # that knots and projections are taken from, evenly where there are more
_LEAST_LEFT = 1e-6  # share of a curve's variance that lines and the curves before it leave
_MIDDLE = (0.025, 0.975)  # quantiles that curves are shown between
_INNER = (0.1, 0.9)  # quantiles of a spline's knots but for the outermost


class LatentBasis(Described):
    """Functions of each latent; abstract.

    A basis of your own is a class with a method ``curves``. Arguments of its constructor go to this
    one by name, so that files say what it was made of.

    Example:
        Seasons, of a latent that is a time in years:

        >>> import torch
        >>> import pyro_tbr as tbr
        >>> class Seasons(tbr.LatentBasis):
        ...     def __init__(self, period=1.0):
        ...         super().__init__(2, period=period)
        ...
        ...     def curves(self, z):
        ...         angle = 2 * torch.pi * z / self.description["period"]
        ...         return torch.stack([angle.sin(), angle.cos()], -1)
        >>> basis = Seasons().build(1)
        >>> basis.place(torch.linspace(0, 3, 50).unsqueeze(1))
        >>> basis(torch.zeros(4, 1)).shape
        torch.Size([4, 2])

    Args:
        num_curves: B - 1.
        description: Arguments of the constructor of the class.

    Attributes:
        shift: Latents in the user's units are ``shift + scale * z``, (K,); after ``build``.
        scale: Likewise.
        line: Coefficients of 1 and z in each curve, (K, 2, B - 1); after ``place``.
        mix: From what lines leave of the curves to those that are orthogonal, (K, B - 1, B - 1);
            a column of zeros where nothing is left.
        centre: Means of the latents, (K,); likewise.
        spread: Ends of the middle 95 % of each, (K, 2); likewise.
    """

    abstract = True
    shift: Tensor
    scale: Tensor
    line: Tensor
    mix: Tensor
    centre: Tensor
    spread: Tensor
    placed: Tensor

    def __init__(self, num_curves: int, **description: Any) -> None:
        super().__init__(**description)
        self.num_curves = num_curves

    def build(self, latent_dim: int, units: tuple[Tensor, Tensor] | None = None) -> LatentBasis:
        """A copy for K latents that has all its buffers.

        Args:
            latent_dim: K.
            units: Shift and scale of the latents in the user's units, (K,) each.
        """
        built, num = copy.deepcopy(self), self.num_curves
        zero = torch.zeros(latent_dim, dtype=torch.float64)
        shift, scale = (zero, zero + 1) if units is None else (part.double() for part in units)
        built.register_buffer("shift", shift.clone())
        built.register_buffer("scale", scale.clone())
        built.register_buffer("line", zero.new_zeros(latent_dim, 2, num))
        built.register_buffer("mix", zero.new_zeros(latent_dim, num, num))
        built.register_buffer("centre", zero.clone())
        built.register_buffer("spread", zero.new_zeros(latent_dim, 2))
        built.register_buffer("placed", torch.tensor(False))
        built._build(latent_dim)
        return built

    def use_units(self, units: tuple[Tensor, Tensor]) -> None:
        """Sets the units of latents, where an encoder counts them from elsewhere now."""
        self.shift.copy_(units[0])
        self.scale.copy_(units[1])

    def _build(self, latent_dim: int) -> None:
        """Makes buffers of its own; none by default."""

    def _place(self, z: Tensor) -> None:
        """Sets them from latents of the fit, (N, K) double in the user's units."""

    def curves(self, z: Tensor) -> Tensor:
        """Any functions of each latent, (N, K, B - 1), of latents (N, K) in the user's units."""
        raise NotImplementedError

    @torch.no_grad()
    def place(self, z: Tensor) -> None:
        """Fits knots and projections to latents (N, K) of the rows of a fit.

        Raises:
            ShapeError: ``curves`` gives another shape than it has to.
            DataError: It gives numbers that are not finite.
        """
        if len(z) > _MOST_ROWS:
            picked = torch.linspace(0, len(z) - 1, _MOST_ROWS, dtype=torch.float64)
            z = z[picked.round().long().to(z.device)]
        z = z.double()
        self._place(self.shift + self.scale * z)
        found = self._curves(z)
        bad = int((~torch.isfinite(found)).sum())
        if bad:
            raise DataError(
                f"{self!r}.curves gives {bad} number(s) that are not finite, of {found.numel()} "
                "at the latents of the fit: give functions that are finite everywhere"
            )
        moved = z.std(0, correction=0) > 0  # a latent that is the same everywhere has no line
        lines = torch.stack([torch.ones_like(z), z * moved], -1).transpose(0, 1)  # (K, N, 2)
        each = found.transpose(0, 1)  # (K, N, B - 1)
        alone = torch.stack([torch.zeros_like(moved), ~moved], -1).double()
        gram = lines.mT @ lines + torch.diag_embed(alone)
        self.line.copy_(torch.linalg.solve(gram, lines.mT @ each))
        left = each - lines @ self.line
        whole = (each - each.mean(1, keepdim=True)).square().mean(1)
        self.mix.copy_(_orthogonal(left, whole))
        self.centre.copy_(z.mean(0))
        self.spread.copy_(torch.quantile(z, z.new_tensor(_MIDDLE), dim=0).mT)
        self.placed.fill_(True)

    def forward(self, z: Tensor) -> Tensor:
        """Curves of latents (N, K) as the model sees them, (N, K (B - 1)), latent by latent.

        Raises:
            DataError: It has not been placed.
        """
        if not bool(self.placed):
            raise DataError(
                f"{self!r} has not seen latents yet: fit does it; in a loop of your own call "
                "model.basis.place(model.encoder(x)) first"
            )
        value = z.double()
        lines = torch.stack([torch.ones_like(value), value], -1).unsqueeze(-2)  # (N, K, 1, 2)
        left = self._curves(value).unsqueeze(-2) - lines @ self.line  # (N, K, 1, B - 1)
        return (left @ self.mix).flatten(-3).to(z)

    def _curves(self, z: Tensor) -> Tensor:
        found = self.curves(self.shift + self.scale * z)
        shape = (*z.shape, self.num_curves)
        if not isinstance(found, Tensor) or found.shape != shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError(
                f"{self!r}.curves gives {got} for latents of shape {tuple(z.shape)}: {shape} "
                "expected, rows by latents by curves"
            )
        return found.double()


class SplineBasis(LatentBasis):
    """Natural cubic splines: smooth, and lines beyond the rows of the fit.

    The outermost knots are each latent's least and largest value, so that few rows far out are no
    change of the environment they are of; the others at even steps of its quantiles, 0.1 to 0.9.

    Args:
        num_functions: B, the latent itself included, 2 or more.

    Source:
        Hastie, Tibshirani & Friedman, The Elements of Statistical Learning (2009), 5.2.1.
    """

    knots: Tensor

    def __init__(self, num_functions: int = 5) -> None:
        _check(num_functions, "num_functions", 2)
        super().__init__(num_functions - 1, num_functions=num_functions)

    def _build(self, latent_dim: int) -> None:
        self.register_buffer("knots", torch.zeros(latent_dim, self.num_curves + 2).double())

    def _place(self, z: Tensor) -> None:
        inner = torch.linspace(*_INNER, self.num_curves, dtype=torch.float64)
        inner = inner if self.num_curves > 1 else torch.full((1,), 0.5, dtype=torch.float64)
        steps = torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)]).to(z.device)
        self.knots.copy_(torch.quantile(z, steps, dim=0).mT)

    def curves(self, z: Tensor) -> Tensor:
        """See :meth:`LatentBasis.curves`."""
        unit = (self.knots[:, -1:] - self.knots[:, :1]).clamp(min=1e-300)
        at = (z.unsqueeze(-1) - self.knots) / unit  # (N, K, knots)
        place = (self.knots - self.knots[:, :1]) / unit
        cube = at.clamp(min=0).pow(3)
        # Cubic terms of the knots but for the last two, beyond which they cancel.
        wide = (1 - place[:, :-1]).clamp(min=1e-12)
        slope = (cube[..., :-1] - cube[..., -1:]) / wide
        return slope[..., :-1] - slope[..., -1:]


class PolynomialBasis(LatentBasis):
    """Powers of each latent; far from the rows of the fit they run away, splines do not.

    Args:
        degree: B, 2 or more.
    """

    def __init__(self, degree: int = 2) -> None:
        _check(degree, "degree", 2)
        super().__init__(degree - 1, degree=degree)

    def curves(self, z: Tensor) -> Tensor:
        """See :meth:`LatentBasis.curves`; of latents standardised, which spans the same."""
        standard = (z - self.shift) / self.scale
        return torch.stack([standard**power for power in range(2, self.num_curves + 2)], -1)


BASES = {"spline": SplineBasis, "polynomial": PolynomialBasis}


def basis_of(spec: str | LatentBasis | None) -> LatentBasis | None:
    """The basis of a name."""
    if not isinstance(spec, str):
        return spec
    return SplineBasis() if spec == "spline" else PolynomialBasis()


def _check(number: object, argument: str, least: int) -> None:
    if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
        raise DataError(f"{argument}={number!r} must be a whole number, {least} or more")


def _orthogonal(left: Tensor, whole: Tensor) -> Tensor:
    """Maps (K, R, R) that make columns (K, N, R) orthogonal and of variance 1, one by one.

    A column of which the others leave next to nothing becomes zero; ``whole`` (K, R) are variances
    before lines were taken out.
    """
    num_latents, num_rows, num = left.shape
    mix = left.new_zeros(num_latents, num, num)
    done = left.new_zeros(num_latents, num_rows, 0)
    for column in range(num):
        weights = left.new_zeros(num_latents, num)
        weights[:, column] = 1
        own = left[..., column]
        if column:
            share = (done.mT @ own.unsqueeze(-1)).squeeze(-1) / num_rows  # (K, column)
            own = own - (done @ share.unsqueeze(-1)).squeeze(-1)
            weights = weights - (mix[..., :column] @ share.unsqueeze(-1)).squeeze(-1)
        var = own.square().mean(1)
        scale = torch.where(var > _LEAST_LEFT * whole[:, column], var.rsqrt(), 0.0)
        mix[..., column] = weights * scale.unsqueeze(-1)
        done = torch.cat([done, (own * scale.unsqueeze(-1)).unsqueeze(-1)], -1)
    return mix
