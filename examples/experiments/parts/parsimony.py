r"""When sparsity alone determines the latents: exact least numbers of changes, without noise.

A direction :math:`m` of the space of latents has the weight :math:`m^\top w_\ell` at leaf
:math:`\ell`. The fewest arcs on which such a labelling of the leaves can change is its parsimony
score. A basis of directions whose scores have the least sum is a solution of the L0 problem for
noise-free leaf weights; the true latents are determined if no other basis does as well. As the sets
of independent directions are a matroid, a best basis is found greedily, cheapest direction first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation.checks import Array, as_float
from pyro_tbr.tree import Tree

_CHUNK = 2**22  # numbers held at a time
_MAX_LATENTS = 3  # their candidates can be enumerated


class SparsestBasis(NamedTuple):
    """The directions in which leaf weights change on the fewest arcs.

    Attributes:
        basis: Directions of length 1, (K, K), a row a latent, cheapest first.
        scores: Changes of each of them, (K,).
        unique: No other basis has as few changes.
    """

    basis: Array
    scores: Array
    unique: bool


def parsimony_score(tree: Tree, values: object, *, tolerance: float = 1e-6) -> Array:
    r"""Fewest arcs on which values must change to come about at the leaves.

    Two leaves have the same state if their values differ by less than a tolerance. At each node the
    states that the most children can have go on; a child that cannot have them costs a change. That
    is exact for nodes with any number of children, also for one.

    Args:
        tree: The environments.
        values: Values at the leaves in ``tree.leaves`` order, (\*B, L), real, no NaN.
        tolerance: Relative to the largest size of a value in the labelling.

    Returns:
        Numbers of changes, (\*B), int64.

    Raises:
        ShapeError: The last dimension is not that of the leaves.

    Example:
        >>> tree = Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r"})
        >>> parsimony_score(tree, [[1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
        array([1, 2, 0])

    Source:
        Fitch, Syst. Zool. 20 (1971) 406; for polytomies Hartigan, Biometrics 29 (1973) 53.
    """
    array = as_float(values)
    if array.ndim < 1 or array.shape[-1] != tree.num_leaves:
        raise ShapeError(
            f"values has shape {array.shape}: give (*B, {tree.num_leaves}), one a leaf of {tree!r}"
        )
    rows = array.reshape(-1, tree.num_leaves)
    size = max(1, _CHUNK // (tree.num_nodes * tree.num_leaves))
    parts = [
        _scores(tree, _states(rows[i : i + size], tolerance)) for i in range(0, len(rows), size)
    ]
    return np.concatenate(parts or [np.zeros(0, np.int64)]).reshape(array.shape[:-1])


def sparsest_basis(tree: Tree, leaf_weights: object, *, tolerance: float = 1e-6) -> SparsestBasis:
    """The latents as the sparsest basis sees them, exactly, for noise-free weights of leaves.

    Candidates are the directions that K - 1 independent contrasts between leaves leave unchanged.
    No direction of a sparsest basis is missed: one that fewer contrasts fix can be turned within
    what they leave free until one more pair of leaves agrees, at no more changes.

    Args:
        tree: The environments.
        leaf_weights: Weights at the leaves in ``tree.leaves`` order, (L, K) or (L, K, Q); changes
            of several outcomes add up.
        tolerance: Below it, relative to the largest, two weights are one.

    Raises:
        ShapeError: The weights are not those of the leaves.
        DataError: More latents than can be enumerated, or contrasts of leaves that do not span them
            (too few leaves, or a latent that never changes).
    """
    weights = as_float(leaf_weights)
    weights = weights[..., None] if weights.ndim == 2 else weights
    if weights.ndim != 3 or len(weights) != tree.num_leaves:
        raise ShapeError(
            f"leaf_weights has shape {weights.shape}: give (L, K) or (L, K, Q), L {tree.num_leaves}"
        )
    num_latents = weights.shape[1]
    if num_latents > _MAX_LATENTS:
        raise DataError(
            f"{num_latents} latents have too many candidates to enumerate: give {_MAX_LATENTS} at "
            "most"
        )
    directions = _null_directions(weights, tolerance)
    if np.linalg.matrix_rank(directions, tol=1e-6) < num_latents:
        raise DataError("contrasts of the leaves do not span the latents, so no basis is sparsest")
    labels = np.einsum("ck,lkq->qcl", directions, weights)
    score = parsimony_score(tree, labels, tolerance=tolerance).sum(0)
    order = np.argsort(score, kind="stable")
    chosen: list[int] = []
    for place in order.tolist():
        if _independent(directions[[*chosen, place]]):
            chosen.append(place)
        if len(chosen) == num_latents:
            break
    return SparsestBasis(directions[chosen], score[chosen], _is_unique(directions, score, chosen))


def latents_are_sparsest(tree: Tree, leaf_weights: object, *, tolerance: float = 1e-6) -> bool:
    """Whether the latents as given are the one sparsest basis; arguments as above.

    Weights whose contrasts do not span the latents count as not determined.
    """
    weights = as_float(leaf_weights)
    try:
        found = sparsest_basis(tree, weights, tolerance=tolerance)
    except DataError:
        if weights.shape[1] > _MAX_LATENTS:
            raise
        return False
    return found.unique and bool((np.abs(found.basis).max(1) > 1 - 1e-6).all())


def _states(rows: Array, tolerance: float) -> Array:
    """Numbers of states (B, L): values next to each other in size that are close are one."""
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    size = np.abs(rows).max(axis=1, keepdims=True)
    new = np.diff(ordered, axis=1) > tolerance * size
    rank = np.concatenate([np.zeros((len(rows), 1), np.int64), new.cumsum(axis=1)], axis=1)
    states = np.empty_like(rank)
    np.put_along_axis(states, order, rank, axis=1)
    return states


def _scores(tree: Tree, states: Array) -> Array:
    """Changes of labellings by states (B, L) of 0 to L - 1, (B,)."""
    num_rows, num_leaves = states.shape
    parent = tree.arc_parent.numpy()
    possible = np.zeros((tree.num_nodes, num_rows, num_leaves), dtype=bool)
    for place, leaf in enumerate(tree.leaf_index.tolist()):
        possible[leaf, np.arange(num_rows), states[:, place]] = True
    total = np.zeros(num_rows, np.int64)
    for level in reversed(tree.levels[:-1]):
        for node in range(level.start, level.stop):
            children = np.flatnonzero(parent == node) + 1
            if len(children):
                votes = possible[children].sum(axis=0)
                most = votes.max(axis=1, keepdims=True)
                possible[node] = votes == most
                total += len(children) - most[:, 0]
    return total


def _null_directions(weights: Array, tolerance: float) -> Array:
    """Directions (C, K) of length 1, each once, that K - 1 contrasts of leaves leave unchanged."""
    num_leaves, num_latents, num_outcomes = weights.shape
    first, second = np.triu_indices(num_leaves, 1)
    contrasts = (weights[first] - weights[second]).transpose(0, 2, 1).reshape(-1, num_latents)
    scale = np.abs(weights).max()
    contrasts = _distinct(contrasts[np.abs(contrasts).max(1) > tolerance * scale])
    if num_latents == 1:
        return np.ones((1, 1))
    if num_latents == 2:
        null = contrasts[:, ::-1] * np.array([1.0, -1.0])
    else:
        one, two = np.triu_indices(len(contrasts), 1)
        null = np.cross(contrasts[one], contrasts[two])
        null = null[np.linalg.norm(null, axis=1) > 1e-9]
    return _distinct(null)


def _distinct(vectors: Array) -> Array:
    """Vectors (n, K) as directions of length 1 with a sign of their own, each once."""
    if not len(vectors):
        return vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rounded = np.round(unit, 7)
    leading = np.take_along_axis(rounded, (rounded != 0).argmax(1)[:, None], axis=1)
    rounded = rounded * np.sign(leading) + 0.0
    _, places = np.unique(rounded, axis=0, return_index=True)
    return (unit * np.sign(leading))[np.sort(places)]


def _independent(vectors: Array) -> bool:
    return np.linalg.matrix_rank(vectors, tol=1e-5) == len(vectors)


def _is_unique(directions: Array, score: Array, chosen: list[int]) -> bool:
    """Whether no swap of one chosen direction for another is as cheap.

    In a matroid, a best basis is the only one exactly if all such swaps cost something.
    """
    coordinates = directions @ np.linalg.inv(directions[chosen])
    for k, place in enumerate(chosen):
        can_replace = np.abs(coordinates[:, k]) > 1e-5
        can_replace[chosen] = False
        if (score[can_replace] <= score[place]).any():
            return False
    return True
