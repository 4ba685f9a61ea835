"""Gates of several outcomes at two levels: their law, and the tree guide against enumeration."""

import copy
import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.heads import GaussianLikelihood, MeanFieldGuide, SpikeSlabPrior, TreeGuide
from pyro_tbr.heads.priors.gate_levels import GroupedGates, gate_levels, level_logs
from pyro_tbr.heads.priors.pairing import paired
from pyro_tbr.models import TreeModel
from tests.heads.cases import Q, W, assert_mean, make_pair, particles, rows, statistics_of
from tests.heads.grouped_oracle import enumerate_gates
from tests.oracles import dense_paths
from tests.tree.small_trees import SMALL_TREES

RATE, SLAB, ROOT, NOISE = 0.3, 1.2, 2.0, 0.5
TREES = [name for name in SMALL_TREES if SMALL_TREES[name].num_arcs <= 5]


def grouped(tree, sharing, num_outcomes=2, seed=0, num_rows=40, num_components=32):
    """One latent that is the feature, everything but gates and weights known; guide, statistics."""
    generator = torch.Generator().manual_seed(seed)
    env = torch.randint(tree.num_nodes, (num_rows,), generator=generator)
    x = torch.randn(num_rows, 1, generator=generator, dtype=torch.float64)
    active = torch.rand(tree.num_arcs, 1, generator=generator) < RATE**sharing
    within = torch.rand(tree.num_arcs, num_outcomes, generator=generator) < RATE ** (1 - sharing)
    size = torch.randn(within.shape, generator=generator, dtype=torch.float64)
    weights = 1.0 + dense_paths(tree) @ (active * within * size)
    noise = torch.randn(num_rows, num_outcomes, generator=generator, dtype=torch.float64)
    y = x * weights[env] + NOISE * noise
    prior = SpikeSlabPrior(None, RATE, SLAB, ROOT, gates="shared" if sharing == 1 else "grouped")
    model = TreeModel(tree, 1, "identity", prior, GaussianLikelihood(NOISE), intercept=False,
                      num_features=1, num_outcomes=num_outcomes).double()  # fmt: skip
    model.prior.sharing.fixed = torch.full((1, 1), float(sharing), dtype=torch.float64)
    nodes = torch.zeros(tree.num_nodes, dtype=torch.bool)
    nodes[env] = True
    guide = TreeGuide(model, nodes, num_components=num_components).double()
    stats = statistics_of(model, x, env, y)
    settled = guide.update(stats, sweeps=60, learn_hyper=False)
    assert not settled.trouble
    return model, guide, (x, env, y), stats


def exact(guide, sharing):
    active, within = gate_levels(torch.full((1, 1, 1), RATE).double(), torch.tensor(sharing))
    parts = (guide.head.tree, guide.eta[0], guide.lam[0])
    return enumerate_gates(*parts, float(active), float(within), SLAB, ROOT)


@pytest.mark.parametrize("sharing", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", TREES)
def test_trees_that_talk_are_near_enumeration(name, sharing):
    _, guide, _, _ = grouped(SMALL_TREES[name], sharing)
    found, deltas = exact(guide, sharing), guide.delta_moments()
    assert_close(deltas.inclusion[:, 0], found.pips, rtol=0, atol=0.02)
    some = guide.arc_inclusion(torch.arange(2), torch.tensor(True))
    assert_close(some.each[:, 0], found.some, rtol=0, atol=0.02)
    assert_close(some.each[:, 0], some.every)
    assert_close(guide.node_moments().mean[:, 0], found.node_mean, rtol=0, atol=0.02)
    assert_close(guide.log_evidence().sum(), found.log_evidence, rtol=0, atol=0.03)


@pytest.mark.parametrize("sharing", [0.3, 0.8])
def test_three_outcomes_are_near_enumeration(sharing):
    for seed in range(2):
        _, guide, _, _ = grouped(SMALL_TREES["unary chain"], sharing, num_outcomes=3, seed=seed)
        found = exact(guide, sharing)
        assert_close(guide.delta_moments().inclusion[:, 0], found.pips, rtol=0, atol=0.02)
        assert_close(guide.log_evidence().sum(), found.log_evidence, rtol=0, atol=0.03)


def test_the_oracle_tells_grouped_from_separate_gates():
    """Were the trees not to talk, inclusion would be off by far more than is allowed above."""
    _, guide, _, _ = grouped(SMALL_TREES["cherry"], 0.9, num_rows=8, seed=3)
    found = exact(guide, 0.9)
    assert_close(guide.delta_moments().inclusion[:, 0], found.pips, rtol=0, atol=0.005)
    guide.factor.log_bayes.zero_()
    guide.refresh()
    assert (guide.delta_moments().inclusion[:, 0] - found.pips).abs().max() > 0.3


@pytest.mark.parametrize("sharing", [0.6, 1.0])
def test_pyro_draws_are_from_what_the_evidence_is_of(sharing):
    """log p - log q averages to little less than the log evidence, and its exponential to it."""
    model, guide, data, stats = grouped(SMALL_TREES["cherry"], sharing)
    draws = particles(model, guide, data, 200, vectorised=False)
    bound = guide.elbo(stats).item()
    error = (draws.std() / len(draws) ** 0.5).item()
    assert bound - 0.1 - 4.5 * error < draws.mean() < bound + 0.02 + 4.5 * error
    weight = (draws - bound).exp()
    assert_mean(weight, torch.tensor(1.0), atol=0.02)


def test_joint_draws_go_together_as_the_arcs_say():
    _, guide, _, _ = grouped(SMALL_TREES["cherry"], 0.9, num_rows=8, seed=3)
    gates = guide.sample(4_000, torch.Generator().manual_seed(0))["gates"][:, :, 0]
    inclusion = guide.delta_moments().inclusion[:, 0]
    assert_mean(gates, inclusion, atol=1e-3)
    some = guide.arc_inclusion(torch.arange(2), torch.tensor(True)).each[:, 0]
    apart = 1 - (1 - inclusion).prod(-1)
    assert (apart - some).max() > 0.15  # else it tells nothing
    assert_close(gates.amax(-1).mean(0), some, rtol=0, atol=0.03)


def test_pairing_keeps_each_outcomes_draws():
    generator = torch.Generator().manual_seed(0)
    gates = (torch.rand(200, 3, 2, 2, generator=generator) < 0.4).double()
    deltas = gates * torch.randn(200, 3, 2, 2, generator=generator).double()
    root = torch.randn(200, 2, 2, generator=generator).double()
    draws = {"root_weights": root, "deltas": deltas, "gates": gates}
    levels = level_logs(torch.full((1, 2, 1), 0.4), torch.full((1, 2, 1), 0.95))
    known = torch.ones(3, dtype=torch.bool)
    found = paired(draws, levels, known, torch.Generator().manual_seed(1))
    for name, before in draws.items():
        assert_close(found[name].sort(0).values, before.sort(0).values)
    # Whole draws move: an outcome's root weight still comes with its changes.
    first = {round(r.item(), 9): d for r, d in zip(root[:, 0, 1], deltas[:, :, 0, 1], strict=True)}
    for weight, change in zip(found["root_weights"][:, 0, 1], found["deltas"][:, :, 0, 1],
                              strict=True):  # fmt: skip
        assert torch.equal(first[round(weight.item(), 9)], change)

    def agree(gates):
        return (gates[..., 0] == gates[..., 1]).double().mean()

    assert agree(found["gates"]) > agree(gates) + 0.1


# ---- the law


def test_grouped_gates_sum_to_one_and_draws_have_that_law():
    law = GroupedGates(torch.tensor(0.4).double(), torch.tensor([0.7, 0.2, 0.5]).double())
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).double()
    prob = law.expand(torch.Size([len(patterns)])).log_prob(patterns).exp()
    assert_close(prob.sum(), torch.tensor(1.0).double())
    torch.manual_seed(0)
    draws = law.sample(torch.Size([20_000]))
    same = (draws.unsqueeze(1) == patterns).all(-1).double()
    assert_mean(same, prob)


def test_levels_keep_the_inclusion_rate():
    prob = torch.tensor([[[0.2, 0.1]], [[0.0, 0.0]]]).double()
    for sharing in (0.0, 0.4, 1.0):
        active, within = gate_levels(prob, torch.tensor(sharing).double())
        assert_close((active * within)[0], prob[0])
        assert (active * within)[1].eq(0).all() or sharing == 0.0
    active, within = gate_levels(prob[:1], torch.tensor(0.0).double())
    assert (active == 1).all()
    active, within = gate_levels(prob[:1], torch.tensor(1.0).double())
    assert_close(within[..., 0], torch.ones(1, 1).double())


def test_prior_changes_of_outcomes_go_together():
    """Of arcs of the tree and of new ones, as Pyro's own sites."""
    prior = make_pair("tree", "grouped", learnt=False)[0].prior
    number = 20_000
    values = {"inclusion_rate": torch.full((number, W, 1), 0.3).double(),
              "slab_scale": torch.ones(number, W, 1).double(),
              "sharing": torch.full((number, W, 1), 0.9).double()}  # fmt: skip
    active = 0.3**0.9
    within = 0.3 / active
    both = active * within**2
    for length in (None, torch.ones(2)):
        draws = prior.draw_changes(values, torch.Generator().manual_seed(0), length)
        assert_mean(draws["gates"], torch.tensor(0.3).double())
        assert_mean(draws["gates"].prod(-1), torch.tensor(both).double())
        assert torch.equal(draws["deltas"] != 0, draws["gates"] > 0)
    laws = prior.site_laws({name: value[:1] for name, value in values.items()})
    torch.manual_seed(0)
    gates = laws["gates"].sample(torch.Size([number]))[:, 0]
    assert gates.shape == (number, *prior.delta_shape)
    assert_mean(gates.prod(-1), torch.tensor(both).double())


def test_new_arcs_have_the_variance_of_draws():
    guide = make_pair("tree", "grouped", updated=True)[1]
    draws = guide.sample(8_000, torch.Generator().manual_seed(0))
    new = guide.head.prior.draw_changes(draws, torch.Generator().manual_seed(1), torch.ones(1))
    expected = guide.change_var(torch.ones(1))
    assert_close(new["deltas"].square().clamp(max=1e3).mean(0), expected, rtol=0.5, atol=0.05)


# ---- one outcome, learning, and what is refused


@pytest.mark.parametrize("kind", ["grouped", "shared"])
@pytest.mark.parametrize("guide", [TreeGuide, MeanFieldGuide])
def test_with_one_outcome_all_are_the_same(guide, kind):
    x, env, y = rows(num_outcomes=1)
    found = []
    for gates in ("separate", kind):
        prior = SpikeSlabPrior(gates=gates)
        model = TreeModel(make_pair("tree", "grouped")[0].tree, 2, "identity", prior,
                          num_features=2, num_outcomes=1).double()  # fmt: skip
        made = guide(model).double()
        made.update(statistics_of(model, x, env, y), sweeps=3)
        found.append(made)
    assert found[0].state_dict().keys() == found[1].state_dict().keys()
    one, two = (made.delta_moments().inclusion for made in found)
    assert torch.equal(one, two)
    assert "sharing" not in found[1].hyper


def learnt_sharing(share, gates="grouped", seed=3):
    """Mean sharing by latent of a fit where an arc changes all outcomes with this probability."""
    sim = tbr.simulate(num_leaves=16, latent_dim=1, num_features=1, num_outcomes=4,
                       rows_per_leaf=30, changes="bernoulli", change_prob=0.3, noise_scale=0.3,
                       shared_changes=share, seed=seed)  # fmt: skip
    model = TreeModel(sim.tree, 1, "identity", SpikeSlabPrior(gates=gates), num_features=1,
                      num_outcomes=4).double()  # fmt: skip
    env = torch.tensor([sim.tree.index(label) for label in sim.env])
    data = (torch.as_tensor(sim.z).double(), env, torch.as_tensor(sim.y).double())
    nodes = torch.zeros(sim.tree.num_nodes, dtype=torch.bool)
    nodes[env] = True
    guide, stats = TreeGuide(model, nodes).double(), statistics_of(model, *data)
    settled = guide.update(stats, sweeps=60)
    assert not settled.trouble
    return guide, stats, guide.hyper["sharing"].points()[0][7, 0, 0].item()


def test_sharing_is_learnt():
    assert learnt_sharing(1.0)[2] > 0.8
    assert learnt_sharing(0.0)[2] < 0.4


def test_learning_is_at_the_top_of_the_bound():
    """Rate and sharing moved away, the trees at rest again, lose evidence."""
    guide, stats, _ = learnt_sharing(0.5)
    best = guide.elbo(stats).item()
    for name in ("inclusion_rate", "sharing"):
        for move in (-1.0, 1.0):
            other = copy.deepcopy(guide)
            with torch.no_grad():
                other.hyper[name].loc[0] += move
            other.refresh()
            other.update(stats, sweeps=30, learn_hyper=False, learn_nuisance=False)
            assert other.elbo(stats).item() < best + 0.05, (name, move)


def test_news_that_do_not_rest_are_trouble(monkeypatch):
    """Where outcomes go on contradicting each other the update says so."""
    _, guide, _, stats = make_pair("tree", "grouped")
    guide = TreeGuide(guide.head, coupled=False).double()
    restless = torch.ones(Q, W, dtype=torch.float64)
    monkeypatch.setattr(type(guide.factor), "exchange", lambda *args: restless)
    assert guide.update(stats, sweeps=2).trouble


def test_shared_gates_are_refused_by_mean_field():
    model = make_pair("tree", "grouped")[0]
    prior = SpikeSlabPrior(gates="shared")
    other = TreeModel(model.tree, 2, "identity", prior, num_features=2, num_outcomes=2)
    with pytest.raises(tbr.DataError, match=r"guide='tree'"):
        MeanFieldGuide(other)


def test_kinds_of_gates_are_checked():
    with pytest.raises(tbr.DataError, match=r"gates='all' .* separate, grouped, shared"):
        SpikeSlabPrior(gates="all")


def test_mean_field_elbo_counts_gates_together():
    """Its bound is below that of enumerated gates, and the term of all gates is in it."""
    prob = torch.tensor([0.2, 0.7], dtype=torch.float64)
    _, made, _, _ = make_pair("mean field", "grouped", learnt=False)
    factor, levels = made.factor, made.factor.expected_levels()
    total = 0.0
    for gates in itertools.product([0.0, 1.0], repeat=2):
        weight = math.exp(dist.Bernoulli(prob).log_prob(torch.tensor(gates).double()).sum())
        follow = levels.logs.active + sum(
            levels.logs.open if gate else levels.logs.closed for gate in gates
        )
        each = levels.none if not any(gates) else follow
        total += weight * each[0, 0, 0].item()
    law = factor.law()
    own = prob * law.log_prob[0, 0, 0, 1] + (1 - prob) * law.log_prob[0, 0, 0, 0]
    together = factor.together(prob.expand(made.head.prior.delta_shape))[0, 0]
    assert own.sum().item() + together.item() == pytest.approx(total, abs=1e-9)
