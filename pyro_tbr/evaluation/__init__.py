"""How good it is: data whose truth is known, and measures of how close a fit comes to it.

:func:`simulate` draws a tree, sparse changes along its arcs and rows at its leaves, and returns
them with everything behind them as one frozen :class:`Simulation`; it can draw more rows at any
node later. The metrics are plain functions of arrays, tensors or tables: truth first, estimate
second, one number out; they know nothing of models or fits. PIPs and gates are the exception,
the estimate comes first, as in ``reliability(pips, gates)``. What is missing in ``y`` (NaN) is
not scored. :func:`true_changes` brings a simulation's truth into a posterior's order, for
:func:`credible_set_coverage` and :func:`selection_score`. Other methods to compare with are in
:mod:`pyro_tbr.evaluation.baselines`; :func:`compare_trees` puts our own model on other trees. scipy
and scikit-learn are imported where used; install them with ``pip install pyro-tbr[evaluation]``.
"""

from pyro_tbr.evaluation.compare_trees import compare_trees
from pyro_tbr.evaluation.inclusion import pip_auroc, pip_average_precision, reliability
from pyro_tbr.evaluation.latents import LatentMatch, linear_r2, match_latents, mcc
from pyro_tbr.evaluation.scores import crps, interval_coverage, log_score
from pyro_tbr.evaluation.simulate import simulate
from pyro_tbr.evaluation.simulation import LinearMixing, MLPMixing, RowLaw, Simulation
from pyro_tbr.evaluation.tree_comparison import TreeComparison
from pyro_tbr.evaluation.truth import (
    CredibleSetCoverage,
    SelectionScore,
    credible_set_coverage,
    match_gates,
    selection_score,
    true_changes,
)

__all__ = [
    "CredibleSetCoverage",
    "LatentMatch",
    "LinearMixing",
    "MLPMixing",
    "RowLaw",
    "SelectionScore",
    "Simulation",
    "TreeComparison",
    "compare_trees",
    "credible_set_coverage",
    "crps",
    "interval_coverage",
    "linear_r2",
    "log_score",
    "match_gates",
    "match_latents",
    "mcc",
    "pip_auroc",
    "pip_average_precision",
    "reliability",
    "selection_score",
    "simulate",
    "true_changes",
]
