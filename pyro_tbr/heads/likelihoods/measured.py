"""Normal outcomes whose measurement errors are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.hyper import ScaleFactor
from pyro_tbr.heads.likelihoods.expectations import Nuisance
from pyro_tbr.heads.likelihoods.noise import NoiseLikelihood, noise_of
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.heads.likelihoods.support import known_value, or_default

Y_SE = "y_se"


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
