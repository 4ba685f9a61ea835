"""The predictive distribution of new outcomes: a mixture over draws of the weights."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_tbr.data import RowOrder, Schema, align_outcomes
from pyro_tbr.data.zero_one import check_zero_one
from pyro_tbr.errors import DataError

_TOLERANCE = 1e-5  # of a quantile, in standard deviations of the outcome
_CHUNK_ELEMENTS = 4_000_000  # rows are taken in chunks of about this many draws times rows


@dataclass(frozen=True)
class NewLeaf:
    """A leaf that is not in the tree: one new arc under a node.

    Attributes:
        name: What it is called.
        parent: Node of the tree it hangs from.
        length: Length of its arc, where the prior uses lengths; ``None``: the tree's mean.
    """

    name: Hashable
    parent: Hashable
    length: float | None = None


def linear_predictor(design: Tensor, weights: Tensor, position: Tensor) -> Tensor:
    """Of each draw and row, (S, N, Q); by runs of rows, as a table of their weights is large.

    Args:
        design: Latents and intercept, (N, W).
        weights: Draws of the weights at some nodes, (S, n, W, Q).
        position: Which of these nodes each row is at, (N,).
    """
    num_draws, _, *shape = weights.shape  # without rows there are no nodes
    size = max(1, _CHUNK_ELEMENTS // (num_draws * math.prod(shape)))
    parts = [
        torch.einsum("nw,snwq->snq", design[rows], weights[:, position[rows]])
        for rows in torch.arange(len(design)).split(size)
    ]
    return torch.cat(parts, dim=1)


def _quantile(draws: Tensor, probability: float) -> Tensor:
    """Quantiles over the first dimension; torch's own refuses tensors without elements."""
    return torch.quantile(draws, probability, dim=0) if draws.numel() else draws.sum(0)


class Mixture:
    """Normal (or Bernoulli) outcomes given draws of predictor and noise; vectorised over rows.

    Args:
        predictor: Draws of the linear predictor, (S, n, Q), in the user's units.
        noise: Draws of the noise scale, (S, Q), likewise; ``None``: Bernoulli with logit predictor.
    """

    def __init__(self, predictor: Tensor, noise: Tensor | None) -> None:
        self.predictor = predictor
        self.noise = None if noise is None else noise[:, None, :]

    def mean(self) -> Tensor:
        """(n, Q)."""
        if self.noise is None:
            return torch.sigmoid(self.predictor).mean(0)
        return self.predictor.mean(0)

    def sd(self) -> Tensor:
        """Standard deviation of a new outcome, (n, Q)."""
        if self.noise is None:
            mean = self.mean()
            return (mean * (1 - mean)).sqrt()
        spread = (self.predictor - self.mean()).square().mean(0) + self.noise.square().mean(0)
        return spread.sqrt()

    def quantile(self, probability: float) -> Tensor:
        """Quantile of a new outcome (n, Q); for binary outcomes, of its probability.

        Newton's method kept inside a shrinking bracket, on the mixture's distribution function.
        """
        if self.noise is None:
            draws = torch.sigmoid(self.predictor)
            return _quantile(draws, probability)
        centre, width = self.predictor, self.noise.expand_as(self.predictor)
        low, high = (centre - 9 * width).amin(0), (centre + 9 * width).amax(0)
        sd = self.sd()
        # Where draws lie far apart for their noise the function is a staircase, so start on the
        # right step: the quantile of the draws.
        value = _quantile(centre, probability)
        done = torch.zeros_like(value, dtype=torch.bool)
        for _ in range(60):
            standard = (value - centre) / width
            cdf = 0.5 * torch.erfc(-standard / math.sqrt(2)).mean(0)
            density = (torch.exp(-0.5 * standard.square()) / width).mean(0) / math.sqrt(2 * math.pi)
            low = torch.where(cdf < probability, value, low)
            high = torch.where(cdf < probability, high, value)
            step = value - (cdf - probability) / density.clamp(min=1e-300)
            inside = (step >= low) & (step <= high)
            new = torch.where(inside, step, 0.5 * (low + high))
            # A row that has settled stays, whatever rows are beside it.
            moved = (new - value).abs()
            value = torch.where(done, value, new)
            done = done | (moved <= _TOLERANCE * sd)
            if done.all():
                break
        return value

    def log_prob_by_draw(self, y: Tensor) -> Tensor:
        """Log density of outcomes (n, Q) given each draw, or log probability, (S, n, Q)."""
        if self.noise is None:
            return logsigmoid((2 * y - 1) * self.predictor)
        standard = (y - self.predictor) / self.noise
        return -0.5 * standard.square() - self.noise.log() - 0.5 * math.log(2 * math.pi)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of outcomes (n, Q), or log probability of binary ones; NaN where y is."""
        each = self.log_prob_by_draw(y)
        return each.logsumexp(0) - math.log(len(each))

    def sample(self, pick: Tensor, generator: torch.Generator) -> Tensor:
        """New outcomes (num, n, Q), each from the draw of the weights that ``pick`` (num,) says."""
        predictor = self.predictor[pick]
        if self.noise is None:
            uniform = torch.rand(predictor.shape, generator=generator, dtype=predictor.dtype)
            return (uniform < torch.sigmoid(predictor)).to(predictor.dtype)
        normal = torch.randn(predictor.shape, generator=generator, dtype=predictor.dtype)
        return predictor + self.noise[pick] * normal


class Prediction:
    """Predictive distribution of a new outcome for each row.

    Attributes:
        mean: Mean; for binary outcomes the probability. (N,) or (N, Q) as ``y`` was in ``fit``,
            pandas where the features were.
        sd: Standard deviation of a new outcome, noise included.
        lower: Lower end of the central interval of probability ``level`` of a new outcome; for
            binary outcomes, of its probability.
        upper: Its upper end.
        level: Probability of the interval.
    """

    mean: Any
    sd: Any
    lower: Any
    upper: Any
    level: float

    def __init__(
        self,
        design: Tensor,
        weights: Tensor,
        position: Tensor,
        noise: Tensor | None,
        level: float,
        form: Form,
        schema: Schema,
    ) -> None:
        if not 0 < level < 1:
            raise DataError(f"level={level!r} must be above 0 and below 1, such as 0.9")
        self._design, self._weights, self._position = design, weights, position
        self._noise, self._form, self._schema, self.level = noise, form, schema, level
        tail = (1 - level) / 2
        parts: list[tuple[Tensor, ...]] = []
        for rows in self._chunks():
            mixture = self._mixture(rows)
            parts.append(
                (
                    mixture.mean(),
                    mixture.sd(),
                    mixture.quantile(tail),
                    mixture.quantile(1 - tail),
                )
            )
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        self.mean, self.sd, self.lower, self.upper = (form.table(c) for c in columns)

    def _chunks(self) -> list[Tensor]:
        num_draws, _, _, num_outcomes = self._weights.shape
        size = max(1, _CHUNK_ELEMENTS // (num_draws * num_outcomes))
        return list(torch.arange(len(self._design)).split(size)) or [torch.arange(0)]

    def _mixture(self, rows: Tensor) -> Mixture:
        predictor = linear_predictor(self._design[rows], self._weights, self._position[rows])
        return Mixture(predictor, self._noise)

    def sample(self, n: int = 1, seed: int = 0) -> np.ndarray:
        """Draws of new outcomes, (n, N) or (n, N, Q); the same seed gives the same draws.

        The rows of a draw share their weights, so sums and differences over rows are right too.
        """
        generator = torch.Generator().manual_seed(seed)
        pick = torch.randint(len(self._weights), (n,), generator=generator)
        draws = [self._mixture(rows).sample(pick, generator) for rows in self._chunks()]
        values = torch.cat(draws, dim=1).double().numpy()
        return values[..., 0] if self._form.flat else values

    def log_score(self, y: Any) -> float:
        """Mean log density of the observed outcomes, or log probability of binary ones, in nats.

        Larger is better. In the unit of y: outcomes of another scale have other scores.

        Args:
            y: Outcomes as ``fit`` took them, NaN where not observed; pandas objects are matched by
                index where the features or environments were pandas.

        Raises:
            DataError: Nothing is observed, or values cannot be used.
            ShapeError: The numbers of rows or outcomes differ.
        """
        order = self._form.order.or_of(y=y)
        check = check_zero_one if self._noise is None else None
        outcomes = align_outcomes(self._schema, y, order, check=check)
        parts = [self._mixture(rows).log_prob(outcomes[rows]) for rows in self._chunks()]
        each = torch.cat(parts)[~torch.isnan(outcomes)]
        if not len(each):
            raise DataError("y has no observed value; there is nothing to score")
        return each.mean().item()

    def __repr__(self) -> str:
        return f"Prediction({len(self._design)} rows, {self.level:.0%} intervals)"


@dataclass(frozen=True)
class Form:
    """How per-row results are given back.

    Attributes:
        flat: (N,) rather than (N, Q).
        index: The user's row index where the features were a DataFrame, else ``None``.
        names: Names of the outcomes.
        order: Of the rows, for outcomes that come later.
    """

    flat: bool
    index: pd.Index | None
    names: tuple[Hashable, ...]
    order: RowOrder

    def table(self, values: Tensor) -> Any:
        """(N, Q) values as numpy or pandas."""
        array = values.cpu().double().numpy()
        if self.flat:
            array = array[:, 0]
        if self.index is None:
            return array
        if self.flat:
            return pd.Series(array, index=self.index, name=self.names[0])
        return pd.DataFrame(array, index=self.index, columns=list(self.names))
