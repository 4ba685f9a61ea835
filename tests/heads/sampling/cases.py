"""Two latents that correlate within environments, and their exact posterior by enumeration."""

import math

import torch

from pyro_tbr.heads import GaussianLikelihood, SpikeSlabPrior, Statistics, TreeGuide
from pyro_tbr.heads.sampling.diagnostics import bulk_ess
from pyro_tbr.models import TreeModel
from pyro_tbr.tree import Tree
from tests.heads.cases import statistics_of
from tests.tree.small_trees import dense_paths

TREE = Tree.from_newick("((a,b,e)u,(c,d)v,f)r;")
FOUR = Tree.from_newick("((a,b)u,(c,d)v)r;")
K = 2
RATE, SLAB, ROOT, NOISE = 0.2, 1.0, 1.0, 0.5


def informed(tree):
    nodes = torch.zeros(tree.num_nodes, dtype=torch.bool)
    nodes[tree.leaf_index] = True
    return nodes


def rows(seed, correlation, num=30, tree=FOUR):
    """Latents of mean 0, changes drawn from the prior; x (N, 2), node (N,), y (N, 1)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    env = tree.leaf_index.repeat_interleave(num)
    shared = draw(len(env), 1)
    x = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * draw(len(env), K)
    gates = torch.rand(tree.num_arcs, K, generator=generator) < 0.3
    weights = draw(K) + dense_paths(tree) @ (gates * SLAB * draw(tree.num_arcs, K))
    y = (x * weights[env]).sum(1, keepdim=True) + NOISE * draw(len(env), 1)
    return x, env, y


def fitted(data, prior=None, noise=NOISE, tree=FOUR):
    """A tree guide at its optimum, and statistics of the rows; by default all is known."""
    prior = SpikeSlabPrior(None, RATE, SLAB, ROOT) if prior is None else prior
    model = TreeModel(tree, K, "identity", prior, GaussianLikelihood(noise), intercept=False)
    model = model.build(K, 1).double()
    guide = TreeGuide(model, informed(tree)).double()
    stats = statistics_of(model, *data)
    guide.update(stats, sweeps=60)
    return guide, stats


def untouched(prior, tree):
    """A guide at its start and statistics of rows that say nothing."""
    model = TreeModel(tree, K, "identity", prior, GaussianLikelihood(), intercept=False)
    model = model.build(K, 1).double()
    nodes, zero = tree.leaf_index, torch.zeros(tree.num_leaves, 1, dtype=torch.float64)
    cross = zero.unsqueeze(-1).expand(-1, -1, K)
    stats = Statistics(nodes, torch.diag_embed(cross), cross, zero, zero, zero)
    return TreeGuide(model, informed(tree)).double(), stats


def enumerated(data, tree=FOUR):
    """Exact PIPs (A, 2) and means of the leaves' weights (L, 2), over all patterns of gates."""
    x, env, y = data
    paths = dense_paths(tree)
    gain = torch.cat([x, torch.einsum("nw,na->naw", x, paths[env]).flatten(1)], 1)
    precision, linear = gain.T @ gain / NOISE**2, (gain.T @ y)[:, 0] / NOISE**2
    at_leaves = torch.cat([torch.ones(tree.num_nodes, 1).double(), paths], 1)[tree.leaf_index]
    size = tree.num_arcs * K
    patterns = torch.cartesian_prod(*[torch.tensor([False, True])] * size)
    log_weight, means = [], []
    for some in patterns.split(1024):
        root = torch.full((len(some), K), ROOT, dtype=torch.float64)
        scale = torch.cat([root, SLAB * some], 1)
        inner = scale.unsqueeze(-1) * precision * scale.unsqueeze(-2)
        factor = torch.linalg.cholesky(inner + torch.eye(size + K))
        right = (scale * linear).unsqueeze(-1)
        solution = torch.cholesky_solve(right, factor)
        log_weight.append(
            0.5 * (right * solution).sum((1, 2))
            - factor.diagonal(dim1=1, dim2=2).log().sum(1)
            + torch.where(some, RATE, 1 - RATE).double().log().sum(1)
        )
        effects = (scale * solution[..., 0]).reshape(len(some), -1, K)
        means.append(torch.einsum("li,piw->plw", at_leaves, effects))
    weight = torch.cat(log_weight).softmax(0)
    pips = (weight @ patterns.double()).reshape(-1, K)
    return pips, torch.einsum("p,plw->lw", weight, torch.cat(means))


def assert_draws_mean(draws, expected, num_sigma=5.0, atol=1e-3):
    """Draws (C, n, ...) have this mean within the standard error their effective number gives."""
    draws = draws.double()
    flat = draws.reshape(*draws.shape[:2], -1)
    number = torch.from_numpy(bulk_ess(flat.numpy())).nan_to_num(nan=1.0)
    error = flat.std((0, 1)) / number.sqrt()
    gap = (flat.mean((0, 1)) - torch.as_tensor(expected).double().reshape(-1)).abs()
    worst = (gap / (error + atol / num_sigma)).max()
    assert worst < num_sigma, f"off by {worst:.1f} standard errors"
