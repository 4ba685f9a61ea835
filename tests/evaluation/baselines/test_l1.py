"""L1-penalised changes: conditions of the minimum, both ends of the path, known latents."""

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.evaluation.baselines import L1TBR
from pyro_tbr.evaluation.baselines.squares import Squares, l1_weights
from pyro_tbr.tree import descendant_sum

TREE = tbr.Tree.from_parents({"a": "u", "b": "u", "c": "v", "d": "v", "u": "r", "v": "r"})


@pytest.fixture(params=[0.0, 0.2], ids=["full", "missing"])
def rows(request):
    data = tbr.simulate(
        TREE, latent_dim=2, num_features=2, rows_per_leaf=30, num_outcomes=2, noise_scale=0.3,
        missing=request.param, intercept_scale=1.0,
    )  # fmt: skip
    design = torch.from_numpy(np.hstack([data.x, np.ones((len(data.x), 1))]))
    env_index = torch.tensor([TREE.index(label) for label in data.env])
    return design, torch.from_numpy(data.y), env_index


def least_squares(design, y):
    columns = []
    for outcome in y.T:
        seen = ~outcome.isnan()
        columns.append(torch.linalg.lstsq(design[seen], outcome[seen, None]).solution[:, 0])
    return torch.stack(columns, dim=1)


def test_error_is_the_sum_over_rows(rows):
    design, y, env_index = rows
    squares = Squares.of(design, y, env_index)
    weights = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    mean = torch.einsum("np,npq->nq", design, weights[env_index])
    errors = squares.errors(weights[squares.nodes])
    torch.testing.assert_close(errors, (y - mean).square().nanmean(0))
    torch.testing.assert_close(squares.error(weights[squares.nodes]), (y - mean).square().nanmean())


@pytest.mark.parametrize("penalty", [0.2, 0.01])
def test_conditions_of_the_minimum(rows, penalty):
    squares = Squares.of(*rows)
    found = l1_weights(TREE, squares, penalty)
    nodes = found.at_nodes(TREE).requires_grad_()
    squares.error(nodes[squares.nodes]).backward()
    slope = descendant_sum(TREE, nodes.grad, event_dim=2)
    torch.testing.assert_close(slope[0], torch.zeros_like(slope[0]), rtol=0, atol=1e-5)
    on = found.deltas != 0
    assert 0 < on.sum() < on.numel()
    torch.testing.assert_close(slope[1:][on], -penalty * found.deltas[on].sign(), rtol=0, atol=1e-5)
    assert slope[1:][~on].abs().max() <= penalty + 1e-5


def test_a_large_penalty_pools(rows):
    found = l1_weights(TREE, Squares.of(*rows), 1e3)
    assert (found.deltas == 0).all()
    torch.testing.assert_close(found.root, least_squares(*rows[:2]), rtol=0, atol=1e-4)


def test_a_small_penalty_fits_each_leaf(rows):
    design, y, env_index = rows
    found = l1_weights(TREE, Squares.of(*rows), 1e-7, steps=6_000)
    nodes = found.at_nodes(TREE)
    for node in env_index.unique():
        at = env_index == node
        torch.testing.assert_close(nodes[node], least_squares(design[at], y[at]), rtol=0, atol=1e-3)


def test_strength_is_what_a_leafs_change_loses():
    """A star of leaves with orthogonal features of variance 1, one of them changed."""
    tree = tbr.Tree.from_parents({f"leaf{i}": "r" for i in range(10)})
    x = torch.tensor([[1.0], [-1.0]] * 10).double()
    env_index = torch.arange(1, 11).repeat_interleave(2)
    y = x * torch.where(env_index == 1, 3.0, 1.0)[:, None]
    squares = Squares.of(x, y, env_index)
    found = l1_weights(tree, squares, squares.strength(0.4))
    assert (found.deltas != 0).sum() == 1
    # The root gives way too: its own slope is that of the ten leaves together.
    assert float(found.root[0, 0] + found.deltas[0, 0, 0]) == pytest.approx(3 - 0.4, abs=1e-3)


@pytest.fixture(scope="module")
def easy():
    return tbr.simulate(num_leaves=24, latent_dim=3, num_features=6, rows_per_leaf=60, seed=0)


def test_joint_objective_finds_the_latents(easy):
    x, y, env = easy.without("leaf7")
    fitted = L1TBR(restarts=8, steps=200).fit(easy.tree, x, y, env, latent_dim=3)
    z = fitted.encode(easy.x)
    assert tbr.mcc(easy.z, z) > 0.95
    np.testing.assert_allclose(fitted.encode(x).std(0), 1, rtol=1e-3)
    assert fitted.predict(x, env).sd.mean() == pytest.approx(0.1, rel=0.15)  # the true noise
    new_x, new_y, _ = easy.rows("leaf7", 100)
    held_out, other = fitted.predict(new_x, "leaf7"), fitted.predict(new_x, "leaf8")
    assert held_out.sd.min() > other.sd.max()  # it knows that it does not know
    assert held_out.log_score(new_y) > other.log_score(new_y)
    pooled = tbr.evaluation.baselines.Pooled().fit(easy.tree, x, y, env)
    assert held_out.log_score(new_y) > pooled.predict(new_x, "leaf7").log_score(new_y)


@pytest.mark.own_random_state  # of the test's own module
def test_networks():
    data = tbr.simulate(
        num_leaves=8, latent_dim=2, num_features=4, rows_per_leaf=100, mixing="mlp", seed=1
    )
    module = torch.nn.Linear(4, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    options = {"restarts": 2, "steps": 150, "strengths": (0.1, 0.01), "decays": (0.1,)}
    method = L1TBR(**options, batch_size=128)
    network = method.fit(data.tree, data.x, data.y, data.env, latent_dim=2, encoder="mlp")
    own = method.fit(data.tree, data.x, data.y, data.env, latent_dim=2, encoder=module)
    assert tbr.linear_r2(data.z, network.encode(data.x)) > 0.9
    assert network.notes["held_out"] < own.notes["held_out"]  # the mixing is not linear
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name])  # a copy was trained
