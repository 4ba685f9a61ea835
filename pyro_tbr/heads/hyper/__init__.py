"""Hyperparameters and their factors of q."""

from pyro_tbr.heads.hyper.base import (
    FactorState,
    HyperFactor,
    HyperFactors,
    Hyperparameter,
    as_fixed,
    quadrature,
    spread_fixed,
)
from pyro_tbr.heads.hyper.correlation import CorrelationCholesky, CorrelationFactor
from pyro_tbr.heads.hyper.latent_noise import LatentNoise, LatentNoiseFactor
from pyro_tbr.heads.hyper.node_scales import NodeScale, NodeScaleFactor
from pyro_tbr.heads.hyper.rates import Rate, RateFactor
from pyro_tbr.heads.hyper.scales import (
    HalfCauchyScale,
    LogNormalMoments,
    PositiveScale,
    ScaleFactor,
    Separation,
    SeparationFactor,
    SlabScale,
)

__all__ = [
    "CorrelationCholesky",
    "CorrelationFactor",
    "FactorState",
    "HalfCauchyScale",
    "Hyperparameter",
    "HyperFactor",
    "HyperFactors",
    "LatentNoise",
    "LatentNoiseFactor",
    "LogNormalMoments",
    "NodeScale",
    "NodeScaleFactor",
    "PositiveScale",
    "Rate",
    "RateFactor",
    "ScaleFactor",
    "Separation",
    "SeparationFactor",
    "SlabScale",
    "as_fixed",
    "quadrature",
    "spread_fixed",
]
