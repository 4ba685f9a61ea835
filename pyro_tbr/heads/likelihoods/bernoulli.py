"""Binary outcomes."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import HyperFactors
from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.expectations import SiteTerms, touching
from pyro_tbr.tree.readers.naming import listed

# The logistic function as a mixture of eight normal distribution functions around zero: their
# weights and precisions' roots. Off by at most 2e-9 everywhere, its slope by 1.3e-8.
# Monahan & Stefanski (1992), in Balakrishnan (ed.), Handbook of the Logistic Distribution.
_MIXTURE = (
    (0.003246343272134, 1.365340806296348),
    (0.051517477033972, 1.059523971016916),
    (0.195077912673858, 0.830791313765644),
    (0.315569823632818, 0.650732166639391),
    (0.274149576158423, 0.508135425366489),
    (0.131076880695470, 0.396313345166341),
    (0.027912418727972, 0.308904252267995),
    (0.001449567805354, 0.238212616409306),
)
_LEAST_PRECISION = 1e-8  # of a row's site: far out nothing is known but the slope


class BernoulliLikelihood(Likelihood):
    r"""Outcomes 0 or 1 with a logit predictor.

    Expectations of :math:`\sigma`, of its slope and of its integral under a normal predictor have
    closed forms where :math:`\sigma` is a mixture of normal distribution functions, whatever the
    variance; with eight they are right to 1e-8.
    """

    interval = "mean"
    predictor_scale = 2.5  # of the sum of a logistic variable and as much again

    def check(self, y: Outcomes) -> None:
        """Refuses values other than 0, 1 and NaN."""
        bad = ~np.isnan(y.values) & (y.values != 0) & (y.values != 1)
        if bad.any():
            held = listed(np.unique(y.values[~np.isnan(y.values)]).tolist(), 4)
            what = f"that must be 0 or 1 and are not (y holds {held})"
            y.refuse(bad, what, "recode it to 0 and 1, or choose another likelihood")

    def check_informative(self, y: Outcomes) -> None:
        """Refuses a column that holds a single value."""
        for name, column in zip(y.names, y.values.T, strict=True):
            seen = column[~np.isnan(column)]
            if len(seen) and (seen == seen[0]).all():
                rows = "rows" if len(seen) == len(column) else "observed rows"
                raise DataError(
                    f"y has a single value {seen[0]:g} in all {len(seen)} {rows} of column "
                    f"{name!r}: there is nothing to learn, give both 0 and 1 or drop this outcome"
                )

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Bernoulli(logits=predictor)."""
        del nuisance
        return dist.Bernoulli(logits=predictor)

    def expected_log_prob(
        self, y: Tensor, mean: Tensor, var: Tensor, nuisance: HyperFactors
    ) -> Tensor:
        """Closed form."""
        sign = 1 - 2 * self.filled(y)
        return -_expected(sign * mean, var).softplus

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: HyperFactors) -> SiteTerms:
        """Precision E[sigma (1 - sigma)], response ``mean + (y - E sigma) / precision``.

        Predictors far out, where the slope is nothing, have a least precision of 1e-8.
        """
        sign = 1 - 2 * self.filled(y.double())
        mean, var = mean.detach().double(), var.detach().double()
        miss = _expected(sign * mean, var)  # of the chance of the other outcome
        precision = miss.slope.clamp(min=_LEAST_PRECISION)
        return touching(-miss.softplus, mean, var, precision, -sign * miss.sigmoid)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: HyperFactors
    ) -> tuple[Tensor, Tensor]:
        """The probability p and p (1 - p)."""
        prob = _expected(mean, var).sigmoid.clamp(0, 1)  # weights sum to 1 but for rounding
        return prob, prob * (1 - prob)


class _Expected(NamedTuple):
    """Expectations under a normal predictor, each of its shape."""

    softplus: Tensor
    sigmoid: Tensor
    slope: Tensor


def _expected(mean: Tensor, var: Tensor) -> _Expected:
    """E[log(1 + exp f)], E[sigma(f)] and E[sigma(f) (1 - sigma(f))] for f ~ N(mean, var)."""
    sums = [torch.zeros_like(mean) for _ in _Expected._fields]
    for weight, steepness in _MIXTURE:
        sd = (var.clamp(min=0) + steepness**-2).sqrt()
        standard = mean / sd
        below = torch.special.ndtr(standard)
        density = torch.exp(-0.5 * standard.square()) / math.sqrt(2 * math.pi)
        terms = (mean * below + sd * density, below, density / sd)
        sums = [total + weight * term for total, term in zip(sums, terms, strict=True)]
    return _Expected(*sums)
