"""A fixed order and sign of the latents, so that equal solutions print equal."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.inference.rotation.choice import RotationResult
from pyro_tbr.tree import Tree, path_sum


def arranged(tree: Tree, found: RotationResult, stats: Statistics) -> RotationResult:
    """The rotation with latents by share of outcome variance, largest first, signs fixed.

    A latent's largest root weight, over outcomes, is positive.

    Args:
        tree: The environments.
        found: The rotation.
        stats: Statistics of the design in the rotated basis.
    """
    latent_dim = found.basis.shape[0]
    weights = path_sum(tree, found.root, found.deltas, event_dim=2)[stats.nodes]  # (E, W, Q)
    power = stats.gram.diagonal(dim1=-2, dim2=-1).transpose(-1, -2) * weights.square()
    order = power.sum((0, 2))[:latent_dim].argsort(descending=True)
    root = found.root[:latent_dim][order]
    sign = root.gather(1, root.abs().argmax(1, keepdim=True))[:, 0].sign()
    sign = torch.where(sign == 0, 1.0, sign)
    index = torch.cat([order, torch.arange(latent_dim, len(found.root), device=order.device)])
    full_sign = torch.cat([sign, sign.new_ones(len(found.root) - latent_dim)])[:, None]
    return found._replace(
        basis=found.basis[:, order] * sign,
        offset=found.offset[order] * sign,
        root=found.root[index] * full_sign,
        deltas=found.deltas[:, index] * full_sign,
    )


def widened(found: RotationResult, latent_dim: int) -> RotationResult:
    """The rotation with weights of zero for latents that do not exist, up to K of them."""
    rank = found.basis.shape[0]
    missing = latent_dim - rank

    def wide(value: Tensor, dim: int) -> Tensor:
        shape = list(value.shape)
        shape[dim] = missing
        before, behind = value.split([rank, value.shape[dim] - rank], dim)
        return torch.cat([before, value.new_zeros(shape), behind], dim)

    return found._replace(
        offset=wide(found.offset, 0), root=wide(found.root, 0), deltas=wide(found.deltas, 1)
    )
