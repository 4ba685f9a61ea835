"""Estimates of the other half: generalised least squares by hand, and draws of its outcomes."""

import pytest
import torch
from torch.testing import assert_close

from parts.other_half import OtherHalf, Rows, Scales, learn_scales
from pyro_tbr import Tree
from pyro_tbr.tree import path_sum

TREE = Tree.from_parents({"a": "u", "b": "u", "c": "v", "d": "v", "u": "r", "v": "r"})
LEAVES = torch.tensor([TREE.index(leaf) for leaf in "abcd"])
SCALES = Scales(
    change=torch.tensor([[0.7, 0.4], [1.1, 0.9]], dtype=torch.float64),
    noise=torch.tensor([0.5, 0.8], dtype=torch.float64),
    correlation=torch.tensor([0.0, 0.6], dtype=torch.float64),
)


def rows(number=40, seed=0):
    """Three rows a group, all outcomes noise."""
    generator = torch.Generator().manual_seed(seed)
    design = torch.randn(number, 2, generator=generator, dtype=torch.float64)
    design[:, 1] = 1
    y = torch.randn(number, 2, generator=generator, dtype=torch.float64)
    order = torch.arange(number) // 3
    return Rows(design, y, LEAVES[order % 4], order)


def least_squares(own, arc, weight, outcome):
    """Unbiased estimate of one change and its variance, every other weight being random."""
    paths = path_sum(TREE, torch.zeros(TREE.num_arcs), torch.eye(TREE.num_arcs)).double()
    columns = [own.design * 100 * own.y[:, outcome].std()]  # of the root
    for at in range(TREE.num_arcs):
        each = own.design * paths[own.node, at, None] * SCALES.change[:, outcome]
        if at == arc:
            wanted = each[:, weight] / SCALES.change[weight, outcome]
            each = each[:, [1 - weight]]
        columns.append(each)
    random = torch.cat(columns, 1)
    sizes = torch.bincount(own.group)[own.group].double()
    alike = 1 + (sizes - 1) * SCALES.correlation[outcome]  # rows that one counts for
    cov = random @ random.T + (SCALES.noise[outcome].square() * alike).diag()
    solved = torch.linalg.solve(cov, wanted)
    var = 1 / (solved @ wanted)
    return var * (solved @ own.y[:, outcome]), var


@pytest.mark.parametrize("outcome", [0, 1])
def test_estimates_are_unbiased_ones_that_are_shrunk(outcome):
    own = rows()
    found = OtherHalf(TREE, own, SCALES).changes(own.y[None])[0]
    assert found.shape == (TREE.num_arcs, 2, 2)
    for arc in range(TREE.num_arcs):
        for weight in range(2):
            unbiased, var = least_squares(own, arc, weight, outcome)
            prior = SCALES.change[weight, outcome].square()
            shrunk = unbiased * prior / (prior + var)
            assert_close(found[arc, weight, outcome], shrunk, rtol=1e-6, atol=1e-8)


def test_outcomes_are_estimated_one_by_one():
    own = rows()
    half = OtherHalf(TREE, own, SCALES)
    together = half.changes(torch.stack([own.y, 2 * own.y]))
    assert_close(together[1], 2 * together[0])


def test_drawn_outcomes():
    own = rows(6)
    weights = torch.zeros(20_000, TREE.num_nodes, 2, 2, dtype=torch.float64)
    weights[..., 1, 0] = 3.0  # an intercept
    noise = SCALES.noise.expand(len(weights), 2)
    drawn = OtherHalf(TREE, own, SCALES).replicate(weights, noise, SCALES.correlation, seed=0)
    error = 5 / len(weights) ** 0.5
    expected = torch.tensor([3.0, 0.0], dtype=torch.float64).expand(6, 2)
    assert_close(drawn.mean(0), expected, rtol=0, atol=error)
    # Rows 0 to 2 are of one group, 3 to 5 of another.
    related = torch.corrcoef(drawn[:, :, 1].T)
    assert_close(drawn.std(0), SCALES.noise.expand(6, 2), rtol=error, atol=0)
    assert_close(related[0, 1], SCALES.correlation[1], rtol=0, atol=error, check_dtype=False)
    assert abs(related[0, 3]) < error
    assert torch.corrcoef(drawn[:, :, 0].T)[0, 1].abs() < error


def test_scales_are_learnt():
    own = rows(1200)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tree = Tree.from_parents({f"leaf{i}": f"u{i % 8}" for i in range(24)} | {
        f"u{i}": "r" for i in range(8)
    })  # fmt: skip
    leaves = torch.tensor([tree.index(f"leaf{i}") for i in range(24)])
    own = own._replace(node=leaves[own.group % 24])
    weights = path_sum(tree, normal(2, 2), normal(tree.num_arcs, 2, 2) * SCALES.change, event_dim=2)
    half = OtherHalf(tree, own, SCALES)
    y = half.replicate(weights[None], SCALES.noise[None], SCALES.correlation, seed=1)[0]
    found = learn_scales(tree, own._replace(y=y))
    assert_close(found.noise, SCALES.noise, rtol=0.1, atol=0)
    assert_close(found.correlation, SCALES.correlation, rtol=0, atol=0.12)
    # One number for both outcomes, in the unit of each.
    typical = SCALES.change.square().mean(1).sqrt()
    assert (found.change.square().mean(1).sqrt() / typical - 1).abs().max() < 0.35
