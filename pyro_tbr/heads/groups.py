r"""Rows that are alike: groups within an environment count as fewer rows than they are.

Species of a genus, cells of a mouse, samples of a batch say less of their environment than as many
independent rows. Where two rows of a group correlate by :math:`\rho` given their predictors, the
mean of :math:`n` of them is as sure as that of :math:`n / (1 + (n - 1) \rho)` independent rows
(Kish's effective sample size), so each row's log likelihood counts by
:math:`1 / (1 + (n - 1) \rho)`. The noise scale stays that of a single row, so predictions are for a
row of a new group.

Weights are used rather than shifts of the groups that are integrated out (the mixed model's
likelihood): with those, rows of one group decide the slopes, as these have no shift, and where
groups are predicted that were not seen such slopes do worse.

Source:
    Kish, Survey Sampling (1965); weights by the size of clusters: Williamson, Datta & Satten,
    Biometrics 59 (2003) 36, who take the case of complete correlation.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GRID = torch.linspace(0.0, 0.98, 99, dtype=torch.float64)  # of correlations


class RowGroups:
    """Groups of rows, and how alike the rows of one are.

    Attributes:
        index: Number of each row's group within its environment, (N,).
        correlation: Correlation of two rows of a group given their predictors, (Q,); an estimate
            that every fit of the weights refines.
    """

    def __init__(self, index: Tensor, correlation: Tensor) -> None:
        self.index, self.correlation = index, correlation

    def select(self, rows: Tensor) -> RowGroups:
        """Groups of these rows."""
        return RowGroups(self.index[rows].unique(return_inverse=True)[1], self.correlation)

    def _sums(self, values: Tensor) -> Tensor:
        """Sums over the rows of each group, (G, ...)."""
        total = values.new_zeros(int(self.index.max()) + 1, *values.shape[1:])
        return total.index_add_(0, self.index, values)

    def weights(self, y: Tensor) -> Tensor:
        """By how much of a row each outcome counts, (N, Q), from outcomes with NaN where none."""
        size = self._sums((~torch.isnan(y)).double())
        return (1 / (1 + (size - 1).clamp(min=0) * self.correlation))[self.index]

    @torch.no_grad()
    def learn(self, residual: Tensor) -> float:
        """Moves the correlation to its maximum likelihood, by a grid; returns by how much.

        Residuals (N, Q) are outcomes less their predictor, NaN where not observed.
        """
        observed = ~torch.isnan(residual)
        residual = torch.where(observed, residual, 0.0).double()
        size, total = self._sums(observed.double()), self._sums(residual)
        square, rows = residual.square().sum(0), observed.double().sum(0)  # (Q,)
        rho = _GRID.to(size).reshape(-1, 1)
        explained, log_det = size.new_zeros(2, len(rho), size.shape[1]).unbind(0)
        for number in size.unique():  # one term for all groups of a size
            if number == 0:
                continue
            here = size == number
            eigen = 1 - rho + number * rho
            explained += rho / eigen * torch.where(here, total.square(), 0.0).sum(0)
            log_det += here.sum(0) * ((number - 1) * torch.log1p(-rho) + eigen.log())
        var = ((square - explained) / (1 - rho)).clamp(min=1e-300) / rows
        best = (rows * var.log() + log_det).argmin(0)
        new = _GRID.to(self.correlation)[best]
        moved = (new - self.correlation).abs().max().item()
        self.correlation = new
        return moved
