"""The posterior by blocked Gibbs sampling: exact but for the noise of the draws.

:func:`run_chains` runs chains on the statistics of the rows and returns them as a
:class:`SampledGuide`, which answers whatever a guide is asked from their draws. A sweep goes
through ``tree_step`` (classes and weights of all latents along the tree) and ``hyper_steps`` (rates
and scales, by ``slices``); ``row_sums`` is all that is known of the rows, and the one place that
knows how the noise enters.
"""

from pyro_tbr.heads.sampling.runs import SUPPORTED_PRIORS, run_chains
from pyro_tbr.heads.sampling.sampled_guide import SampledGuide

__all__ = ["SUPPORTED_PRIORS", "SampledGuide", "run_chains"]
