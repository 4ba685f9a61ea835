"""Priors on the changes along the arcs: what is believed before any row is seen.

A prior is given to :class:`~pyro_tbr.TreeModel` as a plain description (``SpikeSlabPrior()``) and
*built* by it for a tree and numbers of weights and outcomes; the description itself never changes.
Fixed values are in the user's units (outcome per unit of latent); ``build`` divides them by
``outcome_scale`` where the model sees standardised outcomes.
"""

from pyro_tbr.heads.priors.arc_prior import ArcPrior
from pyro_tbr.heads.priors.gaussian import GaussianPrior
from pyro_tbr.heads.priors.horseshoe import HorseshoePrior
from pyro_tbr.heads.priors.slab import slab_halves, slab_law
from pyro_tbr.heads.priors.spike_slab import RATE_CONCENTRATION, SpikeSlabPrior

__all__ = [
    "RATE_CONCENTRATION",
    "ArcPrior",
    "GaussianPrior",
    "HorseshoePrior",
    "SpikeSlabPrior",
    "slab_halves",
    "slab_law",
]
