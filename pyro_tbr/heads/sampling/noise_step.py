"""The noise of chains: one scale an outcome, or one of every node around a common one.

Scales of nodes follow their common scale and the spread around it, and these follow them; where the
spread is small neither gets far in a step. So both are drawn twice: given the nodes' scales, and
given how many spreads these are from the common one (an interweaving).

Source:
    Yu & Meng, Journal of Computational and Graphical Statistics 20 (2011) 531.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.hyper.base import HyperFactor
from pyro_tbr.heads.sampling.hyper_steps import draw_real, scale_log_lik
from pyro_tbr.heads.sampling.row_sums import RowSums
from pyro_tbr.heads.sampling.slices import slice_draw

_COMMON, _SPREAD, _NODES = "noise_scale", "noise_spread", "node_noise_scale"


class NoiseStep:
    """Draws of the noise, of all chains at once.

    Args:
        factors: Factors of the hyperparameters by site name.
        rows: Sums of the rows.
        generator: On the CPU.
    """

    def __init__(
        self, factors: Mapping[str, HyperFactor], rows: RowSums, generator: Generator
    ) -> None:
        self.factors, self.rows, self.generator = factors, rows, generator
        self.by_node = _NODES in factors

    def at_rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """Noise scales at the nodes with rows, (C, Q, E)."""
        if self.by_node:
            return values[_NODES][:, self.rows.nodes].transpose(1, 2)
        return values[_COMMON].unsqueeze(-1).expand(-1, -1, len(self.rows.nodes))

    def draw(self, values: dict[str, Tensor], nodes: Tensor) -> None:
        """New noise given weights (C, Q, V, W); changes ``values``."""
        square, count = self.rows.squares(nodes), self.rows.count  # (C, Q, E), (Q, E)
        if not self.by_node:
            total = square.sum(-1)
            number = count.sum(-1).expand_as(total)
            self._draw(values, _COMMON, scale_log_lik(total, number))
            return
        square, number = square.transpose(1, 2), count.T.expand(len(square), -1, -1)  # (C, E, Q)
        log_lik = scale_log_lik(square, number)
        centre, spread = values[_COMMON].log(), values[_SPREAD]

        def given_parents(real: Tensor) -> Tensor:
            far = (real - centre.unsqueeze(1)) / spread.unsqueeze(1)
            return log_lik(real) - 0.5 * far.square()

        at = values[_NODES][:, self.rows.nodes].log()
        real = slice_draw(given_parents, at, self.generator)
        far = (real - centre.unsqueeze(1)).square().sum(1)
        self._draw(values, _SPREAD, scale_log_lik(far, torch.full_like(far, real.shape[1])))
        self._draw(values, _COMMON, lambda one: -0.5 * self._far(real, one, values[_SPREAD]))
        # The same with the nodes' places in units of the spread held.
        unit = (real - values[_COMMON].log().unsqueeze(1)) / values[_SPREAD].unsqueeze(1)
        self._draw(
            values, _COMMON,
            lambda one: log_lik(one.unsqueeze(1) + values[_SPREAD].unsqueeze(1) * unit).sum(1),
        )  # fmt: skip
        self._draw(
            values, _SPREAD,
            lambda one: log_lik(
                values[_COMMON].log().unsqueeze(1) + one.exp().unsqueeze(1) * unit
            ).sum(1),
        )  # fmt: skip
        centre, spread = values[_COMMON].log().unsqueeze(1), values[_SPREAD].unsqueeze(1)
        shape = values[_NODES].shape
        white = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        everywhere = centre + spread * white  # of nodes without rows a draw of the prior
        everywhere[:, self.rows.nodes] = centre + spread * unit
        values[_NODES] = everywhere.exp()

    @staticmethod
    def _far(real: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """Squared distances from a centre in spreads, summed over nodes, (C, Q)."""
        return ((real - centre.unsqueeze(1)) / spread.unsqueeze(1)).square().sum(1)

    def _draw(self, values: dict[str, Tensor], name: str, log_lik) -> None:  # type: ignore[no-untyped-def]
        values[name] = draw_real(self.factors[name], values[name], log_lik, self.generator)
