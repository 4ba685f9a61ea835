"""Latents that correlate within environments, against the joint posterior of all weights."""

import functools
import itertools
import sys

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pyro_tbr.heads.coupling import NodeRows, Potential
from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.priors import GaussianPrior, SpikeSlabPrior
from pyro_tbr.heads.shared_errors import without_rows
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.models import TreeModel
from pyro_tbr.tree import Tree
from tests.heads.cases import statistics_of
from tests.heads.sampling import cases as sampling
from tests.tree.small_trees import dense_paths

TREE = Tree.from_newick("((a,b)u,c)r;")
A, K, W = TREE.num_arcs, 2, 3
RATE, SLAB, ROOT, NOISE = 0.2, 1.0, 1.0, 0.5
NARROW = 0.1  # changes that are small beside what rows say
PRIORS = {
    "dense": GaussianPrior(SLAB, ROOT),
    "sparse": SpikeSlabPrior(None, RATE, SLAB, ROOT),
}


def rows(seed, num=15):
    """Two latents that correlate by 0.8 and have a mean in each leaf; one change, at ``a``."""
    generator = torch.Generator().manual_seed(seed)
    env = TREE.leaf_index.repeat_interleave(num)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    shared = draw(len(env), 1)
    x = 0.9 * shared + 0.45 * draw(len(env), K) + draw(TREE.num_nodes, K)[env]
    deltas = torch.zeros(A, W, dtype=torch.float64)
    deltas[TREE.nodes.index("a") - 1, 0] = 0.7
    weights = draw(W) + dense_paths(TREE) @ deltas
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    y = (design * weights[env]).sum(1, keepdim=True) + NOISE * draw(len(env), 1)
    return x, env, y


def settled(prior, data, *, coupled):
    x, env, y = data
    model = TreeModel(TREE, K, "identity", PRIORS[prior], GaussianLikelihood(NOISE))
    model = model.build(K, 1).double()
    guide = TreeGuide(model, TREE_ROWS, None, coupled=coupled).double()
    guide.update(statistics_of(model, x, env, y), sweeps=200)
    return guide


TREE_ROWS = torch.zeros(TREE.num_nodes, dtype=torch.bool)
TREE_ROWS[TREE.leaf_index] = True


def exact(data, patterns):
    """Joint posterior of node weights (V, W) and gates (A, W), over patterns of gates (P, A, W)."""
    x, env, y = data
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    paths = dense_paths(TREE)
    gain = torch.einsum("nw,na->naw", design, paths[env]).flatten(1)  # rows by deltas
    gain = torch.cat([design, gain], 1)
    to_nodes = torch.cat([torch.ones(TREE.num_nodes, 1, dtype=torch.float64), paths], 1)
    at_nodes = torch.kron(to_nodes, torch.eye(W, dtype=torch.float64))
    patterns, log_weight, moments = torch.stack(patterns), [], []
    for some in patterns.split(256):
        root = torch.full((len(some), 1, W), ROOT**2, dtype=torch.float64)
        var = torch.cat([root, some.double() * SLAB**2], 1).flatten(1)
        part = gain * var.unsqueeze(1)
        cov = part @ gain.T + NOISE**2 * torch.eye(len(y))
        law = MultivariateNormal(torch.zeros(len(y)).double(), cov)
        prior = torch.where(some, RATE, 1 - RATE).double().log().sum((1, 2))
        log_weight.append(law.log_prob(y[:, 0]) + prior)
        mean = (part.mT @ torch.linalg.solve(cov, y))[..., 0] @ at_nodes.T
        spread = torch.diag_embed(var) - part.mT @ torch.linalg.solve(cov, part)
        spread = (at_nodes @ spread @ at_nodes.T).diagonal(dim1=1, dim2=2)
        moments.append(torch.stack([mean, spread + mean.square()], 1))
    weight = torch.cat(log_weight).softmax(0)
    mean, second = torch.einsum("p,pmv->mv", weight, torch.cat(moments))
    gates = torch.einsum("p,paw->aw", weight, patterns.double())
    return mean.reshape(-1, W), (second - mean.square()).reshape(-1, W), gates


def all_gates():
    return [torch.tensor(g).reshape(A, W) > 0 for g in itertools.product([0, 1], repeat=A * W)]


@pytest.mark.parametrize("seed", range(3))
def test_dense_weights_have_the_joint_posteriors_means_and_nearly_its_variances(seed):
    data = rows(seed)
    mean, var, _ = exact(data, [torch.ones(A, W, dtype=torch.bool)])
    coupled, apart = (settled("dense", data, coupled=flag).node_moments() for flag in (True, False))
    leaves = TREE.leaf_index
    assert ((coupled.mean[..., 0] - mean).abs()[leaves] < 0.1 * var.sqrt()[leaves]).all()
    found, too_sure = ((m.var[..., 0] / var)[leaves] for m in (coupled, apart))
    assert ((found > 0.8) & (found < 1.25)).all()
    assert too_sure.min() < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_gates_are_nearer_to_the_joint_posteriors(seed):
    data = rows(seed)
    gates = exact(data, all_gates())[2]
    errors = []
    for coupled in (True, False):
        found = settled("sparse", data, coupled=coupled).delta_moments().inclusion[..., 0]
        errors.append((found - gates).abs())
    assert errors[0].mean() < errors[1].mean()
    assert errors[0].max() < 0.2


def narrow(data, *, widened=True):
    """Dense weights whose changes are small: nodes tell each other nearly all they know."""
    x, env, y = data
    prior = GaussianPrior(NARROW, ROOT)
    model = TreeModel(TREE, K, "identity", prior, GaussianLikelihood(NOISE)).build(K, 1).double()
    guide = TreeGuide(model, TREE_ROWS, None).double()
    if not widened:
        guide.widen = lambda stats: None
    guide.update(statistics_of(model, x, env, y), sweeps=200)
    return guide.node_moments()


def test_weights_that_hear_of_each_other_at_several_nodes_are_as_wide_as_jointly(monkeypatch):
    """A tree that hears of one error at several nodes takes it for several that average out."""
    monkeypatch.setattr(sys.modules[__name__], "SLAB", NARROW)
    ratios = {True: [], False: []}
    for seed in range(5):
        data = rows(seed)
        mean, var, _ = exact(data, [torch.ones(A, W, dtype=torch.bool)])
        for widened, found in ratios.items():
            node = narrow(data, widened=widened)
            off = (node.mean[..., 0] - mean).abs() / var.sqrt()
            assert off[TREE.leaf_index].max() < 0.05  # means stay those of the joint posterior
            found.append((node.var[..., 0] / var)[TREE.leaf_index].log().mean(0).exp())
    wide, before = (torch.stack(ratios[flag]) for flag in (True, False))
    assert before.min() < 0.8
    assert wide.min() > 0.9
    assert wide.max() < 1.35


def test_weights_of_near_copies_are_not_widened_at_the_price_of_their_sum():
    seen = []
    for seed in range(4):
        data = sampling.rows(seed, 0.9999)
        mean = sampling.enumerated(data)[1]
        guide, _ = sampling.fitted(data)
        off = torch.zeros(sampling.FOUR.num_nodes, K, dtype=torch.float64)
        off[sampling.FOUR.leaf_index] = guide.node_moments().mean[sampling.FOUR.leaf_index, :, 0]
        off[sampling.FOUR.leaf_index] -= mean
        x, env, _ = data
        seen.append((x * off[env]).sum(1).square().mean().sqrt() / sampling.NOISE)
    assert max(seen) < 0.25  # 0.2 without; 2 and more where they are widened regardless


def test_potentials_integrate_the_others():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 1, W, W + 1, generator=generator, dtype=torch.float64)
    linear = torch.randn(2, 1, W, generator=generator).double()
    node = NodeRows(root @ root.mT, linear, torch.zeros(2, 1).double(), num_outcomes=1)
    mean, var = torch.zeros(2, 1, W).double(), torch.full((2, 1, W), 0.5).double()
    nothing = Potential(mean, torch.zeros_like(mean))
    cavity = node.cavity(mean, var, nothing)
    assert_close(cavity.lam, 1 / var)
    found = at(node.given_cavities(cavity), 1)
    assert_close(found, Potential(*without_others(node, 1, cavity)))
    cov = torch.linalg.inv(node.precision + torch.diag_embed(torch.tensor([2.0, 0.0, 2.0])))
    assert_close(found.lam, 1 / cov[..., 1, 1])
    assert_close(found.eta / found.lam, (cov @ node.linear.unsqueeze(-1))[..., 1, 0])
    sure = cavity._replace(lam=1e12 * cavity.lam)
    for one, two in zip(without_others(node, 1, sure), at(node.given_means(mean), 1), strict=True):
        assert_close(one, two)
    sure = node.cavity(mean, 1e-12 * var, nothing)
    pairs = zip(at(node.given_cavities(sure), 1), at(node.given_means(mean), 1), strict=True)
    for one, two in pairs:
        assert_close(one, two, rtol=1e-5, atol=1e-5)


def at(potential, k):
    return Potential(*(part[..., k] for part in potential))


def without_others(node, k, cavity):
    """The slow way: the others' cavities solved for, for each weight anew."""
    others = [j for j in range(node.linear.shape[-1]) if j != k]
    cross = node.precision[:, :, k][..., others]
    rest = node.precision[:, :, others][..., others] + torch.diag_embed(cavity.lam[..., others])
    pull = torch.linalg.solve(rest, cross.unsqueeze(-1)).squeeze(-1)
    known = node.linear[..., others] + cavity.eta[..., others]
    lam = node.precision[:, :, k, k] - (pull * cross).sum(-1)
    return node.linear[:, :, k] - (pull * known).sum(-1), lam


@pytest.mark.parametrize("width", [2, 6, 31])
@pytest.mark.parametrize("rank", [1, 100])
def test_one_inverse_serves_all_weights(width, rank):
    """Also where the rows are fewer than the weights, so that they leave most directions open."""
    generator = torch.Generator().manual_seed(width)
    root = torch.randn(3, 2, width, rank, generator=generator, dtype=torch.float64)
    linear = torch.randn(3, 2, width, generator=generator).double()
    node = NodeRows(root @ root.mT, linear, torch.zeros(3, 2).double(), num_outcomes=2)
    size = (3, 2, width)
    mean = torch.randn(size, generator=generator).double()
    var = torch.rand(size, generator=generator).double().pow(4) + 1e-3
    cavity = node.cavity(mean, var, Potential(torch.zeros_like(mean), torch.zeros_like(mean)))
    found = node.given_cavities(cavity)
    for k in range(width):
        for one, two in zip(at(found, k), without_others(node, k, cavity), strict=True):
            assert_close(one, two, rtol=1e-6, atol=1e-6)


def several_outcomes(seed, noise=1.0):
    """What rows of two nodes say of two latents for three outcomes, and what is known without."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(2, 1, 6, 9, generator=generator, dtype=torch.float64)
    precision = whole @ whole.mT / noise**2
    rows = NodeRows(precision, torch.zeros(2, 1, 6).double(), torch.zeros(2, 1).double(), 3)
    lam = 0.5 + torch.rand(2, 3, 2, generator=generator, dtype=torch.float64)
    return rows, Potential(torch.zeros_like(lam), lam)


@pytest.mark.parametrize("noise", [1.0, 1e-6])
def test_what_rows_say_of_a_latent_is_what_is_left_with_the_others_integrated(noise):
    rows, cavity = several_outcomes(0, noise)
    found = rows.by_latent(cavity).precision  # (E, W, Q, Q)
    for latent in range(2):
        own = [2 * q + latent for q in range(3)]
        other = [2 * q + 1 - latent for q in range(3)]
        here = rows.precision[:, 0]
        across = here[:, own][:, :, other]
        theirs = here[:, other][:, :, other] + torch.diag_embed(cavity.lam[..., 1 - latent])
        expected = here[:, own][:, :, own] - across @ torch.linalg.inv(theirs) @ across.mT
        size = expected.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
        assert ((found[:, latent] - expected) / size).abs().max() < 1e-8


@pytest.mark.parametrize("noise", [1.0, 1e-7])
def test_what_is_known_without_rows_is_positive_definite_whatever_these_say(noise):
    rows, cavity = several_outcomes(1, noise)
    known = torch.diag_embed(cavity.lam.flatten(1)).unsqueeze(1)
    cov = torch.linalg.inv(rows.precision + known)
    found = without_rows(0.5 * (cov + cov.mT), rows.precision)
    assert (torch.linalg.eigvalsh(found) > 0).all()
    if noise == 1:
        assert_close(found, torch.linalg.inv(known))
