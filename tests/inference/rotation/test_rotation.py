import itertools

import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.inference.rotation import choice
from pyro_tbr.inference.rotation.basis import (
    best_basis,
    evidence,
    leaf_estimates,
    null_directions,
    rows_of,
)
from pyro_tbr.inference.rotation.choice import rotate_to_sparsity
from pyro_tbr.inference.rotation.search import (
    BLUNT_CURVATURE,
    capped,
    curvature,
    expand_basis,
    rotation_problem,
    search,
    sparse_weights,
    start_from,
)
from tests.inference.problems import design_statistics

K = 3


@pytest.fixture(scope="module")
def mixed():
    """White latents that are a rotation of the true ones, and the dense solution for them."""
    data = tbr.simulate(num_leaves=16, latent_dim=K, rows_per_leaf=80, num_outcomes=2, seed=1)
    z = torch.as_tensor(data.z)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / len(z)).T)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(K, K, generator=generator, dtype=torch.float64))[0]
    white = z @ turn
    y = torch.as_tensor(data.y)
    env = torch.tensor([data.tree.index(label) for label in data.env])
    design = torch.cat([white, torch.ones(len(z), 1)], dim=1)
    stats = design_statistics(design, y, env)
    noise_precision = torch.full((2,), data.noise_scale**-2)
    # A dense solution: leaf by leaf least squares, root at their mean, all changes on leaf arcs.
    leaf = torch.linalg.solve(stats.gram, stats.cross.unsqueeze(-1)).squeeze(-1)  # (E, Q, W)
    root = leaf.mean(0).T
    deltas = torch.zeros(data.tree.num_arcs, K + 1, 2, dtype=torch.float64)
    deltas[stats.nodes - 1] = (leaf - leaf.mean(0)).transpose(1, 2)
    problem = rotation_problem(data.tree, stats, noise_precision, root, deltas, K, len(z))
    return data, white, problem


def test_target_is_where_the_likelihood_peaks(mixed):
    _, _, problem = mixed
    weights = problem.root + 0 * problem.deltas[:1]
    del weights
    # Leaf by leaf least squares is the dense solution here, so the fit is perfect.
    start = start_from(problem, torch.eye(K, dtype=torch.float64)[None])
    by_node = tbr.tree.path_sum(problem.tree, start.root[0], start.deltas[0], event_dim=2)
    reached = by_node[problem.nodes].transpose(1, 2)
    torch.testing.assert_close(reached, problem.target, atol=1e-6, rtol=1e-6)


def test_start_from_a_basis_predicts_the_same(mixed):
    _, _, problem = mixed
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(4, K, K, generator=generator, dtype=torch.float64)
    start = start_from(problem, basis)
    by_node = tbr.tree.path_sum(problem.tree, start.root, start.deltas, event_dim=2)
    full = expand_basis(basis, torch.zeros(4, K, dtype=torch.float64), K + 1)
    back = (full[:, None] @ by_node)[:, problem.nodes].transpose(-1, -2)
    torch.testing.assert_close(back, problem.target.expand_as(back), atol=1e-6, rtol=1e-6)


def test_expanded_basis_maps_the_design():
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(K, K, generator=generator)
    offset = torch.randn(K, generator=generator)
    z = torch.randn(7, K, generator=generator)
    design = torch.cat([z, torch.ones(7, 1)], dim=1)
    mapped = design @ expand_basis(basis, offset, K + 1)
    torch.testing.assert_close(mapped[:, :K], z @ basis - offset)
    torch.testing.assert_close(mapped[:, K], torch.ones(7))
    assert torch.equal(expand_basis(basis, offset, K), basis)


def test_true_basis_has_more_evidence_than_mixtures(mixed):
    data, white, problem = mixed
    truth = torch.as_tensor(data.z)
    truth = (truth - truth.mean(0)) / truth.std(0)
    basis = torch.linalg.lstsq(white, truth).solution
    generator = torch.Generator().manual_seed(1)
    others = torch.linalg.qr(torch.randn(10, K, K, generator=generator, dtype=torch.float64))[0]
    rows = rows_of(torch.cat([basis[None], others]))
    estimates = leaf_estimates(problem)
    mean = estimates.mean
    scores = evidence(estimates, rows.reshape(-1, K)).reshape(-1, K).sum(1)
    scores = scores + mean.shape[0] * mean.shape[1] * torch.linalg.slogdet(rows)[1]
    assert scores[0] > scores[1:].max() + 50


def test_rotation_recovers_the_latents(mixed):
    data, white, problem = mixed
    found = rotate_to_sparsity(problem, 64, 1500, torch.Generator().manual_seed(0))
    z = white @ found.basis - found.offset
    assert tbr.mcc(data.z, z.numpy()) > 0.995
    torch.testing.assert_close(found.basis.norm(dim=0), torch.ones(K, dtype=torch.float64))
    assert found.evidence >= found.other_evidence.max() - 1e-9
    # Same generator, same answer.
    runs = [rotate_to_sparsity(problem, 8, 90, torch.Generator().manual_seed(0)) for _ in "ab"]
    assert torch.equal(runs[0].basis, runs[1].basis)


def test_search_finds_nearly_the_latents_and_weights_for_them(mixed):
    data, white, problem = mixed
    blunt = capped(problem, BLUNT_CURVATURE)
    found = search(blunt, 8, 400, torch.Generator().manual_seed(0))
    assert (found.loss.diff() >= 0).all()
    assert tbr.mcc(data.z, (white @ found.basis[0]).numpy()) > 0.97
    held = sparse_weights(blunt, found.basis[:4], 200)
    assert torch.equal(held.basis, found.basis[:4])
    assert (held.loss <= found.loss[:4] + 0.1 * found.loss[:4].abs()).all()


def test_capped_problem_keeps_its_peak_and_what_is_blunt_already(mixed):
    _, _, problem = mixed
    middle = curvature(problem).median().item()
    blunt = capped(problem, middle)
    assert torch.equal(blunt.target, problem.target)
    assert (curvature(blunt) <= middle * (1 + 1e-12)).all()
    same = (curvature(problem) <= middle)[..., None, None].expand_as(problem.precision)
    assert torch.equal(blunt.precision[same], problem.precision[same])
    assert same.any()
    assert not same.all()


def test_best_basis_equals_trying_all_sets_of_rows():
    generator = torch.Generator().manual_seed(4)
    pool = torch.randn(9, K, generator=generator, dtype=torch.float64)
    pool = pool / pool.norm(dim=1, keepdim=True)
    scores = torch.randn(9, generator=generator, dtype=torch.float64)
    power = 3
    totals = {
        subset: (
            scores[list(subset)].sum() + power * torch.linalg.slogdet(pool[list(subset)])[1]
        ).item()
        for subset in itertools.combinations(range(9), K)
    }
    # Exchanges of one row climb to a local optimum; the best of all starts is the optimum.
    reached = max(
        best_basis(pool, scores, pool[list(s)], scores[list(s)], power)[1] for s in totals
    )
    assert reached == pytest.approx(max(totals.values()))


def test_null_directions_hold_the_true_rows(mixed):
    data, white, problem = mixed
    truth = torch.as_tensor(data.z)
    truth = (truth - truth.mean(0)) / truth.std(0)
    rows = rows_of(torch.linalg.lstsq(white, truth).solution[None])[0]
    generator = torch.Generator().manual_seed(0)
    directions = null_directions(leaf_estimates(problem), 500, generator)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones_like(directions[:, 0]))
    assert len(directions.round(decimals=12).unique(dim=0)) == len(directions) > 100
    nearest = (rows @ directions.T).abs().amax(1)
    assert (nearest > 0.999).all()


def test_subtrees_without_rows_change_nothing_and_are_not_looked_at(mixed, monkeypatch):
    _, _, problem = mixed
    nodes = problem.nodes[:9]  # the others, and what is above them alone, have no rows
    deltas = problem.deltas.clone()
    known = torch.zeros(problem.tree.num_nodes, dtype=torch.bool)
    known[nodes] = True
    informed = choice.with_rows_below(problem._replace(nodes=nodes))[1]
    silent = torch.ones(problem.tree.num_arcs, dtype=torch.bool)
    silent[informed] = False
    assert silent.any()
    deltas[silent] = 0
    few = problem._replace(
        nodes=nodes, precision=problem.precision[:9], target=problem.target[:9], deltas=deltas
    )

    def rotated():
        return rotate_to_sparsity(few, 4, 150, torch.Generator().manual_seed(0))

    small = rotated()
    every = torch.arange(problem.tree.num_arcs)
    monkeypatch.setattr(choice, "with_rows_below", lambda whole: (whole, every))
    whole = rotated()
    assert small.deltas.shape == whole.deltas.shape
    assert (small.deltas[silent] == 0).all()
    assert small.evidence == pytest.approx(whole.evidence, abs=0.5)
    assert torch.allclose(small.basis.abs(), whole.basis.abs(), atol=0.02)
    assert torch.allclose(small.deltas.abs(), whole.deltas.abs(), atol=0.05)
