"""Normal outcomes whose noise goes together within a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.data.known import Known
from pyro_tbr.data.numbers import refuse_cells
from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.heads.hyper import CorrelationCholesky, CorrelationFactor, HyperFactors
from pyro_tbr.heads.joint_sums import JointSums
from pyro_tbr.heads.likelihoods.correlation import (
    CorrelatedNormal,
    JointNormal,
    patterns_inverse,
    shrunken_correlation,
)
from pyro_tbr.heads.likelihoods.expectations import Nuisance
from pyro_tbr.heads.likelihoods.noise import noise_of
from pyro_tbr.heads.likelihoods.normal import NormalLikelihood

_CHOLESKY = "noise_cholesky"


class CorrelatedGaussianLikelihood(NormalLikelihood):
    r"""Normal outcomes with a residual covariance: :math:`y \sim N(f, D R D)` of each row.

    D are the noise scales of ``GaussianLikelihood``, by environment where not given, and R their
    correlation, common to all environments: the site ``noise_cholesky`` (Q, Q) is its Cholesky
    factor, under an LKJ prior that takes every R alike; in q it is a point, shrunk to the diagonal
    by the error of the correlations themselves. What a row did not observe is integrated out.

    So outcomes that go together count for what they are worth, the noise of one tells of another's,
    which sharpens what changes in one alone, and draws of several outcomes of a row go together. It
    is what ``GaussianLikelihood(covariance="full")`` becomes where outcomes are several. Guides
    that are exact along the tree take it; weights of different outcomes are coupled by expectation
    propagation, as latents are, and what their trees have heard of each other twice is taken back
    (``shared_errors``). That takes memory for ``V Q^2 W^2`` numbers, with V nodes. Encoder and
    latents are found with each outcome alone.

    Args:
        scale: As of ``GaussianLikelihood``.
        noise: Likewise.

    Source:
        Zellner, JASA 57 (1962) 348 (seemingly unrelated regressions).
    """

    correlated = True

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

    def observed(self, y: Outcomes, known: Known) -> Tensor:
        """See :meth:`Support.observed`; the outcomes that a row has observed count alike."""
        found = super().observed(y, known)
        if known.weights is not None:
            weights = known.weights.numpy()
            counted = np.where(~torch.isnan(found).numpy(), weights, 0.0)
            most = counted.max(1, keepdims=True)
            what = "value(s) unlike those of the row's other outcomes"
            remedy = "with covariance='full' give one weight a row, or covariance='diagonal'"
            bad = (counted > 0) & (counted != most)
            refuse_cells("row_weights", weights, bad, what, remedy, y.names, y.index)
        return found

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Normal(predictor, noise_scale) whose draws go together; densities are of each outcome."""
        return CorrelatedNormal(predictor, nuisance["noise_scale"], nuisance[_CHOLESKY])

    def joint(self, outcome: dist.TorchDistribution, seen: Tensor) -> dist.TorchDistribution:
        """See :meth:`Likelihood.joint`."""
        return JointNormal(cast(CorrelatedNormal, outcome), seen)

    def values_at_nodes(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Likelihood.values_at_nodes`; with a dimension of 1 for rows before (Q, Q)."""
        shared = values[_CHOLESKY]
        found = super().values_at_nodes({n: v for n, v in values.items() if n != _CHOLESKY}, index)
        return found | {_CHOLESKY: shared.unsqueeze(-3) if self.by_node else shared}

    def expected_log_prob(self, y: Tensor, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
        """Closed form; the parts of the outcomes of a row sum to what the row says."""
        seen = ~torch.isnan(y)
        precision, log_norm = self.noise_terms(nuisance, seen, like=mean)
        residual = torch.where(seen, self.filled(y) - mean, 0.0)
        pulled = (precision @ residual.unsqueeze(-1)).squeeze(-1)
        square = residual * pulled + precision.diagonal(dim1=-2, dim2=-1) * var
        number = seen.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(seen, log_norm.unsqueeze(-1) / number - 0.5 * square, 0.0)

    def noise_terms(
        self, nuisance: Nuisance, seen: Tensor, *, like: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Expected precision of the noise of what was observed, and log density at the mean.

        Args:
            nuisance: Factors as rows see them.
            seen: Which outcomes were observed, (n, Q) bool.
            like: In whose dtype; by default double.

        Returns:
            (n, Q, Q), zero for what was not observed, and (n,).
        """
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
    def learn_correlation(
        self, nuisance: HyperFactors, at_nodes: Nuisance, sums: JointSums, residuals: Tensor
    ) -> None:
        """Moves the correlation towards its optimum given the residuals of rows.

        What was not observed is expected given what was, at the correlation as it is: a step of
        expectation maximisation.

        Args:
            nuisance: Factors by site name; changed.
            at_nodes: The same at the nodes of the sums.
            sums: Of the rows.
            residuals: Their :meth:`JointSums.residuals`, (M, Q, Q).
        """
        factor = _correlation(nuisance)
        now = factor.correlation
        first = noise_of(at_nodes).mean_power(-1.0).to(now).expand(sums.seen.shape)
        standard = residuals * first.unsqueeze(-1) * first.unsqueeze(-2)
        told = now @ patterns_inverse(now, sums.seen)[0]  # of all outcomes by those observed
        rest = sums.count.reshape(-1, 1, 1) * (now - told @ now)
        whole = (told @ standard @ told.mT + rest).sum(0)
        factor.hold(shrunken_correlation(whole, float(sums.count.sum())))


def _correlation(nuisance: Nuisance) -> CorrelationFactor:
    return cast(CorrelationFactor, nuisance[_CHOLESKY])
