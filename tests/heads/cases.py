"""Data, models and guides that the tests of this folder go through, all in double precision."""

import copy
import functools

import pyro
import pyro.poutine as poutine
import torch

from pyro_tbr.heads import (
    DesignRows,
    GaussianLikelihood,
    GaussianPrior,
    HorseshoePrior,
    MeanFieldGuide,
    SpikeSlabPrior,
    TreeGuide,
)
from pyro_tbr.heads.statistics import Sites, statistics
from pyro_tbr.models import TreeModel
from pyro_tbr.tree import Tree
from tests.tree.small_trees import dense_paths

# Arcs in series, a polytomy, a node with rows inside, an arc of length 0 (into c); no rows at d.
TREE = Tree.from_newick("((a:0.5,b:1.5,c:0)u:1,(d:2)v:0.25)r;")
SILENT = [node in ("v", "d") for node in TREE.nodes]  # no rows there or below
K, Q = 2, 2
W = K + 1
PRIORS = {  # learnt hyperparameters, fixed ones
    "spike and slab": (
        lambda: SpikeSlabPrior(spike_scale=0),
        lambda: SpikeSlabPrior(None, 0.3, 1.0, 2.0),
    ),
    "lengths": (
        lambda: SpikeSlabPrior(use_lengths=True),
        lambda: SpikeSlabPrior(1.2, None, 1.0, 2.0, use_lengths=True),
    ),
    "wide spike": (
        lambda: SpikeSlabPrior(),
        lambda: SpikeSlabPrior(None, 0.3, 1.0, 2.0, spike_scale=0.15),
    ),
    "grouped": (
        lambda: SpikeSlabPrior(gates="grouped"),
        lambda: SpikeSlabPrior(None, 0.3, 1.0, 2.0, gates="grouped"),
    ),
    "grouped, lengths": (
        lambda: SpikeSlabPrior(use_lengths=True, spike_scale=0, gates="grouped"),
        lambda: SpikeSlabPrior(
            1.2, None, 1.0, 2.0, use_lengths=True, spike_scale=0.15, gates="grouped"
        ),
    ),
    "gaussian": (GaussianPrior, lambda: GaussianPrior(0.7, 2.0)),
    "horseshoe": (HorseshoePrior, lambda: HorseshoePrior(global_scale=0.3, root_scale=2.0)),
}
GUIDES = {"mean field": MeanFieldGuide, "tree": TreeGuide}
PAIRS = [(guide, prior) for guide in GUIDES for prior in PRIORS]


def tensor(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows(num_rows=60, binary=False, seed=0, num_latents=K, num_outcomes=Q, missing=0.0):
    """Features, environments and outcomes: one large change in latent 0, one in the intercept."""
    generator = torch.Generator().manual_seed(seed)
    x = tensor(num_rows, num_latents, generator=generator)
    informed = torch.tensor([node in ("u", "a", "b", "c") for node in TREE.nodes]).nonzero()[:, 0]
    env = informed[torch.randint(len(informed), (num_rows,), generator=generator)]
    root = tensor(num_latents + 1, num_outcomes, generator=generator)
    deltas = torch.zeros(TREE.num_arcs, num_latents + 1, num_outcomes, dtype=torch.float64)
    deltas[TREE.nodes.index("a") - 1, 0] = 1.5
    deltas[TREE.nodes.index("b") - 1, -1, 0] = -0.5
    weights = root + torch.einsum("va,awq->vwq", dense_paths(TREE), deltas)
    design = torch.cat([x, torch.ones(num_rows, 1, dtype=torch.float64)], 1)
    predictor = torch.einsum("nw,nwq->nq", design, weights[env])
    y = predictor + 0.5 * tensor(num_rows, num_outcomes, generator=generator)
    y = (y > 0).double() if binary else y
    y[torch.rand(num_rows, num_outcomes, generator=generator) < missing] = torch.nan
    return x, env, y


def make_model(prior, likelihood="gaussian", **kwargs):
    sizes = {"num_features": K, "num_outcomes": Q} | kwargs
    latents = sizes["num_features"]
    return TreeModel(TREE, latents, "identity", prior, likelihood, **sizes).double()


def informed_nodes(env):
    nodes = torch.zeros(TREE.num_nodes, dtype=torch.bool)
    nodes[env] = True
    return nodes


def statistics_of(model, x, env, y):
    """Of rows under an exact likelihood, or of their sites at predictors of zero."""
    rows, likelihood = DesignRows(model.design(model.encoder(x)), y, env), model.likelihood
    zero = torch.zeros_like(y)
    nuisance = likelihood.at_nodes(likelihood.factors(), env)
    terms = likelihood.site_terms(y, zero, zero, nuisance)
    log_norm = torch.zeros_like(zero) if likelihood.exact else terms.log_norm
    return statistics(rows, Sites(*terms[:2], log_norm, rows.shares()))


def make_pair(guide, prior, likelihood="gaussian", *, learnt=True, updated=False):
    """Model, guide (after an update of a few sweeps where asked for), rows, their statistics."""
    return copy.deepcopy(_pair(guide, prior, likelihood, learnt, updated))


@functools.cache
def _pair(guide, prior, likelihood, learnt, updated):
    x, env, y = rows(binary=likelihood == "bernoulli")
    noise = likelihood if learnt or likelihood == "bernoulli" else GaussianLikelihood(0.5)
    model = make_model(PRIORS[prior][0 if learnt else 1](), noise)
    made = GUIDES[guide](model, informed_nodes(env)).double()
    stats = statistics_of(model, x, env, y)
    if updated:
        made.update(stats, sweeps=3 if guide == "tree" else 5)
    return model, made, (x, env, y), stats


@functools.cache
def draws_of(guide, prior, learnt):
    """Draws (8000) of a guide after its update, to be read only."""
    _, made, _, _ = make_pair(guide, prior, learnt=learnt, updated=True)
    return made.sample(8_000, torch.Generator().manual_seed(0))


def particles(model, guide, data, num_particles, vectorised):
    """log p - log q in Pyro, one number a particle."""
    if not vectorised:
        return torch.stack([_log_ratio(model, guide, data)[0] for _ in range(num_particles)])
    with pyro.plate("particles", num_particles, dim=-2):
        return _log_ratio(model, guide, data, num_particles)


def _log_ratio(model, guide, data, num_particles=1):
    guide_trace = poutine.trace(guide).get_trace(*data)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*data)
    total = torch.zeros(num_particles, dtype=torch.float64)
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        trace.compute_log_prob()
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and name not in ("particles", "rows"):
                log_prob = node["log_prob"].detach()
                width = log_prob.shape[-1] if log_prob.dim() else 1
                total = total + sign * log_prob.expand(num_particles, width).sum(-1)
    return total


def assert_mean(draws, expected, num_sigma=4.5, atol=1e-9):
    """The mean over the first dimension is as expected, within its standard error."""
    draws, expected = draws.detach(), torch.as_tensor(expected).detach()
    gap = (draws.mean(0) - expected).abs()
    error = draws.std(0) / len(draws) ** 0.5
    worst = (gap / error.clamp(min=1e-30)).max()
    assert (gap <= num_sigma * error + atol).all(), f"off by {worst:.1f} standard errors"
