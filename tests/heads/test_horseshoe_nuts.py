"""The horseshoe along the tree against samplers of the scales, weights integrated out: Gibbs, NUTS.

Means within 0.1 posterior standard deviations, ends of 90 % intervals within 0.2. NUTS on the
model's own sites does not mix: 1,500 draws, changes non-centred, leave the ends of intervals off by
0.4 between halves of the chain; on the scales alone, whose density is checked against the model's,
3,000 are enough.
"""

import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch.distributions import MultivariateNormal

from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.priors import HorseshoePrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.models import TreeModel
from tests.brief import mostly_slow
from tests.heads.cases import statistics_of
from tests.heads.horseshoe_oracle import HorseshoeOracle
from tests.oracles import dense_paths
from tests.tree.small_trees import SMALL_TREES

NOISE = 0.5
ENDS = torch.tensor([0.05, 0.95], dtype=torch.float64)
# Tree, a clear change and a doubtful one by arc, seed, global scale (None: learnt).
CASES = {
    "balanced": ("balanced", {2: 1.5, 4: 0.3}, 0, None),
    "caterpillar": ("caterpillar", {1: 1.0, 3: 0.25}, 1, None),
    "star, global scale fixed": ("star", {0: -1.2, 3: 0.3}, 2, 0.1),
}


def fitted(name, changes, seed, global_scale, rows_per_leaf=20):
    """One latent that is the feature, known noise: the guide after its update, the rows."""
    tree, generator = SMALL_TREES[name], torch.Generator().manual_seed(seed)
    env = tree.leaf_index.repeat_interleave(rows_per_leaf)
    deltas = torch.zeros(tree.num_arcs, dtype=torch.float64)
    for arc, change in changes.items():
        deltas[arc] = change
    x = torch.randn(len(env), 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(env), 1, generator=generator, dtype=torch.float64)
    y = x * (1 + dense_paths(tree) @ deltas)[env].unsqueeze(1) + NOISE * noise
    prior = HorseshoePrior(global_scale=global_scale, root_scale=2.0)
    model = TreeModel(tree, 1, "identity", prior, GaussianLikelihood(NOISE), intercept=False,
                      num_features=1, num_outcomes=1).double()  # fmt: skip
    nodes = torch.zeros(tree.num_nodes, dtype=torch.bool)
    nodes[env] = True
    guide = TreeGuide(model, nodes).double()
    guide.update(statistics_of(model, x, env, y), sweeps=20)
    return guide, (x, env, y)


def oracle_of(guide):
    paths = dense_paths(guide.head.tree)
    return HorseshoeOracle(paths, guide.eta[0, 0], guide.lam[0, 0], guide.head.prior)


def assert_agrees(guide, truth):
    """Moments of the passes and quantiles of joint draws, against draws of another kind."""
    sd, moments = truth.sd(), guide.delta_moments()
    draws = guide.sample(20_000, torch.Generator().manual_seed(2))
    changes = draws["deltas"][:, :, 0, 0]
    assert ((moments.mean[:, 0, 0] - truth.mean.mean(0)) / sd).abs().max() < 0.1
    ends = (changes.quantile(ENDS, 0) - truth.deltas.quantile(ENDS, 0)) / sd
    assert ends.abs().max() < 0.2, ends
    assert (moments.var[:, 0, 0].sqrt() / sd - 1).abs().max() < 0.15
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for name, size in (("global_scale", 0.35), ("slab_scale", 0.25), ("local_scale", 0.25)):
        found = draws[name].flatten(1).log().quantile(levels, 0)
        expected = getattr(truth, name).reshape(len(truth.mean), -1).log().quantile(levels, 0)
        assert (found - expected).abs().max() < size, name


@pytest.mark.parametrize("name", mostly_slow({name: name for name in CASES}, "balanced"))
def test_agrees_with_gibbs(name):
    guide, _ = fitted(*CASES[name])
    oracle = oracle_of(guide)
    logs = oracle.gibbs(num_chains=150, num_sweeps=40)
    truth = oracle.changes(logs)
    half = len(logs) // 2
    gap = (truth.mean[:half].mean(0) - truth.mean[half:].mean(0)) / truth.sd()
    assert gap.abs().max() / 2 < 0.05  # the oracle's own error
    assert_agrees(guide, truth)


def test_the_oracles_density_is_the_models():
    """Log p of the model, less that of the weights given the scales, up to a constant."""
    guide, (x, *data) = fitted(*CASES["balanced"])
    oracle, head = oracle_of(guide), guide.head
    gaps = []
    for logs in oracle.start(4, torch.Generator().manual_seed(3)):
        var, gain, chol = oracle._solved(logs)
        solved = torch.cholesky_solve(gain.T, chol).T
        given = MultivariateNormal(solved @ oracle.observed, torch.diag(var) - solved @ gain.T)
        weights = given.sample()
        values = {
            "root_weights": weights[:1].reshape(1, 1),
            "deltas": weights[1:].reshape(-1, 1, 1),
            "global_scale": logs[:1].exp().reshape(1, 1),
            "slab_scale": logs[1:2].exp().reshape(1, 1),
            "local_scale": logs[2:].exp().reshape(-1, 1, 1),
        }
        trace = poutine.trace(poutine.condition(head, values)).get_trace(x, *data)
        log_joint = trace.log_prob_sum() + logs.sum()  # scales to logs
        gaps.append(log_joint - given.log_prob(weights) - oracle.log_density(logs))
    assert torch.stack(gaps).std() < 1e-4  # hyperpriors are float32


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_nuts(case):
    guide, _ = fitted(*case)
    oracle = oracle_of(guide)
    first = 0 if oracle.fixed is None else 1  # a fixed global scale stays
    start = oracle.start(1, torch.Generator().manual_seed(4))[0]

    def potential(values):
        return -oracle.log_density(torch.cat([start[:first], values["logs"]]))

    torch.manual_seed(5)
    kernel = NUTS(potential_fn=potential, target_accept_prob=0.9)
    initial = {"logs": start[first:]}
    sampler = MCMC(kernel, 3_000, 500, initial_params=initial, disable_progbar=True)
    sampler.run()
    logs = sampler.get_samples()["logs"]
    logs = torch.cat([start[:first].expand(len(logs), -1), logs], 1)
    assert_agrees(guide, oracle.changes(logs, repeats=10))
