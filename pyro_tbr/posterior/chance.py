"""What explains residuals, environment by environment, and how much of that is chance.

How large a statistic is by chance comes from the same residuals with signs turned at random, row by
row, which keeps uneven noise, tails and the correlation of outcomes as they are.

Source:
    The wild bootstrap: Liu, Annals of Statistics 16 (1988) 1696.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_tbr.heads import DesignRows
from pyro_tbr.progress import beat

_MOST_DIRECTIONS = 30  # leading ones of the features
_ROUNDING = 1e-9  # of a column's square: what the design leaves of it is no more
_FLIPS, _SEED = 40, 223_606


class Residuals(NamedTuple):
    """Outcomes less their predicted means, NaN where not observed.

    Attributes:
        u: Over ``sd``, of variance 1 if the model is right, (N, Q).
        sd: Standard deviation of a residual by the model, (N, Q).
        raw: Residuals over ``noise_sd``, (N, Q).
        noise_sd: Standard deviation of an outcome around a known predictor, (N, Q).
    """

    u: Tensor
    sd: Tensor
    raw: Tensor
    noise_sd: Tensor


class ByEnvironment:
    """Sums over the rows of each environment.

    Args:
        env_index: Node of each row, (N,).

    Attributes:
        nodes: Nodes with rows, (E,).
        at: Which of these each row is at, (N,).
    """

    def __init__(self, env_index: Tensor) -> None:
        self.nodes, self.at = env_index.unique(return_inverse=True)

    def sums(self, values: Tensor) -> Tensor:
        """Of values (N, ...), (E, ...)."""
        total = values.new_zeros(len(self.nodes), *values.shape[1:])
        return total.index_add_(0, self.at, values)

    def means(self, values: Tensor) -> Tensor:
        """Of values (N, ...), (E, ...)."""
        count = torch.bincount(self.at, minlength=len(self.nodes)).to(values)
        return self.sums(values) / count.reshape(-1, *[1] * (values.dim() - 1))


class Explained(NamedTuple):
    """Share of the residual variance that each of some columns explains, and beyond chance."""

    share: np.ndarray
    z: np.ndarray


class Reference:
    """Statistics of residuals and columns, environment by environment, and what chance gives.

    Columns are taken less what the design explains of them in each environment. The statistic of a
    direction b is the sum over environments and outcomes of (b' sum_i f_i r_i)^2, r residuals over
    the noise. As columns f are orthogonal to the design, it is that of the noise itself, however
    much of the noise the weights have taken up; residuals of chance are of variance 1, as the noise
    is.
    """

    def __init__(self, rows: DesignRows, residuals: Residuals) -> None:
        self.environments = ByEnvironment(rows.env_index)
        self.design, self.residuals = rows.design.double(), residuals
        generator = torch.Generator().manual_seed(_SEED)
        signs = torch.randint(2, (_FLIPS, len(rows)), generator=generator)
        self.signs = (2 * signs - 1).double().to(self.design.device)
        self.square = residuals.u.nan_to_num().square().sum().item()

    def outcomes(self, columns: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each outcome ``raw`` and ``u`` (N,), zero where missing, and columns to go with."""
        each = (part.T for part in (self.residuals.raw, self.residuals.u, self.residuals.noise_sd))
        for raw, u, noise_sd in zip(*each, strict=True):
            observed = (~torch.isnan(u)).double()
            scale = (observed / noise_sd).unsqueeze(-1)  # so that all of a row counts alike
            design, own = scale * self.design, scale * columns
            inner = self.environments.sums(design.unsqueeze(-1) * design.unsqueeze(-2))
            cross = self.environments.sums(design.unsqueeze(-1) * own.unsqueeze(-2))
            coefficients = torch.linalg.pinv(inner, hermitian=True, rtol=1e-8) @ cross
            whole = self.environments.sums(own.square())
            own = own - torch.einsum("nw,nwp->np", design, coefficients[self.environments.at])
            rounding = self.environments.sums(own.square()) < _ROUNDING * whole
            own = torch.where(rounding[self.environments.at], 0.0, own)
            yield raw.nan_to_num(), u.nan_to_num(), own

    def explained(self, columns: Tensor) -> Explained:
        """Each column alone, with a slope of its own at every environment."""
        total = columns.new_zeros(1 + _FLIPS, columns.shape[1])
        for raw, u, own in self.outcomes(columns):
            spread = self.environments.sums(own.square())
            used = spread > 0
            weight = torch.where(used, 1 / torch.where(used, spread, 1.0), 0.0)
            for place, noise in enumerate([raw, *(sign * u for sign in self.signs)]):
                beat()
                score = self.environments.sums(own * noise.unsqueeze(-1))
                total[place] += (weight * score.square()).sum(0)
        return self._beyond(total)

    def one_more(self, columns: Tensor) -> tuple[float, float]:
        """Of the direction of the columns that explains most: share and z."""
        width = columns.shape[1]
        scatter = columns.new_zeros(1 + _FLIPS, width, width)
        spread = columns.new_zeros(width, width)
        for raw, u, own in self.outcomes(columns):
            spread += own.T @ own
            for place, noise in enumerate([raw, *(sign * u for sign in self.signs)]):
                beat()
                score = self.environments.sums(own * noise.unsqueeze(-1))
                scatter[place] += score.T @ score
        values, axes = torch.linalg.eigh(spread)
        keep = values > 1e-6 * values.max().clamp(min=1e-300)
        if not bool(keep.any()):
            return 0.0, 0.0
        whiten = axes[:, keep] / values[keep].sqrt()
        largest = torch.linalg.eigvalsh(whiten.T @ scatter @ whiten)[:, -1]
        # A direction's statistic over its spread is a mean over environments: times their number
        # it is the sum of squares explained.
        terms = len(self.environments.nodes) * self.residuals.u.shape[1]
        found = self._beyond(largest.unsqueeze(-1) * terms)
        return float(found.share[0]), float(found.z[0])

    def _beyond(self, total: Tensor) -> Explained:
        """From statistics (1 + flips, P), the residuals' own first."""
        found, chance = total[0], total[1:]
        centre, spread = chance.mean(0), chance.std(0).clamp(min=1e-12)
        share = (found - centre) / max(self.square, 1e-300)
        return Explained(share.cpu().numpy(), ((found - centre) / spread).cpu().numpy())


def leading(features: Tensor) -> Tensor:
    """The features' leading directions, of variance 1, (N, at most 30)."""
    centred = features - features.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    keep = values > 1e-5 * values.max().clamp(min=1e-300)
    return left[:, keep][:, :_MOST_DIRECTIONS] * len(features) ** 0.5
