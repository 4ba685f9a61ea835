"""Small trees of every shape for tests that go through them all; the dense matrix of paths."""

import torch

from pyro_tbr.tree import Tree

SMALL_TREES = {  # none with more than 10 arcs, so that all patterns of changes can be enumerated
    "one arc": Tree.from_parents({"a": "r"}),
    "cherry": Tree.from_parents({"a": "r", "b": "r"}),
    "balanced": Tree.from_parents({"u": "r", "v": "r", "a": "u", "b": "u", "c": "v", "d": "v"}),
    "caterpillar": Tree.from_parents(
        {"a": "r", "u": "r", "b": "u", "v": "u", "c": "v", "w": "v", "d": "w", "e": "w"}
    ),
    "star": Tree.from_parents(dict.fromkeys("abcdef", "r")),
    "unary chain": Tree.from_parents({"u": "r", "v": "u", "a": "v", "b": "r"}),
    "path": Tree.from_parents({"u": "r", "v": "u", "w": "v", "a": "w"}),
    "mixed": Tree.from_parents(
        {"u": "r", "v": "r", "a": "r", "b": "u", "c": "u", "d": "u", "w": "v", "e": "w", "f": "w"}
    ),
    "with lengths": Tree.from_newick("((a:0.5,b:1.5,c:0)u:1,(d:2)v:0.25)r;"),
}


def dense_paths(tree: Tree) -> torch.Tensor:
    """1 where arc a lies on the way from the root to node v, by walking up. ``(V, A)`` float64."""
    parent = {child: above for above, child in tree.arcs}
    arc = {child: a for a, (_, child) in enumerate(tree.arcs)}
    paths = torch.zeros(tree.num_nodes, tree.num_arcs, dtype=torch.float64)
    for v, start in enumerate(tree.nodes):
        node = start
        while node in parent:
            paths[v, arc[node]] = 1
            node = parent[node]
    return paths
