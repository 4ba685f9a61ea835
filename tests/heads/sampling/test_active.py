"""Chains where an arc may change several outcomes together: enumeration, and the prior."""

import pytest
import torch

from pyro_tbr.heads import GaussianLikelihood, SpikeSlabPrior, Statistics, TreeGuide
from pyro_tbr.heads.sampling import run_chains
from pyro_tbr.models import TreeModel
from tests.heads.sampling.cases import FOUR, assert_draws_mean, informed
from tests.heads.test_gates import exact, grouped
from tests.tree.small_trees import SMALL_TREES

Q = 3


@pytest.mark.parametrize(("tree", "sharing", "num_rows", "seed"), [
    ("cherry", 0.9, 8, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("balanced", 0.4, 16, 2), ("cherry", 0.9, 10, 0), ("cherry", 1.0, 8, 3),
    )),
])  # fmt: skip
def test_chains_are_enumeration(tree, sharing, num_rows, seed):
    _, guide, _, stats = grouped(SMALL_TREES[tree], sharing, num_rows=num_rows, seed=seed)
    found = run_chains(guide, stats, num_chains=16, num_sweeps=300, seed=0)
    expected = exact(guide, sharing)
    assert ((expected.pips > 0.1) & (expected.pips < 0.9)).any()  # else it tells little
    gates = found.chains("gates")[:, :, :, 0]
    assert_draws_mean(gates, expected.pips)
    assert_draws_mean(gates.any(-1).double(), expected.some)
    some = found.arc_inclusion(torch.arange(2), torch.tensor(True))
    assert (some.each[:, 0] - expected.some).abs().max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("prior", [
    pytest.param(SpikeSlabPrior(gates="grouped"), id="default"),
    pytest.param(SpikeSlabPrior(gates="grouped", slab_scale=1.0, root_scale=1.0), id="no spike"),
    pytest.param(SpikeSlabPrior(gates="grouped", slab_scale=1.0, root_scale=1.0, spike_scale=0.1),
                 id="spike"),
])  # fmt: skip
def test_where_rows_say_nothing_draws_are_from_the_prior(prior):
    model = TreeModel(FOUR, 1, "identity", prior, GaussianLikelihood(0.5), intercept=False)
    guide = TreeGuide(model.build(1, Q).double(), informed(FOUR)).double()
    zero = torch.zeros(FOUR.num_leaves, Q, dtype=torch.float64)
    cross = zero.unsqueeze(-1)
    gram = torch.zeros(FOUR.num_leaves, 1, 1, 1, dtype=torch.float64)
    stats = Statistics(FOUR.leaf_index, gram, cross, zero, zero, zero)
    found = run_chains(guide, stats, num_chains=40, num_sweeps=400, seed=1)
    sharing, rate = (
        found.chains(name)[..., 0, 0].double() for name in ("sharing", "inclusion_rate")
    )
    assert_draws_mean(sharing, torch.tensor(0.25).double())
    assert_draws_mean(sharing.square(), torch.tensor(0.1).double())
    assert_draws_mean(rate, torch.tensor(0.2).double())
    gates = found.chains("gates")[:, :, :, 0].double()
    assert_draws_mean(gates, torch.full((FOUR.num_arcs, Q), 0.2).double())
    generator = torch.Generator().manual_seed(0)
    size = 40_000
    one = torch._sample_dirichlet(torch.tensor([[1.5, 6.0]]).double().expand(size, 2), generator)
    values = {"inclusion_rate": one[:, :1, None], "slab_scale": torch.ones(size, 1, 1).double(),
              "sharing": 1 - torch.rand(size, 1, 1, generator=generator).double() ** (1 / 3),
              "spike_scale": torch.full((size, 1, 1), 0.1).double(),
              "slab_separation": torch.ones(size, 1, 1).double()}  # fmt: skip
    new = guide.head.prior.draw_changes(values, generator)["gates"][:, :, 0]
    expected = (new.sum(-1) > 1).double().mean()
    assert_draws_mean((gates.sum(-1) > 1).double(), expected.expand(FOUR.num_arcs), atol=0.01)
