"""A positive scale at every node, log-normal around one that all share, and its factor of q."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from pyro_tbr.heads.hyper.base import FactorState, Hyperparameter, check_finite
from pyro_tbr.heads.hyper.scales import (
    LogNormalMoments,
    PositiveScale,
    ScaleFactor,
    best_log_normal,
)

_MOST_ROUNDS = 100  # of node scales, common scale and spread in an update
_MOST_RATIO = 0.95  # of a step to the one before, where they are extrapolated
_SETTLED = 1e-4  # moves of a common scale or spread, in logarithms, below which they end


class NodeScale(Hyperparameter):
    """Scales at the nodes, (V, Q): ``LogNormal(log(common), spread)``, independent.

    Args:
        name: The Pyro site.
        num_nodes: V.
        common: The scale all share, (Q,).
        spread: Standard deviation of the logarithm, (Q,).
    """

    def __init__(
        self, name: str, num_nodes: int, common: PositiveScale, spread: PositiveScale
    ) -> None:
        super().__init__(name, (num_nodes, *common.shape), None, common.unit)
        self._parents = (common, spread)  # in a tuple: the likelihood owns them

    @property
    def parents(self) -> tuple[PositiveScale, PositiveScale]:
        """The scale all share, and the spread around it."""
        return self._parents

    def middle(self) -> Tensor:
        """That of the scale all share."""
        return self.parents[0].middle().expand(self.shape)

    def factor(self) -> NodeScaleFactor:
        """See :meth:`Hyperparameter.factor`; to be linked to those of its parents."""
        return NodeScaleFactor(self)

    def forward(self, *values: Tensor) -> Tensor:
        """The Pyro site, given values of its parents (*B, Q)."""
        common, spread = (value.unsqueeze(-2).expand(*value.shape[:-1], *self.shape)
                          for value in values)  # fmt: skip
        return pyro.sample(self.site, dist.LogNormal(common.log(), spread).to_event(2))


class NodeScaleFactor(ScaleFactor):
    """Log-normal q of the scales at the nodes that have rows; the prior at the others.

    Attributes:
        seen: Nodes that have rows, (V,) bool.
    """

    seen: Tensor

    def __init__(self, hyper: NodeScale) -> None:
        super().__init__(hyper)
        self.register_buffer("seen", torch.zeros(hyper.shape[0], dtype=torch.bool))
        self._linked: tuple[ScaleFactor, ScaleFactor] = ()  # type: ignore[assignment]

    def linked(self, common: ScaleFactor, spread: ScaleFactor) -> NodeScaleFactor:
        """This factor, which knows those of the common scale and of the spread from now on."""
        self._linked = (common, spread)
        return self

    def see(self, nodes: Tensor, *, only: bool = False) -> None:
        """Nodes (V,) bool that have rows too, or ``only`` these."""
        nodes = nodes.to(self.seen.device)
        self.seen.copy_(nodes if only else self.seen | nodes)

    def forget(self) -> None:
        """Nodes and their parents are where they start, to be learnt afresh."""
        for factor in (*self._linked, self):
            factor.restore(factor.hyper.factor().state())

    def at_nodes(self, index: Tensor) -> LogNormalMoments:
        """Of the scales at some nodes (n,), (n, Q); a node V is one that the tree has not."""
        new, index = index == len(self.seen), index.clamp(max=len(self.seen) - 1)
        own, prior = self.log_moments(), self._prior()
        seen = (self.seen[index] & ~new).unsqueeze(-1)
        pairs = zip(own, prior, strict=True)
        return LogNormalMoments(*(torch.where(seen, o[index], p.expand_as(o[index]))
                                  for o, p in pairs))  # fmt: skip

    def _prior(self) -> LogNormalMoments:
        """Of the logarithm at a node without rows, (Q,) each."""
        common, spread = self._linked
        return LogNormalMoments(
            common.mean_log(), common.log_moments().var + spread.mean_power(2.0)
        )

    def kl(self) -> Tensor:
        """Expected KL to the prior given the parents, (V, Q); zero at nodes without rows."""
        common, spread = self._linked
        loc, var = self.log_moments()
        centre, centre_var = common.log_moments()
        square = (loc - centre).square() + var + centre_var
        each = spread.mean_log() - 0.5 * var.log() - 0.5 + 0.5 * spread.mean_power(-2.0) * square
        return torch.where(self.seen.unsqueeze(-1), each, 0.0)

    def forward(self, *values: Tensor) -> Tensor:
        """The Pyro site in a guide, given values of its parents (*B, Q)."""
        common, spread = (value.unsqueeze(-2) for value in values)
        seen = self.seen.unsqueeze(-1)
        loc = torch.where(seen, self.loc, common.log())
        scale = torch.where(seen, self.log_scale.exp(), spread)
        return pyro.sample(self.hyper.site, dist.LogNormal(loc, scale).to_event(2))

    def draw(self, common: Tensor, spread: Tensor, generator: Generator) -> Tensor:
        """Draws (S, V, Q), given draws (S, Q) of the parents."""
        own = self.sample(len(common), generator)
        noise = torch.randn(own.shape, generator=generator, dtype=own.dtype).to(own.device)
        prior = torch.exp(common.unsqueeze(1).log() + spread.unsqueeze(1) * noise)
        return torch.where(self.seen.unsqueeze(-1), own, prior)

    @torch.no_grad()
    def learn(self, square: Tensor, count: Tensor, nodes: Tensor, *, common: bool = True) -> None:
        """Moves q of these scales, and of their parents, to the optimum given normal draws.

        Args:
            square: Sums of expected squares of the draws at some nodes, (E, Q).
            count: Numbers of draws, (E, Q).
            nodes: Which nodes, (E,).
            common: Move the parents too.

        Raises:
            TrainingError: The sums are not finite.
        """
        check_finite(self.hyper.name, square + count)
        known = torch.zeros_like(self.seen)
        known[nodes] = True
        self.see(known)
        centre, spread = self._linked
        drawn = (count > 0).double()
        observed = count.sum(0) > 0
        number = drawn.sum(0)
        square_here, count_here = (part.double().cpu().numpy() for part in (square, count))
        zero = np.zeros_like(square_here)
        last = None
        loc, log_scale = (p[nodes].double().cpu().numpy() for p in (self.loc, self.log_scale))
        for _ in range(_MOST_ROUNDS):
            before = [factor.mean_log().clone() for factor in self._linked]
            middle, precision = centre.log_moments(), spread.mean_power(-2.0)
            about, width = (p.double().cpu().numpy() for p in (middle.loc, precision.rsqrt()))
            loc, var = best_log_normal(about, width, loc, log_scale, square_here, count_here, zero)
            log_scale = 0.5 * np.log(var)
            if not common:
                break
            here, spread_here = (torch.from_numpy(part).to(square.device) for part in (loc, var))
            _move_centre(centre, (drawn * here).sum(0), number, precision.double())
            middle = centre.log_moments()
            off = (here - middle.loc.double()).square() + spread_here + middle.var.double()
            spread.update((drawn * off).sum(0), number)
            moved = [f.mean_log() - b for f, b in zip(self._linked, before, strict=True)]
            if all(bool((move[observed].abs() < _SETTLED).all()) for move in moved):
                break
            last = _extrapolated(self._linked, moved, last)
        self.loc[nodes] = torch.from_numpy(loc).to(self.loc)
        self.log_scale[nodes] = torch.from_numpy(log_scale).to(self.log_scale)
        # The others go where their prior has them, for the best of their KL.
        others = ~known.unsqueeze(-1)
        self.loc.copy_(torch.where(others, centre.mean_log(), self.loc))
        log_sd = -0.5 * spread.mean_power(-2.0).log()
        self.log_scale.copy_(torch.where(others, log_sd, self.log_scale))


def _extrapolated(
    factors: tuple[ScaleFactor, ScaleFactor], moved: list[Tensor], last: list[Tensor] | None
) -> list[Tensor] | None:
    """Goes to where steps that shrink by a constant share end; returns the steps, or ``None``.

    Such are the steps where environments hardly differ, and very small ones.

    Source:
        Aitken's delta-squared process.
    """
    if last is None:
        return moved
    for factor, new, old in zip(factors, moved, last, strict=True):
        if factor.learnt:
            ratio = torch.where(old.abs() > 0, new / old, 0.0).clamp(0, _MOST_RATIO)
            loc, log_scale = factor.state()
            factor.restore(FactorState(loc + new * ratio / (1 - ratio), log_scale))
    return None


def _move_centre(centre: ScaleFactor, total: Tensor, number: Tensor, precision: Tensor) -> None:
    """The common scale's normal on the real line, given logarithms with this sum, (Q,) all."""
    hyper = centre.hyper
    assert isinstance(hyper, PositiveScale)
    if hyper.fixed is not None:
        return
    known = hyper.prior_scale.double() ** -2
    whole = known + number * precision
    loc = (known * hyper.prior_loc.double() + precision * total) / whole
    centre.restore(FactorState(loc, -0.5 * whole.log()))
