"""What of a latent's weights others can take up: against dense closed forms, by changed bases."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_tbr.heads import DesignRows, GaussianPrior, MeanFieldGuide, TreeGuide, condition
from pyro_tbr.heads.absorbing import taken_up
from tests.heads.cases import TREE, informed_nodes, make_model, rows, tensor
from tests.tree.small_trees import dense_paths

SCALE, ROOT = 0.7, 2.0


def guide_of(kind, x, env, y, prior=None):
    model = make_model(GaussianPrior(SCALE, ROOT) if prior is None else prior)
    guide = kind(model, informed_nodes(env)).double()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    return guide, condition(guide, DesignRows(design, y, env))


def echoing(strength):
    """Rows whose latent 1 has weights that are a multiple of latent 0's, and a little more."""
    x, env, y = rows(400, seed=3)
    generator = torch.Generator().manual_seed(0)
    weights = tensor(TREE.num_nodes, 2, generator=generator)
    own = tensor(TREE.num_nodes, 2, generator=generator)
    predictor = x[:, :1] * weights[env] + x[:, 1:] * (0.4 * weights[env] + strength * own[env])
    return x, env, predictor + 0.5 * tensor(*y.shape, generator=generator)


def dense_log_evidence(eta, lam):
    """Of potentials (V,) over weights of zero, under dense changes: by one normal of all nodes."""
    paths = dense_paths(TREE)
    cov = SCALE**2 * paths @ paths.T + ROOT**2
    known = lam > 0
    peak = eta[known] / lam[known]
    total = MultivariateNormal(
        torch.zeros_like(peak), cov[known][:, known] + torch.diag(1 / lam[known])
    )
    at_zero = MultivariateNormal(torch.zeros_like(peak), torch.diag(1 / lam[known]))
    return total.log_prob(peak) - at_zero.log_prob(peak)


def test_evidence_is_that_of_what_is_left():
    guide, stats = guide_of(TreeGuide, *echoing(0.3))
    others = guide.node_moments().mean[:, :1].permute(2, 0, 1)
    echo = taken_up(guide.eta[1], guide.lam[1], others)
    for found, left in ((guide.weight_evidence(stats)[1].item(), 0.0 * echo),
                        (guide.evidence_beyond(stats, 1, [0]), echo)):  # fmt: skip
        eta, lam = guide.eta[1] - guide.lam[1] * left, guide.lam[1]
        expected = sum(dense_log_evidence(*pair).item() for pair in zip(eta, lam, strict=True))
        assert found == pytest.approx(expected, abs=1e-6)


def test_what_is_taken_up_is_the_best_multiple():
    generator = torch.Generator().manual_seed(1)
    eta, others = tensor(2, 5, generator=generator), tensor(2, 5, 2, generator=generator)
    lam = tensor(2, 5, generator=generator).square()

    def gain(shares):
        value = others @ shares
        return (eta * value - 0.5 * lam * value.square()).sum()

    echo = taken_up(eta, lam, others)
    shares = torch.linalg.lstsq(others.reshape(-1, 2), echo.reshape(-1)).solution
    assert torch.allclose(others @ shares, echo)
    slope = torch.func.grad(gain)(shares)
    assert slope.abs().max() < 1e-9
    twice = torch.cat([others, others], -1)  # the same latent twice
    assert torch.allclose(taken_up(eta, lam, twice), echo)


@pytest.mark.parametrize("kind", [TreeGuide, MeanFieldGuide])
def test_an_echo_is_told_from_a_latent_of_its_own(kind):
    guide, stats = guide_of(kind, *echoing(0.0))
    assert guide.weight_evidence(stats)[1] > 50
    assert guide.evidence_beyond(stats, 1, [0]) < 0.1 * guide.weight_evidence(stats)[1]
    guide, stats = guide_of(kind, *echoing(1.0))
    assert guide.evidence_beyond(stats, 1, [0]) > 50


def test_the_basis_that_takes_it_up_leaves_the_latent_without_weights():
    """Changing latent 0 by what latent 1 echoes is what the evidence speaks of."""
    x, env, y = echoing(0.0)
    turned = x.clone()
    turned[:, 0] += 0.4 * x[:, 1]
    guide, stats = guide_of(TreeGuide, turned, env, y)
    assert guide.weight_evidence(stats)[1] < 5
