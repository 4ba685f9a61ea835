"""Priors on the changes along the arcs: what is believed before any row is seen.

A prior is given to :class:`~pyro_tbr.TreeModel` as a plain description (``SpikeSlabPrior()``) and
*built* by it for a tree and numbers of weights and outcomes; the description itself never changes.
Fixed values are in the user's units (outcome per unit of latent); ``build`` divides them by
``outcome_scale`` where the model sees standardised outcomes.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.models.hyperparameters import (
    HalfCauchyScale,
    Hyperparameter,
    PositiveScale,
    Rate,
    SlabScale,
    as_fixed,
    spread_fixed,
)
from pyro_tbr.models.local_params import LocalParamsModule
from pyro_tbr.tree import Tree

# Pseudo-counts of the learnt inclusion rate: mean 0.2, zero density at 0, worth 7.5 arcs.
RATE_CONCENTRATION = (1.5, 6.0)


class ArcPrior(LocalParamsModule):
    """A prior on root weights (W, Q) and arc deltas (A, W, Q); abstract.

    ``W`` counts the weights of one outcome: the latents, then the intercept if there is one.
    """

    def __init__(self, **description: Any) -> None:
        super().__init__()
        self.description = description
        self.root_scale_value = as_fixed(description["root_scale"], "root_scale")

    def build(
        self,
        tree: Tree,
        num_weights: int,
        num_outcomes: int,
        *,
        num_latents: int | None = None,
        outcome_scale: Tensor | None = None,
        root_loc: Tensor | None = None,
        standard_error: float = 0.1,
    ) -> ArcPrior:
        """This prior for a tree and sizes, as a new module that has all its buffers.

        Args:
            tree: The environments.
            num_weights: W.
            num_outcomes: Q.
            num_latents: K; W where absent. What comes behind is the intercept.
            outcome_scale: (Q,), the user's units in one unit of the outcomes the model sees.
            root_loc: (W, Q), prior mean of the root weights in the model's units; zero if absent.
            standard_error: Typical standard error of one leaf's weight in the model's units; sets
                the horseshoe's global scale.
        """
        built = copy.deepcopy(self)
        unit = torch.ones(num_outcomes) if outcome_scale is None else outcome_scale
        built.unit = unit.to(torch.get_default_dtype())
        built.num_arcs, built.num_weights, built.num_outcomes = (
            tree.num_arcs,
            num_weights,
            num_outcomes,
        )
        built.num_latents = num_weights if num_latents is None else num_latents
        loc = torch.zeros(num_weights, num_outcomes) if root_loc is None else root_loc
        built.register_buffer("root_loc", loc.to(torch.get_default_dtype()))
        built.root_scale = built._scale("root_scale", built.root_scale_value, median=1.0)
        built._build_deltas(tree, standard_error)
        return built

    def _scale(self, name: str, fixed: Tensor | None, *, median: float) -> PositiveScale:
        """A scale of shape (W, 1) where learnt, (W, Q) where the user fixed it."""
        if fixed is None:
            return PositiveScale(name, (self.num_weights, 1), None, median=median)
        shape = (self.num_weights, self.num_outcomes)
        return PositiveScale(name, shape, spread_fixed(fixed, shape, name) / self.unit)

    def _build_deltas(self, tree: Tree, standard_error: float) -> None:
        raise NotImplementedError

    @property
    def delta_shape(self) -> tuple[int, int, int]:
        """(A, W, Q)."""
        return (self.num_arcs, self.num_weights, self.num_outcomes)

    def hyperparameters(self) -> list[Hyperparameter]:
        """Hyperparameters in the order of their sites."""
        return [module for module in self.children() if isinstance(module, Hyperparameter)]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Pyro sites; returns root weights (W, Q) and deltas (A, W, Q)."""
        root = dist.Normal(self.root_loc, self.root_scale()).to_event(2)
        return pyro.sample("root_weights", root), self._sample_deltas()

    def _sample_deltas(self) -> Tensor:
        raise NotImplementedError

    def draw_changes(
        self,
        values: dict[str, Tensor],
        generator: torch.Generator,
        relative_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Changes along arcs nothing is known of, given draws of the hyperparameters.

        Args:
            values: Hyperparameters by site name, draws first.
            generator: Randomness.
            relative_length: Lengths of the arcs over the mean of the tree's, (A',); the tree's own
                arcs where absent.

        Returns:
            ``deltas`` and, where the prior has them, ``gates``, each (S, A', W, Q).
        """
        raise NotImplementedError

    def _noise(self, num_samples: int, num_arcs: int, generator: torch.Generator) -> Tensor:
        shape = (num_samples, num_arcs, self.num_weights, self.num_outcomes)
        noise = torch.randn(shape, generator=generator, dtype=self.root_loc.dtype)
        return noise.to(self.root_loc.device)

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.description.items() if v is not None)
        return f"{type(self).__name__}({given})"


class GaussianPrior(ArcPrior):
    r"""Dense changes, :math:`\delta \sim N(0, \tau^2)`: random slopes along the tree.

    Args:
        scale: :math:`\tau` in outcome per unit of latent, or ``None`` to learn one per latent.
        root_scale: Standard deviation of the root weights, or ``None`` to learn one per latent.
        pooled: Learn one scale for all latents (and one for the intercept): many weak latents.
    """

    def __init__(
        self,
        scale: float | Tensor | None = None,
        root_scale: float | Tensor | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__(scale=scale, root_scale=root_scale, pooled=pooled)
        self.pooled = pooled
        self.scale_value = as_fixed(scale, "scale")

    def _build_deltas(self, tree: Tree, standard_error: float) -> None:
        self.slab_scale = self._scale("slab_scale", self.scale_value, median=0.3)

    def _sample_deltas(self) -> Tensor:
        scale = self.slab_scale().unsqueeze(-3)
        zero = scale.new_zeros(self.delta_shape)
        return pyro.sample("deltas", dist.Normal(zero, scale).to_event(3))

    def draw_changes(
        self,
        values: dict[str, Tensor],
        generator: torch.Generator,
        relative_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See :meth:`ArcPrior.draw_changes`."""
        scale = values["slab_scale"].unsqueeze(-3)
        num_arcs = self.num_arcs if relative_length is None else len(relative_length)
        return {"deltas": scale * self._noise(len(scale), num_arcs, generator)}


class SpikeSlabPrior(ArcPrior):
    r"""A change is zero with probability :math:`1-\pi`, else drawn from :math:`N(0, \tau^2)`.

    Args:
        expected_num_nonzero: Expected number of changed arcs per latent and outcome; fixes
            :math:`\pi`. ``None`` together with ``inclusion_prob=None``: learnt, one per latent.
        inclusion_prob: :math:`\pi` itself, in (0, 1); give at most one of the two.
        slab_scale: :math:`\tau` in outcome per unit of latent, or ``None`` to learn one per latent.
        root_scale: Standard deviation of the root weights, or ``None`` to learn one per latent.
        shared_gates: One gate an arc and latent for all outcomes.
        use_lengths: Scale the rate by arc length, :math:`\pi_a = 1 - (1-\pi)^{l_a / \bar l}`:
            :math:`\pi` is then the rate of an arc of mean length, and an arc of length 0 never
            changes.

    Source:
        Mitchell & Beauchamp, JASA 83 (1988) 1023, whose slab is uniform; ours is normal.
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
        shared_gates: bool = False,
        use_lengths: bool = False,
    ) -> None:
        super().__init__(
            expected_num_nonzero=expected_num_nonzero,
            inclusion_prob=inclusion_prob,
            slab_scale=slab_scale,
            root_scale=root_scale,
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

    @property
    def gate_shape(self) -> tuple[int, int, int]:
        """(A, W, Q), or (A, W, 1) where outcomes share their gates."""
        arcs, weights, outcomes = self.delta_shape
        return (arcs, weights, 1 if self.shared_gates else outcomes)

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
        zero = scale.new_zeros(self.delta_shape)
        slab = pyro.sample("slab", dist.Normal(zero, scale).to_event(3))
        return pyro.deterministic("deltas", gates * slab, event_dim=3)

    def draw_changes(
        self,
        values: dict[str, Tensor],
        generator: torch.Generator,
        relative_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See :meth:`ArcPrior.draw_changes`."""
        prob = self.arc_inclusion_prob(values["inclusion_rate"], relative_length)
        noise = self._noise(prob.shape[0], prob.shape[1], generator)
        slab = values["slab_scale"].unsqueeze(-3) * noise
        width = 1 if self.shared_gates else self.num_outcomes
        shape = (*slab.shape[:-1], width)
        uniform = torch.rand(shape, generator=generator, dtype=prob.dtype).to(prob.device)
        gates = (uniform < prob).to(slab.dtype).expand_as(slab)
        return {"gates": gates, "deltas": gates * slab}


class HorseshoePrior(ArcPrior):
    r"""Regularized horseshoe: :math:`\delta \sim N(0, \tilde s^2)`, one scale a change.

    .. math::
        \tilde s^{-2} = (\tau \lambda_a)^{-2} + c^{-2}, \quad
        \lambda_a \sim C^+(0, 1), \quad \tau \sim C^+(0, \tau_0), \quad
        c^2 \sim \mathrm{InvGamma}(\nu/2, \nu s^2/2)

    Args:
        expected_num_nonzero: m in :math:`\tau_0 = \frac{m}{A - m} \cdot` (standard error of a
            leaf's weight); default a fifth of the arcs.
        global_scale: Fixes :math:`\tau`, in outcome per unit of latent.
        slab_scale: s, the scale of large changes, in outcome per unit of latent; default one
            standard deviation of the outcome.
        slab_df: Degrees of freedom :math:`\nu` of the slab.
        root_scale: Standard deviation of the root weights, or ``None`` to learn one per latent.

    Source:
        Piironen & Vehtari, Electronic Journal of Statistics 11 (2017) 5018.
    """

    def __init__(
        self,
        expected_num_nonzero: float | None = None,
        *,
        global_scale: float | Tensor | None = None,
        slab_scale: float | None = None,
        slab_df: float = 4.0,
        root_scale: float | Tensor | None = None,
    ) -> None:
        super().__init__(
            expected_num_nonzero=expected_num_nonzero,
            global_scale=global_scale,
            slab_scale=slab_scale,
            slab_df=slab_df,
            root_scale=root_scale,
        )
        as_fixed(expected_num_nonzero, "expected_num_nonzero")
        as_fixed(slab_df, "slab_df")
        self.global_scale_value = as_fixed(global_scale, "global_scale")
        self.slab_scale_value = as_fixed(slab_scale, "slab_scale")

    def _build_deltas(self, tree: Tree, standard_error: float) -> None:
        expected = self.description["expected_num_nonzero"]
        share = _share(0.2 * tree.num_arcs if expected is None else float(expected), tree.num_arcs)
        # One scale a weight and outcome: the units of the outcomes may differ.
        shape = (self.num_weights, self.num_outcomes)
        fixed = self.global_scale_value
        self.global_scale = HalfCauchyScale(
            "global_scale",
            shape,
            None if fixed is None else spread_fixed(fixed, shape, "global_scale") / self.unit,
            scale=share / (1 - share) * standard_error,
        )
        self.local_scale = HalfCauchyScale("local_scale", self.delta_shape, None, scale=1.0)
        slab = torch.ones(shape)
        if self.slab_scale_value is not None:
            slab = spread_fixed(self.slab_scale_value, shape, "slab_scale") / self.unit
        self.slab_scale = SlabScale(
            "slab_scale", shape, None, scale=slab, df=self.description["slab_df"]
        )

    def _sample_deltas(self) -> Tensor:
        scale = self.global_scale().unsqueeze(-3) * self.local_scale()
        slab = self.slab_scale().unsqueeze(-3)
        # c s / sqrt(c^2 + s^2) with the larger of the two factored out, so nothing overflows.
        regularized = slab * scale / torch.hypot(slab, scale)
        return pyro.sample(
            "deltas", dist.Normal(torch.zeros_like(regularized), regularized).to_event(3)
        )

    def draw_changes(
        self,
        values: dict[str, Tensor],
        generator: torch.Generator,
        relative_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See :meth:`ArcPrior.draw_changes`."""
        whole, slab = values["global_scale"].unsqueeze(-3), values["slab_scale"].unsqueeze(-3)
        num_arcs = self.num_arcs if relative_length is None else len(relative_length)
        noise = self._noise(len(whole), num_arcs, generator)
        uniform = torch.rand(noise.shape, generator=generator, dtype=noise.dtype).to(noise)
        scale = whole * torch.tan(0.5 * math.pi * uniform)  # half-Cauchy by its quantiles
        return {"deltas": slab * scale / torch.hypot(slab, scale) * noise}


def _share(expected: float, num_arcs: int) -> float:
    """Expected share of changed arcs, refused where it is no probability."""
    if not 0 < expected < num_arcs:
        raise DataError(
            f"expected_num_nonzero={expected:g} must be above 0 and below the number of arcs, "
            f"{num_arcs}: it counts changed arcs per latent and outcome"
        )
    return expected / num_arcs


def _rate_for(expected: float, relative_length: Tensor) -> Tensor:
    """Rate of an arc of mean length that gives this expected number of changes over all arcs."""
    usable = int((relative_length > 0).sum())
    _share(expected, usable)
    low, high = -60.0, 60.0  # logit of the rate; the expected number grows with it
    for _ in range(200):
        middle = (low + high) / 2
        log_keep = -torch.nn.functional.softplus(torch.tensor(middle, dtype=torch.float64))
        number = -torch.expm1(relative_length.double() * log_keep).sum().item()
        low, high = (middle, high) if number < expected else (low, middle)
    return torch.sigmoid(torch.tensor(middle)).to(torch.get_default_dtype())
