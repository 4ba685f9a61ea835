"""Normal outcomes."""

import math
from collections.abc import Mapping
from typing import cast

import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import (
    HyperFactor,
    HyperFactors,
    LogNormalMoments,
    NodeScale,
    NodeScaleFactor,
    PositiveScale,
    ScaleFactor,
    as_fixed,
    spread_fixed,
)
from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.expectations import SiteTerms
from pyro_tbr.heads.likelihoods.scaling import Scaling, standardised
from pyro_tbr.tree.readers.naming import listed

# Wide: a noise of a hundredth of the outcome's spread costs it only some 8 nats.
_MEDIAN, _SPREAD = 0.5, 1.5
# Of the logarithms of environments' noise around the common one: mostly from 0.02 to 1.
_MEDIAN_RATIO, _SPREAD_RATIO = 0.15, 1.0
_NOISES = ("common", "by_environment")
_BY_NODE = "node_noise_scale"


class GaussianLikelihood(Likelihood):
    r"""Normal outcomes, noise of a standard deviation each, site ``noise_scale`` (Q,).

    By default every node v has its own, site ``node_noise_scale`` (V, Q),

    .. math::
        \log s_v \sim N(\log s, c^2)

    around the common s, c the site ``noise_spread`` (Q,). Both are learnt, so where environments
    differ little, or have few rows, their noise is drawn to the common one; the noise of a leaf
    without data is a draw.

    Args:
        scale: Noise standard deviation in the outcome's unit, a number or (Q,); ``None``: learnt.
        noise: ``"by_environment"``, or ``"common"`` to all; ``None``: common where ``scale`` is
            given, else by environment.
    """

    exact = True

    def __init__(self, scale: float | Tensor | None = None, noise: str | None = None) -> None:
        super().__init__(scale=scale, noise=noise)
        if noise not in (None, *_NOISES):
            raise DataError(f"noise={noise!r} is not known: give one of {listed(_NOISES)}")
        self.scale_value = as_fixed(scale, "scale")
        self.by_node = (noise or ("by_environment" if scale is None else "common")) != "common"

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        fixed = self.scale_value
        if fixed is not None:
            fixed = spread_fixed(fixed, (num_outcomes,), "scale").to(unit) / unit
        self.noise_scale = PositiveScale(
            "noise_scale", (num_outcomes,), fixed, median=_MEDIAN, spread=_SPREAD, unit="outcome"
        )
        if self.by_node:
            self.noise_spread = PositiveScale(
                "noise_spread", (num_outcomes,), None, median=_MEDIAN_RATIO, spread=_SPREAD_RATIO
            )
            self.node_noise_scale = NodeScale(
                _BY_NODE, self.num_nodes, self.noise_scale, self.noise_spread
            )

    def factors(self) -> dict[str, HyperFactor]:
        """See :meth:`Likelihood.factors`; that of the nodes knows those of its parents."""
        found = super().factors()
        if self.by_node:
            _nodes(found).linked(*_parents(found))
        return found

    def sample_nuisance(self) -> dict[str, Tensor]:
        """See :meth:`Likelihood.sample_nuisance`."""
        if not self.by_node:
            return super().sample_nuisance()
        common, spread = self.noise_scale(), self.noise_spread()
        nodes = self.node_noise_scale(common, spread)
        return {"noise_scale": common, "noise_spread": spread, _BY_NODE: nodes}

    def guide_sites(self, nuisance: HyperFactors) -> None:
        """See :meth:`Likelihood.guide_sites`."""
        if not self.by_node:
            super().guide_sites(nuisance)
            return
        _nodes(nuisance)(*(factor() for factor in _parents(nuisance)))

    def draw_nuisance(
        self, nuisance: HyperFactors, num_draws: int, generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.draw_nuisance`; of nodes without rows given the parents' draws."""
        if not self.by_node:
            return super().draw_nuisance(nuisance, num_draws, generator)
        common, spread = (factor.sample(num_draws, generator) for factor in _parents(nuisance))
        nodes = _nodes(nuisance).draw(common, spread, generator)
        return {"noise_scale": common, "noise_spread": spread, _BY_NODE: nodes}

    def know_nodes(self, nuisance: HyperFactors, nodes: Tensor, *, only: bool = False) -> None:
        """See :meth:`Likelihood.know_nodes`."""
        if self.by_node:
            _nodes(nuisance).see(nodes, only=only)

    def forget_nodes(self, nuisance: HyperFactors) -> None:
        """See :meth:`Likelihood.forget_nodes`."""
        if self.by_node:
            _nodes(nuisance).forget()

    def at_nodes(self, nuisance: HyperFactors, index: Tensor) -> HyperFactors:
        """See :meth:`Likelihood.at_nodes`: expectations of each node's noise scale, (n, Q)."""
        if not self.by_node:
            return nuisance
        return cast(HyperFactors, {"noise_scale": _nodes(nuisance).at_nodes(index)})

    def with_new_node(
        self, values: Mapping[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.with_new_node`."""
        if not self.by_node:
            return dict(values)
        common, spread = values["noise_scale"], values["noise_spread"]
        noise = torch.randn(common.shape, generator=generator, dtype=common.dtype)
        new = torch.exp(common.log() + spread * noise.to(common.device)).unsqueeze(1)
        return dict(values) | {_BY_NODE: torch.cat([values[_BY_NODE], new], 1)}

    def values_at_nodes(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Likelihood.values_at_nodes`."""
        if not self.by_node:
            return dict(values)
        return {"noise_scale": values[_BY_NODE].index_select(-2, index)}

    def standardise(self, y: Tensor, *, intercept: bool) -> Scaling:
        """Mean 0 and standard deviation 1, see :func:`standardised`."""
        return standardised(y, intercept=intercept)

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Normal(predictor, noise_scale)."""
        return dist.Normal(predictor, nuisance["noise_scale"])

    def expected_log_prob(
        self, y: Tensor, mean: Tensor, var: Tensor, nuisance: HyperFactors
    ) -> Tensor:
        """Closed form."""
        square = (self.filled(y) - mean).square() + var
        return self.site_norm(nuisance) - 0.5 * square * self.site_scale(nuisance)

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: HyperFactors) -> SiteTerms:
        """Precision 1 in units of the noise's, and the outcome itself."""
        response = self.filled(y.double())
        log_norm = self.site_norm(nuisance).double().expand_as(response)
        return SiteTerms(torch.ones_like(response), response, log_norm)

    def site_scale(self, nuisance: HyperFactors) -> Tensor:
        """E[1 / noise variance], (Q,)."""
        return _noise(nuisance).mean_power(-2.0)

    def site_norm(self, nuisance: HyperFactors) -> Tensor:
        """E[log density at the mean], (Q,)."""
        return -_noise(nuisance).mean_log() - 0.5 * math.log(2 * math.pi)

    def learn(
        self, nuisance: HyperFactors, y: Tensor, mean: Tensor, var: Tensor, weights: Tensor
    ) -> None:
        """See :meth:`Likelihood.learn`; closed form, for a noise common to all nodes."""
        assert not self.by_node, "which node a row is at is not said here"
        y, weights = self.filled(y.detach().double()), weights.detach().double()
        square = (y - mean.detach().double()).square() + var.detach().double()
        parts = (weights * square, weights, weights * y.square())
        square, count, total = (part.sum(0, keepdim=True) for part in parts)
        anywhere = torch.zeros(1, dtype=torch.int64, device=y.device)
        self.learn_from_residuals(nuisance, square, count, anywhere, total)

    def learn_from_residuals(
        self,
        nuisance: HyperFactors,
        square: Tensor,
        count: Tensor,
        nodes: Tensor,
        total: Tensor | None = None,
        *,
        common: bool = True,
    ) -> None:
        """See :meth:`Likelihood.learn_from_residuals`.

        An outcome that the predictor fits exactly, constant in every environment say, leaves no
        residual but rounding: of squares of outcomes in the precision the model works in. That
        share of them is the least noise variance; the noise is then some thousandth of the
        outcome's spread or less in single precision, and finite.
        """
        noise = cast(ScaleFactor, nuisance["noise_scale"])
        least = torch.finfo(noise.scale.dtype).eps * (count if total is None else total)
        if self.by_node:
            square = torch.maximum(square.double(), least.double())
            _nodes(nuisance).learn(square, count, nodes, common=common)
        elif common:
            square = torch.maximum(square.double().sum(0), least.double().sum(0))
            noise.update(square, count.sum(0))

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: HyperFactors
    ) -> tuple[Tensor, Tensor]:
        """Closed form."""
        return mean, var + _noise(nuisance).mean_power(2.0)


def _noise(nuisance: HyperFactors) -> ScaleFactor | LogNormalMoments:
    """Expectations of the rows' noise scale, of factors as rows see them."""
    assert _BY_NODE not in nuisance, "say at which nodes: Likelihood.at_nodes"
    return cast(ScaleFactor, nuisance["noise_scale"])


def _nodes(nuisance: HyperFactors) -> NodeScaleFactor:
    return cast(NodeScaleFactor, nuisance[_BY_NODE])


def _parents(nuisance: HyperFactors) -> tuple[ScaleFactor, ScaleFactor]:
    """Factors of the common noise scale, and of the spread of the nodes' around it."""
    return cast(ScaleFactor, nuisance["noise_scale"]), cast(ScaleFactor, nuisance["noise_spread"])
