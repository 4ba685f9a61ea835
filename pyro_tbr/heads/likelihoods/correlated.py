"""Normal outcomes whose noise goes together within a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.heads.hyper import CorrelationCholesky, CorrelationFactor, HyperFactors
from pyro_tbr.heads.likelihoods.correlation import (
    CorrelatedNormal,
    patterns_inverse,
    shrunken_correlation,
)
from pyro_tbr.heads.likelihoods.expectations import Nuisance
from pyro_tbr.heads.likelihoods.joint import JointNormalLikelihood, JointResiduals
from pyro_tbr.heads.likelihoods.noise import noise_of
from pyro_tbr.heads.likelihoods.normal import NormalLikelihood
from pyro_tbr.heads.moments import NodeMoments

_CHOLESKY = "noise_cholesky"


class CorrelatedGaussianLikelihood(JointNormalLikelihood):
    r"""Normal outcomes with a residual covariance: :math:`y \sim N(f, D R D)` of each row.

    D are the noise scales of ``GaussianLikelihood``, by environment where not given, and R their
    correlation, common to all environments: the site ``noise_cholesky`` (Q, Q) is its Cholesky
    factor, under an LKJ prior that takes every R alike; in q it is a point, shrunk to the diagonal
    by the error of the correlations themselves. What a row did not observe is integrated out.

    So outcomes that go together count for what they are worth, the noise of one tells of another's,
    which sharpens what changes in one alone, and draws of several outcomes of a row go together. It
    is what ``GaussianLikelihood(covariance="full")`` becomes where outcomes are several.

    Args:
        scale: As of ``GaussianLikelihood``.
        noise: Likewise.

    Source:
        Zellner, JASA 57 (1962) 348 (seemingly unrelated regressions).
    """

    because = "covariance='full'"
    instead = "give covariance='diagonal'"

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        super()._build(num_outcomes, unit)
        self.noise_cholesky = CorrelationCholesky(_CHOLESKY, num_outcomes)

    def apart(self) -> NormalLikelihood:
        """See :meth:`Likelihood.apart`: the same noise, without correlations."""
        other = NormalLikelihood(**self.description)
        other.num_nodes = self.num_nodes
        other.register_buffer("unit", self.unit)
        for name, part in self.named_children():
            if name != _CHOLESKY:
                other.add_module(name, part)
        return other

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Normal(predictor, noise_scale) whose draws go together; densities are of each outcome."""
        return CorrelatedNormal(predictor, nuisance["noise_scale"], nuisance[_CHOLESKY])

    def values_at_nodes(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Likelihood.values_at_nodes`; with a dimension of 1 for rows before (Q, Q)."""
        shared = values[_CHOLESKY]
        found = super().values_at_nodes({n: v for n, v in values.items() if n != _CHOLESKY}, index)
        return found | {_CHOLESKY: shared.unsqueeze(-3) if self.by_node else shared}

    def noise_terms(
        self, nuisance: Nuisance, seen: Tensor, *, like: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`JointNormalLikelihood.noise_terms`."""
        factor, noise = _correlation(nuisance), noise_of(nuisance)
        correlation = factor.correlation if like is None else factor.correlation.to(like)
        inverse, log_det = patterns_inverse(correlation, seen)
        first, second = (noise.mean_power(p).to(inverse).expand(seen.shape) for p in (-1.0, -2.0))
        precision = inverse * first.unsqueeze(-1) * first.unsqueeze(-2)
        own = inverse.diagonal(dim1=-2, dim2=-1) * second
        precision = precision + torch.diag_embed(own - precision.diagonal(dim1=-2, dim2=-1))
        height = -noise.mean_log().to(inverse).expand(seen.shape) - 0.5 * math.log(2 * math.pi)
        return precision, torch.where(seen, height, 0.0).sum(-1) - 0.5 * log_det

    def noise_correlation(self, nuisance: HyperFactors) -> Tensor:
        """See :meth:`Likelihood.noise_correlation`."""
        return _correlation(nuisance).correlation

    @torch.no_grad()
    def learn_from_joint(
        self,
        nuisance: HyperFactors,
        residuals: JointResiduals,
        moments: NodeMoments,
        *,
        common: bool = True,
    ) -> None:
        """See :meth:`JointNormalLikelihood.learn_from_joint`.

        What was not observed is expected given what was, at the correlation as it is: a step of
        expectation maximisation.
        """
        del moments
        square, count, nodes, sums, outer = residuals
        self.learn_from_residuals(nuisance, square, count, nodes, common=common)
        if not common:
            return
        factor = _correlation(nuisance)
        now = factor.correlation
        noise = noise_of(self.at_nodes(nuisance, sums.nodes))
        first = noise.mean_power(-1.0).to(now).expand(sums.seen.shape)
        standard = outer * first.unsqueeze(-1) * first.unsqueeze(-2)
        told = now @ patterns_inverse(now, sums.seen)[0]  # of all outcomes by those observed
        rest = sums.count.reshape(-1, 1, 1) * (now - told @ now)
        whole = (told @ standard @ told.mT + rest).sum(0)
        factor.hold(shrunken_correlation(whole, float(sums.count.sum())))


def _correlation(nuisance: Nuisance) -> CorrelationFactor:
    return cast(CorrelationFactor, nuisance[_CHOLESKY])
