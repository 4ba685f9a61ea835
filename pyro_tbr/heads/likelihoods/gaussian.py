"""Normal outcomes."""

import math
from collections.abc import Mapping
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.hyper import HyperFactors, PositiveScale, ScaleFactor, as_fixed, spread_fixed
from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.expectations import SiteTerms
from pyro_tbr.heads.likelihoods.scaling import Scaling, standardised

# Wide: a noise of a hundredth of the outcome's spread costs it only some 8 nats.
_MEDIAN, _SPREAD = 0.5, 1.5


class GaussianLikelihood(Likelihood):
    """Normal outcomes with one noise scale an outcome, site ``noise_scale`` (Q,).

    Args:
        scale: Noise standard deviation in the outcome's unit, a number or (Q,); ``None``: learnt.
    """

    exact = True

    def __init__(self, scale: float | Tensor | None = None) -> None:
        super().__init__(scale=scale)
        self.scale_value = as_fixed(scale, "scale")

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        fixed = self.scale_value
        if fixed is not None:
            fixed = spread_fixed(fixed, (num_outcomes,), "scale").to(unit) / unit
        self.noise_scale = PositiveScale(
            "noise_scale", (num_outcomes,), fixed, median=_MEDIAN, spread=_SPREAD, unit="outcome"
        )

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
        """See :meth:`Likelihood.learn`; closed form."""
        y, weights = self.filled(y.detach().double()), weights.detach().double()
        square = (y - mean.detach().double()).square() + var.detach().double()
        total = weights * y.square()
        self.learn_from_residuals(nuisance, (weights * square).sum(0), weights.sum(0), total.sum(0))

    def learn_from_residuals(
        self, nuisance: HyperFactors, square: Tensor, count: Tensor, total: Tensor | None = None
    ) -> None:
        """See :meth:`Likelihood.learn_from_residuals`.

        An outcome that the predictor fits exactly, constant in every environment say, leaves no
        residual but rounding: of squares of outcomes in the precision the model works in. That
        share of them is the least noise variance; the noise is then some thousandth of the
        outcome's spread or less in single precision, and finite.
        """
        noise = _noise(nuisance)
        least = torch.finfo(noise.scale.dtype).eps * (count if total is None else total)
        noise.update(torch.maximum(square.double(), least.double()), count)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: HyperFactors
    ) -> tuple[Tensor, Tensor]:
        """Closed form."""
        return mean, var + _noise(nuisance).mean_power(2.0)


def _noise(nuisance: HyperFactors) -> ScaleFactor:
    return cast(ScaleFactor, nuisance["noise_scale"])
