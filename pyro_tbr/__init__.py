"""Bayesian tree-based regularization in Pyro.

Environments (cell types, species, sites) are the leaves of a known tree; latents mean the same in
all of them, and how they act on the outcome changes sparsely along the tree's arcs. ``Tree`` ->
``TreeModel`` -> ``fit`` -> ``Posterior``.
"""

from pyro_tbr.data import FeatureStream
from pyro_tbr.errors import (
    ConvergenceWarning,
    DataError,
    DataWarning,
    IdentificationWarning,
    ModelWarning,
    ShapeError,
    TbrError,
    TrainingError,
    TreeError,
)
from pyro_tbr.evaluation import Simulation, compare_trees, linear_r2, mcc, simulate
from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import GaussianPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.rows import RowTerms
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.inference import FitOptions, TreeELBO, average_bases, choose_latent_dim, fit
from pyro_tbr.io.anndata import from_anndata, to_anndata
from pyro_tbr.io.treedata import to_treedata
from pyro_tbr.models import LatentBasis, PolynomialBasis, SplineBasis, TreeModel
from pyro_tbr.posterior import NewLeaf, Posterior, Prediction, load, sample_posterior
from pyro_tbr.tree import Tree

__version__ = "0.12.0"

__all__ = [
    "BernoulliLikelihood",
    "BinomialLikelihood",
    "ConvergenceWarning",
    "DataError",
    "DataWarning",
    "FeatureStream",
    "FitOptions",
    "GaussianLikelihood",
    "GaussianPrior",
    "Guide",
    "HorseshoePrior",
    "IdentificationWarning",
    "LatentBasis",
    "MeanFieldGuide",
    "ModelWarning",
    "NegativeBinomialLikelihood",
    "OrdinalLikelihood",
    "NewLeaf",
    "PoissonLikelihood",
    "PolynomialBasis",
    "Posterior",
    "Prediction",
    "RowTerms",
    "ShapeError",
    "Simulation",
    "SpikeSlabPrior",
    "SplineBasis",
    "StudentTLikelihood",
    "TbrError",
    "TrainingError",
    "Tree",
    "TreeELBO",
    "TreeError",
    "TreeGuide",
    "TreeModel",
    "average_bases",
    "choose_latent_dim",
    "compare_trees",
    "fit",
    "from_anndata",
    "linear_r2",
    "load",
    "mcc",
    "sample_posterior",
    "simulate",
    "to_anndata",
    "to_treedata",
]
