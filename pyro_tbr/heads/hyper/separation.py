r"""How far the halves of a slab lie from zero, and its factor of q.

A change :math:`d` in the half of sign :math:`s` has the log density

.. math::
    -\frac{(1 + c^2) d^2}{2 \tau^2} + \frac{c \sqrt{1 + c^2} \, s d}{\tau} - \frac{c^2}{2}
    - \log \tau + \frac12 \log \frac{1 + c^2}{2 \pi}

with :math:`\tau` the slab's scale and :math:`c` its separation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads.hyper.scales import PositiveScale, ScaleFactor

_LOG_GRID = (-4.0, 4.0, 401)  # of separations


class Separation(PositiveScale):
    """How far the halves of a slab lie from zero, in standard deviations of each: log-normal."""

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
