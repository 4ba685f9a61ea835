r"""Ridge regression whose penalty and noise maximise the evidence, for one or many groups of rows.

Rows of group g: :math:`y = \alpha_g + x^\top w_g + \epsilon`, :math:`w_g \sim N(0, \sigma^2 /
\lambda)`, a flat prior on the intercepts, one noise variance :math:`\sigma^2` and one penalty
:math:`\lambda` for all groups. Intercepts, weights and :math:`\sigma^2` drop out in closed form
(restricted maximum likelihood), so a grid of penalties costs one eigendecomposition a group.

Source: MacKay, Neural Computation 4 (1992) 415; for one group Bishop, PRML (2006), 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PENALTIES = torch.logspace(-6, 6, 61, dtype=torch.float64)  # times the rows of a group
_LEAST_NOISE = 1e-10  # variance, of standardised outcomes


@dataclass(frozen=True)
class Ridge:
    """The posterior of one outcome's weights.

    Attributes:
        loc: Mean features of each group, (G, P).
        intercept: Mean outcome of each group, (G,).
        weights: Posterior means, (G, P).
        axes: Eigenvectors of the scaled gram matrix, (G, P, P).
        shrunk: Inverse of its eigenvalues plus the penalty, (G, P).
        column_scale: What columns were multiplied by, (P,).
        count: Rows, (G,).
        penalty: Penalty of the scaled columns.
        noise_var: Noise variance.
        log_evidence: Up to a constant of the data.
    """

    loc: Tensor
    intercept: Tensor
    weights: Tensor
    axes: Tensor
    shrunk: Tensor
    column_scale: Tensor
    count: Tensor
    penalty: float
    noise_var: float
    log_evidence: float

    def predict(self, x: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (n,) of new outcomes by a group's weights."""
        centred = x - self.loc[group]
        mean = self.intercept[group] + centred @ self.weights[group]
        turned = (centred * self.column_scale) @ self.axes[group]
        leverage = turned.square() @ self.shrunk[group]
        return mean, self.noise_var * (1 + 1 / self.count[group] + leverage)


def evidence_ridge(
    x: Tensor,
    y: Tensor,
    group: Tensor,
    column_scales: Sequence[Tensor] | None = None,
    penalties: Tensor | None = None,
) -> Ridge:
    """The ridge regression of most evidence.

    Args:
        x: (N, P).
        y: (N,), observed.
        group: Group of each row, 0 to G - 1, each with a row.
        column_scales: Candidates for factors (P,) of the columns: a column times 2 is one with a
            quarter of the penalty. Default: all 1.
        penalties: Candidates for the penalty; default: from 1e-6 to 1e6 times the rows a group.
    """
    num_groups = int(group.max()) + 1
    count = torch.bincount(group).double()
    intercept = groups_sum(y, group, num_groups) / count
    loc = groups_sum(x, group, num_groups) / count[:, None]
    x, y = x - loc[group], y - intercept[group]
    gram, cross = grams(x, group, num_groups), groups_sum(x * y[:, None], group, num_groups)
    square, freedom = y.square().sum(), (count - 1).sum()
    if column_scales is None:
        column_scales = [torch.ones(x.shape[1], dtype=torch.float64)]
    if penalties is None:
        penalties = _PENALTIES * count.mean()
    best: Ridge | None = None
    for scale in column_scales:
        values, axes = torch.linalg.eigh(gram * scale[:, None] * scale)
        values = values.clamp(min=0)
        turned = torch.einsum("gpr,gp->gr", axes, cross * scale)
        shrunk = 1 / (values + penalties[:, None, None])  # (C, G, P)
        noise = (square - (turned.square() * shrunk).sum((1, 2))) / freedom.clamp(min=1)
        noise = noise.clamp(min=_LEAST_NOISE)
        # |A| / |penalty|, by logs of ratios that stay accurate for large penalties
        log_det = torch.log1p(values / penalties[:, None, None]).sum((1, 2))
        evidence = -0.5 * (freedom * noise.log() + log_det)
        i = int(evidence.argmax())
        if best is None or evidence[i] > best.log_evidence:
            weights = torch.einsum("gpr,gr->gp", axes, turned * shrunk[i]) * scale
            chosen = float(penalties[i]), float(noise[i]), float(evidence[i])
            best = Ridge(loc, intercept, weights, axes, shrunk[i], scale, count, *chosen)
    assert best is not None  # there is at least one scale
    return best


def grams(x: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """``x' x`` of each group's rows, (G, P, P)."""
    parts = [x[group == g] for g in range(num_groups)]
    return torch.stack([part.T @ part for part in parts])


def groups_sum(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Sums (G, ...) over each group's rows."""
    total = torch.zeros(num_groups, *values.shape[1:], dtype=values.dtype)
    return total.index_add_(0, group, values)
