"""Gates that the functions of a latent share, against enumeration and a prior by hand."""

import itertools

import pyro
import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.errors import DataError
from pyro_tbr.heads import DesignRows, Head, condition
from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import SpikeSlabPrior
from pyro_tbr.heads.priors.latent_gates import GateGroups, LatentGates
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.tree import Tree
from tests.heads.grouped_oracle import enumerate_gates
from tests.tree.small_trees import dense_paths

TREE = Tree.from_newick("((a,b)u,c)r;")
A = TREE.num_arcs
WITH_ROWS = torch.isin(torch.arange(TREE.num_nodes), TREE.leaf_index)
RATE, SLAB, ROOT = 0.2, 1.0, 1.0


def head_of(gates="separate", num_outcomes=1, latent_of=(0, 0, 1), **prior):
    prior = prior or {"inclusion_prob": RATE, "slab_scale": SLAB, "root_scale": ROOT}
    built = SpikeSlabPrior(gates=gates, **prior).build(
        TREE, len(latent_of), num_outcomes, num_latents=max(latent_of), latent_of=latent_of
    )
    likelihood = GaussianLikelihood(0.5).build(num_outcomes, num_nodes=TREE.num_nodes)
    return Head(TREE, built, likelihood).double()


def potentials(seed, num_trees):
    """Of trees whose rows at the leaves say the same of where there was a change, (M, V) each."""
    generator = torch.Generator().manual_seed(seed)
    lam = torch.zeros(num_trees, TREE.num_nodes, dtype=torch.float64)
    lam[:, TREE.leaf_index] = 4 + 8 * torch.rand(num_trees, 3, generator=generator).double()
    truth = torch.zeros(TREE.num_nodes).double()
    truth[TREE.nodes.index("a")] = 0.7
    noise = torch.randn(lam.shape, generator=generator).double()
    return lam * truth + lam.sqrt() * noise, lam


@pytest.mark.parametrize("gates", ["separate", "shared"])
@pytest.mark.parametrize("seed", range(3))
def test_changes_and_evidence_are_those_of_all_patterns(gates, seed):
    latent_of, num_outcomes = ((0, 0, 1), 1) if gates == "separate" else ((0, 1), 2)
    head = head_of(gates, num_outcomes, latent_of)
    guide = TreeGuide(head, WITH_ROWS, None).double()
    eta, lam = potentials(seed, 2)
    shape = (len(latent_of), num_outcomes, TREE.num_nodes)
    guide.eta[:], guide.lam[:] = 0, 0
    # The two trees of the first latent, be they functions or outcomes; the intercept knows nothing.
    guide.eta.view(shape).flatten(0, 1)[:2] = eta
    guide.lam.view(shape).flatten(0, 1)[:2] = lam
    guide.refresh()
    exact = enumerate_gates(TREE, eta, lam, RATE, 1.0, SLAB, ROOT)
    pips = guide.delta_moments().inclusion.flatten(1)[:, :2]
    assert_close(pips, exact.pips, atol=1e-8, rtol=0)
    evidence = guide.log_evidence()
    assert_close(evidence.sum(), exact.log_evidence)
    none = guide.factor.none_open(guide.current, torch.arange(num_outcomes))[:, 0]
    assert_close(1 - none, exact.some, atol=1e-8, rtol=0)
    arcs = torch.tensor([0, 2])
    on_path = guide.path_inclusion(arcs)[0, 0]
    draws = guide.sample(20_000, torch.Generator().manual_seed(0))
    drawn = draws["gates"].flatten(2)[..., :2]
    error = 4.5 * 0.5 / 20_000**0.5
    assert_close(drawn.mean(0).double(), pips, atol=error, rtol=0)
    assert (drawn[..., 0] == drawn[..., 1]).all()
    assert_close(drawn[:, arcs, 0].any(1).double().mean(), on_path, atol=error, rtol=0)
    weights = draws["root_weights"].double().unsqueeze(1) + torch.einsum(
        "va,sawq->svwq", dense_paths(TREE), draws["deltas"].double()
    )
    found = weights.flatten(2)[..., :2].mean(0)
    assert_close(found, exact.node_mean, atol=0.03, rtol=0)
    capped = TreeGuide(head, WITH_ROWS, 8).double()
    capped.copy_state(guide)
    close = capped.delta_moments().inclusion.flatten(1)[:, :2]
    assert (close - exact.pips).abs().max() < 0.02
    one = guide.passes(slice(0, 1))
    assert_close(one.pips, guide.current.pips[:1])


@pytest.mark.parametrize("strength", [1.0, 4.0, 20.0])
def test_neighbours_that_share_a_change_are_not_told_apart_by_hearsay(strength):
    head = head_of(latent_of=(0, 0, 0, 1))
    guide = TreeGuide(head, WITH_ROWS, None).double()
    eta, lam = potentials(5, 3)
    eta, lam = strength * eta, strength * lam  # of an arc under the root and its sibling
    guide.eta[:3, 0], guide.lam[:3, 0] = eta, lam
    guide.refresh()
    exact = enumerate_gates(TREE, eta, lam, RATE, 1.0, SLAB, ROOT)
    assert_close(guide.delta_moments().inclusion[:, :3, 0], exact.pips, atol=1e-8, rtol=0)


def test_no_other_function_leaves_all_as_it_is():
    generator = torch.Generator().manual_seed(3)
    env = TREE.leaf_index.repeat_interleave(30)
    x = torch.randn(len(env), 2, generator=generator).double()
    x[:, 1] = 1.0
    y = x[:, :1] * (env == env[0]).double()[:, None] * 0.5
    y = y + 0.5 * torch.randn(y.shape, generator=generator).double()
    found = []
    for latent_of in ((0, 1), None):
        prior = SpikeSlabPrior(slab_separation=0.0).build(
            TREE, 2, 1, num_latents=1, latent_of=latent_of
        )
        likelihood = GaussianLikelihood(0.5).build(1, num_nodes=TREE.num_nodes)
        guide = TreeGuide(Head(TREE, prior, likelihood).double(), WITH_ROWS, None).double()
        stats = condition(guide, DesignRows(x, y, env))
        found.append((guide.delta_moments().inclusion, guide.elbo(stats)))
    for one, two in zip(*found, strict=True):
        assert_close(one, two, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("across", [False, True])
def test_the_pyro_site_has_the_probabilities_of_all_patterns(across):
    groups = GateGroups(torch.tensor([0, 1, 0, 2]), 3, across)
    wide = 1 if across else 2
    prob = torch.tensor([[0.3, 0.6], [0.1, 0.5], [0.8, 0.2]]).double()[:, :wide]
    law = LatentGates(prob, groups, 2)
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8))).double().view(-1, 4, 2)
    weight = law.log_prob(patterns).exp()
    assert_close(weight.sum(), torch.ones(()).double())
    expected = groups.by_weight(prob).expand(4, 2)
    assert_close(torch.einsum("p,pwq->wq", weight, patterns), expected)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = law.sample((20_000,))
    assert_close(drawn.mean(0), expected, atol=4.5 * 0.5 / 20_000**0.5, rtol=0)
    assert torch.isfinite(law.log_prob(drawn)).all()
    assert law.expand((5,)).sample().shape == (5, 4, 2)


def test_the_model_draws_and_scores_gates_that_are_one():
    head = head_of(num_outcomes=2, latent_of=(0, 1, 0, 1, 2), slab_scale=1.0)
    design, env = torch.randn(7, 5).double(), torch.zeros(7, dtype=torch.int64)
    trace = pyro.poutine.trace(head).get_trace(design, env)
    gates = trace.nodes["gates"]["value"]
    assert_close(gates[:, 0], gates[:, 2])
    assert_close(gates[:, 1], gates[:, 3])
    assert trace.nodes["inclusion_rate"]["value"].shape == (3, 1)
    trace.compute_log_prob()
    rate = trace.nodes["inclusion_rate"]["value"][:, 0]
    own = gates[:, [0, 1, 4]]
    each = own * rate.log()[:, None] + (1 - own) * torch.log1p(-rate)[:, None]
    assert_close(trace.nodes["gates"]["log_prob"].sum(), each.sum())
    values = {name: head.prior.get_submodule(name).middle().expand(50, *shape).double()
              for name, shape in (("inclusion_rate", (3, 1)), ("slab_separation", (1, 1)))
              if hasattr(head.prior, name)}  # fmt: skip
    values["slab_scale"] = torch.ones(50, 5, 2).double()
    values["spike_scale"] = torch.ones(50, 5, 1).double()
    drawn = head.prior.draw_changes(values, torch.Generator().manual_seed(0))["gates"]
    assert_close(drawn[:, :, 0], drawn[:, :, 2])


def test_what_takes_gates_one_by_one_says_so():
    with pytest.raises(DataError, match="those of the functions of a basis are one"):
        MeanFieldGuide(head_of())
    with pytest.raises(DataError, match="gates='grouped' together with a basis"):
        head_of("grouped", num_outcomes=2)
    with pytest.raises(DataError, match="slab_separation=2.0 together with a basis"):
        head_of(slab_separation=2.0, root_scale=None)


def test_a_guides_draw_has_its_own_density_in_pyro():
    head = head_of()
    guide = TreeGuide(head, WITH_ROWS, None).double()
    eta, lam = potentials(2, 2)
    guide.eta[:2, 0], guide.lam[:2, 0] = eta, lam
    guide.refresh()
    ratios = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(30):
            trace = pyro.poutine.trace(guide).get_trace()
            sites = {name: site["value"] for name, site in trace.nodes.items()
                     if site["type"] == "sample"}  # fmt: skip
            paths = dense_paths(TREE)
            deltas = sites["gates"] * sites["slab"]
            weights = sites["root_weights"] + torch.einsum("va,awq->vwq", paths, deltas)
            potential = (guide.eta * weights.permute(1, 2, 0)).sum()
            potential = potential - 0.5 * (guide.lam * weights.permute(1, 2, 0).square()).sum()
            prior = pyro.poutine.trace(pyro.condition(head.prior, data=sites)).get_trace()
            ratios.append(prior.log_prob_sum() + potential - trace.log_prob_sum())
    # Prior times potentials over q is the evidence, whatever was drawn: hyperparameters are fixed.
    assert_close(torch.stack(ratios), guide.log_evidence().sum().expand(30), atol=1e-6, rtol=0)
