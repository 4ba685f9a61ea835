"""Predictions of baselines: equal mixtures of normals, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_tbr.data import Schema, align_outcomes
from pyro_tbr.posterior.form import Form
from pyro_tbr.posterior.mixture import Mixture
from pyro_tbr.posterior.prediction import mean_over_observed
from pyro_tbr.posterior.view import check_level

_CHUNK_ROWS = 2000

Components = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class BaselinePrediction:
    """Predictive distribution of a new outcome for each row, like :class:`pyro_tbr.Prediction`.

    Args:
        components: From positions of rows (n,) to means and standard deviations (S, n, Q).
        num_rows: N.
        level: Probability of the interval.
        form: How per-row results are given back.
        schema: What outcomes have to fit.

    Attributes:
        mean: Mean, (N,) or (N, Q) as ``y`` was in ``fit``, pandas where the features were.
        sd: Standard deviation of a new outcome, noise included; NaN without a distribution.
        lower: Lower end of the central interval of probability ``level``; likewise.
        upper: Its upper end; likewise.
        level: Probability of the interval.
    """

    def __init__(
        self, components: Components, num_rows: int, level: float, form: Form, schema: Schema
    ) -> None:
        check_level(level)
        self._components, self._form, self._schema = components, form, schema
        self._num_rows, self.level = num_rows, level
        parts = [_summary(*components(rows), level) for rows in self._chunks()]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        self.mean, self.sd, self.lower, self.upper = (form.table(c) for c in columns)

    def _chunks(self) -> list[Tensor]:
        return list(torch.arange(self._num_rows).split(_CHUNK_ROWS)) or [torch.arange(0)]

    def log_score(self, y: Any) -> float:
        """Mean log density of the observed outcomes, nats in the unit of y; NaN without one.

        Args:
            y: Outcomes in the form ``fit`` took them, NaN where not observed; pandas objects are
                matched by index where the features were a DataFrame.
        """
        outcomes, scores = align_outcomes(self._schema, y, self._form.order.or_of(y=y)), []
        for rows in self._chunks():
            mean, sd = self._components(rows)
            if sd is None:
                return float("nan")
            scores.append(_mixture(mean, sd).log_prob(outcomes[rows]))
        return mean_over_observed(torch.cat(scores), outcomes)

    def sample(self, n: int = 1, seed: int = 0) -> np.ndarray:
        """Draws of new outcomes, (n, N) or (n, N, Q); the same seed gives the same draws.

        NaN without a distribution.
        """
        generator = torch.Generator().manual_seed(seed)
        draws = []
        for rows in self._chunks():
            mean, sd = self._components(rows)
            noise = torch.randn((n, *mean.shape[1:]), generator=generator, dtype=mean.dtype)
            pick = torch.arange(n) % len(mean)  # as many draws of each component
            draws.append(mean[pick] + noise * (torch.nan if sd is None else sd[pick]))
        return self._form.draws(torch.cat(draws, dim=1))

    def __repr__(self) -> str:
        return f"BaselinePrediction({self._num_rows} rows, {self.level:.0%} intervals)"


def _mixture(mean: Tensor, sd: Tensor) -> Mixture:
    return Mixture(Normal(mean, sd.expand_as(mean)))


def _summary(mean: Tensor, sd: Tensor | None, level: float) -> tuple[Tensor, ...]:
    """Mean, sd and both ends of the interval, each (n, Q)."""
    if sd is None:
        nothing = torch.full_like(mean[0], torch.nan)
        return mean.mean(0), nothing, nothing, nothing
    mixture, tail = _mixture(mean, sd), (1 - level) / 2
    return mixture.mean(), mixture.sd(), mixture.quantile(tail), mixture.quantile(1 - tail)
