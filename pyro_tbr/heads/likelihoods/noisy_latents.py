"""Normal outcomes of latents that have noise of their own, which is integrated out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads.hyper import HyperFactors, LatentNoise, LatentNoiseFactor, as_fixed
from pyro_tbr.heads.hyper.base import by_name
from pyro_tbr.heads.likelihoods.base import SeenRows
from pyro_tbr.heads.likelihoods.correlation import (
    FactorNormal,
    inverse_of_seen,
)
from pyro_tbr.heads.likelihoods.expectations import Nuisance, OfNodes, as_dict
from pyro_tbr.heads.likelihoods.joint import JointNormalLikelihood, JointResiduals
from pyro_tbr.heads.likelihoods.noise import noise_of
from pyro_tbr.heads.likelihoods.normal import NormalLikelihood
from pyro_tbr.heads.moments import NodeMoments

LATENT_NOISE = "latent_noise"
LATENT_NOISE_SITE = "latent_noise_scale"
_SCATTER, _LOADINGS = "latent_scatter", "latent_loadings"
_ROUNDS = 4  # of noise and latent noise, each given the other, in one call
_LEAST, _MOST = 0.2, 4.0  # share of a variance that a step may leave of it, and make of it
_RIDGE = 1e-9  # share of the information on a latent's noise that is its own in any case,
_LEAST_INFORMATION = 1e-12  # and what there is at least


class NoisyLatentsGaussianLikelihood(JointNormalLikelihood):
    r"""Normal outcomes of noisy latents, :math:`z \sim N(\mathrm{encoder}(x), \omega^2)`.

    The noise of the latents is integrated out: at node v a row's outcomes have the covariance

    .. math::
        \Sigma_v = D_v^2 + W_v' \, \mathrm{diag}(\omega^2) \, W_v

    with D the noise scales of ``GaussianLikelihood`` and W the weights. So environments where a
    latent matters more are noisier, outcomes that share a latent go together, and what a leaf
    without data is like follows from its weights. The site ``latent_noise_scale`` (K,) has one
    :math:`\omega` a latent, in its standard deviations (known latents: in the feature's unit).

    Covariances stand at the expected outer products of the weights; that the spread of outcomes
    itself tells of weights is not used, which costs power and nothing else. :math:`\omega` and the
    noise are moved by Fisher's scoring, their factors as wide as the information on them.

    It is what ``GaussianLikelihood(latent_noise=)`` becomes.

    Args:
        scale: As of ``GaussianLikelihood``.
        noise: Likewise.
        latent_noise: Likewise, not ``False``.
    """

    by_weights = True
    because = "latent_noise"
    instead = "leave latent_noise out"

    def __init__(
        self,
        scale: float | Tensor | None = None,
        noise: str | None = None,
        latent_noise: bool | float | Tensor = True,
    ) -> None:
        super().__init__(scale=scale, noise=noise, latent_noise=latent_noise)
        self.latent_noise_value = latent_noise_value(latent_noise)
        self.by_node = noise == "by_environment"  # what differs is mostly the latents' noise

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        super()._build(num_outcomes, unit)
        if self.num_latents is None:
            raise DataError(
                f"{self!r} must know how many latents there are: build(..., num_latents=), as "
                "TreeModel.build does"
            )
        fixed = self.latent_noise_value
        if fixed is not None:
            fixed = _of_latents(fixed, self.num_latents)
            fixed = fixed if self.latent_scale is None else fixed / self.latent_scale.to(fixed)
        self.latent_noise_scale = LatentNoise(
            LATENT_NOISE_SITE, fixed, self.num_latents, self.num_nodes, num_outcomes
        )

    def apart(self) -> NormalLikelihood:
        """See :meth:`Likelihood.apart`: each environment's own noise, which holds the latents'."""
        other = NormalLikelihood(noise="by_environment").build(
            len(self.unit), num_nodes=self.num_nodes
        )
        other.register_buffer("unit", self.unit)
        return cast(NormalLikelihood, other.to(self.unit))

    def forward(self, predictor: Tensor, nuisance: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Normal outcomes whose draws go together; densities are of each outcome."""
        return FactorNormal(predictor, nuisance["noise_scale"], nuisance[_LOADINGS])

    def values_with(self, values: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """See :meth:`Likelihood.values_with`: by how much each latent's noise moves outcomes."""
        scale = values[LATENT_NOISE_SITE]
        slopes = weights[..., : scale.shape[-1], :]
        while scale.dim() < slopes.dim() - 1:  # rows or nodes are before the latents
            scale = scale.unsqueeze(-2)
        return {_LOADINGS: scale.unsqueeze(-1).to(slopes) * slopes}

    def at_nodes(self, nuisance: HyperFactors, index: Tensor) -> HyperFactors:
        """See :meth:`Likelihood.at_nodes`: with what the latents' noise adds there."""
        found: dict[str, Any] = as_dict(super().at_nodes(nuisance, index))
        factor = cast(LatentNoiseFactor, found.pop(LATENT_NOISE_SITE))
        place = index.clamp(max=len(factor.scatter) - 1)  # of a node that the tree has not: with
        return found | {_SCATTER: OfNodes(factor.scatter, place)}  # ``seen_with``, by its moments

    def seen_with(self, nuisance: HyperFactors, moments: NodeMoments) -> dict[str, Tensor]:
        """See :meth:`Likelihood.seen_with`."""
        return {_SCATTER: _latent(nuisance).scatter_of(moments)}

    def noise_terms(
        self, nuisance: Nuisance, seen: Tensor, *, like: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`JointNormalLikelihood.noise_terms`."""
        scatter = _scatter(nuisance)
        own = self._own(nuisance).to(scatter).expand(seen.shape)
        precision, log_det = inverse_of_seen(scatter + torch.diag_embed(own), seen)
        height = self._height(nuisance).to(scatter).expand(seen.shape)
        log_norm = torch.where(seen, height, 0.0).sum(-1) - 0.5 * log_det
        if like is None:
            return precision, log_norm
        return precision.to(like), log_norm.to(like)

    def site_scale(self, nuisance: Nuisance) -> Tensor:
        """Of each outcome alone, (n, Q)."""
        own, added = self._own(nuisance), _scatter(nuisance).diagonal(dim1=-2, dim2=-1)
        return 1 / (own.to(added) + added)

    def site_norm(self, nuisance: Nuisance) -> Tensor:
        """Likewise."""
        scale = self.site_scale(nuisance)
        return self._height(nuisance).to(scale) + 0.5 * scale.log()

    def predictive_moments(
        self, mean: Tensor, var: Tensor, nuisance: Nuisance
    ) -> tuple[Tensor, Tensor]:
        """Closed form."""
        added = _scatter(nuisance).diagonal(dim1=-2, dim2=-1)
        return mean, var + noise_of(nuisance).mean_power(2.0) + added

    def noise_correlation(self, nuisance: HyperFactors) -> Tensor:
        """Refused: they are those of the weights, environment by environment."""
        del nuisance
        raise DataError(
            "noise_correlation(): with latent_noise they differ between environments, as the "
            "weights do: draws of predict(x, env).sample(n) have them"
        )

    @staticmethod
    def _own(nuisance: Nuisance) -> Tensor:
        """Variance that stands for the noise's own, by its expected precision."""
        return 1 / noise_of(nuisance).mean_power(-2.0)

    @staticmethod
    def _height(nuisance: Nuisance) -> Tensor:
        """What the expected log density of an outcome has beside the determinant's part."""
        noise = noise_of(nuisance)
        known = -noise.mean_log() - 0.5 * noise.mean_power(-2.0).log()
        return known - 0.5 * math.log(2 * math.pi)

    def _learn(self, nuisance: HyperFactors, rows: SeenRows, *, common: bool) -> None:
        """Refused: single outcomes do not tell noise from that of latents."""
        raise NotImplementedError(f"{type(self).__name__} learns from sums: learn_from_joint")

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

        A variance s of log likelihood f counts as that of as many normal draws as it has
        information, :math:`n = 2 s^2 I`, whose mean square is a step of scoring away:
        :math:`s (1 + 2 s f' / n)`.
        """
        factor, sums, num_latents = _latent(nuisance), residuals.sums, self.num_latents
        if common:
            square = sums.gram.diagonal(dim1=-2, dim2=-1)[:, :num_latents].sum(0)
            factor.exists.copy_(square > 0)
        place = torch.searchsorted(residuals.nodes, sums.nodes)
        mean, var = (part[sums.nodes, :num_latents].double() for part in moments)
        for _ in range(_ROUNDS if common else 1):
            factor.hold(moments)
            self._learn_noise(nuisance, residuals, place, common=common)
            if common and factor.learnt:
                precision, pull = self._pull(nuisance, residuals)
                _learn_latent_noise(factor, precision, pull, sums.count, NodeMoments(mean, var))
        factor.hold(moments)

    def _pull(self, nuisance: HyperFactors, residuals: JointResiduals) -> tuple[Tensor, Tensor]:
        """Precisions of the noise, and twice the slopes of the log likelihood in its covariance."""
        sums = residuals.sums
        precision, _ = self.noise_terms(self.at_nodes(nuisance, sums.nodes), sums.seen)
        pull = precision @ residuals.outer @ precision
        return precision, pull - sums.count.reshape(-1, 1, 1) * precision

    def _learn_noise(
        self, nuisance: HyperFactors, residuals: JointResiduals, place: Tensor, *, common: bool
    ) -> None:
        """Noise beside that of the latents, at these as they are."""
        sums = residuals.sums
        precision, pull = self._pull(nuisance, residuals)
        own = self._own(self.at_nodes(nuisance, sums.nodes)).double().expand(sums.seen.shape)
        share = own * precision.diagonal(dim1=-2, dim2=-1)
        number = sums.count.unsqueeze(-1) * share.square()
        square = own * (number + own * pull.diagonal(dim1=-2, dim2=-1))
        zero = torch.zeros_like(residuals.square)
        number, square, unit = (
            zero.index_add(0, place, part) for part in (number, square, number * own)
        )
        square = torch.minimum(torch.maximum(square, _LEAST * unit), _MOST * unit)
        self.learn_from_residuals(nuisance, square, number, residuals.nodes, common=common)


def latent_noise_value(latent_noise: Any) -> Tensor | None:
    """What a user fixed; ``None``: to be learnt.

    Raises:
        DataError: It is no number above 0 and not ``True``.
    """
    if latent_noise is True:
        return None
    try:
        return as_fixed(latent_noise, LATENT_NOISE)
    except DataError as error:
        raise DataError(
            f"latent_noise={latent_noise!r}: give True to have it learnt, a number above 0 or one "
            "a latent to fix it, or leave it out for latents without noise"
        ) from error


def _of_latents(value: Tensor, num_latents: int) -> Tensor:
    if value.dim() > 1 or (value.dim() == 1 and len(value) not in (1, num_latents)):
        raise ShapeError(
            f"latent_noise has shape {tuple(value.shape)}: give a number, or one for each of "
            f"{num_latents} latents"
        )
    return value.expand(num_latents)


def _learn_latent_noise(
    factor: LatentNoiseFactor, precision: Tensor, pull: Tensor, count: Tensor, moments: NodeMoments
) -> None:
    """A step of Fisher's scoring for the variances of all latents' noise together.

    Args:
        factor: Moved.
        precision: Of the noise of rows, (M, Q, Q).
        pull: Twice the slopes in its covariance, likewise.
        count: Of rows, (M,).
        moments: Of the latents' weights, (M, K, Q) each.
    """
    mean, var = moments
    square, kept = factor.mean_power(2.0).double(), factor.exists
    slope = torch.einsum("mkq,mqr,mkr->k", mean, pull, mean)
    slope = slope + torch.einsum("mkq,mqq->k", var, pull)
    across = mean @ precision  # (M, K, Q)
    both = (across @ mean.mT).square()
    each = across.square() @ var.mT
    both = both + each + each.mT + var @ precision.square() @ var.mT
    both = torch.einsum("m,mkl->kl", count, both) * square * square.unsqueeze(-1)
    # In logarithms of the variances; latents that do not exist have no part in it.
    information = torch.where(kept & kept.unsqueeze(-1), 0.5 * both, 0.0)
    alone = torch.where(kept, _RIDGE * information.diagonal() + _LEAST_INFORMATION, 1.0)
    covariance = torch.linalg.inv(information + torch.diag(alone))
    step = covariance @ torch.where(kept, 0.5 * square * slope, 0.0)
    number = torch.where(kept, 2 / covariance.diagonal(), 0.0)
    factor.update(number * square * (1 + step).clamp(_LEAST, _MOST), number)


def _scatter(nuisance: Nuisance) -> Tensor:
    """What the latents' noise adds to the covariance of outcomes, of factors as rows see them."""
    found = as_dict(nuisance)[_SCATTER]
    return found.of_rows() if isinstance(found, OfNodes) else cast(Tensor, found)


def _latent(nuisance: HyperFactors) -> LatentNoiseFactor:
    return cast(LatentNoiseFactor, by_name(nuisance)[LATENT_NOISE_SITE])
