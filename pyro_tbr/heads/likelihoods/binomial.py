"""Binary outcomes, and numbers of successes among trials."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError
from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.distributions import Binomial
from pyro_tbr.heads.likelihoods.expectations import Nuisance, SiteTerms, touching
from pyro_tbr.heads.likelihoods.logistic import Logistic, expected_logistic
from pyro_tbr.heads.likelihoods.scaling import Scaling
from pyro_tbr.heads.likelihoods.support import known_value, or_default
from pyro_tbr.tree.readers.naming import listed

_LEAST_PRECISION = 1e-8  # of a row's site: far out nothing is known but the slope
_TRIALS = "trials"


class BinomialLikelihood(Likelihood):
    r"""Successes among ``trials`` of each row and outcome, with a logit predictor.

    A row has 1 trial where nothing is said. Expectations of :math:`\sigma`, of its slope and of its
    integral under a normal predictor have closed forms, see ``logistic``.
    """

    predictor_scale = 2.5  # of the sum of a logistic variable and as much again
    discrete = True
    takes: tuple[str, ...] = (_TRIALS,)

    def check(self, y: Outcomes) -> None:
        """Refuses what is no whole number from 0 on."""
        refuse_no_counts(y)

    def check_with(self, y: Outcomes, values: Mapping[str, np.ndarray]) -> None:
        """Refuses more successes than trials; 1 trial a row where nothing is said."""
        trials = values.get(_TRIALS, np.ones_like(y.values))
        y.refuse(
            y.values > trials,
            "that are more than their row's trials",
            "give trials=, the number behind each count (1 where nothing is given)",
        )

    def check_informative(self, y: Outcomes) -> None:
        """Refuses a column without a success."""
        refuse_all_zero(y)

    def row_values(
        self, values: Mapping[str, Tensor], scaling: Scaling, num_rows: int
    ) -> dict[str, Tensor]:
        """See :meth:`Likelihood.row_values`; 1 trial by default."""
        return {name: or_default(values, name, scaling, num_rows) for name in self.takes}

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Binomial(trials, logits=predictor)."""
        return Binomial(known_value(nuisance, _TRIALS, predictor), logits=predictor)

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Closed form."""
        hits, trials = self._hits(y, nuisance)
        return _log_prob(hits, trials, mean, expected_logistic(mean, var))

    def site_terms(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> SiteTerms:
        """Precision trials E[sigma (1 - sigma)], response mean + (y - trials E sigma) / precision.

        Predictors far out, where the slope is nothing, have a least precision of 1e-8.
        """
        mean, var = mean.detach().double(), var.detach().double()
        hits, trials = self._hits(y.double(), nuisance)
        found = expected_logistic(mean, var)
        precision = (trials * found.slope).clamp(min=_LEAST_PRECISION)
        each = _log_prob(hits, trials, mean, found)
        return touching(each, mean, var, precision, hits - trials * found.sigmoid)

    def _hits(self, y: Tensor, nuisance: Nuisance) -> tuple[Tensor, Tensor]:
        """Successes and trials; where nothing was observed some that are possible."""
        hits = self.filled(y)
        return hits, known_value(nuisance, _TRIALS, hits)

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Of the number of successes: n p, and n p (1 - p) + n (n - 1) Var[sigma]."""
        trials, found = known_value(nuisance, _TRIALS, mean), expected_logistic(mean, var)
        prob = found.sigmoid.clamp(0, 1)  # weights sum to 1 but for rounding
        between = prob - found.slope - prob.square()  # E[sigma^2] - E[sigma]^2
        return trials * prob, trials * (prob * (1 - prob) + (trials - 1) * between.clamp(min=0))


class BernoulliLikelihood(BinomialLikelihood):
    """Outcomes 0 or 1 with a logit predictor: one trial a row."""

    interval = "mean"
    takes = ()

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


def _log_prob(hits: Tensor, trials: Tensor, mean: Tensor, found: Logistic) -> Tensor:
    ways = torch.lgamma(trials + 1) - torch.lgamma(hits + 1) - torch.lgamma(trials - hits + 1)
    return ways + hits * mean - trials * found.softplus


def refuse_no_counts(y: Outcomes) -> None:
    """Refuses values that are no whole numbers from 0 on; NaN passes."""
    bad = (y.values < 0) | (y.values != np.floor(y.values))
    remedy = "give whole numbers as they were counted, not logarithms or shares"
    y.refuse(bad & ~np.isnan(y.values), "that are no counts (whole numbers, 0 or more)", remedy)


def refuse_all_zero(y: Outcomes) -> None:
    """Refuses a column of counts that are all zero."""
    for name, column in zip(y.names, y.values.T, strict=True):
        seen = column[~np.isnan(column)]
        if len(seen) and not seen.any():
            raise DataError(
                f"y is 0 in all {len(seen)} observed rows of column {name!r}: there is nothing to "
                "learn, drop this outcome"
            )
