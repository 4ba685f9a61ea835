"""The guide that is exact along the tree: against enumeration, and the law it claims."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.heads.guide import informed_arcs
from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import GaussianPrior, SpikeSlabPrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.models import TreeModel
from tests.heads.cases import assert_mean, particles, statistics_of
from tests.oracles import dense_paths, enumerate_posterior
from tests.tree.small_trees import SMALL_TREES

RATE, SLAB, ROOT, NOISE = 0.3, 1.2, 2.0, 0.5
trees = pytest.mark.parametrize("name", SMALL_TREES)
FIXED = {
    "spike and slab": lambda: SpikeSlabPrior(None, RATE, SLAB, ROOT),
    "gaussian": lambda: GaussianPrior(SLAB, ROOT),
}


def one_latent(tree, prior, num_outcomes=1, seed=0, num_rows=40, **kwargs):
    """A model with one latent that is the feature, its guide, rows and statistics."""
    generator = torch.Generator().manual_seed(seed)
    env = torch.randint(tree.num_nodes, (num_rows,), generator=generator)
    x = torch.randn(num_rows, 1, generator=generator, dtype=torch.float64)
    gates = (torch.rand(tree.num_arcs, num_outcomes, generator=generator) < 0.4).double()
    deltas = gates * torch.randn(gates.shape, generator=generator, dtype=torch.float64)
    weights = 1.0 + dense_paths(tree) @ deltas
    y = x * weights[env] + NOISE * torch.randn(num_rows, num_outcomes, generator=generator)
    model = TreeModel(tree, 1, "identity", prior, GaussianLikelihood(NOISE), intercept=False,
                      num_features=1, num_outcomes=num_outcomes).double()  # fmt: skip
    nodes = torch.zeros(tree.num_nodes, dtype=torch.bool)
    nodes[env] = True
    guide = TreeGuide(model, nodes, **kwargs).double()
    return model, guide, (x, env, y), statistics_of(model, x, env, y)


def enumerated(model, data, outcome=0):
    """The oracle, from the rows themselves."""
    x, env, y = data
    tree = model.tree
    eta, lam = torch.zeros(2, tree.num_nodes, dtype=torch.float64)
    for n in range(len(x)):
        eta[env[n]] += x[n, 0] * y[n, outcome] / NOISE**2
        lam[env[n]] += x[n, 0] ** 2 / NOISE**2
    rates = 1.0 if isinstance(model.prior, GaussianPrior) else RATE
    gates = torch.ones(1, tree.num_arcs).double() if rates == 1.0 else None
    found = enumerate_posterior(dense_paths(tree), eta, lam, rates, SLAB, ROOT, gates=gates)
    # the potentials leave out the normaliser of the rows
    each = torch.distributions.Normal(0.0, NOISE).log_prob(y[:, outcome]).sum()
    return found, found.log_evidence + each


@pytest.mark.parametrize("kind", FIXED)
@trees
def test_update_gives_the_exact_posterior(name, kind):
    model, guide, data, stats = one_latent(SMALL_TREES[name], FIXED[kind](), num_outcomes=2)
    guide.update(stats, sweeps=3)
    nodes, deltas = guide.node_moments(), guide.delta_moments()
    evidence = 0.0
    for q in range(2):
        exact, log_evidence = enumerated(model, data, q)
        evidence += log_evidence
        if kind == "spike and slab":
            assert_close(deltas.inclusion[:, 0, q], exact.pips, rtol=0, atol=0.02)
        else:
            assert (deltas.inclusion == 1).all()
        assert_close(nodes.mean[:, 0, q], exact.node_mean, rtol=0, atol=0.01)
        assert_close(nodes.var[:, 0, q], exact.node_var, rtol=0.05, atol=1e-3)
        assert_close(deltas.mean[:, 0, q], exact.delta_mean, rtol=0, atol=0.01)
        second = deltas.var[:, 0, q] + deltas.mean[:, 0, q] ** 2
        assert_close(second, exact.delta_second, rtol=0, atol=0.01)
        by_parts = deltas.inclusion * (deltas.slab_var + deltas.slab_mean**2)
        assert_close(by_parts[:, 0, q], second, rtol=1e-6, atol=1e-6)
    assert_close(guide.elbo(stats), evidence, rtol=0, atol=0.02)


@trees
def test_every_particle_is_the_log_evidence(name):
    """With one latent and nothing to learn q is the posterior: log p - log q does not vary."""
    model, guide, data, stats = one_latent(
        SMALL_TREES[name], FIXED["spike and slab"](), num_components=128
    )
    guide.update(stats, sweeps=2)
    draws = particles(model, guide, data, 5, vectorised=False)
    # up to the two latents' ... the slab where the gate is off cancels too
    assert_close(draws, guide.elbo(stats).expand(5), rtol=0, atol=0.02)


def test_log_prob_is_a_density():
    """exp(log p - log q) averages to the evidence for any other potentials."""
    tree = SMALL_TREES["balanced"]
    model, guide, data, stats = one_latent(tree, FIXED["spike and slab"](), num_components=32)
    guide.update(stats, sweeps=2)
    exact, log_evidence = enumerated(model, data)
    guide.eta *= 0.8  # a q that is wrong, and wider than the posterior
    guide.lam *= 0.8
    guide.refresh()
    draws = particles(model, guide, data, 100, vectorised=False)
    assert_mean((draws - log_evidence).exp(), torch.tensor(1.0, dtype=torch.float64))
    assert exact.pips.isfinite().all()


def test_sampled_paths_are_joint():
    """Neighbouring arcs share one change: the chance that one of two is on is the oracle's."""
    model, guide, data, stats = one_latent(SMALL_TREES["path"], FIXED["spike and slab"](), seed=4)
    guide.update(stats, sweeps=2)
    gates = guide.sample(8_000, torch.Generator().manual_seed(0))["gates"][:, :, 0, 0]
    exact, _ = enumerated(model, data)
    either = ((gates[:, :, None] + gates[:, None, :]) > 0).double()
    assert_mean(either, exact.any_on, atol=0.01)


def test_sweeps_raise_the_elbo_to_that_of_mean_field_and_beyond():
    """Two correlated latents: coordinate ascent climbs, and the tree beats the factorised guide."""
    tree = SMALL_TREES["balanced"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.8 * x[:, 0]
    env = torch.randint(3, 7, (60,), generator=generator)
    y = (
        x[:, :1]
        + 0.5 * x[:, 1:] * (env == 4)[:, None]
        + NOISE * torch.randn(60, 1, generator=generator)
    )
    model = TreeModel(tree, 2, "identity", FIXED["spike and slab"](), GaussianLikelihood(NOISE),
                      num_features=2, num_outcomes=1).double()  # fmt: skip
    stats = statistics_of(model, x, env, y)
    guide = TreeGuide(model, num_components=64).double()
    elbos = []
    for sweeps in range(1, 6):  # the same path each time, longer and longer
        fresh = TreeGuide(model, num_components=32, coupled=False).double()
        fresh.update(stats, sweeps=sweeps, rough=True)  # else it goes on until all is still
        elbos.append(fresh.elbo(stats).item())
    assert (torch.tensor(elbos).diff() > -1e-3).all(), elbos
    guide.update(stats, sweeps=20)
    before = guide.elbo(stats)
    guide.update(stats, sweeps=20)
    assert guide.elbo(stats) > before - 0.05
    factorised = MeanFieldGuide(model).double()
    factorised.update(stats, sweeps=40)
    assert guide.elbo(stats) > factorised.elbo(stats) + 1.0


@pytest.mark.parametrize("prior", [SpikeSlabPrior, GaussianPrior])
def test_without_a_cap(prior):
    model, guide, _, stats = one_latent(SMALL_TREES["cherry"], prior(), num_components=None)
    guide.update(stats, sweeps=3)
    capped = TreeGuide(model, num_components=32).double()
    capped.update(stats, sweeps=3)
    assert_close(guide.elbo(stats), capped.elbo(stats), rtol=0, atol=0.01)


def test_updates_raise_the_elbo_with_learnt_hyperparameters():
    """Sweep by sweep; the rate's mean in the law is no coordinate's optimum, to 0.001."""
    model, guide, _, stats = one_latent(SMALL_TREES["mixed"], SpikeSlabPrior())
    elbos = []
    for _ in range(8):
        guide.step(stats)
        elbos.append(guide.elbo(stats).item())
    assert (torch.tensor(elbos).diff() > -0.01).all(), elbos
    assert elbos[-1] > elbos[0]


def test_few_rows_or_one_node_are_enough():
    tree = SMALL_TREES["mixed"]
    model, guide, data, stats = one_latent(tree, SpikeSlabPrior(), num_rows=1)
    guide.update(stats, sweeps=3)
    assert guide.elbo(stats).isfinite()
    assert guide.informed_arcs.sum() == dense_paths(tree)[data[1][0]].sum()


def test_informed_arcs_have_rows_at_or_below():
    tree = SMALL_TREES["mixed"]
    for node in range(tree.num_nodes):
        nodes = torch.zeros(tree.num_nodes, dtype=torch.bool)
        nodes[node] = True
        assert torch.equal(informed_arcs(tree, nodes), dense_paths(tree)[node] > 0)


def test_passes_are_forgotten_after_an_update():
    model, guide, data, stats = one_latent(SMALL_TREES["star"], SpikeSlabPrior())
    start = guide.node_moments().mean.clone()
    guide.update(stats, sweeps=2)
    assert not torch.equal(guide.node_moments().mean, start)
    before = guide.node_moments().mean.clone()
    guide.update(stats + stats, sweeps=2)
    assert not torch.equal(guide.node_moments().mean, before)
    assert (guide.node_moments().var <= 4.0).all()
    assert len(data) == 3
    assert model.tree is SMALL_TREES["star"]


def test_the_learnt_scale_of_large_changes_is_found():
    """Scales and rate move to where the data are: many equal changes on a star."""
    tree = SMALL_TREES["star"]
    generator = torch.Generator().manual_seed(0)
    env = torch.randint(1, 7, (300,), generator=generator)
    x = torch.randn(300, 1, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0, 0, 0, 0, 3.0, -3.0, 0]).double()
    y = x * weights[env][:, None] + 0.2 * torch.randn(300, 1, generator=generator)
    model = TreeModel(tree, 1, "identity", SpikeSlabPrior(), num_features=1, num_outcomes=1,
                      intercept=False).double()  # fmt: skip
    guide = TreeGuide(model).double()
    guide.update(statistics_of(model, x, env, y), sweeps=20)
    pips = guide.delta_moments().inclusion.flatten()
    assert (pips[3:5] > 0.95).all()
    assert (pips[[0, 1, 2, 5]] < 0.3).all()
    hyper = guide.hyper
    assert 1.0 < hyper["slab_scale"].mean_log().exp().item() < 4.0
    assert_close(guide.nuisance["noise_scale"].mean_log().exp().item(), 0.2, rtol=0.15, atol=0)
