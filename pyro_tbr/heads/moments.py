"""Moments under q: of weights at nodes, of changes along arcs, of predictors of rows."""

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 4_000_000  # of the covariances of some rows' weights


class NodeMoments(NamedTuple):
    """Means and variances of the weights at every node, each (V, W, Q)."""

    mean: Tensor
    var: Tensor


class DeltaMoments(NamedTuple):
    """Posterior and prior of the changes, each (A, W, Q) in the model's units.

    Attributes:
        mean: E[delta].
        var: Var[delta].
        inclusion: Posterior inclusion probability; for priors without gates, 1.
        prior_inclusion: Its prior mean.
        slab_mean: Mean given inclusion.
        slab_var: Variance given inclusion.
    """

    mean: Tensor
    var: Tensor
    inclusion: Tensor
    prior_inclusion: Tensor
    slab_mean: Tensor
    slab_var: Tensor


class ArcInclusion(NamedTuple):
    """Probabilities that an arc has a change of some outcome's effect.

    Attributes:
        each: Of each weight, (A, W).
        slopes: Of some latent, whichever, (A,).
        every: Of some latent or the intercept, (A,).
    """

    each: Tensor
    slopes: Tensor
    every: Tensor


def predictor_moments(
    design: Tensor, env_index: Tensor, moments: NodeMoments, cov: Tensor | None = None
) -> NodeMoments:
    """Mean and variance of each row's predictor, (N, Q), from design (N, W) and nodes (N,).

    Covariances of the weights at the nodes, (V, Q, W, W), take the place of their variances.
    """
    mean = torch.einsum("nw,nwq->nq", design, moments.mean[env_index])
    if cov is not None:
        chunk = max(1, _CHUNK_ELEMENTS // cov[0].numel())
        parts = [
            torch.einsum("nv,nqvw,nw->nq", z, cov[nodes], z)
            for z, nodes in zip(design.split(chunk), env_index.split(chunk), strict=True)
        ]
        return NodeMoments(mean, torch.cat(parts).clamp(min=0))
    var = torch.einsum("nw,nwq->nq", design.square(), moments.var[env_index])
    return NodeMoments(mean, var)
