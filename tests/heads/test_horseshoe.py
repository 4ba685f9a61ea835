"""Classes of local scales against integrals; the grid of scales; what the guide says of them."""

import math

import pytest
import torch
from torch.distributions import HalfCauchy, Normal
from torch.testing import assert_close

from pyro_tbr.errors import DataError
from pyro_tbr.heads.priors import GaussianPrior, HorseshoePrior
from pyro_tbr.heads.priors.horseshoe_classes import draw_local_scales, scale_classes
from pyro_tbr.heads.priors.horseshoe_grid import ScaleGrid
from pyro_tbr.heads.tree_guide import TreeGuide
from tests.heads.cases import Q, W, assert_mean, make_model, make_pair
from tests.heads.test_horseshoe_nuts import CASES, fitted

FINE = torch.linspace(-20, 20, 20_001, dtype=torch.float64)
DENSITY = (FINE[1] - FINE[0]) / (math.pi * FINE.cosh())


def variances(global_scale, slab_scale):
    """Variance of a change at each of the fine local scales."""
    return 1 / ((global_scale * FINE.exp()) ** -2 + slab_scale**-2)


def answers(prob, var, error, data):
    """Log evidence, mean and sd of a change seen as ``data`` (N, 1) with a standard error."""
    total = var + error**2
    weight = prob * torch.exp(-0.5 * data.square() / total) / total.sqrt()
    evidence, gain = weight.sum(-1), var / total
    mean = (weight * gain * data).sum(-1) / evidence
    second = (weight * (gain * error**2 + (gain * data).square())).sum(-1) / evidence
    return evidence.log(), mean, (second - mean.square()).sqrt()


@pytest.mark.parametrize("global_scale", [0.002, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("error", [0.01, 0.1, 1.0, 10.0])
def test_classes_are_as_good_as_the_integral(global_scale, error):
    """Data up to three slabs away; from an error of the slab's size, too, to next to none."""
    slab = torch.tensor(1.5, dtype=torch.float64)
    data = torch.linspace(0.0, 4.5, 60, dtype=torch.float64).unsqueeze(1)
    log_global = torch.tensor(global_scale, dtype=torch.float64).log()
    classes = scale_classes(log_global, slab.log(), torch.tensor(error**-2).double())
    assert_close(classes.prob.sum(), torch.tensor(1.0).double())
    found = answers(classes.prob, classes.var, error, data)
    exact = answers(DENSITY, variances(global_scale, slab), error, data)
    assert (found[0] - exact[0]).abs().max() < 0.1
    assert ((found[1] - exact[1]) / exact[2]).abs().max() < 0.05
    assert (found[2] / exact[2] - 1).abs().max() < 0.03


@pytest.mark.parametrize("precision", [0.0, 1e-12, 1e12])
def test_classes_without_data_or_with_all_too_good_ones(precision):
    zero = torch.zeros((), dtype=torch.float64)
    for log_global in (-40.0, -3.0, 20.0):
        classes = scale_classes(zero + log_global, zero, zero + precision)
        assert all(part.isfinite().all() for part in classes)
        assert (classes.prob > 0).all()
        assert (classes.var.diff() > 0).all()
        assert (classes.var <= 1).all()


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.05, 1.0, 4.0])
def test_local_scales_given_a_change(delta):
    """Quantiles by integration; the mean of log p - log q is the log density of the change."""
    whole, slab = (torch.tensor(value, dtype=torch.float64) for value in (0.05, 1.0))
    deltas = torch.full((100_000,), delta, dtype=torch.float64)
    local, log_q = draw_local_scales(deltas, whole, slab, torch.Generator().manual_seed(0))
    normal = Normal(0.0, variances(0.05, 1.0).sqrt())
    weight = DENSITY * normal.log_prob(torch.tensor(delta)).exp()
    if delta > 0:  # at zero the density of the change has no bound
        below = (weight / weight.sum()).cumsum(0)
        for level in (0.05, 0.5, 0.95):
            share = (local.log() < FINE[(below < level).sum()]).double().mean()
            assert abs(share - level) < 4.5 * math.sqrt(level * (1 - level) / 100_000) + 0.005
        scale = (1 / ((whole * local) ** -2 + slab**-2)).sqrt()
        log_p = HalfCauchy(1.0).log_prob(local) + Normal(0.0, scale).log_prob(deltas)
        assert abs((log_p - log_q).mean() - weight.sum().log()) < 0.01
    assert local.isfinite().all()
    assert log_q.isfinite().all()


@pytest.mark.parametrize("fixed", [None, 0.3])
def test_a_grid_of_the_hyperprior_has_its_moments(fixed):
    """Followed to where it rests, its points and weights are those of the hyperpriors."""
    prior = make_model(HorseshoePrior(global_scale=fixed)).prior
    grid = ScaleGrid(prior.global_scale, prior.slab_scale)
    for _ in range(20):
        loc, spread = grid.move()
        grid.log_weight.copy_(grid.log_prior().log_softmax(0))
    assert abs(grid.log_prior().logsumexp(0)).max() < 0.05  # all of the prior's mass
    log_slab = prior.slab_scale.prior().sample((50_000,)).log()
    assert_close(loc[1], log_slab.mean(0), rtol=0, atol=0.05)
    assert_close(spread[1], log_slab.std(0), rtol=0.15, atol=0)
    middle = prior.global_scale.middle() if fixed is None else prior.global_scale.fixed
    assert_close(loc[0], middle.log(), rtol=0, atol=0.02)
    point, scales, log_q = grid.draw(20_000, torch.Generator().manual_seed(0))
    assert scales.shape == (2, 20_000, W, Q)
    if fixed is None:
        assert_close(spread[0], torch.full((W, Q), math.pi / 2).double(), rtol=0.15, atol=0)
        # q is a density: the mean of p / q is the prior's mass on the cells.
        log_p = prior.global_scale.prior().base_dist.log_prob(scales[0])
        log_p = log_p + prior.slab_scale.prior().base_dist.log_prob(scales[1])
        assert_mean((log_p - log_q).exp(), torch.tensor(1.0).double(), atol=0.06)
    else:
        assert (scales[0] == prior.global_scale.fixed).all()


def test_silent_arcs_have_the_priors_variance():
    _, made, _, _ = make_pair("tree", "horseshoe", updated=True)
    draws = made.sample(20_000, torch.Generator().manual_seed(0))
    silent = ~made.informed_arcs
    whole, slab = draws["global_scale"].unsqueeze(-3), draws["slab_scale"].unsqueeze(-3)
    wide = whole * draws["local_scale"]
    square = (slab * wide / torch.hypot(slab, wide)).square()[:, silent]
    # Points of the grid stand for cells, within which draws are spread.
    assert_close(made.delta_moments().var[silent], square.mean(0), rtol=0.1, atol=1e-3)
    more = draws["deltas"][:, silent].square() - square
    assert_mean(more, torch.zeros(more.shape[1:], dtype=torch.float64))
    below = (draws["local_scale"][:, silent] < 1).double()
    assert_mean(below, torch.full(below.shape[1:], 0.5).double())


def test_shrinkage_is_near_one_without_and_near_zero_with_a_clear_change():
    guide, _ = fitted(*CASES["star, global scale fixed"])
    kappa = guide.shrinkage()
    assert kappa.shape == guide.head.prior.delta_shape
    assert ((kappa > 0) & (kappa <= 1)).all()
    assert kappa[0] < 0.05
    assert (kappa[[1, 2, 4, 5]] > 0.4).all()
    draws = guide.sample(20_000, torch.Generator().manual_seed(0))
    wide = draws["global_scale"].unsqueeze(-3) * draws["local_scale"]
    square = 1 / (wide**-2 + draws["slab_scale"].unsqueeze(-3) ** -2)
    precision = guide.lam[0, 0, 1:].reshape(-1, 1, 1)  # every arc of a star leads to a leaf
    assert_close(kappa, (1 / (1 + square * precision)).mean(0), rtol=0, atol=0.03)


def test_shrinkage_is_one_without_data_and_a_horseshoes():
    _, made, _, _ = make_pair("tree", "horseshoe", updated=True)
    silent = ~made.informed_arcs
    assert_close(made.shrinkage()[silent], torch.ones(int(silent.sum()), W, Q).double())
    with pytest.raises(DataError, match="shrinkage.. is a horseshoe's, GaussianPrior"):
        TreeGuide(make_model(GaussianPrior())).shrinkage()
