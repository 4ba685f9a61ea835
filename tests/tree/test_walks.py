"""Walks reach every node once, nearest first, and never walk an arc before its near end."""

import networkx as nx
import pytest

from pyro_tbr.tree import Tree
from pyro_tbr.tree.walks import walk_from
from tests.heads.sampling.cases import TREE

CHAIN = Tree.from_parents({"b": "a", "c": "b", "d": "c", "e": "d"})


@pytest.mark.parametrize("tree", [TREE, CHAIN], ids=["polytomy", "chain"])
def test_steps_are_the_distances_from_the_start(tree):
    graph = nx.Graph(tree.arcs)
    for start, label in enumerate(tree.nodes):
        far = nx.single_source_shortest_path_length(graph, label)
        steps = walk_from(tree, start)
        assert sum(len(step.arc) for step in steps) == tree.num_arcs
        for distance, step in enumerate(steps, start=1):
            for near, end, arc, sign in zip(*(part.tolist() for part in step[:4]), strict=True):
                assert far[tree.nodes[end]] == distance == far[tree.nodes[near]] + 1
                ends = tree.nodes[near], tree.nodes[end]
                assert tree.arcs[arc] == (ends if sign > 0 else ends[::-1])


def test_arcs_that_go_on_are_found_in_the_next_step():
    for start in range(TREE.num_nodes):
        steps = walk_from(TREE, start)
        for step, after in zip(steps, steps[1:], strict=False):
            for end, first, count in zip(step.far, step.first, step.count, strict=True):
                assert (after.near[first : first + count] == end).all()
                assert (after.near == end).sum() == count
        assert (steps[-1].count == 0).all()


def test_only_some_arcs():
    known = [TREE.arcs.index(arc) for arc in (("r", "u"), ("u", "a"), ("u", "b"))]
    some = [arc in known for arc in range(TREE.num_arcs)]
    steps = walk_from(TREE, TREE.index("a"), arcs=TREE.leaf_index.new_tensor(some).bool())
    assert sorted(arc for step in steps for arc in step.arc.tolist()) == sorted(known)
