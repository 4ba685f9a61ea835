"""Grades: categories in an order."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper import PositiveScale
from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.scaling import Scaling

_LEAST, _MOST = 3, 100  # categories: two are bernoulli, many are a number
# Of the distance of thresholds, in logits; half of the hyperprior is between 0.5 and 2.
_MEDIAN, _SPREAD = 1.0, 1.0


class OrdinalLikelihood(Likelihood):
    r"""Grades 0, 1, ..., C - 1 by a predictor and thresholds between them, with a logit link.

    .. math::
        P(y \le c \mid f) = \sigma(t_c - f), \quad t_0 < t_1 < \dots < t_{C-2}

    Distances of neighbouring thresholds are the site ``threshold_gaps`` (Q, C - 2), learnt; their
    mean is 0, as an intercept takes up a shift. They are common to all environments. A weight is
    that of the log odds of a higher grade, whichever (proportional odds).

    A prediction's ``mean`` is that of the grade, and its bounds are grades;
    ``prediction.log_scores`` of a grade for all rows are the logarithms of its probabilities.

    Args:
        num_categories: C, 3 or more; grades that were never seen count too.

    Raises:
        DataError: Not a whole number from 3 to 100.

    Source:
        McCullagh, Journal of the Royal Statistical Society B 42 (1980) 109.
    """

    predictor_scale = 2.5  # of the sum of a logistic variable and as much again
    discrete = True

    def __init__(self, num_categories: int) -> None:
        super().__init__(num_categories=num_categories)
        whole = isinstance(num_categories, Integral) and not isinstance(num_categories, bool)
        if not (whole and _LEAST <= num_categories <= _MOST):
            raise DataError(
                f"num_categories={num_categories!r} must be a whole number from {_LEAST} to "
                f"{_MOST}: two categories are likelihood='bernoulli'"
            )
        self.num_categories = int(num_categories)

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        self.threshold_gaps = PositiveScale(
            "threshold_gaps",
            (num_outcomes, self.num_categories - 2),
            None,
            median=_MEDIAN,
            spread=_SPREAD,
        )

    def check(self, y: Outcomes) -> None:
        """Refuses what is no whole number from 0 to C - 1."""
        most = self.num_categories - 1
        grades = np.isin(y.values, np.arange(most + 1)) | np.isnan(y.values)
        y.refuse(
            ~grades,
            f"that are no whole numbers from 0 to {most}",
            "code grades as 0, 1, ..., and give their number to OrdinalLikelihood",
        )

    def check_informative(self, y: Outcomes) -> None:
        """Refuses a column of one grade alone."""
        y.refuse_constant()

    def units(self, y: Tensor, values: Mapping[str, Tensor], *, intercept: bool) -> Scaling:
        """See :meth:`Support.units`; an intercept is asked for.

        Raises:
            DataError: There is none.
        """
        if not intercept:
            raise DataError(
                "OrdinalLikelihood with intercept=False: thresholds are counted from their mean, "
                "and the intercept says where that is; leave intercept=False out"
            )
        return super().units(y, values, intercept=intercept)

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Grades by thresholds."""
        return Ordinal(predictor, thresholds_of(nuisance["threshold_gaps"]))


def thresholds_of(gaps: Tensor) -> Tensor:
    """Thresholds (*B, Q, C - 1) of mean 0, by their distances (*B, Q, C - 2)."""
    steps = torch.cat([torch.zeros_like(gaps[..., :1]), gaps.cumsum(-1)], -1)
    return steps - steps.mean(-1, keepdim=True)


class Ordinal(dist.TorchDistribution):
    """Grades 0, 1, ..., C - 1: the number of thresholds that a logistic variable is above.

    Args:
        predictor: Where the variable is, (*B, N, Q).
        thresholds: Rising, (*B, 1, Q, C - 1), or (Q, C - 1).
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(self, predictor: Tensor, thresholds: Tensor) -> None:
        self.predictor, self.thresholds = predictor, thresholds
        shape = torch.broadcast_shapes(predictor.shape, thresholds.shape[:-1])
        super().__init__(shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Whole numbers."""
        return dist.constraints.integer_interval(0, self.thresholds.shape[-1])

    @property
    def mean(self) -> Tensor:
        """(*B, N, Q)."""
        return self._above().sum(-1)

    @property
    def variance(self) -> Tensor:
        """(*B, N, Q)."""
        above = self._above()
        odd = 2 * torch.arange(above.shape[-1], dtype=above.dtype, device=above.device) + 1
        return (odd * above).sum(-1) - above.sum(-1).square()

    def log_prob(self, value: Tensor) -> Tensor:
        """(*B, N, Q); without cancellation, however far the predictor is."""
        grade, last = value.long(), self.thresholds.shape[-1]
        top, bottom = self._at(grade.clamp(max=last - 1)), self._at((grade - 1).clamp(min=0))
        inner = (grade > 0) & (grade < last)
        below = torch.where(grade < last, logsigmoid(top - self.predictor), 0.0)
        above = torch.where(grade > 0, logsigmoid(self.predictor - bottom), 0.0)
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a))
        width = torch.where(inner, top - bottom, 1.0)
        return below + above + torch.where(inner, torch.log(-torch.expm1(-width)), 0.0)

    def cdf(self, value: Tensor) -> Tensor:
        """P(grade <= value)."""
        grade, last = value.floor(), self.thresholds.shape[-1]
        found = torch.sigmoid(self._at(grade.clamp(0, last - 1).long()) - self.predictor)
        found = torch.where(grade >= last, 1.0, found)
        return torch.where(grade < 0, 0.0, found)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """(*sample_shape, *B, N, Q)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        drawn = torch.rand(shape, dtype=self.predictor.dtype, device=self.predictor.device)
        return (drawn.unsqueeze(-1) < self._above()).sum(-1).to(self.predictor)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Ordinal:
        """The same with more dimensions to the left."""
        return Ordinal(self.predictor.expand(batch_shape), self.thresholds)

    def _above(self) -> Tensor:
        """Probabilities of grades above each but the last, (*B, N, Q, C - 1)."""
        return torch.sigmoid(self.predictor.unsqueeze(-1) - self.thresholds)

    def _at(self, place: Tensor) -> Tensor:
        """The thresholds at places (*B, N, Q)."""
        wide = torch.broadcast_shapes(place.shape, self.thresholds.shape[:-1])
        table = self.thresholds.expand(*wide, self.thresholds.shape[-1])
        return table.gather(-1, place.expand(wide).unsqueeze(-1)).squeeze(-1)
