"""Pooled linear predictors made robust to environments: group DRO and IRM. No tree, no noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_tbr.evaluation.baselines.base import (
    Baseline,
    Problem,
    Rule,
    leading_components,
    with_intercept,
)
from pyro_tbr.evaluation.baselines.ridge import evidence_ridge, grams, groups_sum

_LEAST_ROWS = 1.0


@dataclass(frozen=True)
class GroupDRO(Baseline):
    r"""Linear predictor whose worst environment is best: :math:`\min_w \max_e \mathrm{MSE}_e(w)`.

    On whitened components of the features, with the ridge penalty that pooled regression finds by
    evidence. The convex problem is solved exactly by exponentiated gradient on the environments'
    weights, predictors given them in closed form. Predicts means only.

    Attributes:
        steps: Steps on the environments' weights.

    Source:
        Sagawa, Koh, Hashimoto & Liang, ICLR 2020.
    """

    distribution: ClassVar[bool] = False

    steps: int = 1000

    def _learn(self, problem: Problem) -> Rule:
        to_features = leading_components(problem)
        moments = Moments.of(problem, to_features)
        share = torch.full_like(moments.square, 1 / len(moments.square))  # (E, Q)
        share = torch.where(moments.known, share, 0.0)
        share = share / share.sum(0)
        lowest, best = torch.full_like(share[0], torch.inf), moments.weighted(share)
        for step in range(self.steps):
            weights = moments.weighted(share)
            errors = torch.where(moments.known, moments.errors(weights), -torch.inf)
            worst = errors.amax(0)
            better = worst < lowest
            lowest, best = torch.where(better, worst, lowest), torch.where(better, weights, best)
            rate = 2 / (1 + step) ** 0.5 / worst.clamp(min=1e-12)
            share = share * torch.exp(rate * (errors - worst))
            share = share / share.sum(0)
        return PredictorRule(to_features, best, {"worst_error": lowest.tolist()})


@dataclass(frozen=True)
class IRM(Baseline):
    r"""Invariant risk minimisation (IRMv1) with a linear predictor.

    :math:`\frac{1}{E} \sum_e \mathrm{MSE}_e(w) + \gamma (\partial_s \mathrm{MSE}_e(s w)|_{s=1})^2`,
    on whitened components of the features, with the ridge penalty that pooled regression finds by
    evidence. :math:`\gamma` is chosen on a quarter of the environments left out whole; with fewer
    than four environments it is the first candidate. Predicts means only.

    Attributes:
        penalties: Candidates for gamma, for standardised outcomes, smallest first.

    Source:
        Arjovsky, Bottou, Gulrajani & Lopez-Paz, arXiv 1907.02893.
    """

    distribution: ClassVar[bool] = False

    penalties: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)

    def _learn(self, problem: Problem) -> Rule:
        to_features = leading_components(problem)
        moments = Moments.of(problem, to_features)
        size = len(moments.square)
        order = torch.randperm(size, generator=problem.generator)
        left_out, kept = order[: size // 4], order[size // 4 :]
        best, chosen, weights = float("inf"), self.penalties[0], None
        if len(left_out) and len(self.penalties) > 1:
            inside, outside = moments.select(kept), moments.select(left_out)
            for penalty in self.penalties:
                weights = _invariant(inside, penalty, weights)
                error = float(outside.errors(weights)[outside.known].mean())
                if error < best:
                    best, chosen = error, penalty
        weights = None
        for penalty in self.penalties:  # warm-started as before
            if penalty <= chosen:
                weights = _invariant(moments, penalty, weights)
        assert weights is not None
        return PredictorRule(to_features, weights, {"penalty": chosen, "left_out": best})


class Moments(NamedTuple):
    """Means over the rows of each environment, outcome by outcome, features and a last 1.

    Attributes:
        gram: (E, Q, P, P).
        cross: (E, Q, P).
        square: (E, Q).
        known: The environment has rows of the outcome, (E, Q).
        ridge: Ridge penalty of mean errors, (Q, P); 0 for the intercept.
    """

    gram: Tensor
    cross: Tensor
    square: Tensor
    known: Tensor
    ridge: Tensor

    @classmethod
    def of(cls, problem: Problem, to_features: Callable[[Tensor], Tensor]) -> Moments:
        """Of all rows."""
        features = to_features(problem.x)
        design = with_intercept(features)
        nodes, group = problem.env_index.unique(return_inverse=True)
        parts = []
        for y in problem.y.T:
            seen = ~y.isnan()
            x, y, g = design[seen], y[seen], group[seen]
            count = torch.bincount(g, minlength=len(nodes)).double()
            rows = count.clamp(min=_LEAST_ROWS)
            pooled = evidence_ridge(features[seen], y, torch.zeros_like(g))
            ridge = torch.full((design.shape[1],), pooled.penalty / len(y), dtype=y.dtype)
            ridge[-1] = 0
            parts.append(
                (
                    grams(x, g, len(nodes)) / rows[:, None, None],
                    groups_sum(x * y[:, None], g, len(nodes)) / rows[:, None],
                    groups_sum(y.square(), g, len(nodes)) / rows,
                    count > 0,
                    ridge,
                )
            )
        columns = list(zip(*parts, strict=True))
        gram, cross, square, known = (torch.stack(column, dim=1) for column in columns[:4])
        return cls(gram, cross, square, known, torch.stack(columns[4]))

    def select(self, rows: Tensor) -> Moments:
        """Of some environments."""
        gram, cross, square, known = (part[rows] for part in self[:4])
        return Moments(gram, cross, square, known, self.ridge)

    def errors(self, weights: Tensor) -> Tensor:
        """Mean squared error (E, Q) of weights (P, Q)."""
        w = weights.T
        fitted = torch.einsum("eqij,qj->eqi", self.gram, w)
        return (w * (fitted - 2 * self.cross)).sum(-1) + self.square

    def weighted(self, share: Tensor) -> Tensor:
        """Weights (P, Q) of the least error where environments count by ``share`` (E, Q)."""
        gram = torch.einsum("eq,eqij->qij", share, self.gram) + torch.diag_embed(self.ridge)
        cross = torch.einsum("eq,eqi->qi", share, self.cross)
        jitter = 1e-10 * torch.eye(gram.shape[-1], dtype=gram.dtype)
        return torch.linalg.solve(gram + jitter, cross[..., None])[..., 0].T

    def scale_slopes(self, weights: Tensor) -> Tensor:
        """Derivative (E, Q) of the error by a factor of the predictor, at 1."""
        w = weights.T
        fitted = torch.einsum("eqij,qj->eqi", self.gram, w)
        return 2 * (w * (fitted - self.cross)).sum(-1)


class PredictorRule(Rule):
    """One linear predictor for all environments."""

    def __init__(
        self, to_features: Callable[[Tensor], Tensor], weights: Tensor, notes: dict[str, Any]
    ) -> None:
        self.to_features, self.weights, self.notes = to_features, weights, notes

    def components(self, x: Tensor, env_index: Tensor) -> tuple[Tensor, None]:
        """Means only."""
        return (self.to_features(x) @ self.weights[:-1] + self.weights[-1])[None], None


def _invariant(moments: Moments, penalty: float, start: Tensor | None) -> Tensor:
    """The minimum of the objective from ``start`` (P, Q), or from pooled weights."""
    share = moments.known.double() / moments.known.sum(0).clamp(min=1)
    weights = moments.weighted(share) if start is None else start
    weights = weights.clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        each = moments.errors(weights) + penalty * moments.scale_slopes(weights).square()
        ridge = (moments.ridge.T * weights.square()).sum()
        value = (share * each).sum() + ridge
        value = value / max(1.0, penalty)
        value.backward()
        return value

    optimizer.step(objective)
    return weights.detach()
