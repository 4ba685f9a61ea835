"""The joint guide of dense changes against one large normal distribution."""

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pyro_tbr.errors import DataError
from pyro_tbr.heads import GaussianLikelihood, GaussianPrior, SpikeSlabPrior, TreeGuide
from pyro_tbr.heads.joint_guide import JointGuide
from tests.heads.cases import (
    TREE,
    Q,
    W,
    assert_mean,
    informed_nodes,
    make_model,
    rows,
    statistics_of,
)
from tests.tree.small_trees import dense_paths

SCALE, ROOT, NOISE = 0.7, 2.0, 0.5


def problem(prior=None, noise=None, missing=0.2):
    x, env, y = rows(missing=missing)
    model = make_model(prior or GaussianPrior(SCALE, ROOT), noise or GaussianLikelihood(NOISE))
    guide = JointGuide(model, informed_nodes(env)).double()
    return model, guide, (x, env, y), statistics_of(model, x, env, y)


def exact(model, x, env, y):
    """Moments of root weights and changes of each outcome, (1 + A) W each, and log evidence."""
    design = model.design(model.encoder(x)).double()
    steps = torch.cat([torch.ones(TREE.num_nodes, 1).double(), dense_paths(TREE)], 1)
    wide = torch.einsum("na,nw->naw", steps[env], design).flatten(1)
    unit = model.prior.unit.double()  # of fixed scales: the user's over the model's
    found = []
    for q in range(Q):
        seen = ~y[:, q].isnan()
        a, target = wide[seen], y[seen, q]
        sd = torch.cat([ROOT / unit[:, q], *[SCALE / unit[:, q]] * TREE.num_arcs])
        prior, noise = torch.diag(sd**2), NOISE**2 * torch.eye(len(a)).double()
        marginal = a @ prior @ a.T + noise
        gain = prior @ a.T @ torch.linalg.inv(marginal)
        evidence = MultivariateNormal(torch.zeros(len(a)).double(), marginal).log_prob(target)
        found.append((gain @ target, prior - gain @ a @ prior, evidence, steps))
    return found


def test_moments_and_evidence_are_those_of_the_joint_normal():
    model, guide, data, stats = problem()
    guide.step(stats)
    changes, total = guide.delta_moments(), 0.0
    for q, (mean, cov, evidence, steps) in enumerate(exact(model, *data)):
        total += evidence
        # float32 hyperparameters that are fixed hold some seven digits
        assert_close(guide.current.mean[:, q], steps @ mean.reshape(-1, W), rtol=0, atol=1e-5)
        spread = torch.kron(steps, torch.eye(W).double())
        whole = (spread @ cov @ spread.T).reshape(TREE.num_nodes, W, TREE.num_nodes, W)
        for node in range(TREE.num_nodes):
            here = guide.node_cov(torch.tensor([node]))[0, q]
            assert_close(here, whole[node, :, node], rtol=0, atol=1e-5)
        assert_close(changes.mean[..., q], mean.reshape(-1, W)[1:], rtol=0, atol=1e-5)
        assert_close(changes.var[..., q], cov.diagonal().reshape(-1, W)[1:], rtol=0, atol=1e-5)
    assert_close(guide.elbo(stats).double(), total, rtol=0, atol=1e-3)


def test_every_step_raises_the_elbo():
    _, guide, _, stats = problem(GaussianPrior(), "gaussian")
    bounds = []
    for _ in range(20):
        guide.step(stats)
        bounds.append(guide.elbo(stats).item())
    assert bounds[-1] > bounds[0] + 1
    assert min(b - a for a, b in zip(bounds, bounds[1:], strict=False)) > -1e-6


def test_means_are_those_of_expectation_propagation():
    model, guide, (_, env, _), stats = problem(missing=0.0)
    guide.step(stats)
    tree = TreeGuide(model, informed_nodes(env)).double()
    tree.update(stats, sweeps=200)
    assert_close(tree.node_moments().mean, guide.node_moments().mean, rtol=0, atol=0.01)
    assert guide.elbo(stats) > tree.elbo(stats) - 0.1


def test_draws_have_the_moments_of_the_guide():
    _, guide, _, stats = problem()
    guide.step(stats)
    draws = guide.sample(8_000, torch.Generator().manual_seed(0))
    now, changes = guide.node_moments(), guide.delta_moments()
    assert_mean(draws["root_weights"], now.mean[0])
    assert_mean((draws["root_weights"] - now.mean[0]).square(), now.var[0])
    known = guide.informed_arcs
    assert_mean(draws["deltas"][:, known], changes.mean[known])
    assert_mean((draws["deltas"] - changes.mean).square()[:, known], changes.var[known])


@pytest.mark.parametrize(("prior", "likelihood", "words"), [
    (SpikeSlabPrior(), "gaussian", "dense normal changes"),
    (GaussianPrior(), "bernoulli", "normal noise"),
])  # fmt: skip
def test_it_refuses_what_is_not_jointly_normal(prior, likelihood, words):
    with pytest.raises(DataError, match=words):
        JointGuide(make_model(prior, likelihood))
