"""Trees, data and the answers of enumeration, for the tests of the passes."""

import pytest
import torch

from pyro_tbr.tree import Tree
from tests.oracles import dense_paths, enumerate_posterior
from tests.tree.small_trees import SMALL_TREES

TREES = SMALL_TREES | {
    "10 arcs, 7 leaves": Tree(range(11), [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]),
    "10 arcs, deep": Tree(range(11), [0, 0, 1, 2, 2, 3, 3, 5, 5, 8]),
    "ladder of 6": Tree(range(11), [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]),
    "star of 10": Tree(range(11), [0] * 10),
}


FIELDS = ("log_evidence", "pips", "node_mean", "node_var", "delta_mean", "delta_second")


BATCHES = {  # standard errors of the data, inclusion probability, slab scale, root scale
    "precise": (0.005, 0.05, 1.0, 3.0),
    "good": (0.05, 0.2, 1.5, 1.0),
    "rough": (0.3, 0.5, 1.0, 3.0),
    "vague": (1.0, 0.3, 3.0, 10.0),
}


def each_tree(test):
    return pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())(test)


def draw_potentials(tree, error, rate, slab, root, seed, num=3, inner=False):
    """Potentials (num, V) for weights from the prior; at leaves, with ``inner`` at any node."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gates = torch.rand(num, tree.num_arcs, generator=generator, dtype=torch.float64) < rate
    weights = (
        root * normal(num, 1) + (gates * slab * normal(num, tree.num_arcs)) @ dense_paths(tree).T
    )
    lam = torch.zeros_like(weights)
    lam[:, tree.leaf_index] = error**-2
    if inner:
        lam = torch.where(torch.rand(lam.shape, generator=generator) < 0.6, error**-2, 0.0).double()
        lam[:, -1] = error**-2
    return lam * (weights + error * normal(num, tree.num_nodes)), lam


def enumerated(tree, eta, lam, *law, **more):
    """Fields of the exact posterior, stacked over the batch."""
    rows = [
        enumerate_posterior(dense_paths(tree), *row, *law, **more)
        for row in zip(eta, lam, strict=True)
    ]
    return {name: torch.stack([getattr(row, name) for row in rows]) for name in rows[0]._fields}


def law_of(rate, slab, root):
    return {"inclusion_prob": rate, "slab_scale": slab, "root_scale": root}
