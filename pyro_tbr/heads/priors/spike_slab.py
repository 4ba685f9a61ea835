"""Sparse changes: a gate on every arc, and a slab."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import Rate, Separation
from pyro_tbr.heads.hyper.base import as_fixed, spread_fixed
from pyro_tbr.heads.priors.arc_weights import as_arc_weights, as_arcs, weights_of_arcs
from pyro_tbr.heads.priors.base import ArcPrior, share_of
from pyro_tbr.heads.priors.classes import Classes, Values, stacked
from pyro_tbr.heads.priors.factor import PriorFactor
from pyro_tbr.heads.priors.gate_levels import GateLevels, GroupedGates, drawn_gates, gate_levels
from pyro_tbr.heads.priors.grouped_factor import GroupedFactor
from pyro_tbr.heads.priors.grouped_tree_factor import GroupedTreeFactor
from pyro_tbr.heads.priors.latent_gates import GateGroups, LatentGates, LatentGatesFactor
from pyro_tbr.heads.priors.spike_slab_factor import SpikeSlabFactor
from pyro_tbr.tree import Tree

# Pseudo-counts of the learnt inclusion rate: mean 0.2, zero density at 0, worth 7.5 arcs.
RATE_CONCENTRATION = (1.5, 6.0)
# Of the learnt sharing: a quarter on average. Where a few arcs say nothing of it outcomes should be
# nearly independent: a flat law would let them persuade each other.
SHARING_CONCENTRATION = (1.0, 3.0)
# Median of the learnt separation of the slab's halves and standard deviation of its logarithm:
# with few changes, all of one size, a flat law would let the halves shrink to two points. A lower
# median says that small changes are common.
_SEPARATION = (2.0, 0.5)
GATES = ("separate", "grouped", "shared")


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

    Outcomes may change together. An arc is then *active* for a latent with probability
    :math:`a = \pi^t`, and where it is, each outcome's gate is open with probability
    :math:`b = \pi^{1-t}`: every gate is open with probability :math:`\pi = ab` as before, and the
    *sharing* t, from 0 (outcomes change independently) to 1 (all or none), says how much the other
    outcomes tell of one's gate. For :meth:`forward` the activity is summed out of ``gates``.

    Where latents have several functions (``TreeModel(basis=)``) a latent has one gate for all of
    them, and with ``gates="shared"`` for all outcomes too; rates are then one a latent, slab, spike
    and root scales one a function.

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
            median a tenth of the slab's; and 0 where latents are known, hardly correlate within
            environments, and the rows speak clearly against small changes
            (``posterior.report.small_changes``).
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
        gates: ``"separate"``: t = 0, no outcome tells of another; ``"grouped"``: t is learnt, one
            per latent; ``"shared"``: t = 1. With one outcome they are the same.

    Raises:
        DataError: An argument is out of its range, or two say the same thing.

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
        gates: str = "separate",
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
            gates=gates,
        )
        if gates not in GATES:
            raise DataError(f"gates={gates!r} is not known: give one of {', '.join(GATES)}")
        self.gates = gates
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
        if self.latent_of is not None:
            self._group(self.latent_of)
        number = self.num_weights if self.groups is None else self.groups.number
        shape = (number, 1)
        if fixed is not None and fixed.dim() == 2 and fixed.shape[-1] > 1:
            shape = (number, self.num_outcomes)
        value = None if fixed is None else spread_fixed(fixed, shape, "inclusion_prob")
        one, zero = RATE_CONCENTRATION
        self.inclusion_rate = Rate(
            "inclusion_rate", shape, value, concentration1=one, concentration0=zero
        )
        if self.gates != "separate" and self.num_outcomes > 1 and self.groups is None:
            value = torch.ones(()) if self.gates == "shared" else None
            self.has_levels, self.all_or_none = True, self.gates == "shared"
            one, zero = SHARING_CONCENTRATION
            self.sharing = Rate(
                "sharing", (self.num_weights, 1), value, concentration1=one, concentration0=zero
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

    def _group(self, latent_of: Sequence[int]) -> None:
        """Gates of a latent's functions are one."""
        if self.gates == "grouped" and self.num_outcomes > 1:
            raise DataError(
                "gates='grouped' together with a basis: gates of a latent's functions are one, and "
                "those of its outcomes can then be each its own or one too: give gates='separate' "
                "or 'shared'"
            )
        if self.description["slab_separation"]:
            raise DataError(
                f"slab_separation={self.description['slab_separation']!r} together with a basis: "
                "changes of a latent's functions are drawn from a normal slab; leave it out"
            )
        self.halves = False
        latent = torch.tensor(latent_of)
        self.groups = GateGroups(latent, max(latent_of) + 1, self.gates == "shared")

    def without_learnt_spike(self) -> SpikeSlabPrior:
        """See :meth:`ArcPrior.without_learnt_spike`."""
        if not self.has_spike or self.spike_scale_value is not None:
            return self
        sharp = copy.deepcopy(self)
        sharp.has_spike, sharp.description = False, self.description | {"spike_scale": 0.0}
        if hasattr(self, "spike_scale"):
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

    def by_weight(self, values: Tensor) -> Tensor:
        """Of what latents share, such as the rate, (*S, W, .)."""
        return values if self.groups is None else self.groups.by_weight(values)

    def arc_inclusion_prob(self, rate: Tensor, relative_length: Tensor | None = None) -> Tensor:
        """Prior inclusion probability of each arc, (*S, A, W, Q or 1), from the rate."""
        return self.latent_inclusion_prob(self.by_weight(rate), relative_length)

    def latent_inclusion_prob(self, rate: Tensor, relative_length: Tensor | None = None) -> Tensor:
        """The same by what the rate (*S, G, .) has, (*S, A, G, .)."""
        length = self.arc_length(relative_length)
        if not self.arcs_differ:
            return rate.unsqueeze(-3).expand(*rate.shape[:-2], len(length), *rate.shape[-2:])
        return -torch.expm1(length.to(rate) * torch.log1p(-rate).unsqueeze(-3))

    def levels(self, values: Values, relative_length: Tensor | None = None) -> GateLevels:
        """Probabilities of both levels, given rate and sharing; arcs as of :meth:`classes`."""
        on = self.arc_inclusion_prob(values["inclusion_rate"], relative_length)
        return gate_levels(on, values["sharing"].unsqueeze(-3))

    def classes(self, values: Values, relative_length: Tensor | None = None) -> Classes:
        """Closed gate, then the slab or its two halves.

        With values of the activity too, ``active`` (*S, A', W, 1) of zeros and ones, it is the law
        given these: the changes of several outcomes are then independent.
        """
        on = self.arc_inclusion_prob(values["inclusion_rate"], relative_length)
        if "active" in values and self.groups is not None:
            on = values["active"]
        elif "active" in values:
            on = self.levels(values, relative_length).within * values["active"]
        each = values["slab_scale"].unsqueeze(-3)
        zero = torch.zeros_like(each)
        spike = zero
        if self.has_spike:
            spike = values["spike_scale"].unsqueeze(-3) * self.may_change(relative_length)
        if not self.halves:
            parts = [1 - on, on], [zero, zero], [spike.square(), each.square()]
            return Classes(*map(stacked, parts))
        separation = values["slab_separation"].unsqueeze(-3)
        each = each / (1 + separation.square()).sqrt()
        away, var = separation * each, each.square()
        parts = [1 - on, on / 2, on / 2], [zero, away, -away], [spike.square(), var, var]
        return Classes(*map(stacked, parts))

    def site_laws(self, values: Values) -> dict[str, dist.TorchDistribution]:
        """See :meth:`ArcPrior.site_laws`; gates of several outcomes may be one site's event."""
        laws = super().site_laws(values)
        if self.groups is not None:
            prob = self.latent_inclusion_prob(values["inclusion_rate"])
            laws["gates"] = LatentGates(prob, self.groups, self.num_outcomes)
        if self.has_levels:
            active, within = self.levels(values)
            shape = active.shape[:-3]
            active = active.expand(*shape, *self.delta_shape[:2], 1)[..., 0]
            laws["gates"] = GroupedGates(active, within.expand(*shape, *self.delta_shape))
        return laws

    def gates_given(self, on: Tensor, known: Tensor, values: Values) -> dist.TorchDistribution:
        """See :meth:`ArcPrior.gates_given`."""
        if not self.has_levels:
            return super().gates_given(on, known, values)
        active, within = self.levels(values)
        return GroupedGates(torch.where(known, 1.0, active)[..., 0], torch.where(known, on, within))

    def draw_changes(
        self, values: Values, generator: Generator, relative_length: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`ArcPrior.draw_changes`; those of several outcomes together."""
        if self.groups is not None:
            prob = self.latent_inclusion_prob(values["inclusion_rate"], relative_length)
            wide = 1 if self.groups.across else self.num_outcomes
            drawn = drawn_gates(prob, (*prob.shape[:-1], wide), generator)
            values = {**values, "active": self.by_weight(drawn)}
        elif self.has_levels:
            levels = self.levels(values, relative_length)
            shape = (*levels.active.shape[:-2], self.num_weights, 1)
            values = {**values, "active": drawn_gates(levels.active, shape, generator)}
        return super().draw_changes(values, generator, relative_length)

    def factor(self) -> PriorFactor:
        """See :meth:`ArcPrior.factor`."""
        return GroupedFactor(self) if self.has_levels else SpikeSlabFactor(self)

    def tree_factor(self) -> PriorFactor:
        """See :meth:`ArcPrior.tree_factor`."""
        if self.groups is not None:
            return LatentGatesFactor(self)
        return GroupedTreeFactor(self) if self.has_levels else SpikeSlabFactor(self)


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
