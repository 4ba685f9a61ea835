"""What the rest of the tree says of a weight: to weigh a message's components by.

As :mod:`~pyro_tbr.tree.messages.contexts` says, node by node.
"""

from __future__ import annotations

import numpy as np

from pyro_tbr.jit import jit
from pyro_tbr.tree.messages.compiled.layout import FlatTree, Room
from pyro_tbr.tree.messages.compiled.merging import shrink_density
from pyro_tbr.tree.messages.compiled.mixtures import Array, copied, mass, product
from pyro_tbr.tree.messages.compiled.parts import Contexts, Data, Law, Messages, row_of

POINT = 1e-12  # variance of a weight that the prior fixes, so that one can divide by it


@jit
def wide_contexts(
    tree: FlatTree, law: Law, column: int, data: Data, num_arcs: int, wide: Array
) -> None:
    """One Gaussian each, as if every arc changed by its widest class, around zero."""
    num = len(tree.node)
    at_node, at_arc = np.empty((2, num)), np.empty((2, num))  # mean, precision
    var = np.zeros(num)
    for i in range(num - 1, -1, -1):
        m, p = data.mean[tree.node[i]], data.precision[tree.node[i]]
        for child in (tree.first[i], tree.second[i]):
            if child >= 0:
                _, m, p = product(0.0, m, p, 0.0, at_arc[0, child], at_arc[1, child])
        row = row_of(law, tree.arc[i], num_arcs)
        for j in range(law.var.shape[2]):
            square = law.mean[row, column, j] * law.mean[row, column, j]
            var[i] = max(var[i], law.var[row, column, j] + square)
        at_node[0, i], at_node[1, i] = m, p
        at_arc[0, i], at_arc[1, i] = m, p / (1 + p * var[i])
    wide[0, 0] = wide[2, 0] = data.root_mean
    wide[1, 0] = wide[3, 0] = data.root_var + POINT
    for i in range(num):
        m, p = data.mean[tree.node[i]], data.precision[tree.node[i]]
        spread = 1 + p * wide[1, i]
        here = wide[0, i] + wide[1, i] * p / spread * (m - wide[0, i])
        here_var = wide[1, i] / spread
        first, second = tree.first[i], tree.second[i]
        for child, sibling in ((first, second), (second, first)):
            if child < 0:
                continue
            m, v = here, here_var
            if sibling >= 0:
                p = at_arc[1, sibling]
                spread = 1 + p * v
                m = m + v * p / spread * (at_arc[0, sibling] - m)
                v = v / spread
            wide[2, child], wide[3, child] = m, v
            wide[0, child] = m
            wide[1, child] = v + (var[child] + POINT if var[child] > 0 else 0.0)


@jit
def second_contexts(
    tree: FlatTree, room: Room, law: Law, column: int, data: Data, num_arcs: int, few: int,
    found: Messages, contexts: Contexts, work: Array, places: Array, spare: Array, group: Array,
) -> None:  # fmt: skip
    """Mixtures of at most ``few`` components, from the messages of a rough pass."""
    num_classes = law.var.shape[2]
    here, density = np.empty((3, few)), np.empty((3, work.shape[1]))
    contexts.node[0, 0, 0], contexts.node[0, 1, 0] = 0.0, data.root_mean
    contexts.node[0, 2, 0] = data.root_var + POINT
    contexts.num_node[0] = contexts.num_parent[0] = 1
    contexts.parent[0] = contexts.node[0]
    for i in range(len(tree.node)):
        num_here = contexts.num_node[i]
        m, p = data.mean[tree.node[i]], data.precision[tree.node[i]]
        for d in range(num_here):
            at = contexts.node[i]
            spread = 1 + p * at[2, d]
            here[0, d] = at[0, d] + mass(p, m, at[1, d], at[2, d])
            here[1, d] = at[1, d] + at[2, d] * p / spread * (m - at[1, d])
            here[2, d] = at[2, d] / spread
        first, second = tree.first[i], tree.second[i]
        for child, sibling in ((first, second), (second, first)):
            if child < 0:
                continue
            n = 0
            if sibling < 0:
                copied(here, 0, num_here, density, 0)
                n = num_here
            else:
                start = room.arc[sibling]
                for d in range(num_here):
                    for c in range(start, start + found.num_arc[sibling]):
                        p = found.arc[2, c]
                        spread = 1 + p * here[2, d]
                        gap = found.arc[1, c] - here[1, d]
                        density[0, n] = (
                            here[0, d]
                            + found.arc[0, c]
                            + mass(p, found.arc[1, c], here[1, d], here[2, d])
                        )
                        density[1, n] = here[1, d] + here[2, d] * p / spread * gap
                        density[2, n] = here[2, d] / spread
                        n += 1
            n = shrink_density(density, n, few, num_classes, found.arc, room.arc[child],
                               found.num_arc[child], work, places, spare, group)  # fmt: skip
            copied(density, 0, n, contexts.parent[child], 0)
            contexts.num_parent[child] = n
            row, num = row_of(law, tree.arc[child], num_arcs), 0
            for d in range(n):
                for j in range(num_classes):
                    if law.prob[row, column, j] > 0:
                        var = law.var[row, column, j]
                        density[0, num] = (
                            contexts.parent[child, 0, d] + law.log_prob[row, column, j]
                        )
                        density[1, num] = contexts.parent[child, 1, d] + law.mean[row, column, j]
                        density[2, num] = contexts.parent[child, 2, d] + (
                            var + POINT if var > 0 else 0.0
                        )
                        num += 1
            n = shrink_density(density, num, few, num_classes, found.node, room.node[child],
                               found.num_node[child], work, places, spare, group)  # fmt: skip
            copied(density, 0, n, contexts.node[child], 0)
            contexts.num_node[child] = n
