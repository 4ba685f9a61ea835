"""Normal outcomes, each alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.hyper import HyperFactors
from pyro_tbr.heads.likelihoods.base import SeenRows
from pyro_tbr.heads.likelihoods.expectations import Nuisance, SiteTerms
from pyro_tbr.heads.likelihoods.noise import NoiseLikelihood, noise_of


class NormalLikelihood(NoiseLikelihood):
    """Normal outcomes around their predictors by the noise of :class:`NoiseLikelihood`.

    What ``GaussianLikelihood`` is once it is known that rows bring nothing along; arguments are
    those of :class:`NoiseLikelihood`.
    """

    abstract = True
    exact = True

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Normal(predictor, noise_scale)."""
        return dist.Normal(predictor, nuisance["noise_scale"])

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Closed form."""
        square = (self.filled(y) - mean).square() + var
        return self.site_norm(nuisance) - 0.5 * square * self.site_scale(nuisance)

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> SiteTerms:
        """Precision 1 in units of the noise's, and the outcome itself."""
        response = self.filled(y.double())
        log_norm = self.site_norm(nuisance).double().expand_as(response)
        return SiteTerms(torch.ones_like(response), response, log_norm)

    def site_scale(self, nuisance: Nuisance) -> Tensor:
        """E[1 / noise variance], (Q,)."""
        return noise_of(nuisance).mean_power(-2.0)

    def site_norm(self, nuisance: Nuisance) -> Tensor:
        """E[log density at the mean], (Q,)."""
        return -noise_of(nuisance).mean_log() - 0.5 * math.log(2 * math.pi)

    def _learn(self, nuisance: HyperFactors, rows: SeenRows, *, common: bool) -> None:
        """See :meth:`Likelihood.learn`; closed form."""
        self.learn_noise(nuisance, rows, rows.square(), common=common)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Closed form."""
        return mean, var + noise_of(nuisance).mean_power(2.0)
