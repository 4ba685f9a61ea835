"""Messages against dense normals, slices against known densities, diagnostics against ArviZ."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pyro_tbr.heads.sampling.diagnostics import bulk_ess, rhat
from pyro_tbr.heads.sampling.hyper_steps import rate_log_lik, separation_log_lik
from pyro_tbr.heads.sampling.normal_messages import Said, draw_change, log_weight, sent
from pyro_tbr.heads.sampling.slices import slice_draw
from tests.heads.sampling.cases import assert_draws_mean

W = 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def an_arc(seed, scale):
    """A message at the far end, mean and scale of the change, weights at the near end."""
    root = torch.randn(W, W, generator=generator(seed), dtype=torch.float64)
    linear, mean, at = torch.randn(3, W, generator=generator(seed + 1), dtype=torch.float64)
    return Said(root @ root.mT, linear), mean, torch.tensor(scale, dtype=torch.float64), at


@pytest.mark.parametrize("scale", [[0.5, 0.0, 2.0], [0.0, 0.0, 0.0], [1e4, 1.0, 1e-6]])
def test_messages_integrate_the_far_end(scale):
    """The far end says N(loc; precision^-1 linear, precision^-1) but for a constant."""
    far, mean, scale, at = an_arc(2, scale)
    cov = torch.linalg.inv(far.precision)
    wide = MultivariateNormal(cov @ far.linear, cov + torch.diag(scale**2))
    narrow = MultivariateNormal(cov @ far.linear, cov)
    top = 0.5 * far.linear @ cov @ far.linear + narrow.log_prob(cov @ far.linear) * -1
    expected = wide.log_prob(at + mean) + top
    assert_close(log_weight(at, far, mean, scale), expected)
    message, height = sent(far, mean, scale)
    value = message.linear @ at - 0.5 * at @ message.precision @ at + height
    assert_close(value, expected)


def test_changes_are_drawn_from_their_posterior():
    far, mean, scale, at = an_arc(5, [0.5, 0.0, 2.0])
    many = (at.expand(40_000, -1), Said(*(p.expand(40_000, *p.shape) for p in far)))
    draws = draw_change(*many, mean, scale, generator())
    assert (draws[:, 1] == mean[1]).all()
    free = [0, 2]
    inner = far.precision[free][:, free] + torch.diag(scale[free] ** -2)
    pull = (far.linear - far.precision @ (at + mean))[free]
    cov = torch.linalg.inv(inner)
    error = (cov.diagonal() / len(draws)).sqrt()
    assert ((draws[:, free].mean(0) - mean[free] - cov @ pull).abs() < 4.5 * error).all()
    assert_close(draws[:, free].T.cov(), cov, rtol=0.05, atol=0.0)


def test_slices_leave_a_density_as_it_is():
    """A skew density with a bound: gamma of shape 2, whose mean and variance are 2."""

    def log_density(value):
        return torch.where(value > 0, value.clamp(min=1e-300).log() - value, -torch.inf)

    noise, now, kept = generator(), torch.ones(400, dtype=torch.float64), []
    for sweep in range(120):
        now = slice_draw(log_density, now, noise)
        if sweep >= 20:
            kept.append(now)
    draws = torch.stack(kept, 1).unsqueeze(-1)
    assert_draws_mean(draws, 2.0)
    assert_draws_mean(draws.square(), 6.0, atol=0.01)


def test_rates_have_their_beta():
    """With arcs of one length the conditional is a beta, whose mean is known."""
    on, off = torch.zeros(1, 5, 1, 1).double(), torch.ones(1, 5, 1, 1).double()
    on[:, :2], off[:, :2] = 1.0, 0.0
    log_lik = rate_log_lik(on, off, torch.ones(5))
    real = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    log_post = log_lik(real.reshape(-1, 1, 1)).flatten() + torch.nn.functional.logsigmoid(real)
    log_post = log_post + torch.nn.functional.logsigmoid(-real)  # uniform rate: Beta(3, 4)
    assert_close((log_post.softmax(0) * real.sigmoid()).sum(), torch.tensor(3 / 7).double())


def test_separations_have_the_density_of_the_halves():
    change = torch.tensor([0.7, -1.1, 2.0], dtype=torch.float64)
    real = torch.tensor([-0.5, 0.3], dtype=torch.float64)
    c, tau = real.exp(), 1.3
    width = tau / (1 + c.square()).sqrt()
    half = torch.distributions.Normal((c * width).unsqueeze(1), width.unsqueeze(1))
    exact = half.log_prob(change.abs()).sum(1)
    sums = (change.square().sum() / tau**2, change.abs().sum() / tau, torch.tensor(3.0))
    found = separation_log_lik(*sums)(real)
    assert_close(found[0] - found[1], exact[0] - exact[1])


def a_chain(seed):
    """Draws (4, 200, 5): independent, on or off, correlated, drifting apart, heavy tails."""
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((4, 200, 5))
    draws[..., 1] = draws[..., 1] > 1
    for number in range(1, 200):
        draws[:, number, 2] += 0.8 * draws[:, number - 1, 2]
    draws[..., 3] += np.arange(4)[:, None] * 0.3
    draws[..., 4] = rng.standard_cauchy((4, 200))
    return draws


@pytest.mark.parametrize("seed", range(3))
def test_diagnostics_are_arvizs(seed):
    base = pytest.importorskip("arviz_stats.base")
    draws, axes = a_chain(seed), {"chain_axis": 0, "draw_axis": 1}
    for place in range(draws.shape[-1]):
        one = draws[..., place]
        expected = float(base.array_stats.rhat(one, **axes))
        assert rhat(draws)[place] == pytest.approx(expected, abs=1e-9)
        expected = float(base.array_stats.ess(one, method="bulk", **axes))
        assert bulk_ess(draws)[place] == pytest.approx(expected, rel=0.05)


def test_diagnostics_see_faults_and_pass_what_is_right():
    found = rhat(a_chain(0))
    assert (found[[0, 1, 4]] < 1.02).all()
    assert found[3] > 1.05
    assert 40 < bulk_ess(a_chain(0))[2] < 200  # 800 draws, each worth a ninth
    assert np.isnan(rhat(np.ones((2, 10, 1))))
    assert np.isnan(bulk_ess(np.ones((2, 10, 1))))
