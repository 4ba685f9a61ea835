"""The compiled descent against that by torch's tensors and its Adam."""

import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.inference.rotation import search
from pyro_tbr.jit import COMPILES

pytestmark = pytest.mark.skipif(not COMPILES, reason="numba is not installed")


def problem(leaves=7, latents=3, outcomes=2, intercept=True, shared=True):
    """Likelihoods of weights at the leaves of a random tree."""
    tree = tbr.simulate(num_leaves=leaves, latent_dim=1, rows_per_leaf=1, seed=leaves).tree
    generator, width = torch.Generator().manual_seed(0), latents + intercept

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(leaves, 1 if shared else outcomes, 10, width)
    nodes = torch.tensor([tree.index(name) for name in tree.leaves])
    target, root = normal(leaves, outcomes, width), normal(width, outcomes)
    deltas = 0.3 * normal(tree.num_arcs, width, outcomes)
    deltas[0] = 0.0  # where the penalty has its cusp
    unit = torch.ones(outcomes, dtype=torch.float64)
    return search.RotationProblem(tree, nodes, x.mT @ x, target, root, deltas, unit, latents, 0.1)


def both(monkeypatch, task, steps, hold=False, restarts=3):
    k = task.latent_dim
    drawn = torch.randn(restarts, k, k, generator=torch.Generator().manual_seed(1))
    start = torch.linalg.qr(drawn.double())[0]
    run = search.sparse_weights if hold else None
    found = []
    for compiled in (True, False):
        monkeypatch.setattr(search, "COMPILES", compiled)
        if run is None:
            found.append(search._descend(task, start, steps))
        else:
            found.append(run(task, start, steps))
    return found


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("outcomes", [1, 3])
def test_a_few_steps_are_the_same(monkeypatch, outcomes, intercept, shared, hold):
    task = problem(outcomes=outcomes, intercept=intercept, shared=shared)
    mine, theirs = both(monkeypatch, task, steps=8, hold=hold)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, rtol=2e-4, atol=2e-4)


def test_whole_descents_end_as_low(monkeypatch):
    """Rounding sends single restarts elsewhere; the best ones are as good."""
    task = search.capped(problem(leaves=12, latents=2), search.BLUNT_CURVATURE)
    mine, theirs = both(monkeypatch, task, steps=600, restarts=24)
    assert abs(mine.loss.min() - theirs.loss.min()) < 0.5
    gap = (mine.loss.sort().values - theirs.loss.sort().values).abs()
    assert gap.median() < 1.0


def test_restarts_do_not_touch_each_other(monkeypatch):
    """In blocks or one by one: each ends where it would alone."""
    task = problem()
    drawn = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    together = search._descend(task, drawn, 50)
    monkeypatch.setattr("pyro_tbr.inference.rotation.descent.ABREAST", 2)
    for one, other in zip(search._descend(task, drawn, 50), together, strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_what_is_not_finite_is_the_worst(monkeypatch):
    task = problem()
    task.target[0] = torch.nan
    for found in both(monkeypatch, task, steps=3):
        assert torch.isinf(found.loss).all()
