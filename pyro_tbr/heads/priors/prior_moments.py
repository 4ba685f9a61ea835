"""Moments of a prior's scales and rates under the factors of its hyperparameters."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_tbr.heads.hyper.factors import RateFactor, ScaleFactor, quadrature
from pyro_tbr.heads.priors import ArcPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.priors.slab_factors import SeparationFactor, SlabMoments, slab_moments


class HyperFactors(Protocol):
    """Factors of the hyperparameters by site name."""

    def __getitem__(self, name: str, /) -> nn.Module:
        """The factor of a site."""
        ...


class ScaleMoments(NamedTuple):
    """Moments of the scale s of changes, broadcastable to (A, W, Q).

    Attributes:
        inverse_square: E[1/s^2].
        log: E[log s].
        square: E[s^2].
    """

    inverse_square: Tensor
    log: Tensor
    square: Tensor


class RateMoments(NamedTuple):
    """Moments of every arc's inclusion rate, (A, W, Q or 1).

    Attributes:
        log_on: E[log rate].
        log_off: E[log(1 - rate)].
        mean: E[rate].
    """

    log_on: Tensor
    log_off: Tensor
    mean: Tensor


def scale_factor(hyper: HyperFactors, name: str) -> ScaleFactor:
    """The factor of a scale."""
    factor = hyper[name]
    assert isinstance(factor, ScaleFactor)
    return factor


def scale_moments(prior: ArcPrior, hyper: HyperFactors) -> ScaleMoments:
    """Of the scale of changes that are normal given the hyperparameters (and gates)."""
    slab = scale_factor(hyper, "slab_scale")
    if not isinstance(prior, HorseshoePrior):
        return ScaleMoments(slab.mean_power(-2.0), slab.mean_log(), slab.mean_power(2.0))
    # 1/s^2 = 1/t^2 + 1/c^2 with t the product of global and local scale, c the slab's.
    local_loc, local_var = scale_factor(hyper, "local_scale").log_moments()
    whole_loc, whole_var = scale_factor(hyper, "global_scale").log_moments()
    slab_loc, slab_var = slab.log_moments()
    loc, var = local_loc + whole_loc, local_var + whole_var
    inverse = torch.exp(-2 * loc + 2 * var) + slab.mean_power(-2.0)
    # log s = log t - softplus(2 log(t/c)) / 2, and log(t/c) is normal under q.
    points, weights = quadrature(2 * (loc - slab_loc), 2 * (var + slab_var).sqrt())
    weights = weights.reshape(-1, 1, 1, 1)
    log_scale = loc - 0.5 * (weights * softplus(points)).sum(0)
    points, _ = quadrature(2 * (slab_loc - loc), 2 * (var + slab_var).sqrt())
    # s^2 = c^2 sigmoid(-2 log(c/t)); c^2 and the sigmoid are both increasing in c, and their
    # covariance is small beside the prior's own width, so it is left out of this one moment.
    square = slab.mean_power(2.0) * (weights * torch.sigmoid(-points)).sum(0)
    return ScaleMoments(inverse, log_scale, square)


def separation_factor(prior: ArcPrior, hyper: HyperFactors) -> SeparationFactor | None:
    """The factor of the separation of the slab's halves, where it has any."""
    if not prior.halves:
        return None
    factor = hyper["slab_separation"]
    assert isinstance(factor, SeparationFactor)
    return factor


def moments_of_slab(prior: SpikeSlabPrior, hyper: HyperFactors) -> SlabMoments:
    """Of the slab of a spike-and-slab prior."""
    return slab_moments(scale_factor(hyper, "slab_scale"), separation_factor(prior, hyper))


def rate_moments(prior: SpikeSlabPrior, hyper: HyperFactors) -> RateMoments:
    """Of the rates of the gates."""
    factor = hyper["inclusion_rate"]
    assert isinstance(factor, RateFactor)
    rates, weights = factor.grid()
    weights = weights.reshape(-1, 1, 1, 1)
    prob = prior.arc_inclusion_prob(rates)
    log_off = prior.relative_length * torch.log1p(-rates).unsqueeze(1)
    tiny = torch.finfo(prob.dtype).tiny
    return RateMoments(
        (weights * prob.clamp(min=tiny).log()).sum(0),
        (weights * log_off).sum(0),
        (weights * prob).sum(0),
    )
