"""Messages from the root to the leaves: the posterior by component, and its moments on the way.

At each node the posterior is held by component of its inside message: the probability that the
component holds and the moments of the weight if it does. So every answer refers to the same
components as the log evidence does, and probabilities are split among them, never estimated anew:
that is closer to enumeration than outside messages that are mixtures of their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.progress import beat
from pyro_tbr.tree.messages.folding import FoldedLevel, FoldedTree
from pyro_tbr.tree.messages.inside import InsideMessages
from pyro_tbr.tree.messages.laws import ClassRows, LawTable
from pyro_tbr.tree.messages.merging import split
from pyro_tbr.tree.messages.mixtures import (
    Density,
    Message,
    absorb,
    collapse,
    concatenate,
    leading,
    rows,
    take,
)
from pyro_tbr.tree.messages.steps import node_runs, pair_blocks, through
from pyro_tbr.tree.path_sum import path_sum
from pyro_tbr.tree.tree import Tree

Changes = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class TreePosterior:
    """Posterior moments along the tree; numbers are in the unit of the weights, or that squared."""

    log_evidence: Tensor  # log integral of prior times potentials, (*B,)
    pips: Tensor | None  # probability that the arc's gate is on, (*B, A); None without gates
    node_mean: Tensor  # mean of the node weights, (*B, V)
    node_var: Tensor  # their variance, (*B, V)
    delta_mean: Tensor  # mean of the change along each arc, zeros included, (*B, A)
    delta_second: Tensor  # mean of the squared change, (*B, A)
    class_prob: Tensor  # probability of each class of changes, (*B, A, J)
    class_mean: Tensor  # mean of change times indicator of class, likewise; sums to delta_mean
    class_second: Tensor  # the same of the squared change; sums to delta_second


def outside_pass(tree: Tree, inside: InsideMessages) -> TreePosterior:
    """Moments of every node and arc, from the root to the leaves."""
    folded = inside.folded
    posterior = absorb(inside.root, inside.node[0][0])
    posterior = posterior._replace(log_weight=posterior.log_weight.log_softmax(-1))
    at_nodes = [collapse(posterior, -1)[1:]]
    at_arcs: list[Changes] = []
    for depth, level in enumerate(folded.levels[1:], start=1):
        at_parent = _descend(inside, folded.levels[depth - 1], depth, posterior)
        at_parent, start = take(at_parent, level.slot), 0
        for block, message in enumerate(inside.node[depth]):
            stop = start + len(message.mean)
            crossed, change = _cross(inside, depth, block, start, rows(at_parent, start, stop))
            at_nodes.append(collapse(crossed, -1)[1:])
            at_arcs.append(change)
            posterior = crossed if not block else posterior  # of the nodes with children
            start = stop
        beat()
    node_moments = tuple(torch.cat(parts) for parts in zip(*at_nodes, strict=True))
    changes = tuple(torch.cat(parts) for parts in zip(*at_arcs, strict=True))
    where = (tree, folded, inside.arcs, inside.batch_shape)
    return as_posterior(*where, inside.log_evidence, node_moments, changes)


def as_posterior(
    tree: Tree,
    folded: FoldedTree,
    arcs: LawTable,
    batch: torch.Size,
    log_evidence: Tensor,
    node_moments: tuple[Tensor, ...],
    changes: tuple[Tensor, ...],
) -> TreePosterior:
    """The moments in the tree's order and the caller's batch.

    Args:
        tree: The environments.
        folded: Its levels.
        arcs: The law of changes.
        batch: Of the caller, *B.
        log_evidence: (*B,), in the dtype of the result.
        node_moments: Means and variances at the nodes of the levels laid end to end, (P, B) each.
        changes: Probabilities, means and mean squares by class, along the arcs to the nodes of all
            levels but the root's, (P - 1, B, J) each.
    """
    order = folded.node_order  # from blocks of levels laid end to end to that of the tree
    nodes = [part[order] for part in node_moments]
    by_class = [part[order[1:] - 1] for part in changes]
    if not folded.is_whole:
        nodes, by_class = _completed(tree, folded, arcs, nodes, by_class)

    def shaped(values: Tensor) -> Tensor:
        values = values.movedim(0, 1)  # (B, V or A, ...)
        return values.reshape(*batch, *values.shape[1:]).to(log_evidence.dtype)

    node_mean, node_var = map(shaped, nodes)
    class_prob, class_mean, class_second = map(shaped, by_class)
    return TreePosterior(
        log_evidence=log_evidence,
        pips=class_prob[..., 1:].sum(-1) if arcs.gated else None,
        node_mean=node_mean,
        node_var=node_var,
        delta_mean=class_mean.sum(-1),
        delta_second=class_second.sum(-1),
        class_prob=class_prob,
        class_mean=class_mean,
        class_second=class_second,
    )


def _completed(
    tree: Tree, folded: FoldedTree, arcs: LawTable, nodes: list[Tensor], changes: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Moments of the whole tree: where no data are below, changes have their prior.

    So a weight there is that of the nearest node with data at or below, plus independent changes.
    """
    place = folded.nodes[1:] - 1
    law = arcs.at(torch.arange(tree.num_arcs, device=place.device))
    prior = (law.prob, law.prob * law.mean, law.prob * (law.mean.square() + law.var))
    changes = [old.index_copy(0, place, new) for old, new in zip(prior, changes, strict=True)]
    mean, second = (part.sum(-1) for part in prior[1:])
    steps = torch.stack([mean, second - mean.square()]).index_fill(1, place, 0.0).movedim(1, -1)
    added = path_sum(tree, torch.zeros_like(steps[..., 0]), steps, event_dim=0).movedim(-1, 1)
    return [part[folded.anchor] + more for part, more in zip(nodes, added, strict=True)], changes


def _descend(inside: InsideMessages, above: FoldedLevel, depth: int, posterior: Density) -> Density:
    """From components at the nodes of a level to those of their children's arcs.

    Returns:
        The parent's weight by component of each child's arc, in the order of ``above.children``.
    """
    below, message = concatenate(inside.arc[depth]), inside.node[depth - 1][0]
    own = take(inside.potential, above.node)
    left, right = [], []
    for (block, sizes, product), group in zip(
        pair_blocks(above, own, below, inside.arcs.num_classes),
        inside.node_groups[depth - 1],
        strict=True,
    ):
        place = (block.start, block.stop)
        pairs = split(rows(posterior, *place), rows(message, *place), product, group)
        pairs = type(pairs)(*(part.unflatten(-1, sizes) for part in pairs))
        left.append(collapse(pairs, -1))
        right.append(collapse(pairs, -2))
    if above.num_singles:
        singles = rows(posterior, above.num_pairs, above.num_inner)
        right.append(leading(singles, below.mean.shape[-1]))
    return concatenate(left + right, below.mean.shape[-1])


def _cross(
    inside: InsideMessages, depth: int, block: int, start: int, at_parent: Density
) -> tuple[Density, Changes]:
    """Through the arcs of a block: from the parents' weights to the nodes' own, run by run."""
    node, arc = inside.node[depth][block], inside.arc[depth][block]
    level, group = inside.folded.levels[depth], inside.arc_groups[depth][block]
    at_parent = leading(at_parent, arc.mean.shape[-1])
    if not level.has_arcs:
        prob = inside.arcs.at(level.arc[start : start + len(node.mean)]).prob
        nothing = torch.zeros_like(prob)
        return split(at_parent, arc, node, group), (prob, nothing, nothing)
    size = node.mean.shape[1] * node.mean.shape[2] * inside.arcs.num_classes
    nodes, changes = [], []
    for first, last in node_runs(0, len(node.mean), size):
        here = slice(start + first, start + last)
        crossed, change = _cross_run(
            rows(at_parent, first, last),
            rows(arc, first, last),
            rows(node, first, last),
            None if group is None else group[first:last],
            inside.arcs.at(level.arc[here]),
            None if inside.informed is None else inside.informed[depth][here],
        )
        nodes.append(crossed)
        changes.append(change)
    prob, mean, second = (torch.cat(parts) for parts in zip(*changes, strict=True))
    return concatenate(nodes), (prob, mean, second)


def _cross_run(
    at_parent: Density,
    arc: Message,
    node: Message,
    group: Tensor | None,
    law: ClassRows,
    informed: Tensor | None,
) -> tuple[Density, Changes]:
    """From the parent's weight by component of the arc to the node's own.

    Returns:
        The node's weight by component of its message; probabilities of the classes, means of the
        change in each and mean squares, ``(n, B, J)``.
    """
    parts = split(at_parent, arc, through(node, law), group)
    parent = type(parts)(*(part.unflatten(-1, (-1, law.prob.shape[-1])) for part in parts))
    # The node's weight is the parent's plus a change with prior N(mean, var), seen as node.mean
    # with node.precision; all (n, B, C, J).
    class_mean, class_var = law.mean.unsqueeze(-2), law.var.unsqueeze(-2)
    precision, seen = node.precision.unsqueeze(-1), node.mean.unsqueeze(-1)
    keeps = 1 / (1 + precision * class_var)  # share of the parent's weight in the node's
    shift = class_mean + (1 - keeps) * (seen - parent.mean - class_mean)
    noise = class_var * keeps
    each = parent.log_weight.exp()
    second = shift.square() + (1 - keeps).square() * parent.var + noise
    weight = each.sum(-2)
    # Exact where a class is impossible, and without data below: there it is the prior, to the
    # last digit.
    prob = weight / weight.sum(-1, keepdim=True)
    if informed is not None:
        prob = torch.where(informed.unsqueeze(-1), prob, law.prob)
    var = keeps.square() * parent.var + noise
    changed = type(parent)(parent.log_weight, parent.mean + shift, var)
    return collapse(changed, -1), (prob, (each * shift).sum(-2), (each * second).sum(-2))
