"""Messages from the leaves to the root: what all data below say about a node's weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.progress import beat
from pyro_tbr.tree.messages.contexts import contexts_from
from pyro_tbr.tree.messages.folding import FoldedLevel, FoldedTree, fold
from pyro_tbr.tree.messages.laws import WORK, ArcLaw, LawTable, law_table, with_helper
from pyro_tbr.tree.messages.merging import Context
from pyro_tbr.tree.messages.mixtures import (
    Density,
    Message,
    concatenate,
    joined,
    log_overlap,
    summed,
)
from pyro_tbr.tree.messages.steps import Blocks, Groups, combine, send
from pyro_tbr.tree.tree import Tree

ROUGH = 16  # components where only a context is wanted


@dataclass(frozen=True)
class InsideMessages:
    """What the inside pass leaves behind; float64, nodes first, the batch flattened to ``B``.

    Messages come by level, in blocks: of nodes with children ``(n, B, C)``, then of the others
    ``(n, B, 1)``. ``node`` has those at the nodes, from their data and all below, ``arc`` those
    seen from the parents, through the arcs; the root's is its own. Groups say which component of a
    message each pair of the children's components, or each one of the message before the arc, was
    merged into.
    """

    log_evidence: Tensor  # of prior times potentials, (*B,), dtype of the input, differentiable
    folded: FoldedTree  # the levels of the tree, as far as there are data
    node: tuple[Blocks, ...]
    node_groups: tuple[Groups, ...]
    arc: tuple[Blocks, ...]
    arc_groups: tuple[Groups, ...]
    informed: tuple[Tensor, ...] | None  # are data at a node or below, (n, B); None: everywhere
    potential: Message  # of the data at each node, (V + 1, B, 1); the last for helpers
    arcs: LawTable
    root: Density  # prior of the root's weight, (1, B, 1)
    batch_shape: torch.Size  # *B


def inside_pass(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    law: ArcLaw,
    root_loc: Tensor | float,
    root_scale: Tensor | float,
    num_components: int | None = 32,
    sweeps: int = 1,
    members: int = 1,
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
        members: So many neighbours in the batch, flattened, have the same classes of changes on
            every arc: a gate for all, a change for each. Their law has the same probabilities; log
            evidence is that of all together, at each of them.

    Raises:
        ShapeError: Arguments do not fit the tree or each other.
    """
    arcs, root, batch = check_inputs(tree, eta, lam, law, root_loc, root_scale)
    return run_inside(tree, eta, lam, arcs, root, batch, num_components, sweeps, members)


def check_inputs(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    law: ArcLaw,
    root_loc: Tensor | float,
    root_scale: Tensor | float,
) -> tuple[LawTable, Density, torch.Size]:
    """The law, the prior of the root's weight ``(1, B, 1)`` and ``*B``, if all fits the tree.

    Raises:
        ShapeError: It does not.
    """
    if eta.shape != lam.shape or eta.dim() < 1 or eta.shape[-1] != tree.num_nodes:
        raise ShapeError(
            f"eta, lam: expected (*B, {tree.num_nodes}) each, a potential for every node of "
            f"{tree!r}; received {tuple(eta.shape)} and {tuple(lam.shape)}"
        )
    batch = eta.shape[:-1]
    arcs = law_table(law, tree, batch, eta.device)
    parts = []
    for name, value in (("root_loc", root_loc), ("root_scale", root_scale)):
        value = torch.as_tensor(value, dtype=WORK, device=eta.device)
        try:
            parts.append(value.expand(batch).reshape(1, -1, 1))
        except RuntimeError as error:
            raise ShapeError(
                f"{name}: expected a number or (*B) = {tuple(batch)}, received {tuple(value.shape)}"
            ) from error
    return arcs, Density(torch.zeros_like(parts[1]), parts[0], parts[1].square()), batch


def potentials(eta: Tensor, lam: Tensor) -> tuple[Message, Tensor, Tensor]:
    """Messages of the data at every node and the helpers; where there are data; their height."""
    eta, lam = (part.to(WORK).reshape(-1, part.shape[-1]).T for part in (eta, lam))  # (V, B)
    has_data = lam > 0
    mean = torch.where(has_data, eta / torch.where(has_data, lam, 1.0), 0.0)
    lam = torch.where(has_data, lam, 0.0)
    message = Message(
        *(with_helper(p, 0.0).unsqueeze(-1) for p in (torch.zeros_like(lam), mean, lam))
    )
    return message, has_data, 0.5 * (lam * mean.square()).sum(0)


def run_inside(
    tree: Tree,
    eta: Tensor,
    lam: Tensor,
    arcs: LawTable,
    root: Density,
    batch: torch.Size,
    cap: int | None,
    sweeps: int,
    members: int = 1,
) -> InsideMessages:
    """The inside pass, when all arguments are known to fit."""
    potential, has_data, log_peak = potentials(eta, lam)
    if members > 1:
        potential, root = joined(Message, members)(*potential), joined(Density, members)(*root)
        log_peak = summed(potential, log_peak, 0)
        has_data = summed(potential, has_data.double()) > 0
    folded = fold(tree, has_data.any(1))
    levels = folded.levels
    informed = _informed(levels, has_data)
    contexts = [(Context(root, root), Context(root, root))] * len(levels)
    if cap is not None and arcs.num_classes > 1:
        with torch.no_grad():
            widest = arcs.widest()
            rough = _rise(levels, potential, widest, None, contexts, None)
            wide = contexts = contexts_from(levels, potential, widest, root, *rough[:2], None)
            for _ in range(sweeps - 1):
                first = min(cap, ROUGH)
                rough = _rise(levels, potential, arcs, informed, contexts, first)
                few = max(1, first // 2)
                contexts = contexts_from(levels, potential, arcs, root, *rough[:2], few, wide)
            del rough
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
        beat()
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
