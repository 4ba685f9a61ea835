"""Messages from the leaves to the root: what all data below say about a node's weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.tree.messages.contexts import gaussian_contexts, mixture_contexts, paired
from pyro_tbr.tree.messages.folding import MANY, FoldedLevel, fold
from pyro_tbr.tree.messages.inputs import batch_shape, potentials, root_prior
from pyro_tbr.tree.messages.laws import ArcLaw, ClassRows, LawTable, law_table, with_helper
from pyro_tbr.tree.messages.merging import Context, highest_first, shrink
from pyro_tbr.tree.messages.mixtures import (
    DEAD,
    Density,
    Message,
    blur,
    concatenate,
    leading,
    log_overlap,
    multiply,
    rows,
    take,
)
from pyro_tbr.tree.tree import Tree

_ROUGH = 16  # components where only a context is wanted
_BLOCK = 1 << 21  # pairs of components at once: bounds the memory of large trees
_SMALL = 1 << 15  # fewer pairs than these in a level are no work: one block is faster than several


@dataclass(frozen=True)
class InsideMessages:
    """What the inside pass leaves behind; float64, nodes first, the batch flattened to ``B``.

    Attributes:
        log_evidence: Log integral of prior times potentials, ``(*B,)``, in the dtype of the input
            and differentiable.
        node: For each folded level, messages at its nodes, from their data and all below,
            ``(n, B, C)``.
        node_groups: For each level's nodes with two children, in blocks: which component of
            ``node`` each pair of their children's components was merged into; None: its own.
        arc: For each folded level, messages of its nodes seen from their parents, through the
            arcs; the root's is its own.
        arc_groups: The same for components of ``arc``; None: each is its own.
        informed: For each folded level, whether there are data at the node or below, ``(n, B)``.
        potential: Messages of the data at each node, ``(V + 1, B, 1)``; the last for helpers.
        arcs: The law of the changes.
        root: Prior of the root's weight, ``(1, B, 1)``.
        batch_shape: ``*B``.
    """

    log_evidence: Tensor
    node: tuple[Message, ...]
    node_groups: tuple[tuple[Tensor | None, ...], ...]
    arc: tuple[Message, ...]
    arc_groups: tuple[Tensor | None, ...]
    informed: tuple[Tensor, ...]
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
    batch, cap = batch_shape(tree, eta, lam), num_components
    arcs = law_table(law, tree, batch, eta.device)
    root = root_prior(root_loc, root_scale, batch, eta.device)
    levels = fold(tree, eta.device).levels
    potential, has_data, log_peak = potentials(eta, lam)
    informed = _informed(levels, has_data)
    contexts = [(Context(root, root), Context(root, root))] * len(levels)
    if cap is not None and arcs.num_classes > 1:
        wide = gaussian_contexts(levels, potential, arcs, root)
        contexts = paired(wide, wide)
        for _ in range(sweeps - 1):
            with torch.no_grad():
                first = min(cap, _ROUGH)
                node, _, arc, _ = _rise(levels, potential, arcs, informed, contexts, first)
            dens = mixture_contexts(levels, potential, arcs, root, node, arc, max(1, first // 2))
            contexts = paired(wide, dens)
    node, node_groups, arc, arc_groups = _rise(levels, potential, arcs, informed, contexts, cap)
    log_evidence = log_overlap(root, node[0])[0, :, 0] + log_peak
    return InsideMessages(
        log_evidence=log_evidence.reshape(batch).to(eta.dtype),
        node=node,
        node_groups=node_groups,
        arc=arc,
        arc_groups=arc_groups,
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
    informed: Sequence[Tensor],
    contexts: Sequence[tuple[Context, Context]],
    cap: int | None,
) -> tuple[
    tuple[Message, ...],
    tuple[tuple[Tensor | None, ...], ...],
    tuple[Message, ...],
    tuple[Tensor | None, ...],
]:
    """Messages at the nodes and beyond their arcs, root first, and what was merged into what."""
    node: list[Message] = []
    node_groups: list[tuple[Tensor | None, ...]] = []
    arc: list[Message] = []
    arc_groups: list[Tensor | None] = []
    for depth in reversed(range(len(levels))):
        level, (at_node, at_parent) = levels[depth], contexts[depth]
        # At the root nothing more is multiplied: all pairs can stay.
        most = cap if depth else None
        below = arc[-1] if arc else None
        message, groups = _combine(level, potential, below, arcs.num_classes, at_node, most)
        node.append(message)
        node_groups.append(groups)
        message, group = _send(level, message, arcs, at_parent, cap)
        message, group = _silenced(message, group, informed[depth])
        arc.append(message)
        arc_groups.append(group)
    return tuple(node[::-1]), tuple(node_groups[::-1]), tuple(arc[::-1]), tuple(arc_groups[::-1])


def through(message: Message, arcs: ClassRows) -> Message:
    """What a message says about the other end of its arc.

    Each component comes once for every class, moved and blurred by it, so that what lives stays in
    front.
    """
    sent = blur(Message(*(part.unsqueeze(-1) for part in message)), arcs.var.unsqueeze(-2))
    log_height = sent.log_height + arcs.log_prob.unsqueeze(-2)
    mean = (sent.mean - arcs.mean.unsqueeze(-2)).expand_as(log_height)
    return Message(*(part.flatten(-2) for part in (log_height, mean, sent.precision)))


def pair_blocks(
    level: FoldedLevel, own: Message, below: Message, num_classes: int
) -> list[tuple[slice, tuple[int, int], Message]]:
    """Products of two children's messages and the node's own, in blocks of the level's nodes.

    A message has a component for each pattern of classes on the arcs behind it, at most.

    Returns:
        For each block the nodes, the numbers of components taken from both children, and the
        products: the first child's component comes first, the second one's second.
    """
    batch, num = below.mean.shape[1:]
    blocks = []
    runs = level.pair_runs
    if len(runs) > 1 and batch * level.num_pairs * num**2 < _SMALL:
        runs = ((slice(0, level.num_pairs), MANY, MANY),)
    for run, first_arcs, second_arcs in runs:
        sizes = min(num, num_classes**first_arcs), min(num, num_classes**second_arcs)
        step = max(1, _BLOCK // (batch * sizes[0] * sizes[1]))
        for start in range(run.start, run.stop, step):
            block = slice(start, min(start + step, run.stop))
            first, second = (
                leading(take(below, level.children[place + block.start : place + block.stop]), size)
                for place, size in zip((0, level.num_pairs), sizes, strict=True)
            )
            left = multiply(rows(own, block.start, block.stop), first)
            blocks.append((block, sizes, multiply(left, second)))
    return blocks


def _combine(
    level: FoldedLevel,
    potential: Message,
    below: Message | None,
    num_classes: int,
    context: Context,
    cap: int | None,
) -> tuple[Message, tuple[Tensor | None, ...]]:
    """Messages at the nodes of a level: their own data times what comes through their arcs."""
    own = take(potential, level.node)
    if below is None:
        return own, ()
    pairs, end = level.num_pairs, level.num_pairs + level.num_singles
    blocks = pair_blocks(level, own, below, num_classes)
    shrunk = [
        shrink(product, cap, context.rows(block.start, block.stop), num_classes)
        for block, _, product in blocks
    ]
    if len(blocks) < len(level.pair_runs):  # filled up between, not behind what lives
        shrunk = [
            (message, group)
            if group is not None
            else highest_first(message, message.mean.shape[-1])
            for message, group in shrunk
        ]
    parts = [message for message, _ in shrunk]
    if level.num_singles:
        parts.append(multiply(rows(own, pairs, end), take(below, level.children[2 * pairs :])))
    if len(level.node) > end:
        parts.append(rows(own, end, len(level.node)))
    return concatenate(parts), tuple(group for _, group in shrunk)


def _send(
    level: FoldedLevel, message: Message, arcs: LawTable, context: Context, cap: int | None
) -> tuple[Message, Tensor | None]:
    """Messages of a level as their parents see them, and what was merged into what."""
    if not level.has_arcs:
        return message, None
    law, inner = arcs.at(level.arc), level.num_pairs + level.num_singles
    if level.has_helpers:  # nothing changes there: only the first class lives
        sent, group = shrink(through(message, law), cap, context, arcs.num_classes)
        return (sent, group) if group is not None else highest_first(sent, sent.mean.shape[-1])
    if cap is None or inner in (0, len(level.node)):
        return shrink(through(message, law), cap, context, arcs.num_classes)
    # Leaves have one component: merging theirs with the padding of the others costs time.
    sent, group = shrink(
        through(rows(message, 0, inner), rows(law, 0, inner)),
        cap,
        context.rows(0, inner),
        arcs.num_classes,
    )
    leaves = through(
        leading(rows(message, inner, len(level.node)), 1), rows(law, inner, len(level.node))
    )
    if group is not None:
        own = torch.arange(group.shape[-1], device=group.device).clamp(
            max=max(cap, arcs.num_classes) - 1
        )
        group = torch.cat([group, own.expand(len(level.node) - inner, *group.shape[1:])])
    return concatenate([sent, leaves]), group


def _silenced(
    message: Message, group: Tensor | None, informed: Tensor
) -> tuple[Message, Tensor | None]:
    """The constant message, exactly, where there are no data below."""
    if bool(informed.all()):
        return message, group
    informed = informed.unsqueeze(-1)
    constant = torch.full_like(message.log_height, DEAD)
    constant[..., 0] = 0.0
    if group is None:
        group = torch.arange(message.mean.shape[-1], device=informed.device)
    message = Message(
        torch.where(informed, message.log_height, constant),
        torch.where(informed, message.mean, 0.0),
        torch.where(informed, message.precision, 0.0),
    )
    return message, torch.where(informed, group, 0)


def _informed(levels: Sequence[FoldedLevel], has_data: Tensor) -> tuple[Tensor, ...]:
    """For each level, whether a node or one below has data, ``(n, B)``."""
    has_data = with_helper(has_data, False)
    informed: list[Tensor] = []
    for level in reversed(levels):
        here = has_data[level.node]
        if informed:
            sizes = [level.num_pairs, level.num_pairs, level.num_singles]
            first, second, only = informed[-1][level.children].split(sizes)
            here = here | torch.cat([first | second, only, here[len(first) + len(only) :]])
        informed.append(here)
    return tuple(reversed(informed))
