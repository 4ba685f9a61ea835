"""Gates as Pyro sites, and what is said to those who want to move them as if they were numbers."""

from typing import Any, NoReturn

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

from pyro_tbr.errors import DataError


class _ZeroOrOne(constraints.Constraint):
    """The values of a gate; a kind of its own, so that asking for a way to the real line is seen.

    It is asked for by HMC, NUTS and Pyro's autoguides alone.
    """

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """Where a value is a gate's."""
        return (value == 0) | (value == 1)


zero_or_one = _ZeroOrOne()


class Gates(dist.Bernoulli):
    """Independent gates: a Bernoulli distribution with :data:`zero_or_one` for its support."""

    support = zero_or_one


@biject_to.register(_ZeroOrOne)
@transform_to.register(_ZeroOrOne)
def _refuse(constraint: Any) -> NoReturn:
    del constraint
    raise DataError(
        "the prior has gates, which are 0 or 1, and NUTS, HMC and Pyro's autoguides such as "
        "AutoNormal move continuous sites alone: give the model prior=HorseshoePrior() or "
        "GaussianPrior(); with gates use fit(model, x, y, env), and sample_posterior(posterior) "
        "for draws by MCMC"
    )
