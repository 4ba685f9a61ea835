"""Priors on the arcs' changes, one file each with its part of q.

A prior says in :meth:`ArcPrior.classes` which mixture of normals a change is drawn from; its sites,
its draws and its variational factor follow from that, see :class:`ArcPrior`.
"""

from pyro_tbr.heads.priors.base import ArcPrior
from pyro_tbr.heads.priors.classes import Classes, ExpectedLaw
from pyro_tbr.heads.priors.factor import PriorFactor
from pyro_tbr.heads.priors.gaussian import GaussianPrior
from pyro_tbr.heads.priors.horseshoe import HorseshoePrior
from pyro_tbr.heads.priors.spike_slab import RATE_CONCENTRATION, SpikeSlabPrior

__all__ = [
    "RATE_CONCENTRATION",
    "ArcPrior",
    "Classes",
    "ExpectedLaw",
    "GaussianPrior",
    "HorseshoePrior",
    "PriorFactor",
    "SpikeSlabPrior",
]
