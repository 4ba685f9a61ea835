"""Sums along the tree: from the root down to every node, and from every node over its descendants.

Both are linear in the numbers they sum and each is the other's transpose. They go level by level,
one gather (or scatter) a level; in trees deeper than 64 levels they double the stride instead, so
that a chain of 5,000 nodes takes 13 gathers. No matrix of paths is formed. All is made of plain
torch operations: gradients of any order, ``torch.func`` transforms and any device work, which an
``autograd.Function`` of its own would not give.
"""

import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree.tree import Tree

_MAX_LEVELS = 64  # deeper: a pass over all nodes per doubling costs less than one per level


def path_sum(tree: Tree, root_weights: Tensor, deltas: Tensor, *, event_dim: int = 1) -> Tensor:
    r"""Weights of every node: those of its parent plus the delta of its own arc.

    Args:
        tree: The environments; arc ``a`` leads into node ``tree.arc_child[a]``.
        root_weights: Weights at the root, ``(*B, *E)``, in the unit of the outcome per latent.
        deltas: Changes along the arcs in the same unit, ``(*B, A, *E)``.
        event_dim: Number of dimensions of ``E``: 1 for ``(K,)``, 2 for ``(K, Q)``, 0 for none.

    Returns:
        Node weights in ``tree.nodes`` order, ``(*B, V, *E)``; batches are broadcast. In trees of
        up to 64 levels an arc of delta 0 leaves the weight as it is, bit for bit.

    Raises:
        ShapeError: ``deltas`` has not the arcs of ``tree`` or the event of ``root_weights``.

    Example:
        >>> tree = Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r"})
        >>> path_sum(tree, torch.zeros(1), torch.tensor([[1.0], [2.0], [10.0], [0.0]])).T
        tensor([[ 0.,  1.,  2., 11.,  1.]])
    """
    dim = -event_dim - 1
    root_weights, deltas = _checked(tree, root_weights, deltas, event_dim)
    if tree.depth > _MAX_LEVELS:
        weights = torch.cat([root_weights, deltas], dim)
        for start, ancestor in _jumps(tree, deltas.device):
            near, far = weights.split([start, tree.num_nodes - start], dim)
            weights = torch.cat([near, far + weights.index_select(dim, ancestor)], dim)
        return weights
    sizes, parents = level_parents(tree, deltas.device)
    levels = [root_weights]
    for parent, own in zip(parents, deltas.split(sizes[1:], dim), strict=True):
        levels.append(levels[-1].index_select(dim, parent) + own)
    return torch.cat(levels, dim)


def descendant_sum(tree: Tree, node_values: Tensor, *, event_dim: int = 1) -> Tensor:
    r"""Sum over every node and all its descendants: the transpose of :func:`path_sum`.

    Of values per node in ``tree.nodes`` order, any unit, ``(*B, V, *E)``, it gives sums of the same
    shape; a leaf's is its own value. The gradient of a loss in the root weights is the first row,
    in the deltas the others, if ``node_values`` is the gradient in the node weights. On a GPU the
    order of additions, and so the last digits, differ from run to run unless torch's deterministic
    algorithms are on.

    Raises:
        ShapeError: ``node_values`` has not the nodes of ``tree``.

    Example:
        >>> tree = Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r"})
        >>> descendant_sum(tree, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), event_dim=0)
        tensor([15., 11.,  3.,  4.,  5.])
    """
    dim = -event_dim - 1
    if node_values.dim() < event_dim + 1 or node_values.shape[dim] != tree.num_nodes:
        raise ShapeError(
            f"node_values: expected (*B, {tree.num_nodes}, *E) with {event_dim} event dimensions "
            f"for {tree!r}, received {tuple(node_values.shape)}"
        )
    if tree.depth > _MAX_LEVELS:
        for start, ancestor in _jumps(tree, node_values.device):
            far = node_values.narrow(dim, start, tree.num_nodes - start)
            node_values = node_values.index_add(dim, ancestor, far)
        return node_values
    sizes, parents = level_parents(tree, node_values.device)
    *upper, deepest = node_values.split(sizes, dim)
    sums = [deepest]
    for parent, own in zip(reversed(parents), reversed(upper), strict=True):
        sums.append(own.index_add(dim, parent, sums[-1]))
    return torch.cat(sums[::-1], dim)


def _checked(
    tree: Tree, root_weights: Tensor, deltas: Tensor, event_dim: int
) -> tuple[Tensor, Tensor]:
    """Both with the same batch and dtype, the root's as the nodes of a level: ``(*B, 1, *E)``."""
    dim = -event_dim - 1
    event = root_weights.shape[root_weights.dim() - event_dim :]
    fits = root_weights.dim() >= event_dim and deltas.dim() >= event_dim + 1
    if not fits or deltas.shape[dim:] != (tree.num_arcs, *event):
        raise ShapeError(
            f"deltas: expected (*B, {tree.num_arcs}, *E) with the E of root_weights (*B, *E), "
            f"{event_dim} event dimensions, for {tree!r}; received deltas {tuple(deltas.shape)}, "
            f"root_weights {tuple(root_weights.shape)}"
        )
    batch, root_batch = deltas.shape[:dim], root_weights.shape[: root_weights.dim() - event_dim]
    try:
        both = torch.broadcast_shapes(batch, root_batch)
    except RuntimeError as error:
        raise ShapeError(
            f"batches of root_weights {tuple(root_batch)} and deltas {tuple(batch)} do not "
            f"broadcast; received root_weights {tuple(root_weights.shape)}, deltas "
            f"{tuple(deltas.shape)}"
        ) from error
    root_weights = root_weights.unsqueeze(dim).expand(*both, 1, *event)
    return root_weights, deltas.expand(*both, tree.num_arcs, *event)


def level_parents(tree: Tree, device: torch.device) -> tuple[list[int], list[Tensor]]:
    """Sizes of all levels; for each but the first, every node's parent, counted in its level."""
    key = ("levels", device)
    if key not in tree._derived:
        sizes = [level.stop - level.start for level in tree.levels]
        with torch.inference_mode(False):
            parents = [
                (tree.arc_parent[level.start - 1 : level.stop - 1] - above.start).to(device)
                for above, level in zip(tree.levels, tree.levels[1:], strict=False)
            ]
        tree._derived[key] = sizes, parents
    return tree._derived[key]


def _jumps(tree: Tree, device: torch.device) -> list[tuple[int, Tensor]]:
    """For strides 1, 2, 4, ...: the first node that deep, and from there every node's ancestor."""
    key = ("jumps", device)
    if key not in tree._derived:
        jumps, stride = [], 1
        with torch.inference_mode(False):
            ancestor = torch.cat([torch.zeros(1, dtype=torch.int64), tree.arc_parent])
            while stride <= tree.depth:
                start = tree.levels[stride].start
                jumps.append((start, ancestor[start:].to(device)))
                ancestor, stride = ancestor[ancestor], 2 * stride
        tree._derived[key] = jumps
    return tree._derived[key]
