"""Trees that are wrong or say less than they could, over the same leaves.

What a fit does with them shows how much it leans on the tree it is given. Arc lengths are dropped:
those of a changed tree would be made up.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation.checks import Array, as_float, require
from pyro_tbr.evaluation.simulation import Simulation
from pyro_tbr.tree import Tree

Parents = dict[Hashable, Hashable]  # of each node but the root


class SharedChanges(NamedTuple):
    """True changes on the arcs of another tree.

    Attributes:
        gates: Where weights differ between the two ends of an arc, (A', K, Q) bool.
        shared: Arcs both of whose clades the true tree has too, (A',) bool; elsewhere there is no
            truth, and ``gates`` is False.
    """

    gates: Array
    shared: Array


def star(tree: Tree) -> Tree:
    """All leaves right below the root."""
    return Tree.from_parents(dict.fromkeys(tree.leaves, tree.root))


def subtrees_moved(tree: Tree, number: int = 1, *, seed: int = 0) -> Tree:
    """Some random subtrees, one after the other, cut off and put onto another arc.

    A move takes a subtree, a leaf or more, to the middle of an arc outside it, so that the tree is
    another one after. Where it was cut off, a node left with one child gives way to it; the new
    node is ``moved0``, ``moved1``, ...

    Args:
        tree: The environments.
        number: Moves; a later one may undo an earlier one.
        seed: Of the choices.

    Raises:
        DataError: ``number`` is negative, or no move changes the tree (3 leaves or fewer, say).

    Source:
        Subtree pruning and regrafting: Allen & Steel, Ann. Comb. 5 (2001) 1.
    """
    if number < 0:
        raise DataError(f"number is {number!r}: give 0 moves or more")
    rng = np.random.default_rng(seed)
    for _ in range(number):
        tree = _one_move(tree, rng)
    return tree


def clades_collapsed(tree: Tree, share: float, *, seed: int = 0) -> Tree:
    """Some random inner nodes left out, their children put below their parents.

    Args:
        tree: The environments.
        share: Of the inner nodes but the root; 1 gives a star.
        seed: Of the choice.

    Raises:
        DataError: ``share`` is no number from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise DataError(f"share is {share!r}: give a number from 0 to 1")
    inner = [node for node in tree.nodes[1:] if tree.children(node)]
    order = np.random.default_rng(seed).permutation(len(inner))
    gone = {inner[place] for place in order[: round(share * len(inner))].tolist()}
    parents: Parents = {}
    for parent, child in tree.arcs:
        above = parent
        while above in gone:
            found = tree.parent(above)
            assert found is not None  # the root is never left out
            above = found
        if child not in gone:
            parents[child] = above
    return Tree.from_parents(parents)


def leaves_clustered(tree: Tree, profiles: Any, *, known: Any = None, method: str = "ward") -> Tree:
    """A binary tree learnt by hierarchical clustering of what is measured at the leaves.

    Args:
        tree: The environments; only its leaves matter.
        profiles: What leaves are compared by, (L, P) in ``tree.leaves`` order: coefficients of a
            regression a leaf, or mean features.
        known: Leaves with a profile, (L,) bool; the others are put right below the root, as nothing
            is known of them. ``None``: all.
        method: Linkage, as scipy has it.

    Raises:
        ShapeError: The profiles are not those of the leaves.
        DataError: A profile is NaN or infinite, or fewer than two leaves have one.
    """
    profiles = as_float(profiles)
    has = np.ones(tree.num_leaves, bool) if known is None else np.asarray(known, bool)
    if profiles.ndim != 2 or len(profiles) != tree.num_leaves or has.shape != (tree.num_leaves,):
        raise ShapeError(
            f"profiles has shape {profiles.shape}, known {has.shape}: give ({tree.num_leaves}, P) "
            f"and ({tree.num_leaves},)"
        )
    if has.sum() < 2 or not np.isfinite(profiles[has]).all():
        raise DataError(f"{int(has.sum())} leaves have a profile: give finite ones for 2 or more")
    linkage = require("scipy.cluster.hierarchy").linkage(profiles[has], method=method)
    leaves = [leaf for leaf, one in zip(tree.leaves, has, strict=True) if one]
    found = Tree.from_linkage(linkage, leaves)
    parents: Parents = {child: parent for parent, child in found.arcs}
    parents |= {leaf: found.root for leaf, one in zip(tree.leaves, has, strict=True) if not one}
    return Tree.from_parents(parents)


def shared_changes(simulation: Simulation, tree: Tree) -> SharedChanges:
    """What truly changes between the clades of a tree that is not the simulation's own.

    Two nodes are the same if the same leaves are below them; of several such in a chain the lowest
    counts.

    Args:
        simulation: The truth.
        tree: Another tree over the same leaves.
    """
    true = simulation.tree
    place = {frozenset(true.descendant_leaves(node)): i for i, node in enumerate(true.nodes)}
    nodes = [place.get(frozenset(tree.descendant_leaves(node)), -1) for node in tree.nodes]
    at = np.array(nodes)
    above, below = at[tree.arc_parent.numpy()], at[tree.arc_child.numpy()]
    shared = (above >= 0) & (below >= 0)
    weights = simulation.node_weights
    gates = np.abs(weights[below] - weights[above]) > 1e-9  # rounding of path sums
    return SharedChanges(gates & shared[:, None, None], shared)


def _one_move(tree: Tree, rng: np.random.Generator) -> Tree:
    """Another tree; the subtree is chosen first: else leaves, which fit most places, always go."""
    before = _clades(tree)
    for node in rng.permutation(tree.num_arcs) + 1:
        places = _places(tree, tree.nodes[node])
        for place in rng.permutation(len(places)):
            other = _moved(tree, tree.nodes[node], places[place])
            if _clades(other) != before:
                return other
    raise DataError(f"no subtree of {tree!r} can be moved to make another tree")


def _places(tree: Tree, node: Hashable) -> list[Hashable]:
    """Nodes onto whose arcs a subtree can go."""
    own, queue = {node}, [node]
    while queue:
        below = tree.children(queue.pop())
        own.update(below)
        queue += below
    return [other for other in tree.nodes[1:] if other not in own and other != tree.parent(node)]


def _moved(tree: Tree, node: Hashable, onto: Hashable) -> Tree:
    """The tree with the subtree of ``node`` on the arc into ``onto``."""
    parents: Parents = {child: parent for parent, child in tree.arcs}
    old = parents[node]
    number = 0
    while f"moved{number}" in tree.nodes:
        number += 1
    new = f"moved{number}"
    parents[new], parents[onto], parents[node] = parents[onto], new, new
    left = [child for child, parent in parents.items() if parent == old]
    if len(left) == 1:
        if old in parents:
            parents[left[0]] = parents.pop(old)
        else:
            del parents[left[0]]  # the root had two children: the other one is the root now
    return Tree.from_parents(parents)


def _clades(tree: Tree) -> frozenset[frozenset[Hashable]]:
    """Sets of leaves below the nodes: what makes two trees the same."""
    return frozenset(frozenset(tree.descendant_leaves(node)) for node in tree.nodes)
