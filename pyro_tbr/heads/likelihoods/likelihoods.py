"""Likelihoods: from a linear predictor to the distribution of an outcome.

Every likelihood maps a predictor (N, Q) to a distribution, and gives the expected log density under
a Gaussian predictor: what an ELBO needs. Missing outcomes (NaN) are masked by the model, not here.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_tbr.heads.hyper.hyperparameters import PositiveScale, as_fixed, spread_fixed
from pyro_tbr.heads.local_params import LocalParamsModule


class NoiseMoments(NamedTuple):
    """What an expected log density needs to know about an uncertain noise scale.

    Attributes:
        inverse_square: E[1 / noise_scale^2], (Q,).
        log: E[log noise_scale], (Q,).
    """

    inverse_square: Tensor
    log: Tensor


class Likelihood(LocalParamsModule):
    """Maps a linear predictor to a distribution of the outcome; abstract.

    Attributes:
        binary: Outcomes are 0 or 1, so they are neither centred nor scaled.
        interval: What lower and upper of a prediction bound: ``"outcome"``, or ``"mean"``.
        noise_scale: The noise as a hyperparameter (Q,), or ``None`` where there is none.
    """

    binary: bool = False
    interval: str = "outcome"

    def __init__(self, **description: Any) -> None:
        super().__init__()
        self.noise_scale: PositiveScale | None = None
        self.description = description

    def build(self, num_outcomes: int, *, outcome_scale: Tensor | None = None) -> Likelihood:
        """This likelihood for Q outcomes, as a new module.

        Args:
            num_outcomes: Q.
            outcome_scale: (Q,), the user's units in one unit of the outcomes the model sees.
        """
        del num_outcomes, outcome_scale
        return copy.deepcopy(self)

    def sample_noise(self) -> Tensor | None:
        """Site ``noise_scale`` (Q,), or ``None``."""
        return None if self.noise_scale is None else self.noise_scale()

    def forward(self, predictor: Tensor, noise_scale: Tensor | None) -> dist.TorchDistribution:
        """Distribution of every outcome, batch shape (*B, N, Q)."""
        raise NotImplementedError

    def expected_log_prob(
        self, y: Tensor, mean: Tensor, var: Tensor, noise: NoiseMoments | None
    ) -> Tensor:
        """E[log p(y | f)] for f ~ N(mean, var), each (N, Q)."""
        raise NotImplementedError

    def working_response(self, y: Tensor, predictor: Tensor) -> tuple[Tensor, Tensor]:
        """Quadratic expansion in the predictor: precision w and response r, each (N, Q).

        The log density is ``-w (f - r)^2 / 2`` up to a constant, near ``predictor``; for Gaussian
        outcomes in units of 1 / noise variance, and exact.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.description.items() if v is not None)
        return f"{type(self).__name__}({given})"


class GaussianLikelihood(Likelihood):
    """Normal outcomes with one noise scale an outcome.

    Args:
        scale: Noise standard deviation in the outcome's unit, a number or (Q,); ``None``: learnt.
    """

    def __init__(self, scale: float | Tensor | None = None) -> None:
        super().__init__(scale=scale)
        self.scale_value = as_fixed(scale, "scale")

    def build(self, num_outcomes: int, *, outcome_scale: Tensor | None = None) -> Likelihood:
        """See :meth:`Likelihood.build`."""
        built = copy.deepcopy(self)
        fixed = self.scale_value
        if fixed is not None:
            unit = torch.ones(num_outcomes) if outcome_scale is None else outcome_scale
            fixed = spread_fixed(fixed, (num_outcomes,), "scale") / unit.to(fixed.dtype)
        # Wide: a noise of a hundredth of the outcome's spread costs it only some 8 nats.
        built.noise_scale = PositiveScale(
            "noise_scale", (num_outcomes,), fixed, median=0.5, spread=1.5
        )
        return built

    def forward(self, predictor: Tensor, noise_scale: Tensor | None) -> dist.TorchDistribution:
        """Normal(predictor, noise_scale)."""
        assert noise_scale is not None  # build() gave it
        return dist.Normal(predictor, noise_scale)

    def expected_log_prob(
        self, y: Tensor, mean: Tensor, var: Tensor, noise: NoiseMoments | None
    ) -> Tensor:
        """Closed form."""
        assert noise is not None  # build() gave it
        square = (y - mean).square() + var
        return -0.5 * (square * noise.inverse_square + math.log(2 * math.pi)) - noise.log

    def working_response(self, y: Tensor, predictor: Tensor) -> tuple[Tensor, Tensor]:
        """Precision 1 (in units of the noise's) and the outcome itself."""
        return torch.ones_like(y), y


class BernoulliLikelihood(Likelihood):
    """Outcomes 0 or 1 with a logit predictor."""

    binary = True
    interval = "mean"
    _nodes, _weights = np.polynomial.hermite_e.hermegauss(20)

    def forward(self, predictor: Tensor, noise_scale: Tensor | None) -> dist.TorchDistribution:
        """Bernoulli(logits=predictor)."""
        return dist.Bernoulli(logits=predictor)

    def expected_log_prob(
        self, y: Tensor, mean: Tensor, var: Tensor, noise: NoiseMoments | None
    ) -> Tensor:
        """Gauss-Hermite quadrature with 20 nodes."""
        nodes, weights = mean.new_tensor(self._nodes), mean.new_tensor(self._weights)
        logits = mean[..., None] + var.clamp(min=0).add(1e-12).sqrt()[..., None] * nodes
        values = logsigmoid((2 * y - 1)[..., None] * logits)
        return values @ (weights / math.sqrt(2 * math.pi))

    def working_response(self, y: Tensor, predictor: Tensor) -> tuple[Tensor, Tensor]:
        """Polya-Gamma expansion: precision tanh(f/2) / 2f, response (y - 1/2) / precision.

        Source:
            Polson, Scott & Windle, JASA 108 (2013) 1339; Jaakkola & Jordan (2000).
        """
        half = predictor.abs().clamp(min=1e-4) / 2
        precision = torch.tanh(half) / (4 * half)
        return precision, (y - 0.5) / precision


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": GaussianLikelihood,
    "bernoulli": BernoulliLikelihood,
}
