"""What q expects of a slab in halves, and how it learns their separation."""

import pyro.distributions as dist
import torch
from torch.testing import assert_close

from pyro_tbr.heads.hyper.factors import ScaleFactor
from pyro_tbr.heads.hyper.hyperparameters import PositiveScale, Separation
from pyro_tbr.heads.priors import SpikeSlabPrior, slab_halves
from pyro_tbr.heads.priors.prior_factors import PriorFactors
from pyro_tbr.heads.priors.slab_factors import SeparationFactor, slab_moments
from pyro_tbr.tree import Tree


def factors(scale=1.3, separation=1.5, spread=0.2):
    one = ScaleFactor(PositiveScale("slab_scale", (1, 1), None), 1.0).double()
    two = SeparationFactor(Separation("slab_separation", (1, 1), None), 1.0).double()
    one.initialise(torch.tensor(scale), spread)
    two.initialise(torch.tensor(separation), spread)
    return one, two


def test_moments_are_the_expected_log_density():
    scale, separation = factors()
    slab = slab_moments(scale, separation)
    generator = torch.Generator().manual_seed(0)
    tau, ratio = (f.sample(200_000, generator).double().squeeze() for f in (scale, separation))
    loc, each = slab_halves(tau, ratio)
    for change in (-0.7, 0.2, 2.0):
        drawn = dist.Normal(loc, each).log_prob(torch.tensor(change, dtype=torch.float64))
        normal = dist.Normal(slab.loc, slab.precision.rsqrt()).log_prob(torch.tensor(change))
        error = drawn.std() / 200_000**0.5
        assert (drawn.mean() - (normal + slab.excess)).abs() < 4 * error, change


def test_moments_without_halves_are_a_normal_s():
    scale, _ = factors()
    slab = slab_moments(scale, None)
    assert_close(slab.precision, scale.mean_power(-2.0))
    assert (slab.loc == 0).all()
    assert_close(slab.excess, -scale.mean_log() - 0.5 * slab.precision.log())


def learnt(ratio, num_arcs=400, seed=0):
    """Factors after changes of scale 2 whose halves lie ``ratio`` apart, all of them seen."""
    tree = Tree(range(num_arcs + 1), [0] * num_arcs)
    prior = SpikeSlabPrior().build(tree, 2, 1)
    loc, each = slab_halves(torch.tensor(2.0), torch.tensor(float(ratio)))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_arcs, 2, 1, generator=generator, dtype=torch.float64)
    change = loc + each * noise  # in the sign of its half
    hyper, informed = PriorFactors(prior), torch.ones(num_arcs, 1, 1, dtype=torch.bool)
    for _ in range(20):
        hyper.learn(torch.ones(2, 1), change.square(), torch.ones_like(change), informed, change)
    return hyper


def test_scale_and_separation_are_found():
    for ratio in (1.0, 2.0, 4.0):
        hyper = learnt(ratio)
        found, spread = (value.item() for value in hyper["slab_separation"].log_moments())
        assert abs(found - torch.tensor(ratio).log().item()) < 4 * spread**0.5 + 0.02, ratio
        assert_close(
            hyper["slab_scale"].mean_log().exp(), torch.full((2, 1), 2.0), rtol=0.06, atol=0
        )


def test_few_changes_of_one_size_do_not_make_two_points():
    tree = Tree(range(5), [0] * 4)
    prior = SpikeSlabPrior().build(tree, 2, 1)
    hyper, informed = PriorFactors(prior), torch.ones(4, 1, 1, dtype=torch.bool)
    gates = torch.zeros(4, 2, 1, dtype=torch.float64)
    gates[0] = 1.0
    for _ in range(50):
        hyper.learn(torch.ones(2, 1), gates, gates, informed, gates)
    assert hyper["slab_separation"].mean_log().exp().item() < 5.0
