"""From the root to the leaves: as :mod:`~pyro_tbr.tree.messages.outside`, node by node."""

from __future__ import annotations

from math import exp

import numpy as np

from pyro_tbr.jit import jit
from pyro_tbr.tree.messages.compiled.layout import FlatTree, Room
from pyro_tbr.tree.messages.compiled.merging import split
from pyro_tbr.tree.messages.compiled.mixtures import Array, collapse, copied, mass
from pyro_tbr.tree.messages.compiled.parts import Data, Law, Messages, row_of
from pyro_tbr.tree.messages.compiled.rising import cross, pair


@jit
def fall(
    tree: FlatTree, room: Room, law: Law, column: int, data: Data, num_arcs: int, total: float,
    found: Messages, at_node: Array, at_arc: Array, parts: Array, out: Array, group: Array,
    node_moments: Array, changes: Array, work: Array, spare: Array,
) -> None:  # fmt: skip
    """From the root to the leaves: moments of the weights (P, 2), of changes by class (P, 3, J).

    ``at_node`` and ``at_arc`` hold the posterior by component of the messages: weights that sum to
    1, means and variances.
    """
    one = np.empty((3, 1))
    for c in range(found.num_node[0]):
        at = room.node[0] + c
        h, m, p = found.node[0, at], found.node[1, at], found.node[2, at]
        spread = 1 + p * data.root_var
        at_node[0, at] = exp(h + mass(p, m, data.root_mean, data.root_var) - total)
        at_node[1, at] = data.root_mean + data.root_var * p / spread * (m - data.root_mean)
        at_node[2, at] = data.root_var / spread
    for i in range(len(tree.node)):
        if i > 0:
            across(room, law, column, row_of(law, tree.arc[i], num_arcs),
                   tree.arc[i] < num_arcs, i, found, at_node, at_arc, parts, out, group,
                   changes, work, spare)  # fmt: skip
        collapse(at_node, room.node[i], 1, found.num_node[i], one, 0)
        node_moments[i, 0], node_moments[i, 1] = one[1, 0], one[2, 0]
        first, second = tree.first[i], tree.second[i]
        if first < 0:
            continue
        if not found.informed[i]:  # nothing is said: children see the node as it is
            for child in (first, second):
                if child >= 0:
                    copied(one, 0, 1, at_arc, room.arc[child])
            continue
        start, num = room.node[i], found.num_node[i]
        if found.paired[i]:  # an only child's message too, if it has more components than the cap
            m, p = data.mean[tree.node[i]], data.precision[tree.node[i]]
            n = pair(tree, room, i, m, p, found, parts)
            for k in range(n):
                group[k] = found.pairs[room.pairs[i] + k]
            split(at_node, found.node, start, num, parts, n, group, out, work, spare)
        else:
            copied(at_node, start, num, out, 0)
        num_first, num_second = found.num_arc[first], 1
        if second >= 0:
            num_second = found.num_arc[second]
        for a in range(num_first):
            collapse(out, a * num_second, 1, num_second, at_arc, room.arc[first] + a)
        if second >= 0:
            for b in range(num_second):
                collapse(out, b, num_second, num_first, at_arc, room.arc[second] + b)


@jit
def across(
    room: Room, law: Law, column: int, row: int, real: bool, i: int, found: Messages,
    at_node: Array, at_arc: Array, parts: Array, out: Array, group: Array, changes: Array,
    work: Array, spare: Array,
) -> None:  # fmt: skip
    """Through an arc: from the parent's weight by component to the node's own."""
    start, before = room.node[i], room.arc[i]
    num_classes = law.var.shape[2]
    n = found.num_node[i]
    if not real:
        copied(at_arc, before, n, at_node, start)
        for j in range(num_classes):
            changes[i, 0, j] = law.prob[row, column, j]
            changes[i, 1, j] = changes[i, 2, j] = 0.0
        return
    if found.merged[i]:
        num = cross(law, column, row, True, found.node, start, n, parts)
        for k in range(num):
            group[k] = found.crossed[room.crossed[i] + k]
        split(at_arc, found.arc, before, found.num_arc[i], parts, num, group, out, work, spare)
    elif found.informed[i]:
        num = found.num_arc[i]
        copied(at_arc, before, num, out, 0)
    else:  # the prior of the change
        num = 0
        for j in range(num_classes):
            if law.prob[row, column, j] > 0:
                copied(at_arc, before, 1, out, num)
                out[0, num] *= law.prob[row, column, j]
                num += 1
    changes[i] = 0.0
    at = 0
    each = parts  # no longer asked for
    for c in range(n):
        p, seen = found.node[2, start + c], found.node[1, start + c]
        living = 0
        for j in range(num_classes):
            if not law.prob[row, column, j] > 0:
                continue
            mean, var = law.mean[row, column, j], law.var[row, column, j]
            w, m, v = out[0, at], out[1, at], out[2, at]
            keeps = 1 / (1 + p * var)
            shift = mean + (1 - keeps) * (seen - m - mean)
            noise = var * keeps
            changes[i, 0, j] += w
            changes[i, 1, j] += w * shift
            changes[i, 2, j] += w * (shift * shift + (1 - keeps) * (1 - keeps) * v + noise)
            each[0, living], each[1, living] = w, m + shift
            each[2, living] = keeps * keeps * v + noise
            living += 1
            at += 1
        collapse(each, 0, 1, living, at_node, start + c)
    total = 0.0
    for j in range(num_classes):
        total += changes[i, 0, j]
    for j in range(num_classes):
        changes[i, 0, j] /= total
        if not found.informed[i]:
            changes[i, 0, j] = law.prob[row, column, j]
