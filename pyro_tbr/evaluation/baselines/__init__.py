"""Other methods to compare with, all with one face.

``Baseline(options).fit(tree, x, y, env, latent_dim=, encoder=, seed=)`` takes what ``fit`` takes
and returns a :class:`FittedBaseline`: ``predict(x, env, level)`` gives mean, sd, interval, draws
and log score at leaves with data and at held-out leaves of the tree, ``encode(x)`` latents where
they were learnt, ``deltas()`` changes along arcs where the method has them. One loop serves all::

    for method in (SparseTree, *ALL):
        fitted = method().fit(tree, x, y, env, latent_dim=5, seed=0)
        print(method.__name__, fitted.predict(x_new, "leaf3").log_score(y_new))

:class:`SparseTree` is our own ``fit`` in this face.

Features and outcomes are standardised inside, by training rows, and what is held out to choose
with is the same for all baselines with one seed. Outcomes have Gaussian noise. Predictions are
distributions with a noise from the evidence or from held-out rows, where the class says
``distribution``; each class's docstring says what it does at a held-out leaf.
"""

from pyro_tbr.evaluation.baselines.base import Baseline, FittedBaseline
from pyro_tbr.evaluation.baselines.l1_tree import L1TBR
from pyro_tbr.evaluation.baselines.posteriors import DenseTree, SparseTree
from pyro_tbr.evaluation.baselines.prediction import BaselinePrediction
from pyro_tbr.evaluation.baselines.regressions import (
    LeafRegression,
    Pooled,
    PooledOneHot,
    TreeIntercepts,
)

ALL: tuple[type[Baseline], ...] = (
    Pooled,
    PooledOneHot,
    TreeIntercepts,
    LeafRegression,
    DenseTree,
    L1TBR,
)

__all__ = [
    "ALL",
    "Baseline",
    "BaselinePrediction",
    "DenseTree",
    "FittedBaseline",
    "L1TBR",
    "LeafRegression",
    "Pooled",
    "PooledOneHot",
    "SparseTree",
    "TreeIntercepts",
]
