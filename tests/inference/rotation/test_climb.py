"""Bases climb to the top of their evidence, however many rows there are."""

import math

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.inference.rotation.basis import evidence, leaf_estimates, rows_of
from pyro_tbr.inference.rotation.choice import rotate_to_sparsity
from pyro_tbr.inference.rotation.climb import climb, levels
from pyro_tbr.inference.rotation.polish import polish, sharpened
from tests.brief import mostly_slow
from tests.inference.rotation.simulated import simulated


def total(problem, rows):
    estimates = leaf_estimates(problem)
    scores = evidence(estimates, rows.flatten(0, 1)).reshape(rows.shape[:2]).sum(1)
    return scores + math.prod(estimates.mean.shape[:2]) * torch.linalg.slogdet(rows)[1]


def rotated(problem, restarts=24, steps=450):
    return rotate_to_sparsity(problem, restarts, steps, torch.Generator().manual_seed(0))


ROWS = {str(rows): rows for rows in (20, 200, 2000, 31_000, 100_000)}


@pytest.mark.parametrize("rows", mostly_slow(ROWS, "31000"))
def test_the_search_reaches_what_the_evidence_prefers(rows):
    data = simulated(rows, seed=1)
    found = rotated(data.problem)
    best = polish(leaf_estimates(data.problem), rows_of(data.basis[None]), 12)
    assert found.evidence > total(data.problem, best).item() - 2  # less is a tie
    assert data.match(found.basis) > (0.999 if rows > 200 else 0.9)


@pytest.mark.slow
def test_rows_from_few_to_many_in_one_tree():
    rows = 10 ** np.random.default_rng(0).uniform(1.3, 5, 32)
    data = simulated(rows.astype(int), seed=2)
    assert data.match(rotated(data.problem).basis) > 0.99


@pytest.mark.slow
@pytest.mark.xfail(reason="the level of misfit is not always found", strict=False)
def test_what_no_tree_explains_is_taken_for_error():
    """With exact estimates that are off the tree the sharpest likelihood is not the best."""
    data = simulated(31_000, seed=1, misfit=0.05)
    found = rotated(data.problem)
    at_the_rows_own = total(data.problem, rows_of(found.basis[None])).item()
    assert found.evidence > at_the_rows_own + 20
    assert data.match(found.basis) > 0.97


def test_polishing_finds_the_top_and_none_gets_worse():
    data = simulated(31_000, seed=0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 4, 4, generator=generator, dtype=torch.float64)
    size = torch.tensor([0.0, 1e-4, 3e-4, 1e-3, 0.1, 1.0]).reshape(-1, 1, 1)
    start = rows_of(data.basis + size * noise)
    done = polish(leaf_estimates(data.problem), start, 12)
    before, after = total(data.problem, start), total(data.problem, done)
    assert (after >= before - 1e-6).all()
    torch.testing.assert_close(after[1:3], after[:2], atol=1.0, rtol=0)
    assert before[2] < before[0] - 5
    torch.testing.assert_close(done.norm(dim=-1), torch.ones(6, 4).double())


def test_sharpened_directions_are_where_estimates_agree():
    data = simulated(31_000, seed=0)
    estimates = leaf_estimates(data.problem)
    true = polish(estimates, rows_of(data.basis[None]), 12)[0]
    generator = torch.Generator().manual_seed(0)
    near = true + 1e-3 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    near = near / near.norm(dim=-1, keepdim=True)

    def angle(rows):
        return 1 - (rows * true).sum(-1).abs()

    assert (angle(sharpened(estimates, near)) < 0.5 * angle(near)).all()


def test_bases_that_meet_are_one():
    """The same latents in another order are the same basis, and each start knows where it is."""
    data = simulated(2000, seed=0)
    generator = torch.Generator().manual_seed(0)
    other = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    starts = torch.stack([data.basis, other, data.basis[:, [2, 0, 1, 3]]])
    arrived = climb(data.problem, rows_of(starts), torch.zeros(0, 4).double())
    assert arrived.place.shape == (3,)
    assert arrived.place[0] == arrived.place[2]
    assert arrived.evidence[arrived.place[0]] == arrived.evidence.max()
    assert len(arrived.rows) == len(arrived.evidence) > int(arrived.place.max())
    assert len(levels(data.problem)) > 2


@pytest.mark.slow
def test_more_rows_do_not_make_a_fit_worse():
    """Whole fits of the same truth: 31,000 rows a leaf find the latents as 2,000 do."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(50, 4)) / 7
    tree = tbr.Tree.from_parents({str(i): str((i - 1) // 2) for i in range(1, 63)})
    names = np.array([str(i) for i in range(31, 63)], dtype=object)
    weights = np.zeros((63, 4))
    weights[0] = rng.normal(size=4)
    sizes = rng.choice([-1.0, 1.0], 62) * (0.5 + abs(rng.normal(size=62)))
    for child in range(1, 63):
        weights[child] = weights[(child - 1) // 2]
        weights[child, (child - 1) % 4] += sizes[child - 1]
    for rows in (2000, 31_000):
        env = rng.integers(0, 32, 32 * rows)
        x = rng.normal(size=(len(env), 50)).astype(np.float32)
        z = x @ mixing
        y = (z * weights[31 + env]).sum(1) + 0.3 * rng.normal(size=len(env))
        model = tbr.TreeModel(tree, 4, encoder="linear")
        posterior = tbr.fit(model, x, y, names[env], seed=0)
        assert tbr.mcc(z[:20_000], posterior.encode(x[:20_000])) > 0.995
        assert posterior.identification().determined
