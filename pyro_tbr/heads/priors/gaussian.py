"""Dense changes: random slopes along the tree."""

import torch
from torch import Tensor

from pyro_tbr.heads.hyper.base import as_fixed
from pyro_tbr.heads.priors.base import ArcPrior
from pyro_tbr.heads.priors.classes import ChangeSums, Classes, ExpectedLaw, Values, one_class
from pyro_tbr.heads.priors.factor import PriorFactor
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

    def _build_changes(self, tree: Tree, standard_error: float) -> None:
        self.slab_scale = self._scale("slab_scale", self.scale_value, median=0.3)

    def classes(self, values: Values, relative_length: Tensor | None = None) -> Classes:
        """One class around zero."""
        var = values["slab_scale"].unsqueeze(-3).unsqueeze(-1).square()
        return Classes(torch.ones_like(var), torch.zeros_like(var), var)

    def factor(self) -> PriorFactor:
        """See :meth:`ArcPrior.factor`."""
        return _GaussianFactor(self)


class _GaussianFactor(PriorFactor):
    """Closed forms."""

    def law(self, relative_length: Tensor | None = None) -> ExpectedLaw:
        """See :meth:`PriorFactor.law`."""
        scale = self.scale("slab_scale")
        parts = scale.mean_power(-2.0), scale.mean_log(), scale.mean_power(2.0)
        return one_class(*(part.unsqueeze(0) for part in parts))

    def learn_changes(self, sums: ChangeSums) -> None:
        """See :meth:`PriorFactor.learn_changes`."""
        self.update_scale("slab_scale", sums.second.sum((0, -1)), sums.count.sum((0, -1)))

    def update_scale(
        self, name: str, square: Tensor, count: Tensor, size: Tensor | float = 0.0
    ) -> None:
        """See :meth:`PriorFactor.update_scale`."""
        if self.prior.pooled:
            first = self.prior.num_latents
            square, count = (
                torch.cat([part[:first].sum(0).expand(first, -1), part[first:]])
                for part in (square, count)
            )
        super().update_scale(name, square, count, size)
