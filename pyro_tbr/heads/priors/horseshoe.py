"""Changes that are all there, most of them next to nothing."""

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.hyper import HalfCauchyScale, SlabScale, as_fixed
from pyro_tbr.heads.priors.base import ArcPrior, share_of
from pyro_tbr.heads.priors.classes import Classes, Values
from pyro_tbr.heads.priors.factor import PriorFactor
from pyro_tbr.heads.priors.horseshoe_classes import draw_half_cauchy
from pyro_tbr.heads.priors.horseshoe_factor import HorseshoeFactor, HorseshoeTreeFactor
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

    def _build_changes(self, tree: Tree, standard_error: float) -> None:
        expected = self.description["expected_num_nonzero"]
        expected = 0.2 * tree.num_arcs if expected is None else float(expected)
        share = share_of(expected, tree.num_arcs)
        # One scale a weight and outcome: the units of the outcomes may differ.
        shape = self.delta_shape[1:]
        fixed, median = self.global_scale_value, share / (1 - share) * standard_error
        fixed = None if fixed is None else self._in_unit(fixed, "global_scale")
        self.global_scale = HalfCauchyScale("global_scale", shape, fixed, scale=median)
        self.local_scale = HalfCauchyScale("local_scale", self.delta_shape, None, scale=1.0)
        slab = torch.ones(shape)
        if self.slab_scale_value is not None:
            slab = self._in_unit(self.slab_scale_value, "slab_scale")
        df = self.description["slab_df"]
        self.slab_scale = SlabScale("slab_scale", shape, None, scale=slab, df=df)

    def classes(self, values: Values, relative_length: Tensor | None = None) -> Classes:
        """One class, as wide as the scales say; ``local_scale`` is (*S, A', W, Q)."""
        wide = values["global_scale"].unsqueeze(-3) * values["local_scale"]
        slab = values["slab_scale"].unsqueeze(-3)
        # c s / sqrt(c^2 + s^2) with the larger of the two factored out, so nothing overflows.
        var = (slab * wide / torch.hypot(slab, wide)).square().unsqueeze(-1)
        return Classes(torch.ones_like(var), torch.zeros_like(var), var)

    def draw_changes(
        self, values: Values, generator: Generator, relative_length: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`ArcPrior.draw_changes`; local scales are drawn anew."""
        whole = values["global_scale"]
        num_arcs = self.num_arcs if relative_length is None else len(relative_length)
        shape = (len(whole), num_arcs, *whole.shape[1:])
        new = {**values, "local_scale": draw_half_cauchy(shape, generator, whole)}
        return super().draw_changes(new, generator, relative_length)

    def factor(self) -> PriorFactor:
        """See :meth:`ArcPrior.factor`."""
        return HorseshoeFactor(self)

    def tree_factor(self) -> PriorFactor:
        """See :meth:`ArcPrior.tree_factor`."""
        return HorseshoeTreeFactor(self)
