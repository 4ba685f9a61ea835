"""Messages from the leaves to the root: what all data below say about a node's weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.tree.messages.contexts import gaussian_contexts, mixture_contexts, paired
from pyro_tbr.tree.messages.folding import FoldedLevel, FoldedTree, fold
from pyro_tbr.tree.messages.inputs import batch_shape, potentials, root_prior
from pyro_tbr.tree.messages.laws import ArcLaw, LawTable, law_table, with_helper
from pyro_tbr.tree.messages.merging import Context
from pyro_tbr.tree.messages.mixtures import Density, Message, concatenate, log_overlap
from pyro_tbr.tree.messages.steps import Blocks, combine, send
from pyro_tbr.tree.tree import Tree

_ROUGH = 16  # components where only a context is wanted


@dataclass(frozen=True)
class InsideMessages:
    """What the inside pass leaves behind; float64, nodes first, the batch flattened to ``B``.

    Attributes:
        log_evidence: Log integral of prior times potentials, ``(*B,)``, in the dtype of the input
            and differentiable.
        folded: The levels of the tree, as far as there are data.
        node: For each level, messages at its nodes, from their data and all below: those of the
            nodes with children, ``(n, B, C)``, then those of the others, ``(n, B, 1)``.
        node_groups: For each level's nodes with two children, in blocks: which component of
            ``node`` each pair of their children's components was merged into; None: its own.
        arc: For each level, messages of its nodes seen from their parents, through the arcs,
            likewise; the root's is its own.
        arc_groups: Which component of ``arc`` each of the message before was merged into,
            likewise; None: each is its own.
        informed: For each level, whether there are data at the node or below, ``(n, B)``; None
            where that is so everywhere.
        potential: Messages of the data at each node, ``(V + 1, B, 1)``; the last for helpers.
        arcs: The law of the changes.
        root: Prior of the root's weight, ``(1, B, 1)``.
        batch_shape: ``*B``.
    """

    log_evidence: Tensor
    folded: FoldedTree
    node: tuple[Blocks, ...]
    node_groups: tuple[tuple[Tensor | None, ...], ...]
    arc: tuple[Blocks, ...]
    arc_groups: tuple[tuple[Tensor | None, ...], ...]
    informed: tuple[Tensor, ...] | None
    potential: Message
    arcs: LawTable
    root: Density
    batch_shape: torch.Size


def inside_pass(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    law: ArcLaw,
    root_loc: Tensor | float,
    root_scale: Tensor | float,
    num_components: int | None = 32,
    sweeps: int = 1,
) -> InsideMessages:
    r"""Messages from the leaves to the root.

    The log evidence is differentiable in the potentials, the law and the root's prior. Where
    ``lam`` is zero, the gradients in ``eta`` and ``lam`` are zero: no data, nothing to learn.

    Args:
        tree: The environments.
        eta: Linear terms of the potentials :math:`\exp(\eta u - \lambda u^2 / 2)`, ``(*B, V)``:
            estimate over squared standard error. Ignored where ``lam`` is zero.
        lam: Precisions of the potentials, zero where a node has no data, ``(*B, V)``.
        law: Of the changes along the arcs, for this batch or what broadcasts to it.
        root_loc: Prior mean of the root's weight, broadcastable to ``(*B,)``.
        root_scale: Prior standard deviation of the root's weight, broadcastable to ``(*B,)``.
        num_components: Cap on the components of a message; None is exact, and has a component for
            each of the J ** A patterns of classes: up to about 12 arcs with gates.
        sweeps: With 2 the first, rough pass up and down tells the second which components matter.
            It takes three times as long (five on 20,000 arcs); worth it on trees of more than 20
            arcs when the answer is for reading.

    Raises:
        ShapeError: Arguments do not fit the tree or each other.
    """
    batch = batch_shape(tree, eta, lam)
    arcs = law_table(law, tree, batch, eta.device)
    root = root_prior(root_loc, root_scale, batch, eta.device)
    return run_inside(tree, eta, lam, arcs, root, batch, num_components, sweeps)


def run_inside(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    arcs: LawTable,
    root: Density,
    batch: torch.Size,
    cap: int | None,
    sweeps: int,
) -> InsideMessages:
    """The inside pass, when all arguments are known to fit."""
    potential, has_data, log_peak = potentials(eta, lam)
    folded = fold(tree, has_data.any(1))
    levels = folded.levels
    informed = _informed(levels, has_data)
    contexts = [(Context(root, root), Context(root, root))] * len(levels)
    if cap is not None and arcs.num_classes > 1:
        wide = gaussian_contexts(levels, potential, arcs, root)
        contexts = paired(wide, wide)
        for _ in range(sweeps - 1):
            with torch.no_grad():
                first = min(cap, _ROUGH)
                rough = _rise(levels, potential, arcs, informed, contexts, first, keep=False)
            node, arc = ([concatenate(m) for m in part] for part in (rough.node, rough.arc))
            dens = mixture_contexts(levels, potential, arcs, root, node, arc, max(1, first // 2))
            contexts = paired(wide, dens)
            del rough, node, arc
    risen = _rise(levels, potential, arcs, informed, contexts, cap)
    log_evidence = log_overlap(root, risen.node[0][0])[0, :, 0] + log_peak
    return InsideMessages(
        log_evidence=log_evidence.reshape(batch).to(eta.dtype),
        folded=folded,
        node=tuple(risen.node),
        node_groups=tuple(risen.node_groups),
        arc=tuple(risen.arc),
        arc_groups=tuple(risen.arc_groups),
        informed=informed,
        potential=potential,
        arcs=arcs,
        root=root,
        batch_shape=batch,
    )


class _Risen(NamedTuple):
    """Messages at the nodes and beyond their arcs, root first, and what was merged into what."""

    node: list[Blocks]
    node_groups: list[tuple[Tensor | None, ...]]
    arc: list[Blocks]
    arc_groups: list[tuple[Tensor | None, ...]]


def _rise(
    levels: Sequence[FoldedLevel],
    potential: Message,
    arcs: LawTable,
    informed: Sequence[Tensor] | None,
    contexts: Sequence[tuple[Context, Context]],
    cap: int | None,
    keep: bool = True,
) -> _Risen:
    """From the leaves to the root; what was merged into what is kept only if asked for."""
    risen = _Risen([], [], [], [])
    for depth in reversed(range(len(levels))):
        level, (at_node, at_parent) = levels[depth], contexts[depth]
        # At the root nothing more is multiplied: all pairs can stay.
        most = cap if depth else None
        below = concatenate(risen.arc[-1]) if risen.arc else None
        node, groups = combine(level, potential, below, arcs.num_classes, at_node, most)
        arc, group = send(
            level, node, arcs, at_parent, cap, None if informed is None else informed[depth]
        )
        risen.node.append(node)
        risen.arc.append(arc)
        risen.node_groups.append(groups if keep else ())
        risen.arc_groups.append(group if keep else ())
    for part in risen:
        part.reverse()
    return risen


def _informed(levels: Sequence[FoldedLevel], has_data: Tensor) -> tuple[Tensor, ...] | None:
    """For each level, whether a node or one below has data, ``(n, B)``; None: all do."""
    has_data = with_helper(has_data, False)
    informed: list[Tensor] = []
    for level in reversed(levels):
        here = has_data[level.node]
        if informed:
            sizes = [level.num_pairs, level.num_pairs, level.num_singles]
            first, second, only = informed[-1][level.children].split(sizes)
            here = here | torch.cat([first | second, only, here[len(first) + len(only) :]])
        informed.append(here)
    return None if bool(torch.cat(informed).all()) else tuple(reversed(informed))
