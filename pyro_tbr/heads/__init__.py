"""Weights on a tree, given a design: all of the model but the encoder, and its posterior.

A :class:`Head` is a Pyro model of outcomes given a design: a prior on the arcs' changes
(``priors/``) and a likelihood (``likelihoods/``), each one object in one file. A guide is its
approximate posterior: :class:`TreeGuide` is exact along the tree, :class:`MeanFieldGuide` fully
factorised. :func:`condition` moves a guide to its optimum for rows, by sufficient statistics that
are additive over blocks of rows. :func:`run_chains` (``sampling/``) samples the posterior from
there, and :class:`SampledGuide` holds the draws. :class:`AveragedGuide` (``averaging/``) is a
mixture of guides that believe in other bases of the latents.
"""

from pyro_tbr.heads.averaging import AveragedGuide
from pyro_tbr.heads.conditioning import condition, exact_statistics
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.head import Head
from pyro_tbr.heads.likelihoods import (
    LIKELIHOODS,
    BernoulliLikelihood,
    BinomialLikelihood,
    GaussianLikelihood,
    Likelihood,
    MixedLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.moments import DeltaMoments, NodeMoments
from pyro_tbr.heads.priors import ArcPrior, GaussianPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.rows import DesignRows, RowSource, RowTerms
from pyro_tbr.heads.sampling import SampledGuide, run_chains
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.heads.tree_guide import TreeGuide

__all__ = [
    "LIKELIHOODS",
    "ArcPrior",
    "AveragedGuide",
    "BernoulliLikelihood",
    "BinomialLikelihood",
    "DeltaMoments",
    "DesignRows",
    "GaussianLikelihood",
    "GaussianPrior",
    "Guide",
    "Head",
    "HorseshoePrior",
    "Likelihood",
    "MeanFieldGuide",
    "MixedLikelihood",
    "NegativeBinomialLikelihood",
    "OrdinalLikelihood",
    "NodeMoments",
    "PoissonLikelihood",
    "RowSource",
    "RowTerms",
    "SampledGuide",
    "SpikeSlabPrior",
    "Statistics",
    "StudentTLikelihood",
    "TreeGuide",
    "condition",
    "exact_statistics",
    "run_chains",
]
