"""Changes that are all there, most of them next to nothing."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.hyper.hyperparameters import (
    HalfCauchyScale,
    SlabScale,
    as_fixed,
    spread_fixed,
)
from pyro_tbr.heads.priors.arc_prior import ArcPrior, share_of
from pyro_tbr.tree import Tree


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
        share = share_of(
            0.2 * tree.num_arcs if expected is None else float(expected), tree.num_arcs
        )
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
