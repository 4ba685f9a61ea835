"""What chains need of the rows: their sums at the nodes, and how these depend on the noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.sampling.normal_messages import Said
from pyro_tbr.heads.statistics import Statistics


class RowSums(NamedTuple):
    """Statistics of the rows of each node as of :class:`Statistics`, outcomes first.

    Attributes:
        nodes: Nodes with rows, (E,).
        gram: (Q, E, W, W).
        cross: (Q, E, W).
        square: Squared outcomes, (Q, E).
        count: Observed outcomes, (Q, E).
    """

    nodes: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    count: Tensor  # type: ignore[assignment]

    @classmethod
    def of(cls, stats: Statistics) -> RowSums:
        """With what residuals say of the spread of the weights, on the CPU."""
        stats = stats.flattened()
        gram = stats.gram.expand(*stats.cross.shape, -1).transpose(0, 1)
        parts = (gram, stats.cross.transpose(0, 1), stats.square.T, stats.count.T)
        return cls(stats.nodes.cpu(), *(part.cpu().double() for part in parts))

    @staticmethod
    def precision(noise: Tensor) -> Tensor:
        """By what sums are multiplied, from noise scales, (C, Q, E) both."""
        return noise.double().pow(-2)

    def potentials(
        self, noise: Tensor, root_loc: Tensor, root_scale: Tensor, num_nodes: int
    ) -> Said:
        """Potentials of the nodes' weights, the prior of the root's among them.

        Args:
            noise: Noise scales, (C, Q, E).
            root_loc: Prior mean of the root's weights, (Q, W).
            root_scale: Its standard deviation, (C, Q, W).
            num_nodes: V.
        """
        weight = self.precision(noise).unsqueeze(-1)
        num_weights = self.cross.shape[-1]
        shape = (*noise.shape[:2], num_nodes, num_weights)
        linear = torch.zeros(shape, dtype=torch.float64)
        precision = torch.zeros(*shape, num_weights, dtype=torch.float64)
        linear[:, :, self.nodes] = weight * self.cross
        precision[:, :, self.nodes] = weight.unsqueeze(-1) * self.gram
        certainty = root_scale.double().pow(-2)
        linear[:, :, 0] += certainty * root_loc.double()
        precision[:, :, 0] += torch.diag_embed(certainty)
        return Said(precision, linear)

    def given_others(self, nodes: Tensor, latent: int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Linear terms and precisions (C, Q, V) of one latent's weights, others as in ``nodes``."""
        weight = self.precision(noise)
        gram = self.gram[..., latent, latent]
        at = nodes[:, :, self.nodes, latent]
        eta, lam = (torch.zeros_like(nodes[..., 0]) for _ in range(2))
        eta[:, :, self.nodes] = weight * (self.pull(nodes)[..., latent] + gram * at)
        lam[:, :, self.nodes] = weight * gram
        return eta, lam

    def squares(self, nodes: Tensor) -> Tensor:
        """Sums of squared residuals of each node, (C, Q, E), at weights (C, Q, V, W)."""
        at = nodes[:, :, self.nodes]
        fitted = (self.gram @ at.unsqueeze(-1)).squeeze(-1)
        each = self.square + ((fitted - 2 * self.cross) * at).sum(-1)
        return each.clamp(min=0)

    def pull(self, nodes: Tensor) -> Tensor:
        """Sums of design times residual, (C, Q, E, W)."""
        at = nodes[:, :, self.nodes]
        return self.cross - (self.gram @ at.unsqueeze(-1)).squeeze(-1)
