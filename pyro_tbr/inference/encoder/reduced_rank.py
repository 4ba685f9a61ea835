"""A linear encoder in closed form: the leading directions of leaf-specific regressions.

Every prepared feature gets a weight of its own at every leaf, under a dense Gaussian tree prior
whose scales all features share; the posterior means of all leaves' weights, stacked, have K leading
right singular vectors, and these span the latents. On wide features this beats a linear encoder
trained to convergence, whose point estimate overfits.

Source:
    Reduced-rank regression: Izenman, Journal of Multivariate Analysis 5 (1975) 248.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from pyro_tbr.heads.condition import fit_weights
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.priors import GaussianPrior
from pyro_tbr.heads.statistics import Statistics, statistics
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.inference.encoder.prepared_rows import PreparedRows, blocks_of
from pyro_tbr.models.tree_model import TreeModel

_SWEEPS = 30


@torch.no_grad()
def leading_directions(
    model: TreeModel,
    prepared: Tensor | PreparedRows,
    y: Tensor,
    env_index: Tensor,
    groups: RowGroups | None = None,
) -> Tensor:
    """Directions of the prepared features that carry the leaves' weights, (R, K), orthonormal.

    Args:
        model: Gives tree, likelihood and K.
        prepared: White features, (N, R); of sparse ones Gaussian outcomes need cross-products only,
            summed block by block, while binary outcomes need the rows in every round.
        y: Standardised outcomes, NaN where not observed, (N, Q).
        env_index: Node of each row, (N,).
        groups: Rows that are alike; where features come block by block as their correlation is now.
    """
    width, latent_dim = model.encoder.width, model.latent_dim
    like = model.encoder.output_map
    if width <= latent_dim:
        return torch.eye(width, latent_dim, dtype=like.dtype, device=like.device)
    wide = TreeModel(
        model.tree,
        latent_dim=width,
        encoder="identity",
        prior=GaussianPrior(pooled=True),
        likelihood=model.likelihood_spec,
        intercept=model.intercept,
    ).build(width, y.shape[1])
    nodes = torch.zeros(model.tree.num_nodes, dtype=torch.bool)
    nodes[env_index.cpu()] = True
    guide = TreeGuide(wide.to(y.device), nodes).to(y.device)
    blocks = blocks_of(prepared)
    if isinstance(prepared, Tensor) or wide.likelihood.binary:
        design = wide.design(torch.cat([block for _, block in blocks]))
        stats = fit_weights(guide, design, y, env_index, sweeps=_SWEEPS, groups=groups)
    else:
        weights = None if groups is None else groups.weights(y)
        parts = (
            statistics(
                wide.design(block),
                y[at],
                env_index[at],
                wide.likelihood,
                weights=None if weights is None else weights[at],
            )
            for at, block in blocks
        )
        stats = reduce(Statistics.__add__, parts)
        guide.update(stats, sweeps=_SWEEPS)
    mean = guide.node_moments().mean[stats.nodes][:, :width]  # (E, R, Q)
    scaled = mean * stats.count.sqrt().to(mean)[:, None, :]
    rows = scaled.permute(0, 2, 1).reshape(-1, width).double()
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    leading = vectors.flip(1)[:, :latent_dim]
    sign = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    return (leading * sign).to(like)
