"""How to get from data to a posterior: ``fit`` and its stages."""

from pyro_tbr.inference.averaging import average_bases
from pyro_tbr.inference.choosing import choose_latent_dim
from pyro_tbr.inference.elbo import TreeELBO
from pyro_tbr.inference.fit import fit
from pyro_tbr.inference.options import FitOptions

__all__ = ["FitOptions", "TreeELBO", "average_bases", "choose_latent_dim", "fit"]
