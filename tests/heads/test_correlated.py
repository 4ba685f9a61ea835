"""Outcomes whose noise goes together, against the joint posterior of all outcomes' weights."""

import itertools

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pyro_tbr.errors import DataError
from pyro_tbr.heads import DesignRows, Head, condition
from pyro_tbr.heads.conditioning import exact_statistics
from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.likelihoods.correlation import shrunken_correlation
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import GaussianPrior, SpikeSlabPrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.tree import Tree
from tests.tree.small_trees import dense_paths

TREE = Tree.from_newick("((a,b)u,c)r;")
A, Q = TREE.num_arcs, 2
RATE, SLAB, ROOT, NOISE = 0.2, 1.0, 1.0, 0.5
WITH_ROWS = torch.isin(torch.arange(TREE.num_nodes), TREE.leaf_index)
PRIORS = {"dense": GaussianPrior(SLAB, ROOT), "sparse": SpikeSlabPrior(None, RATE, SLAB, ROOT)}


def correlation(value, size=Q):
    return value + (1 - value) * torch.eye(size, dtype=torch.float64)


def rows(seed, rho, num=8, missing=True):
    """One latent, two outcomes; one change, of the first outcome's weight at ``a``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    env = TREE.leaf_index.repeat_interleave(num)
    x = draw(len(env), 1)
    deltas = torch.zeros(A, Q, dtype=torch.float64)
    deltas[TREE.nodes.index("a") - 1, 0] = 0.5
    weights = draw(Q) + dense_paths(TREE) @ deltas
    noise = draw(len(env), Q) @ torch.linalg.cholesky(correlation(rho)).T
    y = x * weights[env] + NOISE * noise
    if missing:
        y[torch.rand(y.shape, generator=generator) < 0.2] = torch.nan
    return x, env, y


def head_of(prior, num_outcomes=Q, likelihood=None):
    likelihood = likelihood or GaussianLikelihood(NOISE, covariance="full")
    likelihood = likelihood.build(num_outcomes, num_nodes=TREE.num_nodes)
    prior = PRIORS[prior] if isinstance(prior, str) else prior
    built = prior.build(TREE, 1, num_outcomes, num_latents=1, root_loc=torch.zeros(1, num_outcomes))
    return Head(TREE, built, likelihood).double()


def guide_of(head, rho):
    guide = TreeGuide(head, WITH_ROWS, None).double()
    guide.nuisance["noise_cholesky"].hold(correlation(rho, head.num_outcomes))
    return guide


def settled(prior, data, rho):
    x, env, y = data
    guide = guide_of(head_of(prior), rho)
    block = DesignRows(x, y, env)
    stats = exact_statistics(guide, block, together=True)
    guide.update(stats, sweeps=200, learn_hyper=False, learn_nuisance=False)
    return guide, stats


def exact(data, rho, patterns):
    """Moments of node weights (V, Q), gates (A, Q) and log evidence, over patterns (P, A, Q)."""
    x, env, y = data
    paths = dense_paths(TREE)
    to_nodes = torch.cat([torch.ones(TREE.num_nodes, 1, dtype=torch.float64), paths], 1)
    at_nodes = torch.kron(to_nodes, torch.eye(Q, dtype=torch.float64))  # (V Q, (1 + A) Q)
    gain = torch.einsum("nk,nl->nkl", x * to_nodes[env], torch.ones(len(x), 1).double())
    gain = torch.kron(gain[..., 0].contiguous(), torch.eye(Q, dtype=torch.float64))
    noise = torch.kron(torch.eye(len(x), dtype=torch.float64), NOISE**2 * correlation(rho))
    seen = ~torch.isnan(y).flatten()
    value, gain, noise = y.flatten()[seen], gain[seen], noise[seen][:, seen]
    log_weight, moments = [], []
    for gates in patterns:
        var = torch.cat([torch.full((1, Q), ROOT**2).double(), gates * SLAB**2]).flatten()
        cov = gain * var @ gain.T + noise
        law = MultivariateNormal(torch.zeros(len(cov)).double(), cov)
        prior = torch.where(gates > 0, RATE, 1 - RATE).double().log().sum()
        log_weight.append(law.log_prob(value) + (prior if len(patterns) > 1 else 0.0))
        solved = torch.linalg.solve(cov, gain * var).T  # ((1 + A) Q, n)
        mean, spread = solved @ value, torch.diag(var) - solved @ (gain * var)
        spread = (at_nodes @ spread @ at_nodes.T).diagonal()
        mean = at_nodes @ mean
        moments.append(torch.stack([mean, spread + mean.square()]))
    log_weight = torch.stack(log_weight)
    weight = log_weight.softmax(0)
    mean, second = torch.einsum("p,pmv->mv", weight, torch.stack(moments))
    gates = torch.einsum("p,paq->aq", weight, torch.stack(list(patterns)))
    return mean.view(-1, Q), (second - mean**2).view(-1, Q), gates, log_weight.logsumexp(0)


def all_gates():
    picks = itertools.product([0.0, 1.0], repeat=A * Q)
    return [torch.tensor(pick, dtype=torch.float64).view(A, Q) for pick in picks]


@pytest.mark.parametrize("rho", [0.0, 0.7, -0.9])
@pytest.mark.parametrize("seed", range(2))
def test_dense_weights_have_the_joint_posteriors_means_and_variances(seed, rho):
    data = rows(seed, rho)
    mean, var, _, log_evidence = exact(data, rho, [torch.ones(A, Q).double()])
    guide, stats = settled("dense", data, rho)
    found, leaves = guide.node_moments(), TREE.leaf_index
    assert ((found.mean[:, 0] - mean).abs()[leaves] < 0.05 * var.sqrt()[leaves]).all()
    ratio = (found.var[:, 0] / var)[leaves]
    assert ((ratio > 0.85) & (ratio < 1.15)).all()
    # The correlation is a point, whose hyperprior counts.
    elbo = guide.elbo(stats) + guide.nuisance["noise_cholesky"].kl()
    assert elbo <= log_evidence + 1e-6
    if rho == 0:
        assert_close(elbo, log_evidence)


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_gates_are_those_of_all_outcomes_together(rho):
    patterns, errors, alone = all_gates(), [], []
    for seed in range(4):
        data = rows(seed, rho)
        gates = exact(data, rho, patterns)[2]
        errors.append(settled("sparse", data, rho)[0].delta_moments().inclusion[:, 0] - gates)
        alone.append(settled("sparse", data, 0.0)[0].delta_moments().inclusion[:, 0] - gates)
    error, other = (torch.stack(part).abs() for part in (errors, alone))
    assert error.max() < 0.12
    assert error.mean() < 0.02
    assert other.mean() > 2 * error.mean()


@pytest.mark.parametrize(("rho", "least"), [(0.8, 0.9), (0.95, 0.85)])
def test_errors_that_outcomes_share_are_not_counted_twice(rho, least):
    patterns, ratios = all_gates(), []
    for seed in range(6):
        data = rows(seed, rho, num=30, missing=False)
        _, var, _, _ = exact(data, rho, patterns)
        found = settled("sparse", data, rho)[0].node_moments().var[:, 0]
        ratios.append((found / var)[TREE.leaf_index].sqrt().log())
    assert least < torch.stack(ratios).mean().exp() < 1.1


@pytest.mark.parametrize("seed", range(3))
def test_without_correlations_it_is_the_likelihood_of_single_outcomes(seed):
    data = rows(seed, 0.0)
    x, env, y = data
    together, stats = settled("sparse", data, 0.0)
    head = head_of("sparse", likelihood=GaussianLikelihood(NOISE))
    alone = TreeGuide(head, WITH_ROWS, None).double()
    plain = exact_statistics(alone, DesignRows(x, y, env))
    alone.update(plain, sweeps=200, learn_hyper=False, learn_nuisance=False)
    for one, two in zip(together.node_moments(), alone.node_moments(), strict=True):
        assert_close(one, two, rtol=1e-4, atol=1e-5)
    lkj = together.nuisance["noise_cholesky"].kl()
    assert_close(together.elbo(stats) + lkj, alone.elbo(plain), rtol=1e-5, atol=1e-4)


def test_sums_are_additive_turn_and_say_what_the_rows_say():
    x, env, y = rows(3, 0.6, num=9)
    x = torch.cat([x, torch.ones_like(x)], 1)
    guide = guide_of(head_of("dense"), 0.6)
    whole = exact_statistics(guide, DesignRows(x, y, env), together=True)
    parts = [
        exact_statistics(guide, DesignRows(x[some], y[some], env[some]), together=True)
        for some in torch.arange(len(x)).split(7)
    ]
    both = parts[0]
    for part in parts[1:]:
        both = both + part
    turn = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    turned = exact_statistics(guide, DesignRows(x @ turn, y, env), together=True)
    for one, two in ((whole, both), (turned, whole.transform(turn))):
        for left, right in zip(guide.node_rows(one)[:3], guide.node_rows(two)[:3], strict=True):
            assert_close(left, right)
    weights = torch.randn(TREE.num_nodes, 2, Q, generator=torch.Generator().manual_seed(1)).double()
    found = guide.node_rows(whole)
    mean = weights[whole.nodes].mT
    misfit = found.misfit(mean, torch.zeros_like(found.precision)).squeeze(1)
    residual = y - torch.einsum("nw,nwq->nq", x, weights[env])
    for place, node in enumerate(whole.nodes.tolist()):
        slow = 0.0
        for row in torch.nonzero(env == node)[:, 0]:
            seen = ~torch.isnan(y[row])
            cov = NOISE**2 * correlation(0.6)[seen][:, seen]
            slow = slow + residual[row][seen] @ torch.linalg.solve(cov, residual[row][seen])
        assert_close(misfit[place], slow)


def test_flattened_rows_keep_their_peak_and_residuals():
    x, env, y = rows(4, 0.6, num=20, missing=False)
    guide = guide_of(head_of("dense"), 0.6)
    stats = exact_statistics(guide, DesignRows(x, y, env), together=True)
    inflation = torch.full((len(stats.nodes), Q, 1), 4.0, dtype=torch.float64)
    flat = stats._replace(inflation=inflation).flattened()
    one, two = guide.node_rows(stats), guide.node_rows(flat)
    peaks = [torch.linalg.solve(r.precision, r.linear.unsqueeze(-1))[..., 0] for r in (one, two)]
    assert_close(*peaks)
    assert_close(one.precision, 4 * two.precision)
    none = torch.zeros_like(one.precision)
    peak = peaks[0].reshape(len(stats.nodes), Q, 1)
    assert_close(one.misfit(peak, none), two.misfit(peak, none))
    turn = torch.tensor([[0.5]], dtype=torch.float64)
    turned = guide.node_rows(flat.transform(turn))
    assert_close(turned.precision, 0.25 * two.precision)
    before = flat.joint.residuals(stats.nodes, 0.5 * peak, none.squeeze(1))
    assert_close(flat.transform(turn).joint.residuals(stats.nodes, peak, none.squeeze(1)), before)


@pytest.mark.parametrize("missing", [False, True])
def test_correlations_and_noise_are_learnt(missing):
    rho = 0.6
    x, env, y = rows(5, rho, num=400, missing=missing)
    guide = guide_of(head_of("sparse", likelihood=GaussianLikelihood(covariance="full")), 0.0)
    condition(guide, DesignRows(x, y, env))
    found = guide.nuisance["noise_cholesky"].correlation[0, 1]
    assert abs(found - rho) < 3 * (1 - rho**2) / (0.6 * len(x)) ** 0.5
    noise = guide.nuisance["noise_scale"].mean_log().exp()
    assert ((noise / NOISE).log().abs() < 3 * (2 * 0.8 * len(x)) ** -0.5 + 0.02).all()


def test_correlations_are_shrunk_where_rows_are_few():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    found = shrunken_correlation(y.T @ y, 12.0)
    off = found - torch.diag(found.diagonal())
    assert off.abs().max() < 0.3
    assert_close(found.diagonal(), torch.ones(20).double())
    y = torch.randn(5000, 1, generator=generator, dtype=torch.float64) @ torch.ones(1, 3).double()
    copies = shrunken_correlation(y.T @ y, 5000.0)
    assert copies[0, 1] > 0.99
    torch.linalg.cholesky(copies)


def test_the_pyro_model_has_the_joint_density():
    x, env, y = rows(6, 0.7)
    head = head_of("dense", likelihood=GaussianLikelihood(covariance="full"))
    factor = torch.linalg.cholesky(correlation(0.7))
    fixed = {"noise_cholesky": factor}
    trace = pyro.poutine.trace(pyro.condition(head, data=fixed)).get_trace(x, env, y)
    trace.compute_log_prob()
    sites = trace.nodes
    changes = (dense_paths(TREE) @ sites["deltas"]["value"].flatten(1)).unsqueeze(1)
    weights = sites["root_weights"]["value"] + changes
    noise = sites["node_noise_scale"]["value"][env]
    slow = torch.zeros(()).double()
    for row in range(len(x)):
        seen = ~torch.isnan(y[row])
        if seen.any():
            scale = torch.diag(noise[row])
            cov = (scale @ correlation(0.7) @ scale)[seen][:, seen]
            mean = (x[row] @ weights[env[row]])[seen]
            slow = slow + MultivariateNormal(mean, cov).log_prob(y[row][seen])
    assert_close(sites["y"]["log_prob_sum"], slow)
    drawn = pyro.condition(head, data=fixed)(x.repeat(400, 1), env.repeat(400))
    assert drawn.shape == (400 * len(x), Q)


def test_expected_densities_sum_to_those_of_the_statistics():
    x, env, y = rows(7, 0.5)
    guide, stats = settled("dense", (x, env, y), 0.5)
    moments = guide.node_moments()
    mean = x * moments.mean[env, 0]
    var = x.square() * moments.var[env, 0]
    block = DesignRows(x, y, env)
    each = guide.head.likelihood.expected_log_prob(y, mean, var, guide.nuisance_of(block))
    assert_close(each.sum(), guide.expected_log_lik(stats))


def test_guides_of_single_outcomes_refuse():
    with pytest.raises(DataError, match="guide='tree'"):
        MeanFieldGuide(head_of("sparse"))
    with pytest.raises(DataError, match="covariance='other'"):
        GaussianLikelihood(covariance="other")
