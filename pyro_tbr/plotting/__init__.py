"""Plots of trees, posteriors and how good they are, by matplotlib.

Every function draws into ``ax``, or into a figure of its own where that is None, and returns the
axes; the figure is ``plot.figure``, so ``plot_tree(posterior).figure.savefig("tree.pdf")``. Figures
are made without pyplot: no window opens, no backend is chosen, none is left open. To see one
where pyplot shows figures, give ``ax=plt.subplots()[1]``. Leaves come in the order of the drawn
tree in every plot; where there are more labels than fit, those that matter are shown, joined to
their rows, and a note says how many. Inner nodes without a name are told by the leaves below them.
Install matplotlib with ``pip install pyro-tbr[plot]``.
"""

from pyro_tbr.plotting.calibration import plot_coverage, plot_reliability
from pyro_tbr.plotting.choices import plot_latent_dims, plot_trees
from pyro_tbr.plotting.curves import plot_curves
from pyro_tbr.plotting.drawn_tree import plot_tree
from pyro_tbr.plotting.effects import plot_effect, plot_effects, plot_loadings
from pyro_tbr.plotting.history import plot_history
from pyro_tbr.plotting.latents import plot_latents
from pyro_tbr.plotting.pip_map import plot_pips
from pyro_tbr.plotting.predictive_check import plot_predictive_check

__all__ = [
    "plot_coverage",
    "plot_curves",
    "plot_effect",
    "plot_effects",
    "plot_history",
    "plot_latent_dims",
    "plot_latents",
    "plot_loadings",
    "plot_pips",
    "plot_predictive_check",
    "plot_reliability",
    "plot_tree",
    "plot_trees",
]
