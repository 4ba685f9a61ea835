"""Likelihoods: from a linear predictor to the distribution of an outcome."""

from pyro_tbr.heads.likelihoods.base import Likelihood
from pyro_tbr.heads.likelihoods.binomial import BernoulliLikelihood, BinomialLikelihood
from pyro_tbr.heads.likelihoods.counts import NegativeBinomialLikelihood, PoissonLikelihood
from pyro_tbr.heads.likelihoods.expectations import SiteTerms
from pyro_tbr.heads.likelihoods.gaussian import GaussianLikelihood
from pyro_tbr.heads.likelihoods.mixed import MixedLikelihood
from pyro_tbr.heads.likelihoods.ordinal import OrdinalLikelihood
from pyro_tbr.heads.likelihoods.scaling import Scaling, standardised, unscaled
from pyro_tbr.heads.likelihoods.student_t import StudentTLikelihood

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": GaussianLikelihood,
    "student_t": StudentTLikelihood,
    "bernoulli": BernoulliLikelihood,
    "binomial": BinomialLikelihood,
    "poisson": PoissonLikelihood,
    "negative_binomial": NegativeBinomialLikelihood,
}

__all__ = [
    "LIKELIHOODS",
    "BernoulliLikelihood",
    "BinomialLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "MixedLikelihood",
    "NegativeBinomialLikelihood",
    "OrdinalLikelihood",
    "PoissonLikelihood",
    "Scaling",
    "SiteTerms",
    "StudentTLikelihood",
    "standardised",
    "unscaled",
]
