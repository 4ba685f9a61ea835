"""Messages from the leaves to the root: what all data below say about a node's weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.tree.messages.contexts import contexts_from, paired
from pyro_tbr.tree.messages.folding import FoldedLevel, FoldedTree, fold
from pyro_tbr.tree.messages.inputs import check_inputs, potentials
from pyro_tbr.tree.messages.laws import ArcLaw, LawTable, with_helper
from pyro_tbr.tree.messages.merging import Context
from pyro_tbr.tree.messages.mixtures import Density, Message, concatenate, log_overlap
from pyro_tbr.tree.messages.steps import Blocks, Groups, combine, send
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
    node_groups: tuple[Groups, ...]
    arc: tuple[Blocks, ...]
    arc_groups: tuple[Groups, ...]
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
    arcs, root, batch = check_inputs(tree, eta, lam, law, root_loc, root_scale)
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
        with torch.no_grad():
            widest = arcs.widest()
            rough = _rise(levels, potential, widest, None, contexts, None)
            wide = densities = contexts_from(levels, potential, widest, root, *rough[:2], None)
            for _ in range(sweeps - 1):
                first = min(cap, _ROUGH)
                contexts = paired(wide, densities)
                rough = _rise(levels, potential, arcs, informed, contexts, first)
                densities = contexts_from(
                    levels, potential, arcs, root, *rough[:2], max(1, first // 2)
                )
            del rough
        contexts = paired(wide, densities)
    node, arc, node_groups, arc_groups = _rise(levels, potential, arcs, informed, contexts, cap)
    log_evidence = log_overlap(root, node[0][0])[0, :, 0] + log_peak
    return InsideMessages(
        log_evidence=log_evidence.reshape(batch).to(eta.dtype),
        folded=folded,
        node=tuple(node),
        node_groups=tuple(node_groups),
        arc=tuple(arc),
        arc_groups=tuple(arc_groups),
        informed=informed,
        potential=potential,
        arcs=arcs,
        root=root,
        batch_shape=batch,
    )


def _rise(
    levels: Sequence[FoldedLevel],
    potential: Message,
    arcs: LawTable,
    informed: Sequence[Tensor] | None,
    contexts: Sequence[tuple[Context, Context]],
    cap: int | None,
) -> tuple[list[Blocks], list[Blocks], list[Groups], list[Groups]]:
    """From the leaves to the root: as the first four fields on messages, nodes and arcs first."""
    node: list[Blocks] = []
    arc: list[Blocks] = []
    node_groups: list[Groups] = []
    arc_groups: list[Groups] = []
    for depth in reversed(range(len(levels))):
        level, (at_node, at_parent) = levels[depth], contexts[depth]
        # At the root nothing more is multiplied: all pairs can stay.
        most = cap if depth else None
        below = concatenate(arc[0]) if arc else None
        here, merged = combine(level, potential, below, arcs.num_classes, at_node, most)
        known = None if informed is None else informed[depth]
        sent, merged_arc = send(level, here, arcs, at_parent, cap, known)
        node.insert(0, here)
        arc.insert(0, sent)
        node_groups.insert(0, merged)
        arc_groups.insert(0, merged_arc)
    return node, arc, node_groups, arc_groups


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
