"""The second start of the hyperparameters: small changes everywhere and few larger ones."""

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.heads import second_start
from pyro_tbr.heads.priors import GaussianPrior, SpikeSlabPrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.models import TreeModel
from tests.heads.cases import statistics_of
from tests.tree.small_trees import dense_paths

SMALL, LARGE = 0.4, 3.5


def small_and_large(prior):
    """A guide for two latents: in the first all arcs change a little and one by much."""
    tree = tbr.simulate(num_leaves=24, shape="random", rows_per_leaf=1, seed=128).tree
    rng = np.random.default_rng(3)
    deltas = np.zeros((tree.num_arcs, 2))
    deltas[:, 0] = SMALL * rng.standard_normal(tree.num_arcs)
    deltas[20, 0] = LARGE
    deltas[[5, 9, 30], 1] = 1.5
    weights = dense_paths(tree) @ torch.from_numpy(deltas)
    env = tree.leaf_index.repeat_interleave(30)
    x = torch.from_numpy(rng.standard_normal((len(env), 2)))
    noise = 0.1 * torch.from_numpy(rng.standard_normal((len(env), 1)))
    y = (x * weights[env]).sum(1, keepdim=True) + noise
    model = TreeModel(tree, 2, "identity", prior, num_features=2, num_outcomes=1).double()
    return TreeGuide(model).double(), statistics_of(model, x, env, y)


def stuck(monkeypatch, prior):
    """The guide as it is without the second start."""
    guide, stats = small_and_large(prior)
    with monkeypatch.context() as patch:
        patch.setattr("pyro_tbr.heads.sweeps.choose_start", lambda *_: False)
        guide.update(stats, sweeps=30)
    return guide, stats


def values(guide, name):
    return guide.hyper[name].mean_log().exp().ravel().detach()


def test_small_changes_are_no_changes(monkeypatch):
    guide, stats = stuck(monkeypatch, SpikeSlabPrior())
    before, narrow = guide.elbo(stats).item(), values(guide, "spike_scale")[0]
    many = guide.delta_moments().inclusion[:, 0].sum()
    fresh, _ = small_and_large(SpikeSlabPrior())
    fresh.update(stats, sweeps=30)
    assert fresh.elbo(stats) > before + 0.5
    pips = fresh.delta_moments().inclusion[:, 0, 0]
    assert pips[20] > 0.95
    assert pips.sum() < many - 2
    assert values(fresh, "spike_scale")[0] > 1.3 * narrow


@pytest.mark.slow
def test_latents_whose_optimum_is_the_better_one_stay(monkeypatch):
    guide, _ = stuck(monkeypatch, SpikeSlabPrior())
    potentials, before = guide.eta.clone(), values(guide, "spike_scale")
    shared = values(guide, "slab_separation")
    assert second_start.choose_start(guide, 8)
    after = values(guide, "spike_scale")
    assert after[0] > 1.3 * before[0]
    assert (after[1:] / before[1:]).log().abs().max() < 0.3
    assert torch.equal(values(guide, "slab_separation"), shared)
    assert torch.equal(guide.eta, potentials)


@pytest.mark.parametrize(
    "prior",
    [GaussianPrior(), SpikeSlabPrior(spike_scale=0), SpikeSlabPrior(spike_scale=0.1)],
    ids=["dense", "no spike", "fixed spike"],
)
def test_without_a_spike_to_learn_nothing_moves(prior):
    guide, stats = small_and_large(prior)
    guide.update(stats, sweeps=3)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    assert not second_start.choose_start(guide, 4)
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.slow
def test_rough_updates_leave_it_to_the_last_one():
    guide, stats = small_and_large(SpikeSlabPrior())
    guide.update(stats, sweeps=30, rough=True)
    narrow = values(guide, "spike_scale")[0]
    guide.update(stats, sweeps=30)
    fresh, _ = small_and_large(SpikeSlabPrior())
    fresh.update(stats, sweeps=30)
    assert values(guide, "spike_scale")[0] > 1.3 * narrow
    assert guide.elbo(stats) > fresh.elbo(stats) - 1  # sweeps are few, so not the same to a digit
