"""Outcomes of a row whose noise goes together: their precision where some are not observed."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

_LEAST_SHRUNK = 1e-3  # share of the identity in a correlation matrix: copies stay invertible


def patterns_inverse(correlation: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse correlations of what each row has observed, and their log determinants.

    Args:
        correlation: (*B, Q, Q); the last of B is 1, if there is any, and stands for the rows.
        seen: Which outcomes were observed, (N, Q) bool.

    Returns:
        (*B', N, Q, Q), zero for what was not observed, and (*B', N), with B' without the last.
    """
    kinds, place = seen.unique(dim=0, return_inverse=True)  # few, where most rows have all
    both = (kinds.unsqueeze(-1) & kinds.unsqueeze(-2)).to(correlation)
    alone = torch.diag_embed((~kinds).to(correlation))
    if correlation.dim() == 2:
        correlation = correlation.unsqueeze(0)
    factor = torch.linalg.cholesky(correlation * both + alone)  # (*B', U, Q, Q)
    inverse = torch.cholesky_inverse(factor) * both
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return inverse.index_select(-3, place), log_det.index_select(-1, place)


def shrunken_correlation(outer: Tensor, num_rows: float) -> Tensor:
    """Correlations (Q, Q) from sums of products (Q, Q) of so many rows, shrunk to none.

    By the share that has the least expected square error, from the sampling variance of the
    correlations themselves.

    Source:
        Schaefer & Strimmer, Statistical Applications in Genetics and Molecular Biology 4 (2005) 32.
    """
    sd = outer.diagonal().clamp(min=1e-300).sqrt()
    raw = (outer / sd / sd.unsqueeze(-1)).clamp(-1, 1)
    off = raw - torch.diag(raw.diagonal())
    # Of pairs off the diagonal alone.
    error = (1 - off.square()).square().sum() - len(off)
    share = error / max(num_rows - 1, 1) / off.square().sum().clamp(min=1e-300)
    share = share.clamp(_LEAST_SHRUNK, 1.0)
    return (1 - share) * off + torch.eye(len(off)).to(off)


def inverse_of_seen(cov: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse covariances of what each row has observed, and their log determinants.

    Args:
        cov: (*B, N, Q, Q), positive definite.
        seen: Which outcomes were observed, (N, Q) bool.

    Returns:
        (*B, N, Q, Q), zero for what was not observed, and (*B, N).
    """
    both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
    var = torch.where(seen, cov.diagonal(dim1=-2, dim2=-1), 1.0)
    unit = var.rsqrt()
    scale = unit.unsqueeze(-1) * unit.unsqueeze(-2)
    alone = torch.diag_embed((~seen).to(cov))
    factor = torch.linalg.cholesky(torch.where(both, cov * scale, 0.0) + alone)
    inverse = torch.where(both, torch.cholesky_inverse(factor) * scale, 0.0)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + var.log().sum(-1)
    return inverse, log_det


class RowNormal(dist.Normal):
    """Normal outcomes (*B, N, Q) that go together within a row: draws do; abstract.

    Densities are of each outcome alone, see :class:`JointNormal` for those of rows.
    """

    def precision(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`inverse_of_seen` gives it, of outcomes that were observed, (N, Q) bool."""
        raise NotImplementedError

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, *B, N, Q) without gradients."""
        with torch.no_grad():
            return self.rsample(torch.Size(sample_shape))

    def _noise(self, shape: Any) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)


class CorrelatedNormal(RowNormal):
    """Outcomes whose noise has correlations.

    Args:
        loc: (*B, N, Q).
        scale: Broadcasts to it.
        cholesky: Of the noise's correlation, (Q, Q) or (*B, 1, Q, Q).
    """

    def __init__(self, loc: Tensor, scale: Tensor, cholesky: Tensor) -> None:
        self.cholesky = cholesky
        super().__init__(loc, scale, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CorrelatedNormal:
        """The same with more dimensions to the left."""
        loc, scale = (part.expand(batch_shape) for part in (self.loc, self.scale))
        return CorrelatedNormal(loc, scale, self.cholesky)

    def precision(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`RowNormal.precision`."""
        factor, scale = self.cholesky.to(self.loc), self.scale
        inverse, log_det = patterns_inverse(factor @ factor.mT, seen)
        whole = torch.where(seen, scale.log(), 0.0).sum(-1)
        return inverse / scale.unsqueeze(-1) / scale.unsqueeze(-2), log_det + 2 * whole

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """(*sample_shape, *B, N, Q)."""
        noise = self._noise(self._extended_shape(sample_shape))
        return self.loc + self.scale * (self.cholesky.to(noise) @ noise.unsqueeze(-1)).squeeze(-1)


class FactorNormal(RowNormal):
    """Outcomes that share factors.

    Args:
        loc: (*B, N, Q).
        own: Standard deviations of what each has for itself; broadcasts to it.
        loadings: By how much each of K standard normal factors moves outcomes, (*B, N, K, Q).
    """

    def __init__(self, loc: Tensor, own: Tensor, loadings: Tensor) -> None:
        self.own, self.loadings = own, loadings
        scale = (own.square() + loadings.square().sum(-2)).sqrt()
        super().__init__(loc, scale, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FactorNormal:
        """The same with more dimensions to the left."""
        return FactorNormal(self.loc.expand(batch_shape), self.own, self.loadings)

    def precision(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`RowNormal.precision`."""
        own = self.own.square().expand(self.loc.shape)
        return inverse_of_seen(self.loadings.mT @ self.loadings + torch.diag_embed(own), seen)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """(*sample_shape, *B, N, Q)."""
        shape = self._extended_shape(sample_shape)
        shared = self._noise((*shape[:-1], 1, self.loadings.shape[-2]))
        return self.loc + self.own * self._noise(shape) + (shared @ self.loadings).squeeze(-2)


class JointNormal(RowNormal):
    """The same outcomes, with densities whose sum over the outcomes of a row is that of the row.

    Args:
        normal: The outcomes.
        seen: Which were observed, (N, Q) bool; others count nothing.
    """

    def __init__(self, normal: RowNormal, seen: Tensor) -> None:
        super().__init__(normal.loc, normal.scale, validate_args=False)
        self.normal, self.seen = normal, seen

    def expand(self, batch_shape: Any, _instance: Any = None) -> JointNormal:
        """The same with more dimensions to the left."""
        return JointNormal(self.normal.expand(batch_shape), self.seen)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """(*sample_shape, *B, N, Q)."""
        return self.normal.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """(*B, N, Q)."""
        inverse, log_det = self.normal.precision(self.seen)
        off = torch.where(self.seen, value - self.loc, 0.0)
        pulled = (inverse @ off.unsqueeze(-1)).squeeze(-1)
        number = self.seen.sum(-1, keepdim=True).clamp(min=1)
        each = log_det.unsqueeze(-1) / number + math.log(2 * math.pi) + off * pulled
        return torch.where(self.seen, -0.5 * each, 0.0)
