r"""Spike and slab's part of q where the gates of several outcomes hang together.

Given independent gates with inclusion probabilities :math:`p_q`, what q expects of the log
probability of an arc's gates has a closed form: with :math:`P_0 = \prod_q (1 - p_q)`

.. math::
    \log a + \sum_q [p_q \log b + (1 - p_q) \log(1 - b)]
    + P_0 [\log(1 - a + a (1 - b)^Q) - \log a - Q \log(1 - b)]

The gate's own terms stand in the law of changes, the rest is :meth:`GroupedFactor.together`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pyro_tbr.heads.hyper import HyperFactor, RateFactor
from pyro_tbr.heads.hyper.rates import LOGITS
from pyro_tbr.heads.priors.classes import ExpectedLaw
from pyro_tbr.heads.priors.gate_levels import LevelLogs, gate_levels, level_logs
from pyro_tbr.heads.priors.spike_slab_factor import SpikeSlabFactor

_POINTS = {"inclusion_rate": 15, "sharing": 9}  # for what is expected of both
_GRID = {"inclusion_rate": LOGITS, "sharing": (-8.0, 8.0, 161)}  # of logits
_ROUNDS = 2  # of rate and sharing, each given the other
_MOST_LENGTHS = 48  # of arcs that are told apart when these are learnt


class ExpectedLevels(NamedTuple):
    """What q of rate and sharing expects of the two levels, (A or 1, W, 1 or Q).

    Attributes:
        logs: Mean logarithms.
        none: Mean log probability that no gate of the arc is open, (A or 1, W, 1).
        active: Mean probability of activity, (A or 1, W, 1).
        within: Mean probability of an open gate over that.
    """

    logs: LevelLogs
    none: Tensor
    active: Tensor
    within: Tensor


class GateCounts(NamedTuple):
    """Expected numbers of arcs of each length, (U, W, .), that are active or not, by gate."""

    length: Tensor
    active: Tensor
    inactive: Tensor
    open: Tensor
    closed: Tensor


class GroupedFactor(SpikeSlabFactor):
    """Of gates at two levels, as independent gates see them."""

    @property
    def num_outcomes(self) -> int:
        """Q."""
        return self.prior.num_outcomes

    def over_outcomes(self, values: Tensor) -> Tensor:
        """Sums over outcomes, (..., 1), of what they may share."""
        same = self.num_outcomes if values.shape[-1] == 1 else 1
        return same * values.sum(-1, keepdim=True)

    def _points(self, relative_length: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Inclusion probabilities (T, A or 1, W, .), sharing (T, 1, W, 1), weights (T, 1, 1, 1)."""
        (rate, of_rate), (sharing, of_sharing) = (
            cast(HyperFactor, self.hyper[name]).points(_POINTS[name]) for name in _GRID
        )
        prob = self.prior.arc_inclusion_prob(rate.double(), relative_length)
        prob = prob if self.prior.arcs_differ else prob[:, :1]
        num = len(sharing)
        prob = prob.repeat_interleave(num, 0)
        sharing = sharing.double().repeat(len(rate), 1, 1).unsqueeze(1)
        weights = of_rate.repeat_interleave(num) * of_sharing.repeat(len(rate))
        return prob, sharing, weights.double().reshape(-1, 1, 1, 1)

    def expected_levels(self, relative_length: Tensor | None = None) -> ExpectedLevels:
        """See there; arcs are those of :meth:`ArcPrior.classes`."""
        prob, sharing, weights = self._points(relative_length)
        logs = level_logs(prob, sharing)
        follow = logs.active + self.over_outcomes(logs.closed)
        none = torch.logaddexp(logs.inactive, follow)
        active = (weights * gate_levels(prob, sharing).active).sum(0)
        within = (weights * prob).sum(0) / torch.where(active > 0, active, 1.0)
        means = LevelLogs(*((weights * part).sum(0) for part in logs))
        return ExpectedLevels(means, (weights * none).sum(0), active, within.clamp(max=1.0))

    def law(self, relative_length: Tensor | None = None) -> ExpectedLaw:
        """See :meth:`PriorFactor.law`; log probabilities are the gates' own terms of the bound."""
        law, logs = super().law(relative_length), self.expected_levels(relative_length).logs
        closed, each = (part.to(law.prob).unsqueeze(-1) for part in (logs.closed, logs.open))
        num = law.prob.shape[-1] - 1
        each = (each - math.log(num)).expand(*each.shape[:-1], num)
        return law._replace(log_prob=torch.cat([closed, each], -1))

    def together(self, inclusion: Tensor) -> Tensor:
        """See :meth:`PriorFactor.together`."""
        levels = self.expected_levels()
        none = (1 - inclusion.double()).prod(-1, keepdim=True)
        follow = levels.logs.active + self.over_outcomes(levels.logs.closed)
        found = levels.logs.active + none * (levels.none - follow)
        return found[..., 0].to(inclusion)

    def prior_none(self, outcomes: Tensor) -> Tensor:
        """See :meth:`PriorFactor.prior_none`."""
        prob, sharing, weights = self._points()
        active, within = gate_levels(prob, sharing)
        within = within.expand(*within.shape[:-1], self.num_outcomes)[..., outcomes]
        none = 1 - active + active * (1 - within).prod(-1, keepdim=True)
        return (weights * none).sum(0)[..., 0].expand(self.prior.delta_shape[:2])

    def activity(self, on: Tensor, off: Tensor) -> Tensor:
        """Probability that arcs are active, (A, W, 1), from those of open and closed gates."""
        del on
        levels = self.expected_levels()
        follow = levels.logs.active + self.over_outcomes(levels.logs.closed)
        silent = torch.sigmoid(follow - levels.logs.inactive)
        return 1 - off.double().prod(-1, keepdim=True) * (1 - silent)

    def _learn_rate(self, on: Tensor, off: Tensor) -> None:
        """See :meth:`SpikeSlabFactor._learn_rate`: rate and sharing, each given the other."""
        counts = self._counts(on.double(), off.double())
        for _ in range(_ROUNDS):
            for name in _GRID:
                self._learn_level(name, counts)

    def _counts(self, on: Tensor, off: Tensor) -> GateCounts:
        """Expected numbers; arcs of much the same length count as one."""
        prior = self.prior
        known = (on + off).sum(-1, keepdim=True) > 0
        known = known & prior.may_change()
        active = torch.where(known, self.activity(on, off), 0.0)
        inactive = known.double() - active
        opened = torch.where(known, on, 0.0)
        closed = (active - opened).clamp(min=0)
        if self._rate().hyper.shape[-1] == 1:
            opened, closed = (part.sum(-1, keepdim=True) for part in (opened, closed))
        length, place = _few_lengths(prior.relative_length.flatten().double())

        def summed(part: Tensor) -> Tensor:
            return part.new_zeros(len(length), *part.shape[1:]).index_add(0, place, part)

        parts = (summed(part) for part in (active, inactive, opened, closed))
        return GateCounts(length.reshape(-1, 1, 1), *parts)

    @torch.no_grad()
    def _learn_level(self, name: str, counts: GateCounts) -> None:
        """The logit-normal q of rate or sharing that matches its posterior on a grid."""
        factor = cast(RateFactor, self.hyper[name])
        if not factor.learnt:
            return
        other = next(one for one in _GRID if one != name)
        held, weights = cast(HyperFactor, self.hyper[other]).points(_POINTS[other])
        real = torch.linspace(*_GRID[name], dtype=torch.float64, device=held.device)
        candidates = torch.sigmoid(real).reshape(-1, 1, 1, 1)
        values = {name: candidates, other: held.double().unsqueeze(0)}
        rate, sharing = (values[one].unsqueeze(-3) for one in _GRID)  # (T, P, 1, W, .)
        prob = rate
        if self.prior.arcs_differ:
            prob = -torch.expm1(counts.length * torch.log1p(-rate))
        logs = level_logs(prob, sharing)
        each = counts.active * logs.active + counts.inactive * logs.inactive
        gates = counts.open * logs.open + counts.closed * logs.closed
        log_lik = (each + gates.sum(-1, keepdim=True)).sum((-1, -3))  # (T, P, W)
        log_lik = torch.einsum("p,tpw->tw", weights.double(), log_lik)
        log_prior = factor.log_prior(real.reshape(-1, 1, 1))[..., 0]
        factor.match_grid(real, (log_lik + log_prior).T.unsqueeze(1))


def _few_lengths(length: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths that stand for those of all arcs (A,), and which of them stands for each."""
    each, place = length.unique(return_inverse=True)
    if len(each) > _MOST_LENGTHS:
        group = torch.arange(len(each), device=each.device) * _MOST_LENGTHS // len(each)
        place = group[place]
        number = torch.bincount(place, minlength=_MOST_LENGTHS)
        each = each.new_zeros(_MOST_LENGTHS).index_add(0, place, length) / number
    return each, place
