"""From the leaves to the root: as :mod:`~pyro_tbr.tree.messages.inside`, node by node."""

from __future__ import annotations

from math import log

from pyro_tbr.jit import jit
from pyro_tbr.tree.messages.compiled.layout import FlatTree, Room
from pyro_tbr.tree.messages.compiled.merging import shrink
from pyro_tbr.tree.messages.compiled.mixtures import Array, copied, log_sum, mass, product
from pyro_tbr.tree.messages.compiled.parts import Contexts, Data, Law, Messages, row_of


@jit
def rise(
    tree: FlatTree, room: Room, law: Law, column: int, data: Data, num_arcs: int, cap: int,
    contexts: Contexts, found: Messages, work: Array, parts: Array, places: Array, spare: Array,
    group: Array, keep: bool,
) -> None:  # fmt: skip
    """From the leaves to the root: messages at all places, by the cap and contexts given.

    What was merged into what is kept only where that is asked for.
    """
    num_classes, last = law.var.shape[2], len(contexts.node) - 1
    for i in range(len(tree.node) - 1, -1, -1):
        first, second, start = tree.first[i], tree.second[i], room.node[i]
        m, p = data.mean[tree.node[i]], data.precision[tree.node[i]]
        found.informed[i] = p > 0
        found.paired[i] = found.merged[i] = False
        if first >= 0:
            found.informed[i] |= found.informed[first]
        if second >= 0:
            found.informed[i] |= found.informed[second]
        if not found.informed[i]:
            for message, at in ((found.node, start), (found.arc, room.arc[i])):
                message[0, at] = message[1, at] = message[2, at] = 0.0
            found.num_node[i] = found.num_arc[i] = 1
            continue
        n = pair(tree, room, i, m, p, found, parts)
        if i > 0 and n > cap:
            shrink(parts, n, cap, num_classes, contexts.wide[0, i], contexts.wide[1, i],
                   contexts.node[min(i, last)], contexts.num_node[i], found.node, start, group,
                   work, places, spare)  # fmt: skip
            if keep:
                for k in range(n):
                    found.pairs[room.pairs[i] + k] = group[k]
            found.paired[i] = True
            n = cap
        else:
            copied(parts, 0, n, found.node, start)
        found.num_node[i] = n
        if i == 0:
            break
        start = room.arc[i]
        n = cross(law, column, row_of(law, tree.arc[i], num_arcs), tree.arc[i] < num_arcs,
                  found.node, room.node[i], n, parts)  # fmt: skip
        if n > cap and first >= 0:
            shrink(parts, n, cap, num_classes, contexts.wide[2, i], contexts.wide[3, i],
                   contexts.parent[min(i, last)], contexts.num_parent[i], found.arc, start, group,
                   work, places, spare)  # fmt: skip
            if keep:
                for k in range(n):
                    found.crossed[room.crossed[i] + k] = group[k]
            found.merged[i] = True
            n = cap
        else:
            copied(parts, 0, n, found.arc, start)
        found.num_arc[i] = n


@jit
def pair(
    tree: FlatTree, room: Room, i: int, mean: float, precision: float, found: Messages, parts: Array
) -> int:
    """Products of a node's potential and what comes through its children's arcs; their number."""
    first, second = tree.first[i], tree.second[i]
    if first < 0:
        parts[0, 0], parts[1, 0], parts[2, 0] = 0.0, mean, precision
        return 1
    n, one, two = 0, room.arc[first], room.arc[second]
    for a in range(one, one + found.num_arc[first]):
        h, m, p = product(0.0, mean, precision, found.arc[0, a], found.arc[1, a], found.arc[2, a])
        if second < 0:
            parts[0, n], parts[1, n], parts[2, n] = h, m, p
            n += 1
            continue
        for b in range(two, two + found.num_arc[second]):
            parts[0, n], parts[1, n], parts[2, n] = product(
                h, m, p, found.arc[0, b], found.arc[1, b], found.arc[2, b]
            )
            n += 1
    return n


@jit
def cross(
    law: Law, column: int, row: int, real: bool, message: Array, start: int, n: int, parts: Array
) -> int:
    """A message through its arc: each component once for every class that is possible."""
    if not real:
        copied(message, start, n, parts, 0)
        return n
    at = 0
    for c in range(start, start + n):
        for j in range(law.var.shape[2]):
            if law.prob[row, column, j] > 0:
                spread = 1 + message[2, c] * law.var[row, column, j]
                parts[0, at] = message[0, c] - 0.5 * log(spread) + law.log_prob[row, column, j]
                parts[1, at] = message[1, c] - law.mean[row, column, j]
                parts[2, at] = message[2, c] / spread
                at += 1
    return at


@jit
def log_evidence(room: Room, data: Data, found: Messages, values: Array) -> float:
    """Log integral of the prior times the potentials, at their peaks."""
    for c in range(found.num_node[0]):
        at = room.node[0] + c
        values[c] = found.node[0, at] + mass(
            found.node[2, at], found.node[1, at], data.root_mean, data.root_var
        )
    return log_sum(values, found.num_node[0])
