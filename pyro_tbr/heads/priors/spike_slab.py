"""Sparse changes: a gate on every arc, and a slab."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper.hyperparameters import Rate, Separation, as_fixed, spread_fixed
from pyro_tbr.heads.priors.arc_prior import ArcPrior, share_of
from pyro_tbr.heads.priors.slab import slab_halves, slab_law
from pyro_tbr.tree import Tree

# Pseudo-counts of the learnt inclusion rate: mean 0.2, zero density at 0, worth 7.5 arcs.
RATE_CONCENTRATION = (1.5, 6.0)
# Median of the learnt separation of the slab's halves and standard deviation of its logarithm:
# with few changes, all of one size, a flat law would let the halves shrink to two points. A lower
# median says that small changes are common. With known latents, 42 data sets as those of
# ``examples/calibration.py`` (sizes 0.5 + |N(0, 1)|, which have a separation of 2.2) and a median
# of 1, PIPs of 0.88 are true in 0.80 and those of 0.70 in 0.76; with 2 in 0.87 and 0.73. Where
# sizes are |N(0, 1)| the two are alike.
SEPARATION = (2.0, 0.5)


class SpikeSlabPrior(ArcPrior):
    r"""A change is small, or zero, with probability :math:`1-\pi`, else drawn from a slab.

    A fixed slab is :math:`N(0, \tau^2)`. Where its scale :math:`\tau` is learnt, how rare small
    changes are is learnt too: the slab is half of :math:`N(m, s^2)` and half of :math:`N(-m, s^2)`
    with :math:`m^2 + s^2 = \tau^2`, and :math:`m/s` is its *separation*, 0 for a normal one. A
    normal slab has its peak at no change, so it takes a weak trace of a change for a small change
    where there are none of that size.

    With ``spike_scale`` above 0 an arc whose gate is off changes a little all the same, by a draw
    from :math:`N(0, b^2)`; a PIP is then the probability of a change by more than that. In real
    data everything differs a bit, and learnt latents mix a little of each other (by 0.016 in
    ``examples/calibration.py``), which looks like small changes.

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
        shared_gates: One gate an arc and latent for all outcomes.
        use_lengths: Scale the rate by arc length, :math:`\pi_a = 1 - (1-\pi)^{l_a / \bar l}`:
            :math:`\pi` is then the rate of an arc of mean length, and an arc of length 0 never
            changes.

    Source:
        Mitchell & Beauchamp, JASA 83 (1988) 1023, whose slab is uniform. Slabs that vanish at zero:
        Johnson & Rossell, JRSS B 72 (2010) 143; spikes of some width: George & McCulloch, JASA 88
        (1993) 881.
    """

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
        shared_gates: bool = False,
        use_lengths: bool = False,
    ) -> None:
        super().__init__(
            expected_num_nonzero=expected_num_nonzero,
            inclusion_prob=inclusion_prob,
            slab_scale=slab_scale,
            root_scale=root_scale,
            slab_separation=slab_separation,
            spike_scale=spike_scale,
            shared_gates=shared_gates,
            use_lengths=use_lengths,
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
        self.wide_spike = not (isinstance(spike_scale, (int, float)) and spike_scale == 0)
        self.spike_scale_value = as_fixed(spike_scale, "spike_scale") if self.wide_spike else None
        self.shared_gates, self.use_lengths = shared_gates, use_lengths

    def _build_deltas(self, tree: Tree, standard_error: float) -> None:
        relative = torch.ones(tree.num_arcs)
        if self.use_lengths:
            tree.require_lengths()
            lengths = torch.tensor(tree.lengths, dtype=torch.get_default_dtype())
            relative = lengths / lengths.mean()
        self.register_buffer("relative_length", relative[:, None, None])
        fixed = self.inclusion_prob_value
        expected = self.description["expected_num_nonzero"]
        if expected is not None:
            fixed = _rate_for(float(expected), relative)
        shape = (self.num_weights, 1)
        if fixed is not None and fixed.dim() == 2 and fixed.shape[-1] > 1:
            shape = (self.num_weights, self.num_outcomes)
            if self.shared_gates:
                raise DataError(
                    "shared_gates=True has one gate for all outcomes, inclusion_prob a rate for "
                    "each: give rates of shape (weights, 1)"
                )
        value = None if fixed is None else spread_fixed(fixed, shape, "inclusion_prob")
        one, zero = RATE_CONCENTRATION
        self.inclusion_rate = Rate(
            "inclusion_rate", shape, value, concentration1=one, concentration0=zero
        )
        self.slab_scale = self._scale("slab_scale", self.slab_scale_value, median=0.5)
        if self.halves:
            median, spread = SEPARATION
            value = self.slab_separation_value
            value = None if value is None else spread_fixed(value, (1, 1), "slab_separation")
            self.slab_separation = Separation(
                "slab_separation", (1, 1), value, median=median, spread=spread
            )
        if self.wide_spike:
            self.spike_scale = self._scale("spike_scale", self.spike_scale_value, median=0.05)

    def without_spike(self) -> SpikeSlabPrior:
        """A built prior as if ``spike_scale`` were 0."""
        sharp = copy.deepcopy(self)
        if self.wide_spike:
            sharp.wide_spike = False
            del sharp.spike_scale
        return sharp

    @property
    def gate_shape(self) -> tuple[int, int, int]:
        """(A, W, Q), or (A, W, 1) where outcomes share their gates."""
        arcs, weights, outcomes = self.delta_shape
        return (arcs, weights, 1 if self.shared_gates else outcomes)

    def changing(self, relative_length: Tensor | None = None) -> Tensor:
        """Which arcs may change at all, (A, 1, 1) bool: not those of length 0, where it counts."""
        length = self.relative_length if relative_length is None else relative_length
        length = length.reshape(-1, 1, 1).to(self.relative_length.device)
        return length > 0 if self.use_lengths else torch.ones_like(length, dtype=torch.bool)

    def arc_inclusion_prob(self, rate: Tensor, relative_length: Tensor | None = None) -> Tensor:
        """Prior inclusion probability of each arc, (*B, A, W, Q or 1), from the rate (*B, W, .)."""
        length = self.relative_length
        if relative_length is not None:
            length = relative_length.to(rate).reshape(-1, 1, 1)
        if not self.use_lengths:
            return rate.unsqueeze(-3).expand(*rate.shape[:-2], len(length), *rate.shape[-2:])
        return -torch.expm1(length * torch.log1p(-rate).unsqueeze(-3))

    def _sample_deltas(self) -> Tensor:
        prob = self.arc_inclusion_prob(self.inclusion_rate())
        scale = self.slab_scale().unsqueeze(-3)
        prob = prob + scale.new_zeros(self.gate_shape)
        gates = pyro.sample("gates", dist.Bernoulli(prob).to_event(3))
        scale = scale + scale.new_zeros(self.delta_shape)
        separation = self.slab_separation().unsqueeze(-3) if self.halves else None
        deltas = gates * pyro.sample("slab", slab_law(scale, separation).to_event(3))
        if self.wide_spike:
            spike = self.spike_scale().unsqueeze(-3) + scale.new_zeros(self.delta_shape)
            small = pyro.sample("spike", dist.Normal(0.0, spike).to_event(3))
            deltas = deltas + (1 - gates) * self.changing() * small
        return pyro.deterministic("deltas", deltas, event_dim=3)

    def draw_changes(
        self,
        values: dict[str, Tensor],
        generator: torch.Generator,
        relative_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See :meth:`ArcPrior.draw_changes`."""
        prob = self.arc_inclusion_prob(values["inclusion_rate"], relative_length)
        slab = self.draw_slab(values, prob.shape[1], generator)
        width = 1 if self.shared_gates else self.num_outcomes
        shape = (*slab.shape[:-1], width)
        uniform = torch.rand(shape, generator=generator, dtype=prob.dtype).to(prob.device)
        gates = (uniform < prob).to(slab.dtype).expand_as(slab)
        deltas = gates * slab
        if self.wide_spike:
            small = self.draw_spike(values, prob.shape[1], generator)
            deltas = deltas + (1 - gates) * self.changing(relative_length) * small
        return {"gates": gates, "deltas": deltas}

    def draw_spike(
        self, values: dict[str, Tensor], num_arcs: int, generator: torch.Generator
    ) -> Tensor:
        """Changes (S, A', W, Q) where gates are off, given draws of the hyperparameters."""
        scale = values["spike_scale"].unsqueeze(-3)
        return scale * self._noise(len(scale), num_arcs, generator)

    def draw_slab(
        self, values: dict[str, Tensor], num_arcs: int, generator: torch.Generator
    ) -> Tensor:
        """Sizes of changes (S, A', W, Q) given draws of the hyperparameters, were all gates on."""
        scale = values["slab_scale"].unsqueeze(-3)
        noise = self._noise(len(scale), num_arcs, generator)
        if not self.halves:
            return scale * noise
        loc, each = slab_halves(scale, values["slab_separation"].unsqueeze(-3))
        heads = torch.rand(noise.shape, generator=generator, dtype=noise.dtype).to(noise) < 0.5
        return torch.where(heads, loc, -loc) + each * noise


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
