"""Sparse changes: a gate on every arc, and a slab."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import Rate, RateFactor, Separation, SeparationFactor
from pyro_tbr.heads.hyper.base import as_fixed, spread_fixed
from pyro_tbr.heads.priors.arc_weights import as_arc_weights, as_arcs, weights_of_arcs
from pyro_tbr.heads.priors.base import ArcPrior, share_of
from pyro_tbr.heads.priors.classes import ChangeSums, Classes, ExpectedLaw, Values
from pyro_tbr.heads.priors.factor import PriorFactor
from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import TreePosterior

# Pseudo-counts of the learnt inclusion rate: mean 0.2, zero density at 0, worth 7.5 arcs.
RATE_CONCENTRATION = (1.5, 6.0)
# Median of the learnt separation of the slab's halves and standard deviation of its logarithm:
# with few changes, all of one size, a flat law would let the halves shrink to two points. A lower
# median says that small changes are common.
_SEPARATION = (2.0, 0.5)

# A start counts as a change where it is above this share of the latent's root mean square change.
_START_SHARE = 0.1
_LEAST_START = 0.3  # least slab scale to start from, over the hyperprior's median
_ALTERNATIONS = 3  # of the slab's scale and separation, each given the other
# The second start: inclusion rate, and slab and spike over the root mean square change now.
_SECOND_RATE, _SECOND_SLAB, _SECOND_SPIKE = 0.05, 2.0, 0.5
_SECOND_SPREAD = 0.2  # of the factors there, on the real line


class SpikeSlabPrior(ArcPrior):
    r"""A change is small, or zero, with probability :math:`1-\pi`, else drawn from a slab.

    A fixed slab is :math:`N(0, \tau^2)`. Where its scale :math:`\tau` is learnt, how rare small
    changes are is learnt too: the slab is half of :math:`N(m, s^2)` and half of :math:`N(-m, s^2)`
    with :math:`m^2 + s^2 = \tau^2`, and :math:`m/s` is its *separation*, 0 for a normal one. A
    normal slab has its peak at no change, so it takes a weak trace of a change for a small change
    where there are none of that size.

    With ``spike_scale`` above 0 an arc whose gate is off changes a little all the same, by a draw
    from :math:`N(0, b^2)`; a PIP is then the probability of a change by more than that. In real
    data everything differs a bit, and learnt latents mix a little of each other, which looks like
    small changes.

    Args:
        expected_num_nonzero: Expected number of changed arcs per latent and outcome; fixes
            :math:`\pi`. ``None`` together with ``inclusion_prob=None``: learnt, one per latent.
        inclusion_prob: :math:`\pi` itself, in (0, 1); give at most one of the two.
        slab_scale: :math:`\tau`, the root mean square of a change, in outcome per unit of latent,
            or ``None`` to learn one per latent.
        root_scale: Standard deviation of the root weights, or ``None`` to learn one per latent.
        slab_separation: :math:`m/s`, one number for all latents; 0 for a normal slab. ``None``:
            0 where ``slab_scale`` is fixed, else learnt.
        spike_scale: :math:`b`, in the unit of ``slab_scale``; 0: no change where the gate is off.
            ``None``: 0 where ``slab_scale`` is fixed, else one per latent, learnt, with a prior
            median a tenth of the slab's.
        use_lengths: Scale the rate by arc length, :math:`\pi_a = 1 - (1-\pi)^{l_a / \bar l}`:
            :math:`\pi` is then the rate of an arc of mean length, and an arc of length 0 never
            changes.
        arc_weights: How much likelier than others some arcs are to change, by arc,
            ``(parent, child)`` or ``child``: a mapping or a Series. An arc of weight w counts as
            one w times as long, :math:`\pi_a = 1 - (1-\pi)^{w_a}` (times the relative length where
            lengths count), so the odds of a rare change are w times as large. 1 for arcs that are
            not named and for new leaves; 0: never changes. For an inclusion probability p of a
            single arc: ``log(1 - p) / log(1 - inclusion_prob)``.
        only_arcs: The arcs that may change, no others: a list of ``(parent, child)`` or ``child``;
            for a clade ``tree.arcs_below(node)``. The horseshoe and the Gaussian prior, which have
            no gates, take none of these three.
        never_arcs: Arcs that never change, likewise.

    Source:
        Mitchell & Beauchamp, JASA 83 (1988) 1023, whose slab is uniform. Slabs that vanish at zero:
        Johnson & Rossell, JRSS B 72 (2010) 143; spikes of some width: George & McCulloch, JASA 88
        (1993) 881.
    """

    gated = True
    inclusion_rate: Rate
    relative_length: Tensor

    def __init__(
        self,
        expected_num_nonzero: float | None = None,
        inclusion_prob: float | Tensor | None = None,
        slab_scale: float | Tensor | None = None,
        root_scale: float | Tensor | None = None,
        *,
        slab_separation: float | None = None,
        spike_scale: float | Tensor | None = None,
        use_lengths: bool = False,
        arc_weights: Mapping[Hashable, float] | None = None,
        only_arcs: Iterable[Hashable] | None = None,
        never_arcs: Iterable[Hashable] | None = None,
    ) -> None:
        arc_weights = as_arc_weights(arc_weights)
        only_arcs, never_arcs = as_arcs(only_arcs, "only_arcs"), as_arcs(never_arcs, "never_arcs")
        super().__init__(
            expected_num_nonzero=expected_num_nonzero,
            inclusion_prob=inclusion_prob,
            slab_scale=slab_scale,
            root_scale=root_scale,
            slab_separation=slab_separation,
            spike_scale=spike_scale,
            use_lengths=use_lengths,
            arc_weights=arc_weights,
            only_arcs=only_arcs,
            never_arcs=never_arcs,
        )
        if expected_num_nonzero is not None and inclusion_prob is not None:
            raise DataError(
                f"expected_num_nonzero={expected_num_nonzero!r} and inclusion_prob="
                f"{inclusion_prob!r} say the same thing twice: give one of them"
            )
        as_fixed(expected_num_nonzero, "expected_num_nonzero")
        self.inclusion_prob_value = as_fixed(inclusion_prob, "inclusion_prob", below=1.0)
        self.slab_scale_value = as_fixed(slab_scale, "slab_scale")
        if slab_separation is None and slab_scale is not None:
            slab_separation = 0.0
        # As a number: one separation for all weights, none at all for a normal slab.
        self.halves = slab_separation != 0
        self.slab_separation_value = (
            as_fixed(slab_separation, "slab_separation") if self.halves else None
        )
        if spike_scale is None and slab_scale is not None:
            spike_scale = 0.0
        # Likewise: 0 is no spike of some width rather than a width.
        self.has_spike = not (isinstance(spike_scale, (int, float)) and spike_scale == 0)
        self.spike_scale_value = as_fixed(spike_scale, "spike_scale") if self.has_spike else None
        self.use_lengths = use_lengths
        self.arcs_differ = use_lengths or any(
            said is not None for said in (arc_weights, only_arcs, never_arcs)
        )

    def _build_changes(self, tree: Tree, standard_error: float) -> None:
        relative = torch.ones(tree.num_arcs)
        if self.use_lengths:
            tree.require_lengths()
            lengths = torch.tensor(tree.lengths, dtype=torch.get_default_dtype())
            relative = lengths / lengths.mean()
        said = (self.description[name] for name in ("arc_weights", "only_arcs", "never_arcs"))
        relative = relative * weights_of_arcs(tree, *said).to(relative)
        self.register_buffer("relative_length", relative[:, None, None])
        fixed = self.inclusion_prob_value
        expected = self.description["expected_num_nonzero"]
        if expected is not None:
            fixed = _rate_for(float(expected), relative)
        shape = (self.num_weights, 1)
        if fixed is not None and fixed.dim() == 2 and fixed.shape[-1] > 1:
            shape = (self.num_weights, self.num_outcomes)
        value = None if fixed is None else spread_fixed(fixed, shape, "inclusion_prob")
        one, zero = RATE_CONCENTRATION
        self.inclusion_rate = Rate(
            "inclusion_rate", shape, value, concentration1=one, concentration0=zero
        )
        self.slab_scale = self._scale("slab_scale", self.slab_scale_value, median=0.5)
        if self.halves:
            median, spread = _SEPARATION
            value = self.slab_separation_value
            value = None if value is None else spread_fixed(value, (1, 1), "slab_separation")
            self.slab_separation = Separation(
                "slab_separation", (1, 1), value, median=median, spread=spread
            )
        if self.has_spike:
            self.spike_scale = self._scale("spike_scale", self.spike_scale_value, median=0.05)

    def without_learnt_spike(self) -> SpikeSlabPrior:
        """See :meth:`ArcPrior.without_learnt_spike`."""
        if not self.has_spike or self.spike_scale.fixed is not None:
            return self
        sharp = copy.deepcopy(self)
        sharp.has_spike = False
        del sharp.spike_scale
        return sharp

    def without_arcs(self) -> SpikeSlabPrior:
        """See :meth:`ArcPrior.without_arcs`."""
        said = dict.fromkeys(("arc_weights", "only_arcs", "never_arcs"))
        return SpikeSlabPrior(**(self.description | said))

    def arc_length(self, relative_length: Tensor | None) -> Tensor:
        """Relative lengths of some arcs, or of the tree's own times their weights, (A', 1, 1)."""
        if relative_length is None:
            return self.relative_length
        return relative_length.to(self.relative_length).reshape(-1, 1, 1)

    def may_change(self, relative_length: Tensor | None = None) -> Tensor:
        """Not arcs of length 0, where lengths count, or of weight 0."""
        length = self.arc_length(relative_length)
        return length > 0 if self.arcs_differ else torch.ones_like(length, dtype=torch.bool)

    def arc_inclusion_prob(self, rate: Tensor, relative_length: Tensor | None = None) -> Tensor:
        """Prior inclusion probability of each arc, (*S, A, W, Q or 1), from the rate (*S, W, .)."""
        length = self.arc_length(relative_length)
        if not self.arcs_differ:
            return rate.unsqueeze(-3).expand(*rate.shape[:-2], len(length), *rate.shape[-2:])
        return -torch.expm1(length.to(rate) * torch.log1p(-rate).unsqueeze(-3))

    def classes(self, values: Values, relative_length: Tensor | None = None) -> Classes:
        """Closed gate, then the slab or its two halves."""
        on = self.arc_inclusion_prob(values["inclusion_rate"], relative_length)
        each = values["slab_scale"].unsqueeze(-3)
        zero = torch.zeros_like(each)
        spike = zero
        if self.has_spike:
            spike = values["spike_scale"].unsqueeze(-3) * self.may_change(relative_length)
        if not self.halves:
            parts = [1 - on, on], [zero, zero], [spike.square(), each.square()]
            return Classes(*map(_stack, parts))
        separation = values["slab_separation"].unsqueeze(-3)
        each = each / (1 + separation.square()).sqrt()
        away, var = separation * each, each.square()
        parts = [1 - on, on / 2, on / 2], [zero, away, -away], [spike.square(), var, var]
        return Classes(*map(_stack, parts))

    def factor(self) -> PriorFactor:
        """See :meth:`ArcPrior.factor`."""
        return _SpikeSlabFactor(self)


class _SpikeSlabFactor(PriorFactor):
    """Closed forms of the expectations; for the density of a change see :class:`Separation`."""

    def law(self, relative_length: Tensor | None = None) -> ExpectedLaw:
        """See :meth:`PriorFactor.law`."""
        prior = self.prior
        rates, weights = self._rate().points()
        weights = weights.reshape(-1, 1, 1, 1)
        on = prior.arc_inclusion_prob(rates, relative_length)
        log_keep = torch.log1p(-rates).unsqueeze(1)
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
            _stack([1 - mean_on, *[mean_on / num] * num]),
            _stack([log_off, *[log_on - torch.log(torch.tensor(float(num)))] * num]),
            _stack([zero, away, -away][: num + 1]),
            _stack([var, *[1 / precision] * num]),
            _stack([extra, *[excess] * num]),
            _stack([spike_square, *[open_square] * num]),
        )

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


def _stack(parts: list[Tensor]) -> Tensor:
    """Classes behind, from (..., W, Q) that broadcast against each other."""
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def _rate_for(expected: float, relative_length: Tensor) -> Tensor:
    """Rate of an arc of mean length that gives this expected number of changes over all arcs."""
    usable = int((relative_length > 0).sum())
    share_of(expected, usable)
    low, high = -60.0, 60.0  # logit of the rate; the expected number grows with it
    for _ in range(200):
        middle = (low + high) / 2
        log_keep = -torch.nn.functional.softplus(torch.tensor(middle, dtype=torch.float64))
        number = -torch.expm1(relative_length.double() * log_keep).sum().item()
        low, high = (middle, high) if number < expected else (low, middle)
    return torch.sigmoid(torch.tensor(middle)).to(torch.get_default_dtype())
