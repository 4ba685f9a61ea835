"""What came out of a fit, as values: nothing here trains, and asking changes nothing.

Tables carry the user's own labels, with index names ``parent``, ``child``, ``node``, ``latent`` and
``outcome``; numbers are in the user's units.
"""

from pyro_tbr.posterior.fit_report import FitReport
from pyro_tbr.posterior.identification import Identification
from pyro_tbr.posterior.latent_choice import LatentDimChoice
from pyro_tbr.posterior.model_check import ModelCheck
from pyro_tbr.posterior.places import NewLeaf
from pyro_tbr.posterior.posterior import Posterior, load
from pyro_tbr.posterior.prediction import Prediction
from pyro_tbr.posterior.sampling import sample_posterior
from pyro_tbr.posterior.selection import Selection, select_at_fdr
from pyro_tbr.posterior.summary import Summary
from pyro_tbr.posterior.view import LatentUnits, PosteriorView

__all__ = [
    "FitReport",
    "Identification",
    "LatentDimChoice",
    "LatentUnits",
    "ModelCheck",
    "NewLeaf",
    "Posterior",
    "PosteriorView",
    "Prediction",
    "Selection",
    "Summary",
    "load",
    "sample_posterior",
    "select_at_fdr",
]
