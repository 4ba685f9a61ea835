"""Sufficient statistics of the rows of each node: all that the weights' posterior needs of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.likelihoods import Likelihood, NoiseMoments

_CHUNK_ELEMENTS = 4_000_000  # rows are taken in chunks whose outer products have about this size


class Statistics(NamedTuple):
    """Weighted moments of design and response at each node with rows, in double precision.

    The log likelihood of node weights w is, up to a constant and in units of the noise variance,
    ``-(square - 2 cross' w + w' gram w) / 2`` for each outcome.

    Attributes:
        nodes: Nodes that have rows, (E,) int64.
        gram: Sums of precision * z z', (E, Q, W, W), or (E, 1, W, W) where all outcomes share it.
        cross: Sums of precision * z * response, (E, Q, W).
        square: Sums of precision * response^2, (E, Q).
        count: Observed outcomes, (E, Q); sums of their weights, where rows have such.
    """

    nodes: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    count: Tensor  # type: ignore[assignment]

    def transform(self, linear: Tensor) -> Statistics:
        """Statistics of the design ``z @ linear``, with ``linear`` (*B, W, W); batch goes first."""
        linear = linear[..., None, None, :, :]
        gram = linear.transpose(-1, -2) @ self.gram @ linear
        cross = (linear.transpose(-1, -2) @ self.cross.unsqueeze(-1)).squeeze(-1)
        return self._replace(gram=gram, cross=cross)

    def residual(self, mean: Tensor, var: Tensor, cov: Tensor | None = None) -> Tensor:
        """Expected sum of squared residuals, (E, Q), double precision.

        Args:
            mean: Means of the weights at every node, (V, W, Q).
            var: Their variances, for independent weights.
            cov: Covariances at the nodes with rows, (E, Q, W, W), to be used in place of ``var``.
        """
        mean = mean[self.nodes].transpose(-1, -2).double()  # (E, Q, W)
        var = var[self.nodes].transpose(-1, -2).double()
        gram = self.gram.expand(*self.cross.shape, -1)
        fitted = torch.einsum("eqw,eqwv,eqv->eq", mean, gram, mean)
        if cov is None:
            spread = (self.gram.diagonal(dim1=-2, dim2=-1) * var).sum(-1)
        else:
            spread = (gram * cov).sum((-1, -2))
        return self.square - 2 * (self.cross * mean).sum(-1) + fitted + spread

    def expected_log_lik(self, mean: Tensor, var: Tensor, noise: NoiseMoments | None) -> Tensor:
        """E[log likelihood] of all rows under independent weights; arguments as above."""
        residual = self.residual(mean, var)
        if noise is None:
            return -0.5 * residual.sum()
        log_norm = self.count * (noise.log.double() + 0.5 * math.log(2 * math.pi))
        return (-0.5 * residual * noise.inverse_square.double() - log_norm).sum()

    def __add__(self, other: object) -> Statistics:
        """Statistics of both sets of rows together."""
        assert isinstance(other, Statistics)
        nodes, position = torch.cat([self.nodes, other.nodes]).unique(return_inverse=True)
        width = max(self.gram.shape[1], other.gram.shape[1])

        def summed(mine: Tensor, theirs: Tensor) -> Tensor:
            both = torch.cat([mine, theirs])
            total = both.new_zeros(len(nodes), *both.shape[1:])
            return total.index_add(0, position, both)

        grams = (s.gram.expand(-1, width, -1, -1) for s in (self, other))
        pairs = zip(self[2:], other[2:], strict=True)
        return Statistics(nodes, summed(*grams), *(summed(*pair) for pair in pairs))


@torch.no_grad()
def statistics(
    design: Tensor,
    y: Tensor,
    env_index: Tensor,
    likelihood: Likelihood,
    predictor: Tensor | None = None,
    weights: Tensor | None = None,
) -> Statistics:
    """Sufficient statistics of rows; exact for Gaussian outcomes.

    Args:
        design: Latents and intercept, (N, W).
        y: Outcomes, (N, Q), NaN where not observed.
        env_index: Node of each row, (N,) int64.
        likelihood: Gives the quadratic expansion of each row.
        predictor: Where to expand, (N, Q); needed where the likelihood is not Gaussian.
        weights: By how much of a row each outcome counts, (N, Q); 1 where absent.
    """
    nodes, position = env_index.unique(return_inverse=True)
    observed = ~torch.isnan(y)
    y = torch.where(observed, y, 0.0).double()
    point = torch.zeros_like(y) if predictor is None else predictor.double()
    precision, response = likelihood.working_response(y, point)
    share = observed.double() if weights is None else torch.where(observed, weights.double(), 0.0)
    precision = share * precision
    shared = bool((precision == precision[:, :1]).all())
    num_weights, num_outcomes, num_nodes = design.shape[1], y.shape[1], len(nodes)
    width = 1 if shared else num_outcomes
    gram = design.new_zeros(num_nodes, width, num_weights, num_weights, dtype=torch.float64)
    cross = gram.new_zeros(num_nodes, num_outcomes, num_weights)
    chunk = max(1, _CHUNK_ELEMENTS // (width * num_weights**2))
    for rows in torch.arange(len(y), device=y.device).split(chunk):
        z, w = design[rows].double(), precision[rows]
        outer = torch.einsum("nq,nv,nw->nqvw", w[:, :width], z, z)
        gram.index_add_(0, position[rows], outer)
        cross.index_add_(0, position[rows], torch.einsum("nq,nw->nqw", w * response[rows], z))
    zeros = gram.new_zeros(num_nodes, num_outcomes)
    return Statistics(
        nodes,
        gram,
        cross,
        zeros.index_add(0, position, precision * response.square()),
        zeros.index_add(0, position, share),
    )
