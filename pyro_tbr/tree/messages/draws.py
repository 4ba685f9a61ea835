"""Joint draws from the posterior along the tree: from the root to the leaves."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.tree.messages.folding import FoldedLevel
from pyro_tbr.tree.messages.inside import InsideMessages
from pyro_tbr.tree.messages.laws import ClassRows, LawTable
from pyro_tbr.tree.messages.mixtures import Density, Message, absorb, blur, take
from pyro_tbr.tree.messages.steps import Blocks
from pyro_tbr.tree.tree import Tree

_BLOCK = 1 << 18  # numbers at once, draws times components: what stays in the cache


class TreeDraws(NamedTuple):
    """Joint draws along the tree.

    Under a law with gates ``classes`` are 1 where the gate is open and 0 where it is closed, under
    another one numbers of classes from 0. Changes are exactly 0 in a class of mean and variance 0.
    """

    root: Tensor  # (S, *B)
    classes: Tensor  # of every change, (S, *B, A)
    deltas: Tensor  # (S, *B, A)


def sample(
    tree: Tree, inside: InsideMessages, num_samples: int, generator: torch.Generator | None = None
) -> TreeDraws:
    """Joint draws from the posterior: the root, then every arc given the weight it starts from.

    With a cap on the components they are exact given the messages of the inside pass. They carry no
    gradient, and have the dtype of the pass's input.
    """
    with torch.no_grad():
        folded = inside.folded
        weight = _draw_root(inside, num_samples, generator)  # (S, 1, B)
        root, classes, deltas = weight[:, 0], [], []
        for level, messages in zip(folded.levels[1:], inside.node[1:], strict=True):
            parent = weight.index_select(1, level.parent)
            picked, weight = _draw_level(level, parent, messages, inside.arcs, generator)
            classes.append(picked)
            deltas.append(weight - parent)
        drawn = [torch.cat(parts, 1)[:, folded.node_order[1:] - 1] for parts in (classes, deltas)]
        if not folded.is_whole:
            drawn = _completed(tree, inside, drawn, generator)

    def shaped(values: Tensor) -> Tensor:
        values = values.movedim(1, -1)
        return values.reshape(num_samples, *inside.batch_shape, -1).to(inside.log_evidence.dtype)

    picks, changes = drawn
    root = root.reshape(num_samples, *inside.batch_shape).to(inside.log_evidence.dtype)
    picks = picks.clamp(max=1) if inside.arcs.gated else picks
    return TreeDraws(root, shaped(picks), shaped(changes))


def _completed(
    tree: Tree, inside: InsideMessages, drawn: list[Tensor], generator: torch.Generator | None
) -> list[Tensor]:
    """Classes and changes of all arcs, (S, A, B): from the prior where no data are below."""
    known = inside.folded.nodes[1:] - 1
    silent = torch.ones(tree.num_arcs, dtype=torch.bool, device=known.device)
    silent = silent.index_fill(0, known, False).nonzero()[:, 0]
    whole = [
        part.new_empty(len(part), tree.num_arcs, part.shape[-1]).index_copy(1, known, part)
        for part in drawn
    ]
    step = max(1, _BLOCK // (len(drawn[0]) * drawn[0].shape[-1]))
    for arcs in silent.split(step):
        law = inside.arcs.at(arcs)
        like = whole[0][:, arcs]
        uniform, normal = _noise(like, generator)
        pick = _pick(law.prob.cumsum(-1), uniform)
        mean, var = (_at(part, pick) for part in (law.mean, law.var))
        whole[0][:, arcs], whole[1][:, arcs] = pick.to(like.dtype), mean + var.sqrt() * normal
    return whole


def _draw_root(
    inside: InsideMessages, num_samples: int, generator: torch.Generator | None
) -> Tensor:
    """Weights at the root, ``(S, 1, B)``."""
    at_root = Density(*(part[0] for part in absorb(inside.root, inside.node[0][0])))  # (B, C)
    like = at_root.mean[:, :1].expand(-1, num_samples)
    uniform, normal = _noise(like, generator)
    upto = at_root.log_weight.softmax(-1).cumsum(-1)
    pick = torch.searchsorted(upto, uniform * upto[:, -1:], right=True)
    pick = pick.clamp(max=upto.shape[-1] - 1)
    mean, var = (part.gather(-1, pick) for part in (at_root.mean, at_root.var))
    return (mean + var.sqrt() * normal).T.unsqueeze(1)


def _draw_level(
    level: FoldedLevel,
    parent: Tensor,
    messages: Blocks,
    arcs: LawTable,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Classes and weights at the nodes of a level, given their parents' weights ``(S, n, B)``."""
    uniform, normal = _noise(parent, generator)
    picked, weight = torch.zeros_like(parent), parent.clone()  # so it stays at helpers
    real, start = level.arc < arcs.num_arcs, 0
    for message in messages:
        stop = start + len(message.mean)
        places = real[start:stop].nonzero()[:, 0]
        seen, nodes = take(message, places), places + start
        start = stop
        if not len(nodes):
            continue
        law = arcs.at(level.arc[nodes])
        runs = max(1, _BLOCK // (seen.mean.numel() * arcs.num_classes))
        for run in torch.arange(len(parent), device=parent.device).split(runs):
            at = (run.unsqueeze(-1), nodes)
            picked[at], weight[at] = _draw_step(parent[at], seen, law, uniform[at], normal[at])
    return picked, weight


def _draw_step(
    parent: Tensor, message: Message, arcs: ClassRows, uniform: Tensor, normal: Tensor
) -> tuple[Tensor, Tensor]:
    """Class and component by the uniform noise, the weight given these by the normal noise."""
    num = message.mean.shape[-1]
    # Classes from the last one down, so a gate is on where the uniform is below its chance.
    classes = [part.flip(-1).unsqueeze(-1) for part in (arcs.mean, arcs.var, arcs.log_prob)]
    mean, var, log_prob = classes  # (n, B, J, 1)
    sent = blur(Message(*(part.unsqueeze(-2) for part in message)), var)
    height, centre, precision = (
        part.flatten(-2) for part in (sent.log_height + log_prob, sent.mean - mean, sent.precision)
    )
    log_mass = (parent.unsqueeze(-1) - centre).square_().mul_(-0.5 * precision).add_(height)
    upto = log_mass.sub_(log_mass.amax(-1, keepdim=True)).exp_().cumsum_(-1)
    pick = _pick(upto, uniform)
    picked, component = arcs.var.shape[-1] - 1 - pick // num, pick % num
    start, var = parent + _at(arcs.mean, picked), _at(arcs.var, picked)
    precision = _at(message.precision, component)
    spread = 1 + precision * var
    gap = _at(message.mean, component) - start
    weight = start + var * precision / spread * gap + (var / spread).sqrt() * normal
    return picked.to(parent.dtype), weight


def _pick(upto: Tensor, uniform: Tensor) -> Tensor:
    """Places by inversion, from weights summed up along the last dimension."""
    pick = (upto <= (uniform * upto[..., -1]).unsqueeze(-1)).sum(-1)
    return pick.clamp_(max=upto.shape[-1] - 1)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Values at a place of the last dimension for every draw, ``(S, ...)``."""
    return values.expand(*index.shape, -1).gather(-1, index.unsqueeze(-1))[..., 0]


def _noise(like: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    """Uniform and normal, made where the generator is, whatever device the numbers are on."""
    device = like.device if generator is None else generator.device
    makers: tuple[Callable[..., Tensor], ...] = (torch.rand, torch.randn)
    options = {"dtype": like.dtype, "device": device, "generator": generator}
    return [make(like.shape, **options).to(like.device) for make in makers]
