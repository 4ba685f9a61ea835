"""One level of the inside pass: products of messages at nodes, and their way through the arcs.

The messages of a level come in two blocks, those of nodes with children and those of nodes without,
which have one component: as one block the latter would be filled up to the width of the former.
Work on many nodes goes by runs of them, which bounds the memory of large trees.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_tbr.tree.messages.folding import MANY, FoldedLevel
from pyro_tbr.tree.messages.laws import ClassRows, LawTable
from pyro_tbr.tree.messages.merging import Context, highest_first, shrink
from pyro_tbr.tree.messages.mixtures import (
    DEAD,
    Message,
    blur,
    concatenate,
    leading,
    multiply,
    rows,
    take,
)

Blocks = tuple[Message, ...]
Groups = tuple[Tensor | None, ...]  # what each component was merged into; None: its own

_RUN = 1 << 18  # components at once, over the nodes and the batch
_SMALL = 1 << 15  # fewer pairs than these in a level are no work: one block is faster than several


def through(message: Message, arcs: ClassRows) -> Message:
    """What a message says about the other end of its arc: each component once for every class.

    They are moved and blurred by it, in such an order that what lives stays in front.
    """
    sent = blur(type(message)(*(part.unsqueeze(-1) for part in message)), arcs.var.unsqueeze(-2))
    log_height = sent.log_height + arcs.log_prob.unsqueeze(-2)
    mean = (sent.mean - arcs.mean.unsqueeze(-2)).expand_as(log_height)
    return type(message)(*(part.flatten(-2) for part in (log_height, mean, sent.precision)))


def node_runs(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Runs of the nodes from ``start`` to ``stop``, ``size`` being the components of each."""
    step = max(1, _RUN // max(1, size))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def pair_blocks(
    level: FoldedLevel, own: Message, below: Message, num_classes: int
) -> Iterator[tuple[slice, tuple[int, int], Message]]:
    """Products of two children's messages and the node's own, in blocks of the level's nodes.

    Yields:
        For each block the nodes, the numbers of components taken from both children, and the
        products: the first child's component comes first, the second one's second.
    """
    batch, num = below.mean.shape[1:]
    runs = level.pair_runs
    if len(runs) > 1 and batch * level.num_pairs * num**2 < _SMALL:
        runs = ((slice(0, level.num_pairs), MANY, MANY),)
    for run, first_arcs, second_arcs in runs:
        sizes = min(num, num_classes**first_arcs), min(num, num_classes**second_arcs)
        for start, stop in node_runs(run.start, run.stop, batch * sizes[0] * sizes[1]):
            first, second = (
                leading(take(below, level.children[place + start : place + stop]), size)
                for place, size in zip((0, level.num_pairs), sizes, strict=True)
            )
            left = multiply(rows(own, start, stop), first)
            yield slice(start, stop), sizes, multiply(left, second)


def combine(
    level: FoldedLevel,
    potential: Message,
    below: Message | None,
    num_classes: int,
    context: Context,
    cap: int | None,
) -> tuple[Blocks, Groups]:
    """Messages at the nodes of a level: their own data times what comes through their arcs.

    Returns:
        The messages; for each of ``pair_blocks`` what was merged into what.
    """
    own = take(potential, level.node)
    if below is None:
        return (own,), ()
    pairs, inner = level.num_pairs, level.num_inner
    shrunk = []
    for block, _, product in pair_blocks(level, own, below, num_classes):
        message, group = shrink(product, cap, context.rows(block.start, block.stop), num_classes)
        shrunk.append((message, group if group is None else _narrow(group, message)))
    if len(shrunk) < len(level.pair_runs):  # filled up between, not behind what lives
        for place, (message, group) in enumerate(shrunk):
            if group is None:
                shrunk[place] = highest_first(message, message.mean.shape[-1])
    parts = [message for message, _ in shrunk]
    if level.num_singles:
        parts.append(multiply(rows(own, pairs, inner), take(below, level.children[2 * pairs :])))
    blocks = [concatenate(parts)]
    if len(level.node) > inner:
        blocks.append(rows(own, inner, len(level.node)))
    return tuple(blocks), tuple(group for _, group in shrunk)


def send(
    level: FoldedLevel,
    node: Blocks,
    arcs: LawTable,
    context: Context,
    cap: int | None,
    informed: Tensor | None,
) -> tuple[Blocks, Groups]:
    """Messages of a level as their parents see them, and what was merged into what, by block."""
    blocks, groups, start = [], [], 0
    for message in node:
        stop = start + len(message.mean)
        known = None if informed is None else informed[start:stop]
        group: Tensor | None = None
        if level.has_arcs and start == level.num_inner:  # without children: nothing to merge
            message = through(message, arcs.at(level.arc[start:stop]))
        elif level.has_arcs:
            message, group = _send(level, message, arcs, context, cap)
        message, group = _silenced(message, group, known)
        blocks.append(message)
        groups.append(group)
        start = stop
    return tuple(blocks), tuple(groups)


def _send(
    level: FoldedLevel, message: Message, arcs: LawTable, context: Context, cap: int | None
) -> tuple[Message, Tensor | None]:
    """The messages of nodes with children, which come first in their level."""
    size = message.mean.shape[1] * message.mean.shape[2] * arcs.num_classes
    sent, groups = [], []
    # With no cap the widths of runs would differ.
    runs = [(0, len(message.mean))] if cap is None else node_runs(0, len(message.mean), size)
    for start, stop in runs:
        part = through(rows(message, start, stop), arcs.at(level.arc[start:stop]))
        part, group = shrink(part, cap, context.rows(start, stop), arcs.num_classes)
        if group is None and level.has_helpers:  # nothing changes there: only the first class lives
            part, group = highest_first(part, part.mean.shape[-1])
        sent.append(part)
        if group is not None:
            groups.append(_narrow(group, part))
    return concatenate(sent), torch.cat(groups) if groups else None


def _silenced(
    message: Message, group: Tensor | None, informed: Tensor | None
) -> tuple[Message, Tensor | None]:
    """The constant message, exactly, where there are no data below."""
    if informed is None or bool(informed.all()):
        return message, group
    informed = informed.unsqueeze(-1)
    constant = torch.full_like(message.log_height, DEAD)
    constant[..., 0] = 0.0
    if group is None:
        group = torch.arange(message.mean.shape[-1], device=informed.device)
    message = type(message)(
        torch.where(informed, message.log_height, constant),
        torch.where(informed, message.mean, 0.0),
        torch.where(informed, message.precision, 0.0),
    )
    return message, torch.where(informed, group, 0)


def _narrow(group: Tensor, message: Message) -> Tensor:
    """Places in a message in as few bytes as will do: they are kept for every node."""
    num = message.mean.shape[-1]
    return group.to(torch.uint8 if num <= 1 << 8 else torch.int16 if num < 1 << 15 else torch.int64)
