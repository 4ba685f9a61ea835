"""Counts: Poisson and negative binomial outcomes with a log link and an exposure."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.heads.hyper import PositiveScale, ScaleFactor, as_fixed, spread_fixed
from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.binomial import refuse_all_zero, refuse_no_counts
from pyro_tbr.heads.likelihoods.distributions import NegativeBinomial, Poisson
from pyro_tbr.heads.likelihoods.expectations import Nuisance
from pyro_tbr.heads.likelihoods.logistic import expected_logistic
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.heads.likelihoods.support import known_value, or_default

_EXPOSURE = "exposure"
_AT_LEAST = 0.5  # is added to a count where its logarithm is asked for
_LARGEST_LOG = 700.0  # of a rate that double precision holds
# Half of the hyperprior lies between a third and 2.7 times; counts of genes have 0.1 to 1.
_MEDIAN, _SPREAD = 0.3, 1.5


class PoissonLikelihood(Likelihood):
    r"""Counts with a log link: :math:`y \sim \mathrm{Poisson}(e \exp f)`, e the row's ``exposure``.

    An exposure (time watched, size of the library) is 1 where nothing is said. The model's unit of
    it is such that a predictor of zero is the mean rate of each outcome, if there is an intercept.
    """

    discrete = True
    takes = (_EXPOSURE,)

    def check(self, y: Outcomes) -> None:
        """Refuses what is no whole number from 0 on."""
        refuse_no_counts(y)

    def check_informative(self, y: Outcomes) -> None:
        """Refuses a column that is all zero."""
        refuse_all_zero(y)

    def standardise(self, y: Tensor, *, intercept: bool) -> Scaling:
        """The predictor is shifted by the logarithm of the mean rate; counts stay."""
        return self.units(y, {}, intercept=intercept)

    def units(self, y: Tensor, values: Mapping[str, Tensor], *, intercept: bool) -> Scaling:
        """See :meth:`standardise`; a rate is a count over its exposure."""
        y, observed = y.double(), (~torch.isnan(y)).double()
        exposure = values.get(_EXPOSURE, torch.ones_like(y))
        rate = y.nan_to_num().sum(0) / (observed * exposure).sum(0)
        loc = rate.log() if intercept else torch.zeros_like(rate)
        return Scaling(loc, torch.ones_like(loc), torch.zeros_like(loc, dtype=torch.bool))

    def row_values(
        self, values: Mapping[str, Tensor], scaling: Scaling, num_rows: int
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.row_values`; an exposure of 1 by default."""
        exposure = or_default(values, _EXPOSURE, scaling, num_rows)
        return {_EXPOSURE: exposure * scaling.loc.cpu().exp()}

    def start_moments(self, y: Tensor, nuisance: Nuisance) -> tuple[Tensor, Tensor]:
        """At each count itself: steps from elsewhere overshoot where a rate is far from it."""
        log_rate = (self.filled(y) + _AT_LEAST).log() - _log_exposure(nuisance, y)
        return log_rate, torch.zeros_like(log_rate)

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Poisson(exposure * exp(predictor))."""
        return Poisson(_rate(predictor + _log_exposure(nuisance, predictor)))

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Closed form."""
        y, log_rate = self.filled(y), mean + _log_exposure(nuisance, mean)
        return y * log_rate - _rate(log_rate + 0.5 * var) - torch.lgamma(y + 1)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Closed form: those of a log-normal rate, and the counts' own variance."""
        first, between = _rate_moments(mean + _log_exposure(nuisance, mean), var)
        return first, first + between


class NegativeBinomialLikelihood(PoissonLikelihood):
    r"""Counts of variance :math:`\mu + \phi \mu^2`, with :math:`\mu = e \exp f` as for Poisson.

    The site ``overdispersion`` (Q,) is :math:`\phi`; towards 0 counts become Poisson. It is common
    to all environments. With :math:`r = 1 / \phi`

    .. math::
        \log p(y \mid f) = \log \frac{\Gamma(y + r)}{\Gamma(r) \, y!} + y (f - \log r)
        - (y + r) \log (1 + e^{f - \log r})

    whose last term has a closed form under normal f and log-normal r; the first is a Gauss-Hermite
    sum.

    Args:
        overdispersion: A number or (Q,); ``None``: learnt.
    """

    def __init__(self, overdispersion: float | Tensor | None = None) -> None:
        super().__init__(overdispersion=overdispersion)
        self.fixed_value = as_fixed(overdispersion, "overdispersion")

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        fixed = self.fixed_value
        if fixed is not None:
            fixed = spread_fixed(fixed, (num_outcomes,), "overdispersion").to(unit)
        self.overdispersion = PositiveScale(
            "overdispersion", (num_outcomes,), fixed, median=_MEDIAN, spread=_SPREAD
        )

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """NegativeBinomial of mean exposure * exp(predictor)."""
        size = 1 / nuisance["overdispersion"]
        logits = predictor + _log_exposure(nuisance, predictor) - size.log()
        return NegativeBinomial(size.expand(logits.shape), logits=logits)

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """See the class; exact but for the sum over the overdispersion."""
        y, factor = self.filled(y), _dispersion(nuisance)
        log_phi, spread = factor.log_moments()
        odds = mean + _log_exposure(nuisance, mean) + log_phi
        plain = expected_logistic(odds, var + spread).softplus
        # Weighing by r moves the logarithm of phi by its variance.
        tilted = expected_logistic(odds - spread, var + spread).softplus
        points, weights = factor.points()
        size = (1 / points).unsqueeze(1)
        ways = torch.lgamma(y + size) - torch.lgamma(size)
        ways = torch.einsum("t,tnq->nq", weights.to(ways), ways) - torch.lgamma(y + 1)
        return ways + y * (odds - plain) - factor.mean_power(-1.0) * tilted

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Closed form."""
        first, between = _rate_moments(mean + _log_exposure(nuisance, mean), var)
        extra = _dispersion(nuisance).mean_power(1.0) * (between + first.square())
        return first, first + extra + between


def _dispersion(nuisance: Nuisance) -> ScaleFactor:
    factor = nuisance["overdispersion"]
    assert isinstance(factor, ScaleFactor)
    return factor


def _log_exposure(nuisance: Nuisance | Mapping[str, Tensor], like: Tensor) -> Tensor:
    return known_value(nuisance, _EXPOSURE, like).log()


def _rate(log_rate: Tensor) -> Tensor:
    return log_rate.clamp(max=_LARGEST_LOG).exp()


def _rate_moments(log_rate: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a log-normal rate."""
    first = _rate(log_rate + 0.5 * var)
    return first, first.square() * torch.expm1(var.clamp(max=_LARGEST_LOG))
