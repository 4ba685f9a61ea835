"""A linear encoder in closed form: the leading directions of leaf-specific regressions.

Every prepared feature gets a weight of its own at every leaf, under a dense Gaussian tree prior
whose scales all features share; the posterior means of all leaves' weights, stacked, have K leading
right singular vectors, and these span the latents. On wide features this does better than a linear
encoder that is trained until it converges, whose point estimate overfits.

Source:
    Reduced-rank regression: Izenman, Journal of Multivariate Analysis 5 (1975) 248.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads import GaussianPrior, TreeGuide, condition
from pyro_tbr.inference.encoder.rows import PreparedRows
from pyro_tbr.models import TreeModel

_SWEEPS = 30


@torch.no_grad()
def leading_directions(model: TreeModel, rows: PreparedRows) -> Tensor:
    """Directions of the prepared features that carry the leaves' weights, (R, K), orthonormal.

    Args:
        model: Gives tree, likelihood and K.
        rows: Rows with white features; where these come block by block, the correlation of rows of
            a group stays as it is.
    """
    width, latent_dim = model.encoder.width, model.latent_dim
    like = model.encoder.output_map
    if width <= latent_dim:
        return torch.eye(width, latent_dim, dtype=like.dtype, device=like.device)
    head = model.head.with_prior(GaussianPrior(pooled=True), width)
    guide = TreeGuide(head, rows.rows.nodes(model.tree.num_nodes)).to(like.device)
    stats = condition(
        guide,
        rows.as_design(intercept=model.intercept),
        sweeps=_SWEEPS,
        learn_groups=rows.features is not None,
    )
    mean = guide.node_moments().mean[stats.nodes][:, :width]  # (E, R, Q)
    scaled = mean * stats.count.sqrt().to(mean)[:, None, :]
    stacked = scaled.permute(0, 2, 1).reshape(-1, width).double()
    _, vectors = torch.linalg.eigh(stacked.T @ stacked)
    leading = vectors.flip(1)[:, :latent_dim]
    sign = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    return (leading * sign).to(like)
