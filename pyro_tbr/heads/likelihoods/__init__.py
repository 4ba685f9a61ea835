"""Likelihoods: from a linear predictor to the distribution of an outcome."""

from pyro_tbr.heads.likelihoods.likelihoods import (
    LIKELIHOODS,
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
    NoiseMoments,
)

__all__ = [
    "LIKELIHOODS",
    "BernoulliLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "NoiseMoments",
]
