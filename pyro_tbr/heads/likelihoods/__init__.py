"""Likelihoods: from a linear predictor to the distribution of an outcome."""

from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.bernoulli import BernoulliLikelihood
from pyro_tbr.heads.likelihoods.expectations import SiteTerms
from pyro_tbr.heads.likelihoods.gaussian import GaussianLikelihood
from pyro_tbr.heads.likelihoods.scaling import Scaling, standardised, unscaled

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": GaussianLikelihood,
    "bernoulli": BernoulliLikelihood,
}

__all__ = [
    "LIKELIHOODS",
    "BernoulliLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "Scaling",
    "SiteTerms",
    "standardised",
    "unscaled",
]
