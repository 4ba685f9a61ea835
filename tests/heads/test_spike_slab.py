"""The slab in halves: what its scale and separation mean, and how they are learnt."""

import pyro.distributions as dist
import torch
from torch.testing import assert_close

from pyro_tbr.heads.priors import SpikeSlabPrior
from pyro_tbr.heads.priors.classes import ChangeSums
from pyro_tbr.tree import Tree


def star(num_arcs):
    return Tree(range(num_arcs + 1), [0] * num_arcs)


def values_of(scale, separation, rate=0.3):
    values = {"slab_scale": scale, "slab_separation": separation, "inclusion_rate": rate}
    return {name: torch.full((1, 1), float(value)) for name, value in values.items()}


def test_the_slab_scale_is_the_root_mean_square():
    prior = SpikeSlabPrior(spike_scale=0).build(star(2), 1, 1)
    for scale in (0.5, 2.0):
        prob, mean, var = prior.classes(values_of(scale, 1.5))
        assert_close(prob[0, 0, 0], torch.tensor([0.7, 0.15, 0.15]))
        square = (prob * (mean.square() + var))[..., 1:].sum(-1) / prob[..., 1:].sum(-1)
        assert_close(square.sqrt(), torch.full((2, 1, 1), scale))
        assert_close(mean[0, 0, 0, 1] / var[0, 0, 0, 1].sqrt(), torch.tensor(1.5))
        assert (var[..., 0] == 0).all()


def test_the_site_of_the_slab_is_two_normals_at_even_odds():
    prior = SpikeSlabPrior(spike_scale=0).build(star(2), 1, 1)
    slab = prior.site_laws(values_of(2.0, 1.5))["slab"]
    each = 2.0 / (1 + 1.5**2) ** 0.5
    halves = dist.Normal(torch.tensor([1.5 * each, -1.5 * each]), each)
    value = torch.linspace(-3, 3, 7)
    expected = halves.log_prob(value[:, None]).exp().mean(-1).log()
    assert_close(slab.log_prob(value.reshape(-1, 1, 1, 1))[:, 0, 0, 0], expected)


def test_which_slabs_have_halves():
    cases = {
        "learnt": (SpikeSlabPrior(), True, None),
        "fixed scale": (SpikeSlabPrior(slab_scale=1.0), False, None),
        "normal": (SpikeSlabPrior(slab_separation=0), False, None),
        "both fixed": (SpikeSlabPrior(slab_scale=1.0, slab_separation=2.0), True, 2.0),
    }
    for name, (prior, halves, fixed) in cases.items():
        built = prior.build(star(2), 2, 1)
        assert built.halves is halves, name
        if halves:
            value = built.slab_separation.fixed
            assert value is None if fixed is None else value.item() == fixed, name


def test_a_spike_of_learnt_width_can_be_left_out():
    sharp = SpikeSlabPrior().build(star(2), 2, 1).without_learnt_spike()
    assert not sharp.has_spike
    assert {hyper.name for hyper in sharp.hyperparameters()} == {
        "root_scale", "inclusion_rate", "slab_scale", "slab_separation"}  # fmt: skip
    for given in (SpikeSlabPrior(spike_scale=0.1), SpikeSlabPrior(spike_scale=0)):
        built = given.build(star(2), 2, 1)
        assert built.without_learnt_spike() is built


def sums_of(change, count):
    """All of the changes in the half whose sign is theirs, arcs without one in the spike."""
    zero = torch.zeros_like(change)
    first, second = count * change, count * change.square()
    parts = ((1 - count, count, zero), (zero, first, zero), (zero, second, zero))
    return ChangeSums(*(torch.stack(part, -1) for part in parts))


def learnt(ratio, num_arcs=400, seed=0):
    """Factors after changes of scale 2 whose halves lie ``ratio`` apart, all of them seen."""
    factor = SpikeSlabPrior(spike_scale=0).build(star(num_arcs), 2, 1).factor()
    each = 2.0 / (1 + ratio**2) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_arcs, 2, 1, generator=generator, dtype=torch.float64)
    change = each * (ratio + noise)  # in the sign of its half
    for _ in range(20):
        factor.learn_changes(sums_of(change, torch.ones_like(change)))
    return factor.hyper


def test_scale_and_separation_are_found():
    for ratio in (1.0, 2.0, 4.0):
        hyper = learnt(ratio)
        found, spread = (value.item() for value in hyper["slab_separation"].log_moments())
        assert abs(found - torch.tensor(ratio).log().item()) < 4 * spread**0.5 + 0.02, ratio
        assert_close(
            hyper["slab_scale"].mean_log().exp(), torch.full((2, 1), 2.0), rtol=0.06, atol=0
        )


def test_few_changes_of_one_size_do_not_make_two_points():
    factor = SpikeSlabPrior(spike_scale=0).build(star(4), 2, 1).factor()
    gates = torch.zeros(4, 2, 1, dtype=torch.float64)
    gates[0] = 1.0
    for _ in range(50):
        factor.learn_changes(sums_of(gates, gates))
    assert factor.hyper["slab_separation"].mean_log().exp().item() < 5.0
