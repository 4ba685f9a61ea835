"""A prior and a likelihood as a user would define them, each by one class; the library has none."""

import pyro.distributions as dist
import torch

from pyro_tbr.heads import ArcPrior, Likelihood
from pyro_tbr.heads.hyper import PositiveScale
from pyro_tbr.heads.hyper.base import as_fixed, spread_fixed
from pyro_tbr.heads.hyper.rates import Rate
from pyro_tbr.heads.likelihoods import standardised
from pyro_tbr.heads.priors import Classes


class SmallOrLarge(ArcPrior):
    """Small changes, or large ones at some rate; ``gated``: a large one counts as included."""

    def __init__(self, scale=None, rate=None, root_scale=None, *, gated=False):
        super().__init__(scale=scale, rate=rate, root_scale=root_scale, gated=gated)
        self.scale_value, self.rate_value = as_fixed(scale, "scale"), as_fixed(rate, "rate")
        self.gated = gated

    @property
    def has_spike(self):
        return self.gated

    def _build_changes(self, tree, standard_error):
        shape, rate = (self.num_weights, 1), self.rate_value
        rate = None if rate is None else spread_fixed(rate, shape, "rate")
        self.rate = Rate("rate", shape, rate, concentration1=1.5, concentration0=6.0)
        self.large = self._scale("large", self.scale_value, median=0.5)

    def classes(self, values, relative_length=None):
        large = values["large"].unsqueeze(-3)
        rate = values["rate"].unsqueeze(-3)
        rate, large = torch.broadcast_tensors(rate, large)
        var = torch.stack([(0.1 * large).square(), large.square()], -1)
        return Classes(torch.stack([1 - rate, rate], -1), torch.zeros_like(var), var)


class LaplaceOutcomes(Likelihood):
    """Outcomes with heavier tails than a normal's; ``spread`` is half the distance of quartiles."""

    def __init__(self, spread=None):
        super().__init__(spread=spread)
        self.spread_value = as_fixed(spread, "spread")

    def _build(self, num_outcomes, unit):
        fixed = self.spread_value
        fixed = None if fixed is None else fixed.expand(num_outcomes) / unit
        self.spread = PositiveScale("spread", (num_outcomes,), fixed, unit="outcome")

    def standardise(self, y, *, intercept):
        return standardised(y, intercept=intercept)

    def forward(self, predictor, nuisance):
        return dist.Laplace(predictor, nuisance["spread"])
