r"""The slab of a spike-and-slab prior under the factors of its hyperparameters.

A change :math:`d` in the half of sign :math:`s` has the log density

.. math::
    -\frac{(1 + c^2) d^2}{2 \tau^2} + \frac{c \sqrt{1 + c^2} \, s d}{\tau} - \frac{c^2}{2}
    - \log \tau + \frac12 \log \frac{1 + c^2}{2 \pi}

with :math:`\tau` the slab's scale and :math:`c` its separation. In :math:`d` it is a normal's for
any average over :math:`\tau` and :math:`c`, so passes along the tree stay exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.hyper.factors import ScaleFactor, quadrature
from pyro_tbr.heads.hyper.hyperparameters import PositiveScale

_LOG_GRID = (-4.0, 4.0, 401)  # of separations


class SlabMoments(NamedTuple):
    """What q expects of the log density of a change in one half, broadcastable to (W, Q).

    Attributes:
        precision: Precision of the normal it is.
        loc: Distance of its mean from zero.
        excess: What the expected log density has over that normal's.
    """

    precision: Tensor
    loc: Tensor
    excess: Tensor


class SeparationFactor(ScaleFactor):
    """Log-normal q of the separation c."""

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """E[1 + c^2], E[c sqrt(1 + c^2)] and E[log(1 + c^2)]."""
        loc, var = self.log_moments()
        points, weights = quadrature(loc, var.sqrt())
        square = (2 * points).exp()
        weights = weights.reshape(-1, *[1] * loc.dim())
        cross = (square * (1 + square)).sqrt()
        terms = (1 + square, cross, torch.log1p(square))
        return tuple((weights * term).sum(0) for term in terms)  # type: ignore[return-value]

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
        log_c = torch.linspace(*_LOG_GRID, dtype=torch.float64, device=self.loc.device)
        c2 = (2 * log_c).exp()
        log_post = -0.5 * square.double() * (1 + c2) + size.double() * (c2 * (1 + c2)).sqrt()
        log_post = log_post + 0.5 * count.double() * (torch.log1p(c2) - c2)
        standard = (log_c - hyper.prior_loc.double().sum()) / hyper.prior_scale.double().sum()
        weight = (log_post - 0.5 * standard.square()).softmax(-1)
        mean = (weight * log_c).sum()
        var = (weight * (log_c - mean).square()).sum()
        self.loc.fill_(mean)
        self.log_scale.fill_(0.5 * var.clamp(min=1e-6).log())


def slab_moments(scale: ScaleFactor, separation: SeparationFactor | None) -> SlabMoments:
    """Moments of a slab of some scale and separation; ``None``: a normal slab around zero."""
    inverse, log_scale = scale.mean_power(-2.0), scale.mean_log()
    if separation is None:
        return SlabMoments(inverse, torch.zeros_like(inverse), -log_scale - 0.5 * inverse.log())
    square, cross, log_square = separation.moments()
    precision = square * inverse
    loc = cross * scale.mean_power(-1.0) / precision
    excess = 0.5 * (1 - square + log_square - precision.log() + precision * loc.square())
    return SlabMoments(precision, loc, excess - log_scale)
