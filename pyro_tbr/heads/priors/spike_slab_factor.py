"""Spike and slab's part of q: closed forms of what is expected of rate, slab and spike."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pyro_tbr.heads.hyper import RateFactor, SeparationFactor
from pyro_tbr.heads.priors.classes import ChangeSums, ExpectedLaw, stacked
from pyro_tbr.heads.priors.factor import PriorFactor
from pyro_tbr.tree.messages import TreePosterior

# A start counts as a change where it is above this share of the latent's root mean square change.
_START_SHARE = 0.1
_LEAST_START = 0.3  # least slab scale to start from, over the hyperprior's median
_ALTERNATIONS = 3  # of the slab's scale and separation, each given the other
# The second start: inclusion rate, and slab and spike over the root mean square change now.
_SECOND_RATE, _SECOND_SLAB, _SECOND_SPIKE = 0.05, 2.0, 0.5
_SECOND_SPREAD = 0.2  # of the factors there, on the real line


class SpikeSlabFactor(PriorFactor):
    """Closed forms of the expectations; for the density of a change see :class:`Separation`."""

    def law(self, relative_length: Tensor | None = None) -> ExpectedLaw:
        """See :meth:`PriorFactor.law`."""
        prior = self.prior
        rates, weights = self._rate().points()
        weights = weights.reshape(-1, 1, 1, 1)
        on = prior.arc_inclusion_prob(rates, relative_length)
        log_keep = torch.log1p(-prior.by_weight(rates)).unsqueeze(1)
        if prior.arcs_differ:
            log_keep = prior.arc_length(relative_length) * log_keep
        parts = on.clamp(min=torch.finfo(on.dtype).tiny).log(), log_keep, on
        log_on, log_off, mean_on = ((weights * part).sum(0) for part in parts)
        precision, away, excess = self._slab()
        zero = torch.zeros_like(precision)
        square = self.scale("slab_scale").mean_power(2.0)
        var, extra, spike_square = zero, zero, zero
        if prior.has_spike:
            spike, still = self.scale("spike_scale"), ~prior.may_change(relative_length)
            inverse = spike.mean_power(-2.0)
            var = torch.where(still, 0.0, 1 / inverse)
            extra = torch.where(still, 0.0, -spike.mean_log() - 0.5 * inverse.log())
            spike_square = torch.where(still, 0.0, (1 - mean_on) * spike.mean_power(2.0))
        num = 2 if prior.halves else 1
        open_square = mean_on * square / num
        return ExpectedLaw(
            stacked([1 - mean_on, *[mean_on / num] * num]),
            stacked([log_off, *[log_on - torch.log(torch.tensor(float(num)))] * num]),
            stacked([zero, away, -away][: num + 1]),
            stacked([var, *[1 / precision] * num]),
            stacked([extra, *[excess] * num]),
            stacked([spike_square, *[open_square] * num]),
        )

    def prior_none(self, outcomes: Tensor) -> Tensor:
        """See :meth:`PriorFactor.prior_none`."""
        rates, weights = self._rate().points()
        off = 1 - self.prior.arc_inclusion_prob(rates.double())
        off = off.expand(*off.shape[:-1], self.prior.num_outcomes)[..., outcomes].prod(-1)
        return torch.einsum("t,taw->aw", weights.double(), off)

    def _rate(self) -> RateFactor:
        return cast(RateFactor, self.hyper["inclusion_rate"])

    def _slab(self) -> tuple[Tensor, Tensor, Tensor]:
        """Precision, distance from zero and excess of one half, (W, Q) each."""
        scale = self.scale("slab_scale")
        inverse, log_scale = scale.mean_power(-2.0), scale.mean_log()
        if not self.prior.halves:
            return inverse, torch.zeros_like(inverse), -log_scale - 0.5 * inverse.log()
        square, cross, log_square = self._separation().moments()
        precision = square * inverse
        away = cross * scale.mean_power(-1.0) / precision
        excess = 0.5 * (1 - square + log_square - precision.log() + precision * away.square())
        return precision, away, excess - log_scale

    def _separation(self) -> SeparationFactor:
        return cast(SeparationFactor, self.hyper["slab_separation"])

    @torch.no_grad()
    def start_from(self, root: Tensor, deltas: Tensor, informed: Tensor) -> None:
        """See :meth:`PriorFactor.start_from`."""
        prior, mask = self.prior, informed.reshape(-1, 1, 1)
        square = torch.where(mask, deltas.square(), 0.0).double()
        # Slabs start wide: from a slab as narrow as the estimates' errors the updates do not find
        # back, since every change is then as likely as none.
        least = _LEAST_START * prior.slab_scale.prior_loc.exp().amax().double()
        typical = square.mean((0, 2), keepdim=True).clamp(min=least**2)
        gates = torch.where(mask, (square > _START_SHARE**2 * typical).double(), 0.0)
        square = gates * square.clamp(min=least**2)
        self.learn_root((root - prior.root_loc).square())
        self._learn_rate(gates, torch.where(mask, 1 - gates, 0.0))
        # A spike starts at its hyperprior's middle: sparse estimates are zero where gates are off,
        # and from no width at all the updates find none.
        self._learn_slab(square.sum(0), square.sqrt().sum(0), gates.sum(0))

    def learn_changes(self, sums: ChangeSums) -> None:
        """See :meth:`PriorFactor.learn_changes`."""
        prior = self.prior
        on, off = sums.count[..., 1:].sum(-1), sums.count[..., 0]
        self._learn_rate(on, off)
        if prior.has_spike:
            still = torch.where(prior.may_change(), off, 0.0)
            self.update_scale("spike_scale", sums.second[..., 0].sum(0), still.sum(0))
        size = sums.first[..., 1] - sums.first[..., -1]
        self._learn_slab(sums.second[..., 1:].sum((0, -1)), size.sum(0), on.sum(0))

    def _learn_rate(self, on: Tensor, off: Tensor) -> None:
        """From expected gates that are on and off, (A, W, Q) each."""
        rate = self._rate()
        if rate.hyper.shape[-1] == 1:
            on, off = on.sum(-1, keepdim=True), off.sum(-1, keepdim=True)
        rate.update(on, off, self.prior.relative_length)

    def _learn_slab(self, square: Tensor, size: Tensor, count: Tensor) -> None:
        """From sums of squared changes, of changes times the sign of their half, and of gates."""
        if not self.prior.halves:
            self.update_scale("slab_scale", square, count)
            return
        scale, separation = self.scale("slab_scale"), self._separation()
        for _ in range(_ALTERNATIONS):
            one_plus, cross, _ = separation.moments()
            self.update_scale("slab_scale", one_plus * square, count, cross * size)
            separation.learn(
                (square * scale.mean_power(-2.0)).sum(),
                (size * scale.mean_power(-1.0)).sum(),
                count.sum(),
            )

    def second_start(self, now: TreePosterior, informed: Tensor) -> bool:
        """Few changes beside small ones everywhere, where the width of those is learnt.

        Much the same data come from many changes of one size and nothing in between, or from small
        changes everywhere and few that are larger. Each holds itself up: small changes taken for
        changes leave none to widen the spike.
        """
        prior = self.prior
        if not prior.has_spike or prior.spike_scale.fixed is not None:
            return False
        known = informed.to(now.delta_second.device) & prior.may_change().flatten()
        if not known.any():
            return False
        size = now.delta_second[..., known].mean((1, 2)).sqrt().reshape(-1, 1)
        self._rate().initialise(torch.tensor(_SECOND_RATE), _SECOND_SPREAD)
        self.scale("slab_scale").initialise(_SECOND_SLAB * size, _SECOND_SPREAD)
        self.scale("spike_scale").initialise(_SECOND_SPIKE * size, _SECOND_SPREAD)
        return True
