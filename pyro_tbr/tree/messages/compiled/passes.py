"""Both passes along the tree for one element of the batch after the other, in compiled loops.

The same messages, merging and splitting as :mod:`~pyro_tbr.tree.messages.inside` and
:mod:`~pyro_tbr.tree.messages.outside` have, node by node in place of level by level: small trees
with few components are then no matter of overhead, and deep ones need no step of the interpreter a
level. A message is held as log heights, means and precisions, ``(3, components)``, those of all
places side by side.
"""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

import numpy as np

from pyro_tbr.jit import jit
from pyro_tbr.tree.messages.compiled.layout import FlatTree, Room
from pyro_tbr.tree.messages.compiled.mixtures import (
    Array,
    collapse,
    copied,
    log_sum,
    mass,
    product,
    shrink,
    shrink_density,
    split,
)

_POINT = 1e-12  # variance of a weight that the prior fixes, so that one can divide by it


class Law(NamedTuple):
    """A law of changes as the passes read it: see ``LawTable``."""

    prob: Array
    log_prob: Array
    mean: Array
    var: Array


class Data(NamedTuple):
    """Of one element of the batch: means and precisions of the potentials (V + 1,), root's law."""

    mean: Array
    precision: Array
    root_mean: float
    root_var: float


class Messages(NamedTuple):
    """What the inside pass leaves behind, of one element of the batch.

    Attributes:
        node: Messages at the places, (3, components).
        num_node: Components of each, (P,).
        arc: Those seen from the parents, through the arcs, (3, components).
        num_arc: Components of each, (P,).
        pairs: What each pair of the children's components was merged into.
        paired: Whether any was, (P,).
        crossed: What each component, class by class, was merged into behind the arc.
        merged: Whether any was, (P,).
        informed: Whether data are there or below, (P,).
    """

    node: Array
    num_node: Array
    arc: Array
    num_arc: Array
    pairs: Array
    paired: Array
    crossed: Array
    merged: Array
    informed: Array


class Contexts(NamedTuple):
    """What the rest of the tree may say about a weight, of one element of the batch.

    Attributes:
        wide: Means and variances of one wide Gaussian: at the node, and of its parent's weight,
            (4, P).
        node: Mixtures at the nodes: log weights, means, variances, (P, 3, most).
        num_node: Their components; 0: the wide one, (P,).
        parent: Of the parents' weights, (P, 3, most).
        num_parent: Likewise, (P,).
    """

    wide: Array
    node: Array
    num_node: Array
    parent: Array
    num_parent: Array


@jit
def row_of(law: Law, arc: int, num_arcs: int) -> int:
    """Which row of a law is an arc's: all arcs may share one, the last is the helpers'."""
    if law.var.shape[0] == 2:
        return 1 if arc == num_arcs else 0
    return arc


@jit
def finite(law: Law, column: int, data: Data) -> bool:
    """Whether all numbers of an element of the batch are."""
    total = 0.0 * data.root_mean + 0.0 * data.root_var
    for v in range(len(data.mean)):
        total += 0.0 * data.mean[v] + 0.0 * data.precision[v]
    for row in range(law.var.shape[0]):
        for j in range(law.var.shape[2]):
            total += 0.0 * law.prob[row, column, j] + 0.0 * law.mean[row, column, j]
            total += 0.0 * law.var[row, column, j]
    return total == 0.0


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
    wide[1, 0] = wide[3, 0] = data.root_var + _POINT
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
            wide[1, child] = v + (var[child] + _POINT if var[child] > 0 else 0.0)


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
def second_contexts(
    tree: FlatTree, room: Room, law: Law, column: int, data: Data, num_arcs: int, few: int,
    found: Messages, contexts: Contexts, work: Array, places: Array, spare: Array, group: Array,
) -> None:  # fmt: skip
    """Mixtures of at most ``few`` components, from the messages of a rough pass."""
    num_classes = law.var.shape[2]
    here, density = np.empty((3, few)), np.empty((3, work.shape[1]))
    contexts.node[0, 0, 0], contexts.node[0, 1, 0] = 0.0, data.root_mean
    contexts.node[0, 2, 0] = data.root_var + _POINT
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
                            var + _POINT if var > 0 else 0.0
                        )
                        num += 1
            n = shrink_density(density, num, few, num_classes, found.node, room.node[child],
                               found.num_node[child], work, places, spare, group)  # fmt: skip
            copied(density, 0, n, contexts.node[child], 0)
            contexts.num_node[child] = n


@jit
def log_evidence(room: Room, data: Data, found: Messages, values: Array) -> float:
    """Log integral of the prior times the potentials, at their peaks."""
    for c in range(found.num_node[0]):
        at = room.node[0] + c
        values[c] = found.node[0, at] + mass(
            found.node[2, at], found.node[1, at], data.root_mean, data.root_var
        )
    return log_sum(values, found.num_node[0])


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
        if second < 0:
            copied(at_node, start, num, at_arc, room.arc[first])
            continue
        if found.paired[i]:
            m, p = data.mean[tree.node[i]], data.precision[tree.node[i]]
            n = pair(tree, room, i, m, p, found, parts)
            for k in range(n):
                group[k] = found.pairs[room.pairs[i] + k]
            split(at_node, found.node, start, num, parts, n, group, out, work, spare)
        else:
            copied(at_node, start, num, out, 0)
        num_first, num_second = found.num_arc[first], found.num_arc[second]
        for a in range(num_first):
            collapse(out, a * num_second, 1, num_second, at_arc, room.arc[first] + a)
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
    at, num = 0, 0
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


@jit
def run(
    tree: FlatTree, room: Room, law: Law, mean: Array, precision: Array, root_mean: Array,
    root_var: Array, num_arcs: int, cap: int, rough: int, evidence: Array, node_moments: Array,
    changes: Array,
) -> None:  # fmt: skip
    """The passes of a batch (B): log evidence (B,), moments (B, P, 2), changes (B, P, 3, J).

    With ``rough`` above 0 a first pass of at most so many components tells the last one which of
    them matter. Moments are asked for where there is room for them.
    """
    num, most = len(tree.node), room.most
    few = max(1, rough // 2)
    width = max(most, (few + 1) * (max(rough, cap) + law.var.shape[2]))
    num_node, num_arc = room.node[num], room.arc[num]
    found = Messages(
        np.empty((3, num_node)), np.empty(num, np.int64), np.empty((3, num_arc)),
        np.empty(num, np.int64), np.empty(room.pairs[num], np.int16), np.empty(num, np.bool_),
        np.empty(room.crossed[num], np.int16), np.empty(num, np.bool_), np.empty(num, np.bool_),
    )  # fmt: skip
    places_of_two = num if rough else 1
    contexts = Contexts(
        np.empty((4, num)), np.empty((places_of_two, 3, few)), np.zeros(num, np.int64),
        np.empty((places_of_two, 3, few)), np.zeros(num, np.int64),
    )  # fmt: skip
    work, parts, out = np.empty((10, width)), np.empty((3, width)), np.empty((3, width))
    places, spare, group = (
        np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    )  # fmt: skip
    moments = node_moments.shape[0] > 0
    at_node, at_arc = np.empty((3, num_node if moments else 0)), np.empty((3, num_arc))
    for b in range(mean.shape[0]):
        data = Data(mean[b], precision[b], root_mean[b], root_var[b])
        column = b if law.var.shape[1] > 1 else 0
        wide_contexts(tree, law, column, data, num_arcs, contexts.wide)
        if not finite(law, column, data):
            evidence[b] = np.nan
            if moments:
                node_moments[b] = np.nan
                changes[b] = np.nan
            continue
        contexts.num_node[:] = 0
        contexts.num_parent[:] = 0
        if rough:
            rise(tree, room, law, column, data, num_arcs, rough, contexts, found, work, parts,
                 places, spare, group, False)  # fmt: skip
            second_contexts(tree, room, law, column, data, num_arcs, few, found, contexts, work,
                            places, spare, group)  # fmt: skip
        rise(tree, room, law, column, data, num_arcs, cap, contexts, found, work, parts, places,
             spare, group, moments)  # fmt: skip
        evidence[b] = log_evidence(room, data, found, work[0])
        if moments:
            fall(tree, room, law, column, data, num_arcs, evidence[b], found, at_node, at_arc,
                 parts, out, group, node_moments[b], changes[b], work, spare)  # fmt: skip
