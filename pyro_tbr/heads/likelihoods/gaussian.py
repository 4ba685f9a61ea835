"""Normal outcomes."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import HyperFactors, ScaleFactor
from pyro_tbr.heads.likelihoods.base import Likelihood, SeenRows
from pyro_tbr.heads.likelihoods.expectations import Nuisance, SiteTerms
from pyro_tbr.heads.likelihoods.noise import NoiseLikelihood, noise_of
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.heads.likelihoods.support import known_value, or_default

Y_SE = "y_se"


class GaussianLikelihood(NoiseLikelihood):
    r"""Normal outcomes, noise of a standard deviation each, site ``noise_scale`` (Q,).

    By default every environment has its own around a common one, see :class:`NoiseLikelihood`.
    Where rows have known measurement errors (``y_se``), their squares are added to the noise's,
    which is then common to all environments.

    Args:
        scale: Noise standard deviation in the outcome's unit, a number or (Q,); ``None``: learnt.
        noise: ``"by_environment"``, or ``"common"`` to all; ``None``: common where ``scale`` is
            given, else by environment.
    """

    exact = True
    takes: tuple[str, ...] = (Y_SE,)

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        super()._build(num_outcomes, unit)
        self.takes = ()  # had errors been given, this were another class

    def resolved(self, names: Sequence[Hashable], known: Collection[str]) -> Likelihood:
        """See :meth:`Likelihood.resolved`."""
        if Y_SE not in known:
            return self
        if self.description["noise"] == "by_environment":
            raise DataError(
                "noise='by_environment' together with y_se: the noise that is left beside known "
                "errors is common to all environments here; leave one of the two out"
            )
        return MeasuredGaussianLikelihood(scale=self.description["scale"], noise="common")

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


class MeasuredGaussianLikelihood(NoiseLikelihood):
    r"""Normal outcomes whose measurement errors are known: variance :math:`s^2 + e^2`.

    s is the noise, common to all environments, e the row's ``y_se``. What ``GaussianLikelihood``
    becomes where errors are given; rows are no normal sites whatever q of the noise is.
    """

    takes = (Y_SE,)

    def row_values(
        self, values: Mapping[str, Tensor], scaling: Scaling, num_rows: int
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.row_values`; no error by default."""
        error = or_default(values, Y_SE, scaling, num_rows)
        return {Y_SE: error / scaling.outcome_scale().cpu()}

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Normal(predictor, sqrt(noise_scale^2 + y_se^2))."""
        noise = nuisance["noise_scale"]
        error = known_value(nuisance, Y_SE, predictor)
        return dist.Normal(predictor, (noise.square() + error.square()).sqrt())

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Closed form in the predictor, a Gauss-Hermite sum over the noise."""
        square = (self.filled(y) - mean).square() + var
        noise, weights = cast(ScaleFactor, nuisance["noise_scale"]).points()
        whole = (
            noise.unsqueeze(1).square() + known_value(nuisance, Y_SE, mean).square()
        )  # (T, N, Q)
        each = -0.5 * (square / whole + (2 * math.pi * whole).log())
        return torch.einsum("t,tnq->nq", weights.to(each), each)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Closed form."""
        noise = noise_of(nuisance).mean_power(2.0)
        return mean, var + noise + known_value(nuisance, Y_SE, mean).square()
