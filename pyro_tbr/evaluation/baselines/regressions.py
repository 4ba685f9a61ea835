"""Linear regressions without a tree: pooled, pooled with environments' intercepts, per leaf."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.evaluation.baselines.base import Baseline, Problem, Rule
from pyro_tbr.evaluation.baselines.ridge import Ridge, evidence_ridge
from pyro_tbr.tree import path_sum

_INTERCEPT_SCALES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Pooled(Baseline):
    """Bayesian linear regression of the features, blind to environments.

    Penalty and noise by evidence (:mod:`~pyro_tbr.evaluation.baselines.ridge`), so the noise holds
    what differs between environments. A held-out leaf is predicted like any other.
    """

    def _learn(self, problem: Problem) -> Rule:
        nothing = torch.empty(problem.tree.num_nodes, 0, dtype=torch.float64)
        return _pooled_rule(problem, nothing, (1.0,))


@dataclass(frozen=True)
class PooledOneHot(Baseline):
    """Pooled regression with an indicator of each environment: random intercepts.

    Features and indicators have a penalty each, both by evidence. A held-out leaf has the indicator
    no row has had: its intercept keeps its prior, mean 0 and the learnt variance.
    """

    def _learn(self, problem: Problem) -> Rule:
        return _pooled_rule(problem, torch.eye(problem.tree.num_nodes, dtype=torch.float64))


@dataclass(frozen=True)
class TreeIntercepts(Baseline):
    """Pooled regression with an intercept that changes on every arc: a phylogenetic mixed model.

    Changes have one variance, and slopes a penalty of their own, both by evidence. A held-out leaf
    has the intercept of its deepest ancestor with rows below, plus changes of mean 0 from there.
    """

    def _learn(self, problem: Problem) -> Rule:
        tree = problem.tree
        root = torch.zeros(tree.num_arcs, dtype=torch.float64)
        on_path = path_sum(tree, root, torch.eye(tree.num_arcs, dtype=torch.float64))
        return _pooled_rule(problem, on_path)


@dataclass(frozen=True)
class LeafRegression(Baseline):
    """Ridge regression of each environment on its own; penalty and noise are shared, by evidence.

    A held-out leaf gets the equal mixture of the other environments' fits.
    """

    def _learn(self, problem: Problem) -> Rule:
        return leaf_rule(problem.x, problem.y, problem.env_index)


class PooledRule(Rule):
    """One regression for all rows.

    Args:
        fits: One an outcome.
        indicators: Columns behind the features by node, (V, C).
    """

    def __init__(self, fits: list[Ridge], indicators: Tensor) -> None:
        self.fits, self.indicators = fits, indicators
        self.notes = _notes(fits)

    def components(self, x: Tensor, env_index: Tensor) -> tuple[Tensor, Tensor]:
        """A single normal."""
        x = torch.cat([x, self.indicators[env_index]], dim=1)
        parts = [fit.predict(x, 0) for fit in self.fits]
        mean, var = (torch.stack(column, dim=1) for column in zip(*parts, strict=True))
        return mean[None], var.sqrt()[None]


class LeafRule(Rule):
    """A regression for each node with rows.

    Args:
        fits: One an outcome.
        nodes: Nodes of the groups of each outcome, (G,).
    """

    def __init__(self, fits: list[Ridge], nodes: list[Tensor]) -> None:
        self.fits, self.nodes = fits, nodes
        self.notes = _notes(fits)

    def components(self, x: Tensor, env_index: Tensor) -> tuple[Tensor, Tensor]:
        """A single normal where every row has its own fit, else as many as there are fits."""
        known = [torch.isin(env_index, nodes) for nodes in self.nodes]
        size = 1 if all(bool(k.all()) for k in known) else max(map(len, self.nodes))
        mean = torch.zeros(size, len(x), len(self.fits), dtype=torch.float64)
        var = torch.ones_like(mean)
        for q, (fit, nodes) in enumerate(zip(self.fits, self.nodes, strict=True)):
            for g, node in enumerate(nodes.tolist()):
                own = env_index == node
                mean[:, own, q], var[:, own, q] = fit.predict(x[own], g)
            new = ~known[q]
            for s in range(size if new.any() else 0):
                # Outcomes seen at fewer nodes than others repeat their fits.
                mean[s, new, q], var[s, new, q] = fit.predict(x[new], s % len(nodes))
        return mean, var.sqrt()


def leaf_rule(x: Tensor, y: Tensor, env_index: Tensor) -> LeafRule:
    """Regressions of each node's rows: x (N, P), y (N, Q) with NaN, env_index (N,)."""
    return LeafRule(*_fits(x, y, env_index))


def _pooled_rule(
    problem: Problem, indicators: Tensor, scales: tuple[float, ...] = _INTERCEPT_SCALES
) -> PooledRule:
    """Regression of the features and of columns that each node has, (V, C), a penalty for each."""
    (num_rows, num_features), (_, num_columns) = problem.x.shape, indicators.shape
    ones = torch.ones(num_features, dtype=torch.float64)
    columns = [torch.cat([ones, torch.full((num_columns,), s).to(ones)]) for s in scales]
    design = torch.cat([problem.x, indicators[problem.env_index]], dim=1)
    together = torch.zeros(num_rows, dtype=torch.int64)
    return PooledRule(_fits(design, problem.y, together, columns)[0], indicators)


def _fits(
    x: Tensor, y: Tensor, node: Tensor, column_scales: list[Tensor] | None = None
) -> tuple[list[Ridge], list[Tensor]]:
    """For each outcome a regression of each node's rows that have it, and these nodes."""
    fits, nodes = [], []
    for outcome in y.T:
        seen = ~outcome.isnan()
        with_rows, group = node[seen].unique(return_inverse=True)
        fits.append(evidence_ridge(x[seen], outcome[seen], group, column_scales))
        nodes.append(with_rows)
    return fits, nodes


def _notes(fits: list[Ridge]) -> dict[str, list[float]]:
    return {"penalty": [f.penalty for f in fits], "noise_var": [f.noise_var for f in fits]}
