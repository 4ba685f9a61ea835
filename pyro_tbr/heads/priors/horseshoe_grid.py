"""Posterior of a horseshoe's global and slab scale, one pair a weight and outcome, on a grid.

The grid is a trapezoid rule in log scales that follows the posterior: its middle is the posterior
mean, its steps are in posterior standard deviations. A point stands for the cell around it.
"""

import itertools
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Generator, Tensor, nn

from pyro_tbr.heads.hyper.base import Hyperparameter

# Points along the log scales, and their distance in standard deviations of the posterior there.
_POINTS, _STEPS = (7, 4), (1.0, 1.3)
_START_SPREAD = (1.0, 0.4)
_LEAST_SPREAD = 0.4  # of a new grid, in steps of the old one: else one that misses would collapse
_MOST_SPREAD = 2.5
# Places in a cell, in steps from its middle, and their weights: Gauss-Legendre.
_WITHIN = (-0.5 * 0.6**0.5, 0.0, 0.5 * 0.6**0.5), (5 / 18, 8 / 18, 5 / 18)


class ScaleGrid(nn.Module):
    """Points in (log global scale, log slab scale) and their posterior weights.

    Args:
        hypers: The global and the slab scale; a fixed one has a single point.

    Attributes:
        loc: Middle of the grid, (2, W, Q).
        spread: Posterior standard deviations of the log scales, which set the steps, likewise.
        log_weight: Log posterior probabilities of the points, (G, W, Q).
    """

    loc: Tensor
    spread: Tensor
    log_weight: Tensor

    def __init__(self, *hypers: Hyperparameter) -> None:
        super().__init__()
        self._hypers = hypers  # in a tuple: the model owns them, not we
        values = [hyper.middle() if hyper.fixed is None else hyper.fixed for hyper in hypers]
        middle = torch.stack([value.detach().double().log() for value in values])
        self.register_buffer("loc", middle)
        self.register_buffer("spread", torch.ones_like(middle))
        num = len(self._offsets()[0])
        self.register_buffer("log_weight", middle.new_zeros(num, *middle.shape[1:]))
        self.start(middle)

    @torch.no_grad()
    def start(self, loc: Tensor) -> None:
        """A wide grid around log scales (2, W, Q), its weights those of the hyperprior."""
        self.loc.copy_(loc)
        self.spread.copy_(self.spread.new_tensor(_START_SPREAD).reshape(2, 1, 1))
        self.log_weight.copy_(self.log_prior().log_softmax(0))

    def _offsets(self) -> Tensor:
        """Places of the points on both axes, in standard deviations from the middle, (2, G)."""
        nums = [num if h.fixed is None else 1 for num, h in zip(_POINTS, self._hypers, strict=True)]
        axes = [
            step * (torch.arange(num, dtype=torch.float64) - (num - 1) / 2)
            for num, step in zip(nums, _STEPS, strict=True)
        ]
        return torch.cartesian_prod(*axes).T.to(self.loc.device)

    def points(self) -> Tensor:
        """Log global and log slab scale at the points, (2, G, W, Q)."""
        offsets = self._offsets()[..., None, None]
        return self.loc.double().unsqueeze(1) + self.spread.double().unsqueeze(1) * offsets

    def weight(self) -> Tensor:
        """Posterior probabilities of the points, (G, W, Q)."""
        return self.log_weight.double().exp()

    def _steps(self) -> Tensor:
        """Distances between points in log scale, (2, W, Q)."""
        return self.loc.new_tensor(_STEPS).double().reshape(2, 1, 1) * self.spread.double()

    def log_prior(self) -> Tensor:
        """Log prior probability of the cells around the points, (G, W, Q)."""
        points = self.points()
        total = torch.zeros_like(points[0])
        for hyper, log_scale, step in zip(self._hypers, points, self._steps(), strict=True):
            if hyper.fixed is None:
                prior = hyper.prior()
                assert isinstance(prior, dist.Independent)
                total = total + prior.base_dist.log_prob(log_scale.exp()) + log_scale + step.log()
        return total

    def mean(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Posterior mean of a function of both scales, (W, Q); uniform in a cell, as draws are."""
        learnt = self.loc.new_tensor([hyper.fixed is None for hyper in self._hypers])
        steps = (self._steps() * learnt.reshape(2, 1, 1)).unsqueeze(1)
        places = self.loc.new_tensor(_WITHIN[0]).double().reshape(-1, 1, 1, 1)
        each = torch.zeros_like(self.points()[0])
        for (i, one), (j, other) in itertools.product(enumerate(_WITHIN[1]), repeat=2):
            shift = torch.stack([places[i], places[j]]) * steps
            each = each + one * other * function(*(self.points() + shift).exp())
        return (self.weight() * each).sum(0)

    @torch.no_grad()
    def move(self) -> tuple[Tensor, Tensor]:
        """Goes to its posterior's mean and spread; the weights stay those of the points before.

        Returns:
            Mean and spread of the log scales, (2, W, Q).
        """
        weight, points = self.weight(), self.points()
        mean = (weight * points).sum(1)
        spread = (weight * (points - mean.unsqueeze(1)).square()).sum(1).sqrt()
        least = _LEAST_SPREAD * self._steps()
        for axis, hyper in enumerate(self._hypers):
            if hyper.fixed is None:
                self.loc[axis] = mean[axis]
                self.spread[axis] = spread[axis].maximum(least[axis]).clamp(max=_MOST_SPREAD)
        return self.loc.double(), self.spread.double()

    @torch.no_grad()
    def draw(self, num_samples: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of a point and of the scales in its cell, uniform in their logs.

        Returns:
            Points (S, W, Q), global and slab scales (2, S, W, Q), log density of both (S, W, Q).
        """
        shape = (num_samples, *self.loc.shape[1:])
        uniform = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
        uniform = uniform.to(self.loc.device)
        cumulative = self.weight().cumsum(0)
        point = (cumulative[:-1].unsqueeze(1) < uniform[0]).sum(0)
        logs = self.points().gather(1, point.unsqueeze(0).expand(2, *shape))
        log_density = self.log_weight.double().gather(0, point)
        scales, steps = [], self._steps().unsqueeze(1)
        axes = zip(self._hypers, logs, steps, uniform[1:], strict=True)
        for hyper, log_scale, step, within in axes:
            if hyper.fixed is None:
                log_scale = log_scale + step * (within - 0.5)
                log_density = log_density - step.log() - log_scale
                scales.append(log_scale.exp())
            else:
                scales.append(hyper.fixed.double().expand(shape))
        return point, torch.stack(scales), log_density
