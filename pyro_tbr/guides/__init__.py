"""How the posterior is approximated.

A guide is a Pyro guide of :class:`~pyro_tbr.TreeModel` and, beyond that, answers in closed form:
moments of weights and deltas, inclusion probabilities, KL, draws without Pyro. It is moved to its
optimum for a fixed encoder by ``update`` from the rows' sufficient statistics. Every guide passes
the same tests.
"""

from pyro_tbr.guides.base import Guide, NodeMoments, informed_arcs
from pyro_tbr.guides.delta_factors import DeltaMoments
from pyro_tbr.guides.mean_field import MeanFieldGuide
from pyro_tbr.guides.statistics import Statistics, statistics
from pyro_tbr.guides.tree_guide import TreeGuide

__all__ = [
    "DeltaMoments",
    "Guide",
    "MeanFieldGuide",
    "NodeMoments",
    "Statistics",
    "TreeGuide",
    "informed_arcs",
    "statistics",
]
