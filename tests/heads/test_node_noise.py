"""Noise that differs by environment: sites, ELBO, optimum, shrinkage, nodes without rows."""

import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.heads import GaussianLikelihood, TreeGuide
from pyro_tbr.inference.elbo import TreeELBO
from tests.heads.cases import (
    SILENT,
    TREE,
    Q,
    assert_mean,
    informed_nodes,
    make_model,
    make_pair,
    particles,
    rows,
    statistics_of,
)

BY_NODE = GaussianLikelihood(noise="by_environment")
GUIDES = pytest.mark.parametrize("guide", ["mean field", "tree"])
SITE = "node_noise_scale"


def sites(trace):
    return {name for name, node in trace.nodes.items() if node["type"] == "sample"} - {
        "rows",
        "y",
        "z",
    }


@GUIDES
def test_sites_are_the_models(guide):
    model, made, data, _ = make_pair(guide, "gaussian", BY_NODE, updated=True)
    of_guide = poutine.trace(made).get_trace(*data)
    of_model = poutine.trace(poutine.replay(model, trace=of_guide)).get_trace(*data)
    assert sites(of_guide) == sites(of_model) >= {"noise_scale", "noise_spread", SITE}
    assert of_guide.nodes[SITE]["value"].shape == (TREE.num_nodes, Q)
    own = of_model.nodes["y"]["fn"].base_dist.base_dist.scale
    assert_close(own, of_guide.nodes[SITE]["value"][data[1]])


@GUIDES
@pytest.mark.parametrize("prior", ["gaussian", pytest.param("wide spike", marks=pytest.mark.slow)])
def test_elbo_is_that_of_pyro(guide, prior):
    model, made, data, stats = make_pair(guide, prior, BY_NODE, updated=True)
    vectorised = guide == "mean field"
    draws = particles(model, made, data, 4_000 if vectorised else 80, vectorised)
    assert_mean(draws, made.elbo(stats).item())
    x, env, y = data
    assert_close(-TreeELBO().loss(model, made, x, env, y), made.elbo(stats).item())


def test_draws_of_the_model_have_a_dimension_for_each():
    model, _, (x, env, _), _ = make_pair("tree", "gaussian", BY_NODE)
    found = Predictive(model, num_samples=7, parallel=True)(x, env)
    assert found["y"].shape == (7, len(x), Q)
    assert found[SITE].squeeze(1).shape == (7, TREE.num_nodes, Q)


@GUIDES
def test_the_noise_is_at_its_optimum(guide):
    _, made, _, stats = make_pair(guide, "gaussian", BY_NODE, updated=True)
    for _ in range(20):
        made.learn_nuisance_from(stats)
    best = made.elbo(stats).item()
    parts = dict(made.nuisance.named_parameters())
    assert len(parts) == 6
    for name, part in parts.items():
        seen = torch.ones_like(part, dtype=torch.bool)
        if name.startswith(SITE):
            seen[~made.nuisance[SITE].seen] = False
        for place in seen.nonzero().tolist():
            for step in (-0.05, 0.05):
                with torch.no_grad():
                    part[tuple(place)] += step
                assert made.elbo(stats).item() < best, (name, place, step)
                with torch.no_grad():
                    part[tuple(place)] -= step


def test_nodes_without_rows_have_the_priors_noise():
    _, made, _, stats = make_pair("tree", "gaussian", BY_NODE, updated=True)
    draws = made.sample(20_000, torch.Generator().manual_seed(0))
    silent = torch.tensor(SILENT)
    assert (~made.nuisance[SITE].seen)[silent].all()
    logs = draws[SITE].log() - draws["noise_scale"].log().unsqueeze(1)
    assert_mean(logs[:, silent], 0.0)
    assert_mean((logs / draws["noise_spread"].unsqueeze(1))[:, silent].square(), 1.0)
    # Expectations are those of draws, at nodes with rows, without, and at one not in the tree.
    likelihood, nodes = made.head.likelihood, torch.tensor([1, TREE.index("d"), TREE.num_nodes])
    more = likelihood.with_new_node(draws, torch.Generator().manual_seed(1))
    values = likelihood.values_at_nodes(more, nodes)["noise_scale"]
    moments = made.nuisance_at(nodes)["noise_scale"]
    assert_mean(values.log(), moments.mean_log())
    _, var = likelihood.predictive_moments(
        torch.zeros(3, Q), torch.zeros(3, Q), made.nuisance_at(nodes)
    )
    middle = values.square().clamp(max=values.square().quantile(0.999, dim=0))
    assert (middle.mean(0) < 1.05 * var).all()
    assert (middle.mean(0) > 0.7 * var).all()
    assert len(stats.nodes) < TREE.num_nodes


def test_without_the_nodes_it_refuses():
    made = make_pair("tree", "gaussian", BY_NODE)[1]
    with pytest.raises(AssertionError, match="at which nodes"):
        made.head.likelihood.site_scale(made.nuisance)
    with pytest.raises(tbr.DataError, match="'by_leaf' is not known: give one of"):
        GaussianLikelihood(noise="by_leaf")


def simulated(ratio, rows_per_leaf=60, seed=0, **more):
    return tbr.simulate(
        num_leaves=16, latent_dim=2, num_features=2, rows_per_leaf=rows_per_leaf, noise_scale=0.5,
        noise_ratio=ratio, num_outcomes=2, seed=seed, **more,
    )  # fmt: skip


def fitted(sim, keep=None, noise="by_environment", **more):
    keep = slice(None) if keep is None else keep
    model = tbr.TreeModel(
        sim.tree, 2, "identity", likelihood=GaussianLikelihood(noise=noise), **more
    )
    return tbr.fit(model, sim.z[keep], sim.y[keep], sim.env[keep], progress=False)


def noise_of(posterior):
    draws = posterior.sample(2_000)[SITE]
    return draws.mean(0), draws.std(0)


def test_it_finds_noise_that_differs():
    sim = simulated(4.0)
    found, sd = (part[sim.tree.leaf_index.numpy()] for part in noise_of(fitted(sim)))
    truth = sim.law.noise_scales[sim.tree.leaf_index.numpy(), None]
    off = (found - truth) / sd
    assert abs(off).max() < 4
    assert 0.5 < (off**2).mean() < 2  # 32 of them


def test_even_noise_is_drawn_to_the_common_one():
    sim = simulated(1.0)
    posterior = fitted(sim)
    found, _ = noise_of(posterior)
    leaves = found[sim.tree.leaf_index.numpy()]
    # By 60 rows alone it would scatter by 0.046 about 0.5.
    assert leaves.std() < 0.025
    common = fitted(sim, noise="common")
    assert abs(posterior.pips() - common.pips()).to_numpy().max() < 0.05


@pytest.mark.slow
def test_a_leaf_of_few_rows_is_safe():
    counts = [60] * 15 + [2]
    sim = simulated(1.0, counts)
    found, _ = noise_of(fitted(sim))
    assert 0.3 < found[sim.tree.index(sim.tree.leaves[-1])].min()
    assert found[sim.tree.index(sim.tree.leaves[-1])].max() < 0.8


def test_update_learns_the_noise_of_the_rows_environment():
    sim = simulated(4.0, 200, seed=1)
    leaf = sim.tree.leaves[3]
    own = sim.env == leaf
    before = fitted(sim, ~own)
    after = before.update(sim.z[own], sim.y[own], leaf)
    node = sim.tree.index(leaf)
    truth = sim.law.noise_scales[node]
    found, sd = noise_of(after)
    assert (abs(found[node] - truth) < 4 * sd[node]).all()
    assert (sd[node] < 0.15 * truth).all()
    assert (noise_of(before)[1][node] > 0.2 * truth).all()
    # What all share stays what it was.
    for name in ("noise_scale", "noise_spread"):
        old, new = (p.guide.nuisance[name].state() for p in (before, after))
        assert_close(old, new)


def test_predictions_have_the_noise_of_their_place():
    sim = simulated(6.0, 200, seed=2)
    leaf = sim.tree.leaves[0]
    posterior = fitted(sim, sim.env != leaf)
    quiet, loud = sorted(
        sim.tree.leaves[1:], key=lambda one: sim.law.noise_scales[sim.tree.index(one)]
    )[::14]
    x = sim.z[:3]
    for one in (quiet, loud):
        truth = sim.law.noise_scales[sim.tree.index(one)]
        found = posterior.predict(x, one)
        assert_close(
            found.sd, torch.full((3, 2), truth, dtype=torch.float64).numpy(), rtol=0.2, atol=0
        )
        drawn = found.sample(4_000, seed=1).std(0)
        assert_close(drawn, found.sd, rtol=0.1, atol=0)
    # At a leaf without data, at a new one and anywhere: wider than at the quietest.
    for where in (leaf, tbr.NewLeaf("new", sim.tree.root), None):
        found = posterior.predict(x, where, num_draws=2_000)
        assert (found.sd > posterior.predict(x, quiet).sd).all()
        drawn = found.sample(6_000, seed=1)
        inside = ((found.lower < drawn) & (drawn < found.upper)).mean(0)
        assert abs(inside - 0.9).max() < 0.02


def test_missing_outcomes_leave_their_noise_to_the_prior():
    x, env, y = rows(num_outcomes=2)
    y[env == TREE.index("a"), 1] = torch.nan
    model = make_model(tbr.GaussianPrior(), BY_NODE)
    made = TreeGuide(model, informed_nodes(env)).double()
    made.update(statistics_of(model, x, env, y), sweeps=20)
    moments = made.nuisance_at(torch.tensor([TREE.index("a"), TREE.index("d")]))["noise_scale"]
    assert_close(moments.loc[0, 1], moments.loc[1, 1], rtol=0, atol=0.02)
    assert 0.3 * moments.var[1, 1] < moments.var[0, 1] < moments.var[1, 1]
    assert moments.var[0, 0] < moments.var[1, 0]
