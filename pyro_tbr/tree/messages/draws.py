"""Joint draws from the posterior along the tree: from the root to the leaves."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_tbr.progress import beat
from pyro_tbr.tree.messages.folding import FoldedTree
from pyro_tbr.tree.messages.inside import InsideMessages
from pyro_tbr.tree.messages.laws import ClassRows
from pyro_tbr.tree.messages.mixtures import Density, Message, absorb, blur, summed, take
from pyro_tbr.tree.tree import Tree

_BLOCK = 1 << 18  # numbers at once, draws times components: what stays in the cache
_FAINTEST = -80.0  # log of the smallest mass, of the largest one, that is ever picked

_Parts = TypeVar("_Parts", bound=tuple[Tensor, ...])


class TreeDraws(NamedTuple):
    """Joint draws along the tree.

    Under a law with gates ``classes`` are 1 where the gate is open and 0 where it is closed, under
    another one numbers of classes from 0. Changes are exactly 0 in a class of mean and variance 0.
    """

    root: Tensor  # (S, *B)
    classes: Tensor  # of every change, (S, *B, A)
    deltas: Tensor  # (S, *B, A)


def sample(
    tree: Tree,
    inside: InsideMessages,
    num_samples: int,
    generator: torch.Generator | None = None,
    *,
    arcs: Tensor | None = None,
    batch: Tensor | None = None,
) -> TreeDraws:
    """Joint draws from the posterior: the root, then every arc given the weight it starts from.

    With a cap on the components they are exact given the messages of the inside pass. They carry no
    gradient, and have the dtype of the pass's input.

    Args:
        tree: The environments.
        inside: Messages of an inside pass.
        num_samples: S.
        generator: Of the draws.
        arcs: Arcs that are asked for, A of them in the result; those that are not on the way to
            one of them are not worked out. ``None``: all.
        batch: Elements of the batch, flattened, that are asked for, *B in the result. ``None``:
            all. Whatever is asked for, a generator gives the same draws of it.
    """
    with torch.no_grad():
        folded, device = inside.folded, inside.potential.mean.device
        shape = inside.batch_shape if batch is None else (len(batch),)
        columns = slice(None) if batch is None else batch.to(device)
        wanted = torch.arange(tree.num_arcs) if arcs is None else arcs
        wanted = wanted.to(device)
        needed = _needed(folded, tree.num_arcs, None if arcs is None else wanted)
        weight = _draw_root(inside, columns, num_samples, generator)  # (S, 1, B)
        root, number, picks, changes = weight[:, 0], [], [], []
        for depth, places in enumerate(needed[1:], start=1):
            level = folded.levels[depth]
            like = weight.new_empty(()).expand(num_samples, len(level.node), inside.arcs.batch)
            made = _noise(like, generator)
            if len(places) < len(level.node):
                made = [part[:, places] for part in made]
            made[0] = _first(made[0], inside.root.members, 2)
            noise = _Noise(*(part[:, :, columns] for part in made))
            parent = weight[:, torch.searchsorted(needed[depth - 1], level.parent[places])]
            picked, weight = _draw_level(inside, depth, places, columns, parent, noise)
            number.append(level.arc[places])
            picks.append(picked)
            changes.append(weight - parent)
        place = torch.full((tree.num_arcs + 1,), -1, device=device)
        place[torch.cat(number)] = torch.arange(sum(map(len, number)), device=device)
        drawn = [torch.cat(parts, 1) for parts in (picks, changes)]
        drawn = _arranged(inside, wanted, place[wanted], columns, drawn, generator)

    def shaped(values: Tensor) -> Tensor:
        values = values.movedim(1, -1)
        whole = (num_samples, *shape, len(wanted))
        return values.reshape(whole).to(inside.log_evidence.dtype)

    classes, deltas = drawn
    root = root.reshape(num_samples, *shape).to(inside.log_evidence.dtype)
    classes = classes.clamp(max=1) if inside.arcs.gated else classes
    return TreeDraws(root, shaped(classes), shaped(deltas))


def _needed(folded: FoldedTree, num_arcs: int, arcs: Tensor | None) -> list[Tensor]:
    """For each level the places on the ways to some arcs, in order; all where none are named."""
    levels = folded.levels
    if arcs is None:
        return [torch.arange(len(level.node), device=level.node.device) for level in levels]
    asked = torch.zeros(num_arcs + 1, dtype=torch.bool, device=arcs.device)
    asked[arcs] = True
    found: list[Tensor] = []
    above = torch.zeros(0, dtype=torch.int64, device=arcs.device)  # places that lead on
    for level in reversed(levels):
        here = asked[level.arc] & (level.arc < num_arcs)
        here[above] = True
        places = here.nonzero()[:, 0]
        above = level.parent[places]
        found.insert(0, places)
    found[0] = torch.zeros(1, dtype=torch.int64, device=arcs.device)  # the root is always drawn
    return found


def _arranged(
    inside: InsideMessages,
    wanted: Tensor,
    place: Tensor,
    columns: slice | Tensor,
    drawn: list[Tensor],
    generator: torch.Generator | None,
) -> list[Tensor]:
    """Classes and changes of the arcs wanted, (S, A, B): from the prior where no data are below.

    ``place`` is where each of them has been drawn, -1 if it has not been.
    """
    whole = [part.new_zeros(len(part), len(wanted), part.shape[-1]) for part in drawn]
    for part, new in zip(whole, drawn, strict=True):
        part[:, place >= 0] = new[:, place[place >= 0]]
    silent = torch.ones(inside.arcs.num_arcs, dtype=torch.bool, device=place.device)
    silent[inside.folded.nodes[1:] - 1] = False
    num, batch = len(drawn[0]), inside.arcs.batch
    for some in silent.nonzero()[:, 0].split(max(1, _BLOCK // max(1, num * batch))):
        if not len(some):
            break
        like = whole[1].new_empty(()).expand(num, len(some), batch)
        noise = _noise(like, generator)
        noise[0] = _first(noise[0], inside.root.members, 2)
        here = torch.isin(wanted, some).nonzero()[:, 0]  # in the same order: both rise
        asked = torch.isin(some, wanted)
        uniform, normal = (part[:, asked][:, :, columns] for part in noise)
        law = _columns(inside.arcs.at(wanted[here]), columns)
        pick = _pick(law.prob.cumsum(-1).expand(num, -1, -1, -1), uniform)
        mean, var = (_at(part, pick) for part in (law.mean, law.var))
        whole[0][:, here], whole[1][:, here] = pick.to(normal.dtype), mean + var.sqrt() * normal
    return whole


class _Noise(NamedTuple):
    """What makes a draw of what is known, (S, n, B) both."""

    uniform: Tensor
    normal: Tensor


def _columns(parts: _Parts, columns: slice | Tensor) -> _Parts:
    """Some of the batch, the second dimension."""
    return type(parts)(*(part[:, columns] for part in parts))


def _draw_root(
    inside: InsideMessages,
    columns: slice | Tensor,
    num_samples: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Weights at the root, ``(S, 1, B)``."""
    at_root = Density(*(part[0] for part in absorb(inside.root, inside.node[0][0])))  # (B, C)
    like = at_root.mean[:, :1].expand(-1, num_samples)
    made = _noise(like, generator)
    made[0] = _first(made[0], inside.root.members, 0)
    uniform, normal = (part[columns] for part in made)
    at_root = Density(*(part[columns] for part in at_root))
    upto = at_root.log_weight.softmax(-1).cumsum(-1)
    pick = torch.searchsorted(upto, uniform * upto[:, -1:], right=True)
    pick = pick.clamp(max=upto.shape[-1] - 1)
    mean, var = (part.gather(-1, pick) for part in (at_root.mean, at_root.var))
    return (mean + var.sqrt() * normal).T.unsqueeze(1)


def _draw_level(
    inside: InsideMessages,
    depth: int,
    wanted: Tensor,
    columns: slice | Tensor,
    parent: Tensor,
    noise: _Noise,
) -> tuple[Tensor, Tensor]:
    """Classes and weights at some places of a level, given their parents' weights ``(S, n, B)``."""
    level, arcs = inside.folded.levels[depth], inside.arcs
    picked, weight = torch.zeros_like(parent), parent.clone()  # so it stays at helpers
    real, start = level.arc[wanted] < arcs.num_arcs, 0
    for message in inside.node[depth]:
        stop = start + len(message.mean)
        nodes = (real & (wanted >= start) & (wanted < stop)).nonzero()[:, 0]
        seen = _columns(take(message, wanted[nodes] - start), columns)
        start = stop
        if not len(nodes):
            continue
        step = _Step(seen, _columns(arcs.at(level.arc[wanted[nodes]]), columns))
        runs = max(1, _BLOCK // step.height.numel())
        for start_run in range(0, len(parent), runs):
            run = slice(start_run, start_run + runs)
            here = (part[run].index_select(1, nodes) for part in (parent, *noise))
            picked[run, nodes], weight[run, nodes] = step.draw(*here)
            beat()
    return picked, weight


class _Step:
    """From parents' weights to those of nodes (n, B): all that does not depend on the draw."""

    def __init__(self, message: Message, arcs: ClassRows) -> None:
        self.message, self.arcs = message, arcs
        # Classes from the last one down, so a gate is on where the uniform is below its chance.
        mean, var, log_prob = (
            part.flip(-1).unsqueeze(-1) for part in (arcs.mean, arcs.var, arcs.log_prob)
        )  # (n, B, J, 1)
        sent = blur(type(message)(*(part.unsqueeze(-2) for part in message)), var)
        self.height = (sent.log_height + log_prob).flatten(-2)
        self.centre = (sent.mean - mean).flatten(-2)
        self.curvature = -0.5 * sent.precision.flatten(-2)

    def draw(self, parent: Tensor, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Class and component by the uniform noise, the weight given these by the normal noise."""
        message, arcs = self.message, self.arcs
        num, num_classes = message.mean.shape[-1], arcs.var.shape[-1]
        log_mass = (parent.unsqueeze(-1) - self.centre).square_()
        log_mass = summed(message, log_mass.mul_(self.curvature), 2).add(self.height)
        log_mass -= log_mass.amax(-1, keepdim=True)
        # Masses in single precision; those that would underflow there take many times as long.
        mass = log_mass.float().clamp_(min=_FAINTEST).exp_()
        mass.sub_(math.exp(_FAINTEST)).clamp_(min=0)
        pick = _pick(mass.cumsum_(-1), uniform)
        picked, component = num_classes - 1 - pick // num, pick % num
        start, var = parent + _at(arcs.mean, picked), _at(arcs.var, picked)
        precision = _at(message.precision, component)
        spread = 1 + precision * var
        gap = _at(message.mean, component) - start
        weight = start + var * precision / spread * gap + (var / spread).sqrt() * normal
        return picked.to(parent.dtype), weight


def _first(noise: Tensor, members: int, dim: int) -> Tensor:
    """What picks components and classes is the same for those of the batch that are one."""
    if members == 1:
        return noise
    each = noise.unflatten(dim, (-1, members))
    return each.narrow(dim + 1, 0, 1).expand_as(each).flatten(dim, dim + 1)


def _pick(upto: Tensor, uniform: Tensor) -> Tensor:
    """Places by inversion, from weights summed up along the last dimension; never of weight 0."""
    level = uniform.to(upto.dtype).clamp(max=1 - 2 * torch.finfo(upto.dtype).eps).unsqueeze(-1)
    pick = torch.searchsorted(upto.contiguous(), level * upto[..., -1:], right=True)[..., 0]
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
