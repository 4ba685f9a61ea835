"""Both passes along the tree for one element of the batch after the other, in compiled loops.

The same messages, merging and splitting as :mod:`~pyro_tbr.tree.messages.inside` and
:mod:`~pyro_tbr.tree.messages.outside` have, node by node in place of level by level: small trees
with few components are then no matter of overhead, and deep ones need no step of the interpreter a
level. A message is held as log heights, means and precisions, ``(3, components)``, those of all
places side by side.
"""

from __future__ import annotations

import numpy as np

from pyro_tbr.jit import jit
from pyro_tbr.tree.messages.compiled.contexts import second_contexts, wide_contexts
from pyro_tbr.tree.messages.compiled.falling import fall
from pyro_tbr.tree.messages.compiled.layout import FlatTree, Room
from pyro_tbr.tree.messages.compiled.mixtures import Array
from pyro_tbr.tree.messages.compiled.parts import Contexts, Data, Law, Messages, finite
from pyro_tbr.tree.messages.compiled.rising import log_evidence, rise


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
