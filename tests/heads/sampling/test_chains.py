"""Chains against enumeration, against the prior where rows say nothing, and against themselves."""

import math

import pytest
import torch

from pyro_tbr.heads import GaussianPrior, SpikeSlabPrior
from pyro_tbr.heads.sampling import run_chains
from pyro_tbr.heads.sampling.chains import Chains
from pyro_tbr.tree import path_sum
from tests.heads.sampling.cases import (
    FOUR,
    TREE,
    K,
    assert_draws_mean,
    enumerated,
    fitted,
    rows,
    untouched,
)


def check_enumeration(seed, correlation, num_sweeps):
    """Largest error of a PIP; gates and weights within their standard errors."""
    data = rows(seed, correlation)
    pips, leaves = enumerated(data)
    guide, stats = fitted(data)
    found = run_chains(guide, stats, num_chains=16, num_sweeps=num_sweeps, seed=seed)
    assert_draws_mean(found.chains("gates")[..., 0], pips)
    weights = path_sum(FOUR, found.chains("root_weights"), found.chains("deltas"), event_dim=2)
    assert_draws_mean(weights[:, :, FOUR.leaf_index, :, 0], leaves)
    return (found.delta_moments().inclusion[..., 0] - pips).abs().max()


def test_gates_and_weights_are_the_joint_posteriors():
    """Latents that hardly differ, where expectation propagation is off by 0.15."""
    assert check_enumeration(1, 0.99, 200) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("correlation", "bound"), [
    (0.5, 0.02), (0.8, 0.02), (0.95, 0.03), (0.99, 0.05), (1.0, 0.05),
])  # fmt: skip
def test_many_sweeps_against_enumeration(seed, correlation, bound):
    assert check_enumeration(seed, correlation, 1500) < bound


slow = pytest.mark.slow


@pytest.mark.parametrize("prior", [
    pytest.param(SpikeSlabPrior(), marks=slow, id="default"),
    pytest.param(SpikeSlabPrior(spike_scale=0), marks=slow, id="no spike"),
    pytest.param(SpikeSlabPrior(slab_scale=1.0, spike_scale=0.1), marks=slow, id="fixed"),
    pytest.param(SpikeSlabPrior(slab_separation=0, spike_scale=0), id="one slab"),
    pytest.param(GaussianPrior(), id="gaussian"),
])  # fmt: skip
def test_where_rows_say_nothing_draws_are_from_the_prior(prior):
    guide, stats = untouched(prior, TREE)
    found = run_chains(guide, stats, num_chains=40, num_sweeps=80, seed=1)
    built = guide.head.prior
    generator = torch.Generator().manual_seed(0)
    likelihood = guide.head.likelihood
    for hyper in [*built.hyperparameters(), likelihood.noise_scale, likelihood.noise_spread]:
        if hyper.fixed is not None:
            continue
        draws = found.chains(hyper.name).double()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            law = hyper.prior()
            size = (200_000,) if math.prod(hyper.shape) < 5 else (20_000,)
            prior_draws = law.sample(size).double()
        for function in (lambda value: value.log(), lambda value: value.log().square()):
            assert_draws_mean(function(draws), function(prior_draws).mean(0), atol=0.02)
    nodes, common, spread = (
        found.chains(name).double() for name in ("node_noise_scale", "noise_scale", "noise_spread")
    )
    white = (nodes / common.unsqueeze(2)).log() / spread.unsqueeze(2)
    assert_draws_mean(white.mean(2), 0.0, atol=0.02)
    assert_draws_mean(white.square().mean(2), 1.0, atol=0.02)
    values = {name: found._all(name) for name in built.tree_factor().hyper}
    new = built.draw_changes(values, generator)
    mean = new["deltas"].abs().log1p().mean((0, 1))
    assert_draws_mean(found.chains("deltas").abs().log1p().mean(2), mean, atol=0.05)
    if built.gated:
        assert_draws_mean(
            found.chains("gates").double().mean(2), new["gates"].mean((0, 1)), atol=0.03
        )


def test_a_fit_of_everything_is_near_the_guides():
    """Latents that hardly correlate: expectation propagation is nearly right there."""
    data = rows(3, 0.0, num=60)
    guide, stats = fitted(data, SpikeSlabPrior(slab_scale=1.0), noise=None)
    found = run_chains(guide, stats, num_chains=12, num_sweeps=100, seed=0)
    moments, own = found.node_moments(), guide.node_moments()
    gap = (moments.mean - own.mean)[FOUR.leaf_index] / own.var[FOUR.leaf_index].sqrt()
    assert gap.abs().max() < 0.5
    noise = found.chains("node_noise_scale")[:, :, FOUR.leaf_index].double()
    expected = guide.nuisance_at(FOUR.leaf_index)["noise_scale"].mean_power(1.0)
    assert (noise.mean((0, 1)) / expected - 1).abs().max() < 0.05


def test_proposals_of_capped_messages_are_mostly_taken():
    guide, stats = fitted(rows(0, 0.3))
    chains = Chains(guide, stats, 8, torch.Generator().manual_seed(0))
    for _, _ in zip(range(20), chains, strict=False):
        pass
    assert 0.6 < sum(chains.moves.taken) / len(chains.moves.taken) <= 1
    assert len(chains.moves.taken) == 20 * K


def test_the_same_seed_gives_the_same_draws():
    guide, stats = fitted(rows(0, 0.5))
    before = guide.state_copy()
    one, two, other = (
        run_chains(guide, stats, num_chains=2, num_sweeps=6, seed=seed) for seed in (0, 0, 1)
    )
    assert (one.chains("deltas") == two.chains("deltas")).all()
    assert (one.chains("root_weights") != other.chains("root_weights")).any()
    assert all((value == before[name]).all() for name, value in guide.state_dict().items())
