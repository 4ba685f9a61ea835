"""Latents with noise of their own, against dense covariances and direct maxima."""

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads import DesignRows, Head, condition
from pyro_tbr.heads.conditioning import exact_statistics
from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.likelihoods.correlation import inverse_of_seen
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.moments import NodeMoments
from pyro_tbr.heads.priors import GaussianPrior, SpikeSlabPrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.tree import Tree
from tests.tree.small_trees import dense_paths

TREE = Tree.from_newick("((a,b)u,(c,d)v,e)r;")
A, K, Q = TREE.num_arcs, 2, 3
NOISE, OMEGA = 0.3, torch.tensor([0.6, 0.4], dtype=torch.float64)
WITH_ROWS = torch.isin(torch.arange(TREE.num_nodes), TREE.leaf_index)


def noisy(noise=NOISE, omega=OMEGA, num_outcomes=Q, **more):
    likelihood = GaussianLikelihood(noise, latent_noise=omega, **more)
    names = [f"y{q}" for q in range(num_outcomes)]
    sizes = {"num_nodes": TREE.num_nodes, "num_latents": K, "names": names}
    return likelihood.build(num_outcomes, **sizes)


def head_of(likelihood, prior=None, num_outcomes=Q):
    prior = prior or SpikeSlabPrior(None, 0.2, 1.0, 1.0)
    loc = torch.zeros(K + 1, num_outcomes)
    built = prior.build(TREE, K + 1, num_outcomes, num_latents=K, root_loc=loc)
    return Head(TREE, built, likelihood).double()


def rows(seed, num=60, num_outcomes=Q, missing=0.2):
    """Weights at the nodes (V, W, Q), designs, nodes and outcomes of rows."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    env = TREE.leaf_index.repeat_interleave(num)
    gates = (torch.rand(A, K + 1, num_outcomes, generator=generator) < 0.3).double()
    deltas = gates * draw(A, K + 1, num_outcomes)
    weights = draw(K + 1, num_outcomes) + (dense_paths(TREE) @ deltas.flatten(1)).view(
        -1, K + 1, num_outcomes
    )
    z = draw(len(env), K)
    seen = torch.cat([z + OMEGA * draw(len(env), K), torch.ones(len(env), 1).double()], 1)
    y = torch.einsum("nw,nwq->nq", seen, weights[env]) + NOISE * draw(len(env), num_outcomes)
    y[torch.rand(y.shape, generator=generator) < missing] = torch.nan
    return weights, torch.cat([z, torch.ones(len(env), 1).double()], 1), env, y


def covariance(weights, omega=OMEGA, noise=NOISE):
    """Of the outcomes of a row at a node with these weights, (W, Q)."""
    slopes = weights[:K]
    return slopes.T @ torch.diag(omega**2) @ slopes + noise**2 * torch.eye(slopes.shape[1]).double()


def log_density(weights, design, env, y, omega=OMEGA, noise=NOISE):
    """Of all rows, by their dense covariances."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(y)):
        seen = ~torch.isnan(y[row])
        if seen.any():
            at = weights[env[row]]
            cov = covariance(at, omega, noise)[seen][:, seen]
            total = total + MultivariateNormal((design[row] @ at)[seen], cov).log_prob(y[row][seen])
    return total


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_inverses_are_those_of_what_was_seen(missing):
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(7, 4, 4, generator=generator, dtype=torch.float64)
    cov = root @ root.mT + 0.1 * torch.eye(4).double()
    cov[:, 0] *= 1e-4  # outcomes of other sizes
    cov[:, :, 0] *= 1e-4
    seen = torch.rand(7, 4, generator=generator) >= missing
    inverse, log_det = inverse_of_seen(cov, seen)
    for row in range(7):
        some = seen[row]
        part = cov[row][some][:, some]
        assert_close(inverse[row][some][:, some], torch.linalg.inv(part), rtol=1e-8, atol=1e-8)
        assert_close(log_det[row], torch.logdet(part) if some.any() else torch.zeros(()).double())
        assert (inverse[row][~some] == 0).all()


def test_the_pyro_model_has_the_joint_density_and_its_draws_the_covariance():
    _, design, env, y = rows(2, num=4)
    head = head_of(noisy(), GaussianPrior(1.0, 1.0))
    trace = pyro.poutine.trace(head).get_trace(design, env, y)
    trace.compute_log_prob()
    sites = trace.nodes
    assert_close(sites["latent_noise_scale"]["value"], OMEGA)
    changes = (dense_paths(TREE) @ sites["deltas"]["value"].flatten(1)).view(-1, K + 1, Q)
    weights = sites["root_weights"]["value"] + changes
    assert_close(sites["y"]["log_prob"].sum(), log_density(weights, design, env, y))
    node = int(TREE.leaf_index[0])
    here = weights[node].expand(40_000, -1, -1)
    values = head.likelihood.values_with({"latent_noise_scale": OMEGA}, here)
    values["noise_scale"] = torch.full((Q,), NOISE).double()
    law = head.likelihood(torch.zeros(40_000, Q).double(), values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = law.sample()
    found, cov = torch.cov(drawn.T), covariance(weights[node])
    error = ((cov.diagonal() * cov.diagonal().unsqueeze(1) + cov**2) / 40_000).sqrt()
    assert ((found - cov).abs() < 4.5 * error).all()
    assert_close(law.variance[0], cov.diagonal())


@pytest.mark.parametrize("seed", range(2))
def test_weights_have_the_posterior_that_their_covariances_say(seed):
    _, design, env, y = rows(seed, num=20)
    head = head_of(noisy(), GaussianPrior(1.0, 1.0))
    guide = TreeGuide(head, WITH_ROWS, None).double()
    block = DesignRows(design, y, env)
    stats = exact_statistics(guide, block, together=True)
    guide.update(stats, sweeps=200, learn_hyper=False)
    moments = guide.node_moments()
    scatter = guide.nuisance["latent_noise_scale"].scatter_of(moments)
    slow = torch.einsum("vkq,k,vkr->vqr", moments.mean[:, :K], OMEGA**2, moments.mean[:, :K])
    slow = slow + torch.diag_embed(torch.einsum("k,vkq->vq", OMEGA**2, moments.var[:, :K]))
    assert_close(scatter, slow)
    paths = torch.cat([torch.ones(TREE.num_nodes, 1).double(), dense_paths(TREE)], 1)  # (V, 1 + A)
    width = (K + 1) * Q
    precision, linear = torch.eye((1 + A) * width).double(), torch.zeros((1 + A) * width).double()
    for row in range(len(y)):
        seen = ~torch.isnan(y[row])
        if not seen.any():
            continue
        cov = (scatter[env[row]] + NOISE**2 * torch.eye(Q).double())[seen][:, seen]
        to_predictor = torch.kron(design[row].unsqueeze(0), torch.eye(Q).double())[seen]
        gain = torch.kron(paths[env[row]].unsqueeze(0), to_predictor)
        precision += gain.T @ torch.linalg.solve(cov, gain)
        linear += gain.T @ torch.linalg.solve(cov, y[row][seen])
    whole = torch.linalg.inv(precision)
    at_nodes = torch.kron(paths, torch.eye(width).double())
    mean = (at_nodes @ whole @ linear).view(-1, K + 1, Q)
    sd = (at_nodes @ whole @ at_nodes.T).diagonal().sqrt().view(-1, K + 1, Q)
    leaves = TREE.leaf_index
    assert ((moments.mean - mean).abs()[leaves] < 0.15 * sd[leaves]).all()
    ratio = (moments.var.sqrt() / sd)[leaves]
    assert (0.8 < ratio).all()
    assert (ratio < 1.25).all()


@pytest.mark.parametrize("num_outcomes", [1, 3])
def test_noise_and_latent_noise_end_at_the_maximum_of_the_likelihood(num_outcomes):
    weights, design, env, y = rows(3, num=150, num_outcomes=num_outcomes, missing=0.1)
    likelihood = noisy(None, True, num_outcomes)
    guide = TreeGuide(head_of(likelihood, num_outcomes=num_outcomes), WITH_ROWS, None).double()
    stats = exact_statistics(guide, DesignRows(design, y, env), together=True)
    known = NodeMoments(weights, torch.full_like(weights, 1e-12))
    guide.node_moments = lambda: known
    for _ in range(30):
        guide.learn_nuisance_from(
            stats, torch.zeros(len(stats.nodes), 1, *[3 * num_outcomes] * 2).double()
        )
    real = torch.zeros(K + num_outcomes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([real], max_iter=60, line_search_fn="strong_wolfe")
    priors = torch.tensor([0.2] * K + [0.5] * num_outcomes).double().log()

    def misfit(scales):
        omega, noise, slopes = scales[:K].exp(), scales[K:].exp(), weights[:, :K]
        cov = torch.einsum("vkq,k,vkr->vqr", slopes, omega**2, slopes) + torch.diag(noise**2)
        off = y - torch.einsum("nw,nwq->nq", design, weights[env])
        seen = ~torch.isnan(y)
        inverse, log_det = inverse_of_seen(cov[env], seen)
        off = torch.where(seen, off, 0.0)
        value = 0.5 * (torch.einsum("nq,nqr,nr->n", off, inverse, off) + log_det).sum()
        return value + 0.5 * ((scales - priors) / 1.5).square().sum()

    def step():
        optimizer.zero_grad()
        value = misfit(real)
        value.backward()
        return value

    optimizer.step(step)
    sites = "latent_noise_scale", "noise_scale"
    found = torch.cat([guide.nuisance[name].mean_log() for name in sites]).detach()
    assert misfit(found) - misfit(real.detach()) < 0.5  # of three or five parameters
    if num_outcomes > 1:  # of one outcome alone they are hardly told apart
        assert ((found - real.detach()).abs() < 0.05).all()
    truth = torch.cat([OMEGA, torch.full((num_outcomes,), NOISE).double()])
    sd = torch.cat([guide.nuisance[name].scale for name in sites]).detach()
    assert ((found - truth.log()).abs() < 3.5 * sd).all()


def test_latents_without_noise_have_little():
    weights, design, env, _ = rows(4)
    generator = torch.Generator().manual_seed(5)
    design[:, 1] = 0.0  # one that does not exist
    noise = NOISE * torch.randn(len(env), Q, generator=generator, dtype=torch.float64)
    y = torch.einsum("nw,nwq->nq", design, weights[env]) + noise
    guide = TreeGuide(head_of(noisy(None, True)), WITH_ROWS, 16).double()
    condition(guide, DesignRows(design, y, env))
    factor = guide.nuisance["latent_noise_scale"]
    assert factor.mean_square()[0] < 0.15**2
    assert factor.exists.tolist() == [True, False]
    assert factor.mean_square()[1] == 0
    drawn = factor.sample(5, torch.Generator().manual_seed(0))
    assert (drawn[:, 1] == 0).all()
    assert (drawn[:, 0] > 0).all()
    ratio = guide.nuisance["noise_scale"].mean_log().exp() / NOISE
    assert ((ratio - 1).abs() < 0.15).all()


def test_fixed_latent_noise_is_in_the_features_unit():
    likelihood = GaussianLikelihood(latent_noise=torch.tensor([2.0, 3.0]))
    built = likelihood.build(
        2, num_nodes=4, num_latents=2, latent_scale=torch.tensor([4.0, 0.5]), names=["p", "q"]
    )
    assert_close(built.latent_noise_scale.fixed, torch.tensor([0.5, 6.0]))
    assert built.apart().by_node
    assert not built.by_node
    both = GaussianLikelihood(latent_noise=True, noise="by_environment")
    assert both.build(2, num_nodes=4, num_latents=1, names=["p", "q"]).by_node


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "much", [0.1, -0.2]])
def test_no_latent_noise_is_refused(value):
    with pytest.raises(DataError, match="latent_noise=.*True to have it learnt"):
        GaussianLikelihood(latent_noise=value)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(DataError, match="latent_noise together with covariance='full'"):
        GaussianLikelihood(latent_noise=True, covariance="full").resolved(["a", "b"], ())
    with pytest.raises(DataError, match="latent_noise together with y_se"):
        GaussianLikelihood(latent_noise=True).resolved(["a"], ("y_se",))
    with pytest.raises(ShapeError, match=r"latent_noise has shape \(3,\).* 2 latents"):
        noisy(omega=[0.1, 0.2, 0.3])
    with pytest.raises(DataError, match="num_latents"):
        GaussianLikelihood(latent_noise=True).build(1)
    with pytest.raises(DataError, match="latent_noise has their noise go together"):
        MeanFieldGuide(head_of(noisy()))
