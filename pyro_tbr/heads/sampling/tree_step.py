r"""Classes and weights of all latents along the tree, drawn from their joint posterior in one walk.

Given the classes of all changes (gate closed, gate open, ...) the weights of an outcome are jointly
normal: a node's W weights are those of its neighbour and a normal change with known means and
variances. So messages are normal in W dimensions (``normal_messages``) and integrate out all
weights behind an arc, of all latents, however these correlate.

A step walks the tree from any of its nodes. There the weights are drawn with all others integrated
out. Then, arc by arc outward, classes are drawn given the weights at the near end and the classes
further out, with all weights further out integrated out: first of some latents at the arc and two
of the arcs that go on from its far end, jointly; then of all latents at the arc, jointly. Then the
weights at the far end. Arcs at one distance from the start are independent given what was drawn
before, so they go as one batch, and so do chains and outcomes. Every part is a draw from a full
conditional of what is not integrated out (a partially collapsed Gibbs sampler), so nothing is
approximate, and no component is ever left out.

Why it mixes: a change moves from one latent to another that is nearly the same, as classes of
latents at an arc are drawn together. It moves around a node, as from one child's arc to its
sibling's and their parent's, as the arcs around a node are drawn together. And walks start
elsewhere each time: whether a change is on one side of a node or the other is easy to alter from
one side and hard from the other, as at the near end the weights are given.

Source:
    Partially collapsed Gibbs samplers: van Dyk & Park, JASA 103 (2008) 790.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.sampling.normal_messages import (
    Arcs,
    Said,
    chosen,
    combinations,
    draw_change,
    draw_normal,
    log_weight,
    sent,
)
from pyro_tbr.tree.walks import WalkStep

_MOST = 64  # combinations of classes that are weighed together
_ALONG = 3  # arcs whose classes are drawn together: one, and two that go on from it
_BLOCK = 1 << 22  # numbers of one table of matrices; bounds memory, and is no loop over arcs


class TreeDraw(NamedTuple):
    """One draw of every chain; arcs that are not walked keep classes, and have changes of 0.

    Attributes:
        nodes: Weights, (C, Q, V, W).
        deltas: Changes, (C, Q, A, W).
        classes: (C, Q, A, W) int64.
        inclusion: Probabilities that a class is not the first, from which it was drawn, (C, Q, A,
            W): less noisy than the draw itself.
    """

    nodes: Tensor
    deltas: Tensor
    classes: Tensor
    inclusion: Tensor


def tree_step(
    start: int,
    walk: Sequence[WalkStep],
    rows: Said,
    law: Arcs,
    classes: Tensor,
    generator: Generator,
) -> TreeDraw:
    """Draws classes and weights anew along a walk, given where the classes stand.

    Args:
        start: Node the walk begins at.
        walk: Of ``walk_from``.
        rows: What rows, and the root's prior, say of the weights of each node, (C, Q, V, W).
        law: Of the changes, (C, Q, A, W, J).
        classes: (C, Q, A, W) int64, possible ones.
        generator: On the CPU.
    """
    classes, num_classes = classes.clone(), law.mean.shape[-1]
    said = _inside(walk, rows, law, classes)
    nodes, deltas = torch.zeros_like(said.linear), law.mean.new_zeros(classes.shape)
    inclusion = torch.ones_like(deltas)
    nodes[:, :, start] = draw_normal(said.at(start), generator)
    size = said.precision[:, :, 0].numel() * (_MOST if num_classes > 1 else 1)
    for step, after in zip(walk, (*walk, None)[1:], strict=True):
        for some in torch.arange(len(step.arc)).split(max(1, _BLOCK // size)):
            here = WalkStep(*(part[some] for part in step))
            arc, at, sign = here.arc, nodes[:, :, here.near], here.sign[:, None]
            if num_classes > 1:
                if after is not None:
                    _draw_families(here, after, at, said, law, classes, generator)
                own, far = law.at(arc, sign), said.at(here.far)
                for latents in _latent_blocks(law, _MOST, generator):
                    picked, share = _draw_own(at, far, own, classes[:, :, arc], latents, generator)
                    classes[:, :, arc], inclusion[:, :, arc[:, None], latents] = picked, share
            mean, scale = law.at(arc, sign).moments(classes[:, :, arc])
            change = draw_change(at, said.at(here.far), mean, scale, generator)
            deltas[:, :, arc], nodes[:, :, here.far] = change * sign, at + change
    return TreeDraw(nodes, deltas, classes, inclusion)


def _latent_blocks(law: Arcs, most: int, generator: Generator) -> Sequence[Tensor]:
    """Latents in random groups, so small that there are no more combinations of their classes."""
    num_latents, num_classes = law.mean.shape[-2:]
    size = 1
    while num_classes ** (size + 1) <= most and size < num_latents:
        size += 1
    return torch.randperm(num_latents, generator=generator).split(size)


def _inside(walk: Sequence[WalkStep], rows: Said, law: Arcs, classes: Tensor) -> Said:
    """What each node and all further out say of its weights, given the classes."""
    said = Said(rows.precision.clone(), rows.linear.clone())
    for step in reversed(walk):
        moments = law.at(step.arc, step.sign[:, None]).moments(classes[:, :, step.arc])
        message, _ = sent(said.at(step.far), *moments)
        said.precision.index_add_(2, step.near, message.precision)
        said.linear.index_add_(2, step.near, message.linear)
    return said


def _draw_own(
    at: Tensor, far: Said, law: Arcs, classes: Tensor, latents: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Classes of some latents at arcs (C, Q, n, W), jointly; and how probable inclusion was."""
    table = combinations(law.mean.shape[-1], len(latents))
    every, prior, mean, scale = _alternatives(law, classes, latents, table)
    weight = log_weight(at.unsqueeze(-2), far.unsqueezed(-1), mean, scale) + prior
    share, pick = _pick(weight, generator)
    return chosen(every.movedim(-2, -1), pick.unsqueeze(-1)), share @ (table > 0).to(share)


def _alternatives(
    law: Arcs, classes: Tensor, latents: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes with some latents' replaced by each row of a table, their prior and moments."""
    every = classes.unsqueeze(-2).repeat(*[1] * (classes.dim() - 1), len(table), 1)
    every[..., latents] = table
    law = Arcs(*(part.unsqueeze(-3).expand(*every.shape, -1) for part in law))
    prior = chosen(law.log_prob, every)[..., latents].sum(-1)
    return every, prior, *law.moments(every)


def _pick(log_weights: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Probabilities of the last dimension, and places drawn by these."""
    share = log_weights.softmax(-1)
    upto = share.cumsum(-1)
    uniform = torch.rand(upto.shape[:-1], generator=generator, dtype=torch.float64)
    pick = (upto <= (uniform * upto[..., -1]).unsqueeze(-1)).sum(-1)
    return share, pick.clamp(max=upto.shape[-1] - 1)


def _draw_families(
    step: WalkStep,
    after: WalkStep,
    at: Tensor,
    said: Said,
    law: Arcs,
    classes: Tensor,
    generator: Generator,
) -> None:
    """Classes of some latents at arcs and at two that go on from each, jointly.

    Classes, and what is said of the far nodes, are changed. Where one arc goes on the second has
    an empty message, and what is drawn for it is dropped.
    """
    inner = (step.count > 0).nonzero()[:, 0]
    if not len(inner):
        return
    step = WalkStep(*(part[inner] for part in step))
    at, own_law = at[:, :, inner], law.at(step.arc, step.sign[:, None])
    place, real = _two_of(step.first, step.count, generator)  # (2, n) each
    child = WalkStep(*(part[place.flatten()] for part in after))
    child_law = law.at(child.arc, child.sign[:, None])
    beyond = said.at(child.far)
    num_classes, n = law.mean.shape[-1], len(inner)
    for latents in _latent_blocks(law, round(_MOST ** (1 / _ALONG)), generator):
        table = combinations(num_classes, len(latents))
        own = classes[:, :, step.arc]
        every, prior, mean, scale = _alternatives(own_law, own, latents, table)
        below = classes[:, :, child.arc]
        options, child_prior, *moments = _alternatives(child_law, below, latents, table)
        message, height = sent(beyond.unsqueezed(-1), *moments)
        height = height + child_prior
        now, _ = sent(beyond, *child_law.moments(below))
        use = real.flatten()
        message, now = message.where(use[:, None]), now.where(use)
        height = torch.where(use[:, None], height, 0.0)
        one, two = message.halves(n)
        rest = said.at(step.far)
        for part in now.halves(n):
            rest = rest.plus(part, -1.0)
        # Dimensions: own class, that of the first arc, that of the second.
        far = rest.unsqueezed(-1).plus(one).unsqueezed(-1).plus(two.unsqueezed(-2))
        first, second = height[:, :, :n], height[:, :, n:]
        weight = log_weight(
            at[..., None, None, None, :],
            far.unsqueezed(-3),
            mean[..., None, None, :],
            scale[..., None, None, :],
        )
        weight = weight + prior[..., None, None] + first[..., None, :, None]
        weight = weight + second[..., None, None, :]
        _, pick = _pick(weight.flatten(-3), generator)
        size = len(table)
        picks = pick // size**2, pick // size % size, pick % size
        classes[:, :, step.arc] = chosen(every.movedim(-2, -1), picks[0].unsqueeze(-1))
        new = rest
        for half, (part, number) in enumerate(zip((one, two), picks[1:], strict=True)):
            new = new.plus(part.picked(number))
            kept = real[half].nonzero()[:, 0]
            own = options[:, :, half * n : (half + 1) * n]
            found = chosen(own.movedim(-2, -1), number.unsqueeze(-1))
            arcs = child.arc[half * n : (half + 1) * n]
            classes[:, :, arcs[kept]] = found[:, :, kept]
        said.precision[:, :, step.far], said.linear[:, :, step.far] = new


def _two_of(first: Tensor, count: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two different places of runs that begin at ``first`` (n,), and whether there are, (2, n)."""
    uniform = torch.rand(2, len(first), generator=generator, dtype=torch.float64)
    one = (uniform[0] * count).floor().long()
    other = one + 1 + (uniform[1] * (count - 1)).floor().long()
    other = torch.where(count > 1, other % count, one)
    real = torch.stack([count > 0, count > 1])
    return first + torch.stack([one, other]), real
