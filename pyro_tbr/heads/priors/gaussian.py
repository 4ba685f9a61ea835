"""Dense changes: random slopes along the tree."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.hyper.hyperparameters import as_fixed
from pyro_tbr.heads.priors.arc_prior import ArcPrior
from pyro_tbr.tree import Tree


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
