"""Where known latents count from: the values at which the intercept is the same everywhere.

An intercept is the outcome where all latents are zero, so it depends on where zero is. Known
latents are centred at the mean of the rows. If the intercept is the same in all environments for
other values of the latents, close to that mean, then wherever a slope changes the centred intercept
changes too, by a little. Seen from those values changes of the intercept are sparse. They are
estimated, and their error is one of intercepts too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.inference.rotation.basis import (
    Estimates,
    evidence,
    log_evidence,
    related_nodes,
    spread_of,
)
from pyro_tbr.inference.rotation.polish import TRIES, of_rows, scatter_within, slope

_RATE = 0.15  # inclusion rate of changes
_NUM_PROPOSED = 24  # offsets proposed by contrasts
_STEPS = 4  # up the evidence of the best of them, at most
_GAIN = 1e-3  # of log evidence: a step that gains less is the last one


class ReferencePoint(NamedTuple):
    """An offset of the latents, and how well it is known.

    Attributes:
        offset: (K,).
        cov: Covariance of its error, by Laplace's method, (K, K).
    """

    offset: Tensor
    cov: Tensor


@torch.no_grad()
def reference_point(estimates: Estimates, spread: Tensor | float) -> ReferencePoint:
    """The offset from the latents' zero at which the intercept changes most sparsely.

    Seen from latents at ``offset``, a node's intercept is its own plus ``offset @ slopes``. The
    offset maximises the log evidence that these intercepts, with their errors, come from sparse
    changes along the tree, plus the log density of its prior. Slopes that are the same at all nodes
    say nothing of it, and it stays at 0.

    Args:
        estimates: Of all weights, the intercept last.
        spread: Prior standard deviation of the offset around 0, in units of the latents: a scalar
            or (K,). For centred latents the standard errors of their means.
    """
    mean = estimates.mean.double()
    num_latents = mean.shape[-1] - 1
    prior = torch.as_tensor(spread).to(mean).expand(num_latents) ** -2
    if not num_latents or len(mean) < 2:
        return ReferencePoint(mean.new_zeros(num_latents), torch.diag(1 / prior))
    estimates = _given_slopes(estimates._replace(mean=mean, cov=estimates.cov.double()))
    offsets = torch.cat([mean.new_zeros(1, num_latents), _proposed(estimates, prior)])
    scores = evidence(estimates, _rows(offsets), rates=(_RATE,))
    best = (scores - 0.5 * offsets.square() @ prior).argmax()
    offset = _climb(estimates, offsets[best], prior)
    return ReferencePoint(offset, torch.linalg.inv(_around(estimates, offset, prior).curvature))


def _given_slopes(estimates: Estimates) -> Estimates:
    """Slopes at their posterior means along the tree, intercepts given these.

    Estimates of slopes that do not differ scatter by their errors, and with them those of the
    intercepts; taken for differences they would move the offset. What is not known of the slopes is
    not known of the intercepts, the more so the further away from zero a node's latents are.
    """
    mean, cov = estimates.mean, estimates.cov
    value, var = mean[..., :-1], cov.diagonal(dim1=-2, dim2=-1)[..., :-1]  # (E, Q, K)
    value, var = value.permute(2, 1, 0), var.permute(2, 1, 0)
    with torch.enable_grad():
        moving, wider = value.clone().requires_grad_(), var.clone().requires_grad_()
        rate = torch.tensor(_RATE).to(value)
        found = log_evidence(estimates, moving, wider, rate, spread_of(value)).sum()
        by_value, by_var = torch.autograd.grad(found, [moving, wider])
    # Tweedie's formula: posterior moments of what an estimate is of. By the heat equation the
    # second derivative of the density by the value is twice the one by the variance.
    smooth = (value + var * by_value).permute(2, 1, 0)
    curvature = 2 * by_var - by_value.square()
    unsure = torch.minimum((var + var.square() * curvature).clamp(min=0), var).permute(2, 1, 0)
    gain = torch.linalg.solve(cov[..., :-1, :-1], cov[..., :-1, -1:]).squeeze(-1)  # (E, Q, K)
    intercept = mean[..., -1] + (gain * (smooth - mean[..., :-1])).sum(-1)
    left = torch.zeros_like(cov)
    left[..., -1, -1] = cov[..., -1, -1] - (gain * cov[..., :-1, -1]).sum(-1)
    left[..., -1, -1] += (gain.square() * unsure).sum(-1)
    return estimates._replace(mean=torch.cat([smooth, intercept.unsqueeze(-1)], -1), cov=left)


def _rows(offset: Tensor) -> Tensor:
    """Directions along which weights are intercepts seen from offsets (*S, K), (*S, W)."""
    return torch.cat([offset, torch.ones_like(offset[..., :1])], -1)


def _proposed(estimates: Estimates, prior: Tensor) -> Tensor:
    """Offsets that some contrasts between related nodes ask for, (S, K).

    Each is a regression of contrasts of intercepts on those of slopes under the prior: of as many
    as there are latents, drawn at random, so that some have no change of the intercept among them.
    """
    mean, cov = estimates.mean, estimates.cov
    generator = torch.Generator().manual_seed(0)
    num_outcomes, k = mean.shape[1], len(prior)
    place, other = related_nodes(estimates, (_NUM_PROPOSED, k), generator)
    outcome = torch.randint(num_outcomes, place.shape, generator=generator)
    contrast = mean[place, outcome] - mean[other, outcome]  # (S, K, W)
    var = (cov[place, outcome] + cov[other, outcome])[..., -1, -1].unsqueeze(-1)
    slopes, intercept = contrast[..., :-1], contrast[..., -1:]
    precision = slopes.mT @ (slopes / var) + torch.diag(prior)
    return -torch.linalg.solve(precision, slopes.mT @ (intercept / var)).squeeze(-1)


class _Around(NamedTuple):
    """Log evidence of an offset and log density of its prior.

    Attributes:
        total: Their sum, ().
        slope: (K,).
        curvature: (K, K).
    """

    total: Tensor
    slope: Tensor
    curvature: Tensor


def _around(estimates: Estimates, offset: Tensor, prior: Tensor) -> _Around:
    rates = torch.full_like(estimates.mean[0, :, 0], _RATE)
    total, gradient, inclusion = slope(estimates, _rows(offset), rates)
    within = scatter_within(estimates, _rows(offset), inclusion)
    return _Around(
        total - 0.5 * prior @ offset.square(),
        gradient[:-1] - prior * offset,
        within[:-1, :-1] + torch.diag(prior),
    )


def _climb(estimates: Estimates, offset: Tensor, prior: Tensor) -> Tensor:
    """The offset (K,) at the top of its evidence, by steps scaled by the curvature."""
    rates = torch.full_like(estimates.mean[0, :, 0], _RATE)
    for _ in range(_STEPS):
        here = _around(estimates, offset, prior)
        step = torch.linalg.solve(here.curvature, here.slope)
        trials = offset + step * 0.25 ** torch.arange(TRIES).to(offset)[:, None]
        reached = of_rows(estimates, _rows(trials), rates.expand(TRIES, -1)[..., None])
        reached = reached - 0.5 * trials.square() @ prior
        best = reached.argmax()
        if reached[best] <= here.total:
            break
        offset = trials[best]
        if reached[best] - here.total < _GAIN:
            break
    return offset
