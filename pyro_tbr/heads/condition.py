"""The posterior of the weights for a fixed encoder, from sufficient statistics of the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.guide import Guide, expansion_point, predictor_moments
from pyro_tbr.heads.sandwich import flattened, inflation
from pyro_tbr.heads.statistics import Statistics, statistics

_EXPANSIONS = 12  # at most this many quadratic expansions of a likelihood that is not Gaussian
_SETTLED = 0.01  # mean change of the predictor, in its standard deviations, that ends them
_CORRELATION_ROUNDS = 8  # at most, of weights and the correlation of rows of a group
_CORRELATION_SETTLED = 0.015  # change of a correlation that ends them: one step of its grid


def fit_weights(
    guide: Guide,
    design: Tensor,
    y: Tensor,
    env_index: Tensor,
    *,
    sweeps: int,
    learn_hyper: bool = True,
    sandwich: bool = False,
    groups: RowGroups | None = None,
) -> Statistics:
    """Moves a guide to its optimum for these latents, and returns the rows' statistics.

    For Gaussian outcomes the statistics are exact and one round is enough. Otherwise the likelihood
    is expanded at the root mean square of each row's predictor (Polya-Gamma: each round raises the
    same bound), the guide updated, and so on.

    Args:
        guide: The guide; changed.
        design: Latents and intercept, (N, W).
        y: Outcomes in the model's units, NaN where not observed, (N, Q).
        env_index: Node of each row, (N,).
        sweeps: At most this many sweeps of the guide's update a round.
        learn_hyper: Update hyperparameters too.
        sandwich: Flatten the likelihood where the rows' residuals ask for it, see ``robust``;
            Gaussian outcomes only.
        groups: Rows that are alike; their correlation is learnt with the weights. Gaussian
            outcomes only.
    """
    likelihood = guide.model.likelihood
    if not likelihood.binary:
        weights = None
        if groups is not None:
            _learn_correlation(guide, design, y, env_index, groups, sweeps, learn_hyper)
            weights = groups.weights(y)
        stats = statistics(design, y, env_index, likelihood, weights=weights)
        if sandwich:
            plain = stats if groups is None else statistics(design, y, env_index, likelihood)
            stats = flattened(stats, inflation(design, y, env_index, plain))
        guide.update(stats, sweeps=sweeps, learn_hyper=learn_hyper)
        return stats
    point, rough = torch.zeros_like(y), True
    for left in reversed(range(_EXPANSIONS)):
        stats = statistics(design, y, env_index, likelihood, point)
        rough = rough and left > 0
        guide.update(stats, sweeps=max(2, sweeps // 8), learn_hyper=learn_hyper, rough=rough)
        new = expansion_point(guide, design, env_index)
        moved = (new - point).abs().mean() / new.std().clamp(min=1e-6)
        point = new
        if moved < _SETTLED:
            if not rough:
                break
            rough = False
    return stats


def _learn_correlation(
    guide: Guide,
    design: Tensor,
    y: Tensor,
    env_index: Tensor,
    groups: RowGroups,
    sweeps: int,
    learn_hyper: bool,
) -> None:
    """Moves the correlation of rows of a group and the guide in turns until the first is still."""
    for _ in range(_CORRELATION_ROUNDS):
        likelihood, weights = guide.model.likelihood, groups.weights(y)
        stats = statistics(design, y, env_index, likelihood, weights=weights)
        guide.update(stats, sweeps=max(2, sweeps // 8), learn_hyper=learn_hyper, rough=True)
        with torch.no_grad():
            mean, _ = predictor_moments(design.to(y.dtype), env_index, guide.node_moments())
        if groups.learn(y - mean) < _CORRELATION_SETTLED:
            break
