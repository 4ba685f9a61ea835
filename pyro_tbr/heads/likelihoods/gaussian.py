"""Normal outcomes, as users say them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.correlated import CorrelatedGaussianLikelihood
from pyro_tbr.heads.likelihoods.measured import Y_SE, MeasuredGaussianLikelihood
from pyro_tbr.heads.likelihoods.noisy_latents import (
    LATENT_NOISE,
    NoisyLatentsGaussianLikelihood,
    latent_noise_value,
)
from pyro_tbr.heads.likelihoods.normal import NormalLikelihood
from pyro_tbr.tree.readers.naming import listed

_COVARIANCES = ("diagonal", "full")


class GaussianLikelihood(NormalLikelihood):
    r"""Normal outcomes, noise of a standard deviation each, site ``noise_scale`` (Q,).

    By default every environment has its own around a common one, see :class:`NoiseLikelihood`.
    Where rows have known measurement errors (``y_se``), their squares are added to the noise's,
    which is then common to all environments.

    With ``covariance="full"`` the noise of a row's outcomes goes together, by correlations that are
    learnt, see :class:`~pyro_tbr.heads.likelihoods.correlated.CorrelatedGaussianLikelihood`.

    With ``latent_noise`` latents are themselves uncertain given the features, which makes
    environments where they matter more noisier, and outcomes go together, see
    :class:`~pyro_tbr.heads.likelihoods.noisy_latents.NoisyLatentsGaussianLikelihood`.

    Args:
        scale: Noise standard deviation in the outcome's unit, a number or (Q,); ``None``: learnt.
        noise: ``"by_environment"``, or ``"common"`` to all; ``None``: common where ``scale`` or
            ``latent_noise`` is given, else by environment.
        covariance: Of the noise of a row's outcomes, ``"diagonal"`` or ``"full"``; ``None``:
            diagonal.
        latent_noise: ``True``: latents have noise, z ~ Normal(encoder(x), omega), with one omega a
            latent, learnt; a number or (K,): omega, in standard deviations of the latent, or in the
            feature's unit where the features are the latents; ``False``: none.
    """

    takes: tuple[str, ...] = (Y_SE,)

    def __init__(
        self,
        scale: float | Tensor | None = None,
        noise: str | None = None,
        covariance: str | None = None,
        latent_noise: bool | float | Tensor = False,
    ) -> None:
        noisy = latent_noise is not False and latent_noise is not None
        said = {"latent_noise": latent_noise} if noisy else {}
        super().__init__(scale=scale, noise=noise, covariance=covariance, **said)
        if noisy:
            latent_noise_value(latent_noise)
        if covariance not in (None, *_COVARIANCES):
            raise DataError(
                f"covariance={covariance!r} is not known: give one of {listed(_COVARIANCES)}"
            )

    def _build(self, num_outcomes: int, unit: Tensor) -> None:
        super()._build(num_outcomes, unit)
        self.takes = ()  # had errors been given, this were another class

    def resolved(self, names: Sequence[Hashable], known: Collection[str]) -> Likelihood:
        """See :meth:`Likelihood.resolved`."""
        full = self.description["covariance"] == "full" and len(names) > 1
        said = self.description
        if LATENT_NOISE in said:
            if full or Y_SE in known:
                other = "covariance='full'" if full else Y_SE
                raise DataError(
                    f"latent_noise together with {other}: what a row's outcomes share is there "
                    "taken for the noise of its latents alone; leave one of the two out"
                )
            return NoisyLatentsGaussianLikelihood(said["scale"], said["noise"], said[LATENT_NOISE])
        if Y_SE not in known:
            return CorrelatedGaussianLikelihood(said["scale"], said["noise"]) if full else self
        if full:
            raise DataError(
                "covariance='full' together with y_se: noise beside known errors is that of each "
                "outcome alone here; leave one of the two out"
            )
        if self.description["noise"] == "by_environment":
            raise DataError(
                "noise='by_environment' together with y_se: the noise that is left beside known "
                "errors is common to all environments here; leave one of the two out"
            )
        return MeasuredGaussianLikelihood(scale=self.description["scale"], noise="common")
