"""Honest spread of the weights where the encoder misses: sandwich variances.

A learnt encoder is never right. Where it misses, the outcome has an error that is no noise of its
own: it is larger where the latents are large, and there the rows pull most at the weights. So the
weights' errors are larger than the residuals' variance says.

The sandwich's ratio to the model's variance is taken for each weight and outcome over all leaves,
and the likelihood of that weight flattened by it, its peak where it was.
"""

import torch
from torch import Tensor

from pyro_tbr.heads.rows import RowSource
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.progress import beat

_SURE = 2.0  # standard errors by which a ratio must be above 1 to be believed
_ROWS_A_WEIGHT = 2  # leaves with fewer rows a weight say nothing of their residuals


@torch.no_grad()
def inflation(rows: RowSource, stats: Statistics, *, by_node: bool = False) -> Tensor:
    """Ratio of sandwich to model variance of the leaves' weights, (E, Q, W); normal noise only.

    With ``by_node`` the model's noise is each node's own.
    """
    num_weights = stats.cross.shape[-1]
    rich = stats.count > _ROWS_A_WEIGHT * num_weights  # (E, Q)
    inverse, peak = stats.peaks()
    sandwich, fourth = torch.zeros_like(stats.cross), torch.zeros_like(stats.cross)
    square = torch.zeros_like(stats.square)
    for block in rows.blocks():
        design, y = block.design.double(), block.y.double()
        place, shares = torch.searchsorted(stats.nodes, block.env_index), block.shares()
        for q in range(y.shape[1]):
            seen = shares[:, q] > 0
            z, at, share = design[seen], place[seen], shares[seen, q]
            residual = y[seen, q] - (z * peak[at, q]).sum(-1)
            pull = (inverse[at, q] @ z.unsqueeze(-1)).squeeze(-1)  # of a row at the weights
            leverage = (z * pull).sum(-1)
            # Unbiased where the noise is even (HC2).
            each = residual.square() / (1 - leverage).clamp(min=0.05)
            part = pull.square() * each.unsqueeze(-1)
            sandwich[:, q].index_add_(0, at, share.unsqueeze(-1) * part)
            fourth[:, q].index_add_(0, at, share.unsqueeze(-1) * part.square())
            square[:, q].index_add_(0, at, share * residual.square())
            beat()
    sandwich, fourth, square = (rows.holding.merged(part) for part in (sandwich, fourth, square))
    free = torch.where(rich, stats.count - num_weights, 0.0)
    noise = torch.where(rich, square, 0.0).sum(0) / free.sum(0).clamp(min=1)  # (Q,)
    noise = noise.expand_as(square)
    if by_node:
        noise = torch.where(rich, square / free.clamp(min=1), noise)
    model = inverse.diagonal(dim1=-2, dim2=-1) * noise.unsqueeze(-1)
    usable = rich.unsqueeze(-1) & (sandwich > 0) & (model > 0)
    log_ratio = torch.where(usable, sandwich / model, 1.0).log()
    error = torch.where(usable, fourth / sandwich.square(), 0.0)  # variance of log_ratio
    return _shrunken(log_ratio + 0.5 * error, error, usable).exp()


def _shrunken(value: Tensor, error: Tensor, usable: Tensor) -> Tensor:
    """Estimates (E, Q, W) with error variances, each drawn to its weight's mean, by moments.

    Means differ from 0 and estimates from their mean only as far as the data are sure of it.
    """
    num = usable.sum(0).clamp(min=1)
    mean = torch.where(usable, value, 0.0).sum(0) / num
    spread = torch.where(usable, (value - mean).square(), 0.0).sum(0) / (num - 1).clamp(min=1)
    own = spread - torch.where(usable, error, 0.0).sum(0) / num
    own = torch.where(own > _SURE * spread * (2 / num).sqrt(), own, 0.0)
    mean = torch.where(mean.abs() > _SURE * (spread / num).sqrt(), mean, 0.0)
    keep = own / (own + error).clamp(min=1e-300)
    return torch.where(usable, mean + keep * (value - mean), mean)
