"""Spike-and-slab changes on given latents by mean field: MOReTreeS."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_tbr.evaluation.baselines.base import Baseline, Problem, Rule
from pyro_tbr.evaluation.baselines.posteriors import identity_rule
from pyro_tbr.heads.priors import SpikeSlabPrior
from pyro_tbr.inference import FitOptions


@dataclass(frozen=True)
class MOReTreeS(Baseline):
    """Spike-and-slab changes on given latents by mean field; like MOReTreeS.

    The features *are* the latents: give ``posterior.encode(x)``, say, as ``x``. Correlated ones are
    taken as they are, which mean field does not like.

    Our differences: a gate for each arc and latent, where MOReTreeS has one a node, and all
    hyperparameters learnt. Fitted by ``TreeModel(encoder="identity")`` with
    ``guide="mean_field"``. A held-out leaf keeps its ancestor's weights plus changes as the prior
    expects them.

    Attributes:
        options: Of the fit.

    Source:
        Thomas, Trippa, Parmigiani & Dominici, JASA 115 (2020) 1693.
    """

    options: FitOptions | None = None

    def _learn(self, problem: Problem) -> Rule:
        return identity_rule(
            problem, lambda x: x, SpikeSlabPrior(spike_scale=0), "mean_field", self.options
        )
