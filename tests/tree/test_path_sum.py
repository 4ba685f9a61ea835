"""Path sums and descendant sums against the dense matrix of paths."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree import Tree, descendant_sum, path_sum
from tests.tree.small_trees import SMALL_TREES, dense_paths

DEEP = Tree.from_parents(  # past the depth where strides are doubled, with side branches
    {i + 1: i for i in range(99)} | {f"side {i}": i for i in range(0, 99, 7)}
)
TREES = pytest.mark.parametrize(
    "tree", [*SMALL_TREES.values(), DEEP], ids=[*SMALL_TREES.keys(), "deep"]
)
SHAPES = [((), (), 0), ((), (3,), 1), ((2,), (3,), 1), ((), (3, 4), 2), ((5, 2), (3, 4), 2)]


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def dense_path_sum(tree, root_weights, deltas, event_dim):
    flat = deltas.flatten(-event_dim) if event_dim else deltas.unsqueeze(-1)
    sums = (dense_paths(tree) @ flat).reshape(
        *flat.shape[:-2], tree.num_nodes, *event_of(deltas, event_dim)
    )
    return root_weights.unsqueeze(-event_dim - 1) + sums


def event_of(values, event_dim):
    return values.shape[values.dim() - event_dim :]


@TREES
@pytest.mark.parametrize(("batch", "event", "event_dim"), SHAPES)
def test_path_sum_is_the_dense_one(tree, batch, event, event_dim):
    root_weights, deltas = draws(*batch, *event), draws(*batch, tree.num_arcs, *event, seed=1)
    weights = path_sum(tree, root_weights, deltas, event_dim=event_dim)
    assert weights.shape == (*batch, tree.num_nodes, *event)
    assert_close(weights, dense_path_sum(tree, root_weights, deltas, event_dim))


@TREES
@pytest.mark.parametrize(("batch", "event", "event_dim"), SHAPES)
def test_descendant_sum_is_the_transpose(tree, batch, event, event_dim):
    values = draws(*batch, tree.num_nodes, *event)
    sums = descendant_sum(tree, values, event_dim=event_dim)
    assert sums.shape == values.shape
    root_weights = torch.zeros((*batch, *event), dtype=torch.float64, requires_grad=True)
    deltas = torch.zeros(*batch, tree.num_arcs, *event, dtype=torch.float64, requires_grad=True)
    dense_path_sum(tree, root_weights, deltas, event_dim).backward(values)
    root, others = sums.split([1, tree.num_arcs], -event_dim - 1)
    assert_close(root.squeeze(-event_dim - 1), root_weights.grad)
    assert_close(others, deltas.grad)


@TREES
def test_gradients(tree):
    root_weights, deltas = (
        draws(2, 3).requires_grad_(),
        draws(2, tree.num_arcs, 3).requires_grad_(),
    )
    upstream = draws(2, tree.num_nodes, 3, seed=2)
    grads = torch.autograd.grad(
        path_sum(tree, root_weights, deltas), (root_weights, deltas), upstream
    )
    sums = descendant_sum(tree, upstream)
    assert_close(grads[0], sums[:, 0])
    assert_close(grads[1], sums[:, 1:])


@pytest.mark.own_random_state  # gradcheck draws
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("tree", [SMALL_TREES["mixed"], DEEP], ids=["mixed", "deep"])
def test_gradients_of_any_order_and_transforms(tree):
    root_weights, deltas = draws(1).requires_grad_(), draws(tree.num_arcs, 1).requires_grad_()
    if tree is not DEEP:  # numeric differences: slow on many numbers
        check = lambda r, d: path_sum(tree, r, d)  # noqa: E731
        assert torch.autograd.gradcheck(check, (root_weights, deltas), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(check, (root_weights, deltas))
        values = draws(tree.num_nodes, 1).requires_grad_()
        assert torch.autograd.gradcheck(lambda v: descendant_sum(tree, v), (values,))
    batch = draws(4, tree.num_arcs, 1)
    mapped = torch.func.vmap(lambda d: path_sum(tree, root_weights, d))(batch)
    assert_close(mapped, path_sum(tree, root_weights, batch))
    jacobian = torch.func.jacrev(lambda d: path_sum(tree, root_weights, d))(deltas)
    assert_close(jacobian.squeeze(), dense_paths(tree).squeeze())


def test_no_change_on_an_arc_leaves_the_weight_bit_for_bit():
    tree = SMALL_TREES["caterpillar"]
    deltas = draws(tree.num_arcs, 2)
    deltas[tree.index("w") - 1] = 0
    weights = path_sum(tree, draws(2, seed=3), deltas)
    assert torch.equal(weights[tree.index("w")], weights[tree.index("v")])


def test_batches_are_broadcast():
    tree = SMALL_TREES["balanced"]
    root_weights, deltas = draws(3), draws(4, 5, tree.num_arcs, 3)
    expected = path_sum(tree, root_weights.expand(4, 5, 3), deltas)
    assert_close(path_sum(tree, root_weights, deltas), expected)
    assert path_sum(tree, draws(7, 1, 3), deltas[0]).shape == (7, 5, tree.num_nodes, 3)


@TREES
def test_inputs_stay_as_they_are_and_dtype_and_device_are_kept(tree):
    deltas, values = draws(tree.num_arcs, 2).float(), draws(tree.num_nodes, 2).float()
    before = deltas.clone(), values.clone()
    assert path_sum(tree, torch.zeros(2), deltas).dtype == torch.float32
    assert descendant_sum(tree, values).dtype == torch.float32
    assert torch.equal(deltas, before[0])
    assert torch.equal(values, before[1])
    on_meta = path_sum(tree, torch.zeros(2, device="meta"), deltas.to("meta"))
    assert on_meta.device.type == descendant_sum(tree, on_meta).device.type == "meta"


def test_first_used_in_inference_mode_it_serves_training():
    tree = Tree.from_parents({"a": "u", "u": "r"})
    deltas = torch.ones(2, 1, requires_grad=True)
    with torch.inference_mode():
        path_sum(tree, torch.zeros(1), deltas)
    path_sum(tree, torch.zeros(1), deltas).sum().backward()
    assert deltas.grad.tolist() == [[2.0], [1.0]]


@pytest.mark.parametrize(
    ("root_shape", "deltas_shape", "event_dim", "message"),
    [
        ((3,), (5, 3), 1, r"expected \(\*B, 6, \*E\).*received deltas \(5, 3\)"),
        ((3,), (6, 2), 1, r"root_weights \(3,\)"),
        ((3, 2), (6, 3), 2, r"2 event dimensions.*received deltas \(6, 3\)"),
        ((), (6, 3), 1, r"root_weights \(\)"),
        ((2, 3), (4, 6, 3), 1, r"batches of root_weights \(2,\) and deltas \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit(root_shape, deltas_shape, event_dim, message):
    tree = SMALL_TREES["balanced"]
    with pytest.raises(ShapeError, match=message):
        path_sum(tree, torch.zeros(root_shape), torch.zeros(deltas_shape), event_dim=event_dim)


@pytest.mark.parametrize(("shape", "event_dim"), [((6, 3), 1), ((3,), 1), ((7, 3), 2)])
def test_descendant_sum_wants_a_value_per_node(shape, event_dim):
    with pytest.raises(ShapeError, match=r"expected \(\*B, 7, \*E\).*received"):
        descendant_sum(SMALL_TREES["balanced"], torch.zeros(shape), event_dim=event_dim)


def test_deep_chain_and_wide_star():
    chain = Tree.from_parents({i + 1: i for i in range(5000)})
    deltas = torch.ones(5000, 1, dtype=torch.float64, requires_grad=True)
    weights = path_sum(chain, torch.zeros(1, dtype=torch.float64), deltas)
    weights.sum().backward()
    assert weights.flatten().tolist() == list(range(5001))
    assert deltas.grad.flatten().tolist() == list(range(5000, 0, -1))
    star = Tree.from_parents(dict.fromkeys(range(20_000), "root"))
    assert descendant_sum(star, torch.ones(20_001, 1))[0] == 20_001
