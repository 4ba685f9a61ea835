"""Encoders, and the model of them and a head.

Encoders are given as descriptions and built by the model for its sizes; a built part has all its
parameters and buffers.
"""

from pyro_tbr.models.basis import LatentBasis, PolynomialBasis, SplineBasis
from pyro_tbr.models.encoders import (
    Encoder,
    IdentityEncoder,
    LinearEncoder,
    MLPEncoder,
)
from pyro_tbr.models.module_encoder import ModuleEncoder
from pyro_tbr.models.tree_model import TreeModel

__all__ = [
    "Encoder",
    "IdentityEncoder",
    "LatentBasis",
    "LinearEncoder",
    "MLPEncoder",
    "ModuleEncoder",
    "PolynomialBasis",
    "SplineBasis",
    "TreeModel",
]
