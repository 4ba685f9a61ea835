"""Variational factors of the arcs' deltas, every arc, latent and outcome on its own.

One factor a kind of prior; :func:`delta_factor` finds it. Arcs with no data below them
(``informed`` false) get the prior itself, exactly: nothing is optimised there.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_tbr.heads.hyper.factors import quadrature
from pyro_tbr.heads.priors import (
    ArcPrior,
    GaussianPrior,
    HorseshoePrior,
    SpikeSlabPrior,
    slab_halves,
)
from pyro_tbr.heads.priors.even_mixture import EvenMixture
from pyro_tbr.heads.priors.prior_moments import (
    HyperFactors,
    moments_of_slab,
    rate_moments,
    scale_factor,
    scale_moments,
)


class DeltaMoments(NamedTuple):
    """Posterior and prior of the deltas, each (A, W, Q) in the model's units.

    Attributes:
        mean: E[delta].
        var: Var[delta].
        inclusion: Posterior inclusion probability; for priors without gates, 1.
        prior_inclusion: Its prior mean.
        slab_mean: Mean given inclusion.
        slab_var: Variance given inclusion.
    """

    mean: Tensor
    var: Tensor
    inclusion: Tensor
    prior_inclusion: Tensor
    slab_mean: Tensor
    slab_var: Tensor


class DeltaFactor(nn.Module):
    """q of the deltas; abstract.

    Args:
        prior: The built prior.
        informed: (A,) bool, arcs with data below.
    """

    informed: Tensor

    def __init__(self, prior: ArcPrior, informed: Tensor) -> None:
        super().__init__()
        self._prior = (prior,)  # in a tuple: the model owns the module, not we
        self.register_buffer("informed", informed.reshape(-1, 1, 1).clone())
        self.loc = nn.Parameter(torch.zeros(prior.delta_shape))
        self.log_scale = nn.Parameter(torch.full(prior.delta_shape, math.log(0.05)))

    @torch.no_grad()
    def initialise(self, deltas: Tensor, scale: Tensor) -> None:
        """Starts at these deltas (A, W, Q) with these standard deviations (broadcast)."""
        self.loc.copy_(deltas)
        self.log_scale.copy_(torch.as_tensor(scale).log().expand_as(self.log_scale))

    def moments(self, hyper: HyperFactors) -> DeltaMoments:
        """Moments under q."""
        raise NotImplementedError

    def kl(self, hyper: HyperFactors) -> Tensor:
        """KL to the prior given q of the hyperparameters, summed."""
        raise NotImplementedError

    def forward(self, values: dict[str, Tensor]) -> None:
        """Pyro sites, given the values of the hyperparameters' sites."""
        raise NotImplementedError

    def sample(self, values: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Draws (S, A, W, Q) of ``deltas`` (and ``gates``), given draws of hyperparameters."""
        raise NotImplementedError

    def _noise(self, num_samples: int, generator: torch.Generator) -> Tensor:
        shape = (num_samples, *self.loc.shape)
        return torch.randn(shape, generator=generator, dtype=self.loc.dtype).to(self.loc.device)


class NormalDeltas(DeltaFactor):
    """Normal q, for priors that are normal given their scales."""

    def moments(self, hyper: HyperFactors) -> DeltaMoments:
        """See :meth:`DeltaFactor.moments`."""
        square = scale_moments(self._prior[0], hyper).square
        mean = torch.where(self.informed, self.loc, 0.0)
        var = torch.where(self.informed, (2 * self.log_scale).exp(), square)
        one = torch.ones_like(mean)
        return DeltaMoments(mean, var, one, one, mean, var)

    def kl(self, hyper: HyperFactors) -> Tensor:
        """See :meth:`DeltaFactor.kl`."""
        inverse, log_scale, _ = scale_moments(self._prior[0], hyper)
        square = self.loc.square() + (2 * self.log_scale).exp()
        each = 0.5 * (square * inverse - 1) - self.log_scale + log_scale
        return torch.where(self.informed, each, 0.0).sum()

    def _given(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Location and scale of the deltas given the hyperparameters' values."""
        scale = values["slab_scale"].unsqueeze(-3)
        if isinstance(self._prior[0], HorseshoePrior):
            wide = values["global_scale"].unsqueeze(-3) * values["local_scale"]
            scale = scale * wide / torch.hypot(scale, wide)
        scale = torch.where(self.informed, self.log_scale.exp(), scale)
        return torch.where(self.informed, self.loc, 0.0).expand_as(scale), scale

    def forward(self, values: dict[str, Tensor]) -> None:
        """Site ``deltas``."""
        pyro.sample("deltas", dist.Normal(*self._given(values)).to_event(3))

    def sample(self, values: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See :meth:`DeltaFactor.sample`."""
        loc, scale = self._given(values)
        num_samples = values["slab_scale"].shape[0]
        return {"deltas": loc + scale * self._noise(num_samples, generator)}


class SpikeSlabDeltas(DeltaFactor):
    """Bernoulli gate and a normal change given that it is on; one, or none, given that it is off.

    A slab whose gate is off and a spike whose gate is on are the prior's.
    """

    _prior: tuple[SpikeSlabPrior]

    def __init__(self, prior: SpikeSlabPrior, informed: Tensor) -> None:
        super().__init__(prior, informed)
        self.logits = nn.Parameter(torch.full(prior.gate_shape, -1.5))
        if prior.wide_spike:
            self.spike_loc = nn.Parameter(torch.zeros(prior.delta_shape))
            self.spike_log_scale = nn.Parameter(torch.full(prior.delta_shape, math.log(0.02)))

    @torch.no_grad()
    def initialise(self, deltas: Tensor, scale: Tensor) -> None:
        """Gates start open where a delta is several of its standard deviations from zero."""
        super().initialise(deltas, scale)
        evidence = (deltas / torch.as_tensor(scale)).square().clamp(max=60) / 2 - 3.0
        if self.logits.shape != evidence.shape:
            evidence = evidence.amax(-1, keepdim=True)
        self.logits.copy_(evidence.clamp(-3.0, 6.0))

    def _gate_probs(self, prior_prob: Tensor) -> Tensor:
        """Posterior inclusion (A, W, Q or 1); exactly the prior's where uninformed or length 0."""
        free = self.informed & self._prior[0].changing()
        return torch.where(free, torch.sigmoid(self.logits), prior_prob)

    def moments(self, hyper: HyperFactors) -> DeltaMoments:
        """See :meth:`DeltaFactor.moments`."""
        slab = scale_moments(self._prior[0], hyper)
        prior_prob = rate_moments(self._prior[0], hyper).mean
        prob = self._gate_probs(prior_prob)
        slab_mean = torch.where(self.informed, self.loc, 0.0)
        slab_var = torch.where(self.informed, (2 * self.log_scale).exp(), slab.square)
        mean = prob * slab_mean
        second = prob * (slab_mean.square() + slab_var)
        if self._prior[0].wide_spike:
            spike_var = scale_factor(hyper, "spike_scale").mean_power(2.0)
            spike_var = torch.where(self.informed, (2 * self.spike_log_scale).exp(), spike_var)
            spike_mean = torch.where(self.informed, self.spike_loc, 0.0)
            off = (1 - prob) * self._prior[0].changing()
            mean = mean + off * spike_mean
            second = second + off * (spike_mean.square() + spike_var)
        var = second - mean.square()
        shape = self.loc.shape
        return DeltaMoments(
            mean, var, prob.expand(shape), prior_prob.expand(shape), slab_mean, slab_var
        )

    def kl(self, hyper: HyperFactors) -> Tensor:
        """See :meth:`DeltaFactor.kl`."""
        slab = moments_of_slab(self._prior[0], hyper)
        log_on, log_off, _ = rate_moments(self._prior[0], hyper)
        on, off = logsigmoid(self.logits), logsigmoid(-self.logits)
        gate = on.exp() * (on - log_on) + off.exp() * (off - log_off)
        square = self.loc.square() + (2 * self.log_scale).exp()
        # One normal q for both halves of the slab: log p has log cosh(precision loc delta) in it.
        points, weights = quadrature(self.loc, self.log_scale.exp())
        pull = (slab.precision * slab.loc * points).abs()
        log_cosh = pull + torch.log1p(torch.exp(-2 * pull)) - math.log(2)
        both = (weights.reshape(-1, 1, 1, 1) * log_cosh).sum(0)
        normal = 0.5 * ((square + slab.loc.square()) * slab.precision - 1) - both
        normal = normal - self.log_scale - 0.5 * slab.precision.log() - slab.excess
        free = self.informed & self._prior[0].changing()
        gate, normal = torch.where(free, gate, 0.0), torch.where(free, on.exp() * normal, 0.0)
        return gate.sum() + normal.sum() + self._spike_kl(hyper, free)

    def _spike_kl(self, hyper: HyperFactors, free: Tensor) -> Tensor:
        """The part of arcs whose gate is off."""
        if not self._prior[0].wide_spike:
            return self.loc.new_zeros(())
        width = scale_factor(hyper, "spike_scale")
        square = self.spike_loc.square() + (2 * self.spike_log_scale).exp()
        each = 0.5 * (square * width.mean_power(-2.0) - 1)
        each = each - self.spike_log_scale + width.mean_log()
        return torch.where(free, torch.sigmoid(-self.logits) * each, 0.0).sum()

    def forward(self, values: dict[str, Tensor]) -> None:
        """Sites ``gates``, ``slab`` and ``spike``; ``deltas`` follows from them in the model."""
        prior = self._prior[0]
        prob = self._gate_probs(prior.arc_inclusion_prob(values["inclusion_rate"]))
        gates = pyro.sample("gates", dist.Bernoulli(prob).to_event(3))
        separation = values["slab_separation"].unsqueeze(-3) if prior.halves else None
        away, each = slab_halves(values["slab_scale"].unsqueeze(-3), separation)
        own = self.informed & (gates > 0)
        first, second = (torch.where(own, self.loc, loc) for loc in (away, -away))
        scale = torch.where(own, self.log_scale.exp(), each)
        pyro.sample("slab", EvenMixture(first, second, scale).to_event(3))
        if prior.wide_spike:
            own = self.informed & prior.changing() & (gates == 0)
            loc = torch.where(own, self.spike_loc, 0.0)
            width = values["spike_scale"].unsqueeze(-3)
            scale = torch.where(own, self.spike_log_scale.exp(), width)
            pyro.sample("spike", dist.Normal(loc, scale).to_event(3))

    def sample(self, values: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See :meth:`DeltaFactor.sample`."""
        prior = self._prior[0]
        prob = self._gate_probs(prior.arc_inclusion_prob(values["inclusion_rate"]))
        num_samples = values["slab_scale"].shape[0]
        shape = (num_samples, *prior.gate_shape)
        uniform = torch.rand(shape, generator=generator, dtype=prob.dtype).to(prob.device)
        gates = (uniform < prob).to(prob.dtype)
        own = self.loc + self.log_scale.exp() * self._noise(num_samples, generator)
        slab = torch.where(self.informed, own, prior.draw_slab(values, len(own[0]), generator))
        deltas = gates * slab
        if prior.wide_spike:
            own = self.spike_loc + self.spike_log_scale.exp() * self._noise(num_samples, generator)
            free = prior.draw_spike(values, len(own[0]), generator)
            small = torch.where(self.informed, own, free)
            deltas = deltas + (1 - gates) * prior.changing() * small
        return {"gates": gates.expand(slab.shape), "deltas": deltas}


@functools.singledispatch
def delta_factor(prior: ArcPrior, informed: Tensor) -> DeltaFactor:
    """The mean-field factor that belongs to a kind of prior."""
    raise NotImplementedError(f"no mean-field factor for {type(prior).__name__}")


delta_factor.register(GaussianPrior, NormalDeltas)
delta_factor.register(HorseshoePrior, NormalDeltas)
delta_factor.register(SpikeSlabPrior, SpikeSlabDeltas)
