"""What is believed: encoders, priors on the arcs' changes, likelihoods, and the model of them.

Priors, likelihoods and encoders are given as descriptions and built by the model for its tree and
sizes; a built part has all its parameters and buffers.
"""

from pyro_tbr.models.encoders import (
    Encoder,
    IdentityEncoder,
    LinearEncoder,
    MLPEncoder,
    ModuleEncoder,
)
from pyro_tbr.models.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
    NoiseMoments,
)
from pyro_tbr.models.priors import ArcPrior, GaussianPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.models.tree_model import TreeModel

__all__ = [
    "ArcPrior",
    "BernoulliLikelihood",
    "Encoder",
    "GaussianLikelihood",
    "GaussianPrior",
    "HorseshoePrior",
    "IdentityEncoder",
    "Likelihood",
    "LinearEncoder",
    "MLPEncoder",
    "ModuleEncoder",
    "NoiseMoments",
    "SpikeSlabPrior",
    "TreeModel",
]
