"""The posterior by sampling: what to be sure of, where latents correlate above all."""

from __future__ import annotations

import copy
from dataclasses import replace

from pyro_tbr.errors import DataError
from pyro_tbr.heads.averaging import AveragedGuide
from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.sampling import SUPPORTED_PRIORS, run_chains
from pyro_tbr.posterior.convergence import convergence_table, warn_unconverged
from pyro_tbr.posterior.posterior import Posterior
from pyro_tbr.posterior.view import check_number, check_posterior
from pyro_tbr.progress import stage, working

_LEAST_CHAINS, _LEAST_SWEEPS = 2, 40


def sample_posterior(
    posterior: Posterior,
    *,
    num_chains: int = 16,
    num_sweeps: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Posterior:
    """The same fit with weights, gates and hyperparameters by blocked Gibbs sampling.

    A fit takes latents for independent given the rows, up to expectation propagation, and its
    hyperparameters for independent of the weights. Both are good approximations where latents
    correlate little within environments: PIPs are off by 0.01 up to a correlation of 0.5, by 0.05
    at 0.8, 0.12 at 0.95. Draws have no such error, only noise, which more sweeps make smaller.
    Encoder and latents stay as they were fitted.

    All answers of the posterior that comes back are averages over draws: PIPs with their standard
    error of 0.5 / sqrt(effective draws) at most, intervals by quantiles of draws, predictions with
    the covariance of latents' weights. It takes no further rows: update the fitted posterior and
    sample again.

    Args:
        posterior: A fit with normal outcomes and a spike-and-slab or Gaussian prior; not changed.
        num_chains: Chains, which run as one batch, from wider starts than the fit's.
        num_sweeps: Of each chain; the first half is warm-up and dropped.
        seed: Of all draws.
        progress: As in ``fit``.

    Returns:
        The sampled posterior; see also :meth:`Posterior.convergence`.

    Raises:
        DataError: The likelihood or prior is another one, or the numbers are too small.

    Warns:
        ConvergenceWarning: Chains do not agree, or are worth too few draws.

    Example:
        >>> import pyro_tbr as tbr
        >>> sim = tbr.simulate(num_leaves=3, latent_dim=1, num_features=1, rows_per_leaf=30)
        >>> prior = tbr.SpikeSlabPrior(inclusion_prob=0.2, slab_scale=1.0, root_scale=1.0)
        >>> model = tbr.TreeModel(sim.tree, 1, encoder="identity", prior=prior)
        >>> posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False)
        >>> sampled = tbr.sample_posterior(posterior, num_sweeps=300, progress=False)
        >>> bool((sampled.pips() - posterior.pips()).abs().to_numpy().max() < 0.1)
        True
        >>> list(sampled.convergence().index)
        ['gates', 'node weights', 'noise_scale', 'noise_spread', 'node_noise_scale']
    """
    _check(posterior, num_chains, num_sweeps)
    own = copy.deepcopy(posterior)
    sizes = {"num_chains": num_chains, "num_sweeps": num_sweeps}
    with working("sample_posterior", show=progress, plan={"chains": 95, "convergence": 5}):
        with stage("chains", total=num_sweeps, unit="sweep"):
            guide = run_chains(own.guide, own.stats, **sizes, seed=seed)
        sampled = replace(own, guide=guide)
        with stage("convergence"):
            table = convergence_table(sampled)
    warn_unconverged(table, num_sweeps)
    return sampled


def _check(posterior: Posterior, num_chains: int, num_sweeps: int) -> None:
    """Refuses what cannot be sampled, before any work."""
    check_posterior(posterior)
    check_number(num_chains, "num_chains", _LEAST_CHAINS)
    check_number(num_sweeps, "num_sweeps", _LEAST_SWEEPS)
    if isinstance(posterior.guide, AveragedGuide):
        raise DataError(
            "sample_posterior samples the weights of one basis of the latents, and this posterior "
            "is an average over several: give the one that fit() returned"
        )
    likelihood, prior = posterior.model.likelihood, posterior.model.prior
    if likelihood.correlated:
        raise DataError(
            f"sample_posterior takes each outcome alone, and {likelihood.because} has their noise "
            f"go together: {likelihood.instead} in the fit, or use the fitted posterior itself"
        )
    if posterior.model.basis is not None:
        raise DataError(
            "sample_posterior takes each weight's gates as its own, and with a basis those of a "
            "latent's functions are one: use the fitted posterior itself"
        )
    if type(likelihood) is not GaussianLikelihood:
        raise DataError(
            "sample_posterior needs normal outcomes, whose statistics say all of the rows; the "
            f"likelihood is {type(likelihood).__name__}: use the fitted posterior itself, or "
            "Pyro's NUTS on a model with HorseshoePrior or GaussianPrior (it cannot move gates)"
        )
    if type(prior) not in SUPPORTED_PRIORS:
        known = " or ".join(kind.__name__ for kind in SUPPORTED_PRIORS)
        raise DataError(
            f"sample_posterior knows the conditionals of {known}; the prior is "
            f"{type(prior).__name__}: fit with one of these, or use the fitted posterior itself"
        )
    if getattr(prior, "pooled", False):
        raise DataError(
            "sample_posterior: pooled=True is a way to learn one scale for all latents, which the "
            "model itself does not hold them to: fit with GaussianPrior(pooled=False), or give the "
            "scale"
        )
