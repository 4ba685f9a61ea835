"""The law of the changes along the arcs: as a caller states it, and as the passes read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree.messages.mixtures import DEAD
from pyro_tbr.tree.tree import Tree

WORK = torch.float64


@dataclass(frozen=True)
class ArcLaw:
    r"""How weights change along arcs: by a draw from one of J normals, its class drawn first.

    A change is drawn from :math:`\sum_j p_j N(m_j, v_j)`. Spike and slab has two classes, of which
    the first is no change (or a small one), or three where the slab has two halves; arcs that all
    change by a Gaussian have one; a scale mixture of normals has as many as it takes. Make one with
    :meth:`of` or :meth:`spike_slab`; the passes are differentiable in all three parts.

    Attributes:
        prob: Probability of each class, summing to 1. Of any shape that broadcasts to
            ``(*B, A, J)``: the batch, the arcs, the classes.
        mean: Mean of a change in each class, in the unit of the weights, likewise.
        var: Its variance, that unit squared, likewise; 0 is a point.
        gated: Whether the first class is the closed gate, so that the others are an open one: then
            the passes give the probability of an open one, and draws say whether it is open.
    """

    prob: Tensor
    mean: Tensor
    var: Tensor
    gated: bool = False

    @classmethod
    def of(
        cls, prob: Tensor | float, mean: Tensor | float, var: Tensor | float, gated: bool = False
    ) -> ArcLaw:
        """A law from the parts of its mixture, each a number or what broadcasts to ``(*B, A, J)``.

        Raises:
            ShapeError: The parts do not broadcast, or gates are asked for with a single class.
        """
        parts = [torch.as_tensor(part, dtype=WORK) for part in (prob, mean, var)]
        parts = [part if part.dim() else part.reshape(1) for part in parts]
        shapes = _shapes(parts)
        try:
            num_classes = torch.broadcast_shapes(*(part.shape for part in parts))[-1]
        except RuntimeError:
            num_classes = -1
        if parts[0].shape[-1] != num_classes:
            raise ShapeError(
                "prob, mean, var: expected what broadcasts to (*B, A, J), with as many classes J "
                f"in the last dimension of prob as of the others, received {shapes}"
            )
        if num_classes < 1 + gated:
            raise ShapeError(
                f"prob, mean, var: expected {1 + gated} or more classes in the last dimension, "
                f"gated={gated}, received {shapes}"
            )
        return cls(parts[0], parts[1], parts[2], gated)

    @classmethod
    def spike_slab(
        cls,
        inclusion_prob: Tensor | float,
        slab_scale: Tensor | float,
        slab_loc: Tensor | float | None = None,
        spike_scale: Tensor | float = 0.0,
    ) -> ArcLaw:
        """The law of changes with gates; arguments are what broadcasts to ``(*B, A)``.

        Args:
            inclusion_prob: Prior probability that the gate is open, in [0, 1].
            slab_scale: Standard deviation of a change where it is open.
            slab_loc: Distance m from zero of the two halves of the slab, a change being drawn from
                N(m, slab_scale^2) or N(-m, slab_scale^2); None: a slab of one piece around zero.
            spike_scale: Standard deviation where the gate is closed; 0: no change there.

        Raises:
            ShapeError: The arguments do not broadcast.
        """
        given = (inclusion_prob, slab_scale, spike_scale, 0.0 if slab_loc is None else slab_loc)
        device = next((part.device for part in given if isinstance(part, Tensor)), None)
        rate, slab, spike, loc = (
            torch.as_tensor(part, dtype=WORK, device=device) for part in given
        )
        if slab_loc is None:
            prob, var = [1 - rate, rate], [spike.square(), slab.square()]
            return cls.of(_stack(prob), 0.0, _stack(var), gated=True)
        prob, var = [1 - rate, rate / 2, rate / 2], [spike.square(), *[slab.square()] * 2]
        mean = [torch.zeros_like(loc), loc, -loc]
        return cls.of(_stack(prob), _stack(mean), _stack(var), gated=True)

    @property
    def num_classes(self) -> int:
        """J."""
        return torch.broadcast_shapes(self.prob.shape, self.mean.shape, self.var.shape)[-1]


def _shapes(parts: Sequence[Tensor]) -> str:
    names = ("prob", "mean", "var")
    return ", ".join(f"{n} {tuple(part.shape)}" for n, part in zip(names, parts, strict=True))


def _stack(classes: list[Tensor]) -> Tensor:
    """Classes side by side in a new last dimension."""
    try:
        return torch.stack(torch.broadcast_tensors(*classes), -1)
    except RuntimeError as error:
        raise ShapeError(
            "slab_scale, spike_scale: expected what broadcasts to (*B, A) each, received "
            f"{tuple(classes[-1].shape)} and {tuple(classes[0].shape)}"
        ) from error


class ClassRows(NamedTuple):
    """Classes of some arcs, ``(n, B, J)`` each; the fields are those of :class:`LawTable`."""

    prob: Tensor
    log_prob: Tensor
    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class LawTable:
    """A law as the passes read it: arcs first, the batch in one dimension.

    Shapes are ``(A + 1 or 2, B or 1, J)``: a law that all arcs share has one row, one that the
    whole batch shares one column. One more row, the last, stands for the arcs of the helpers of a
    folded tree, along which nothing changes: they are in the first class, with mean and variance 0.
    The log of a probability of zero is ``DEAD``; ``num_arcs`` is also the number of a helper's arc.
    """

    prob: Tensor
    log_prob: Tensor
    mean: Tensor
    var: Tensor
    num_arcs: int
    batch: int
    gated: bool = False

    @property
    def num_classes(self) -> int:
        """J."""
        return self.var.shape[-1]

    def at(self, arc: Tensor) -> ClassRows:
        """The classes of some arcs."""
        if len(self.var) == 2:
            arc = (arc == self.num_arcs).long()
        parts = (self.prob, self.log_prob, self.mean, self.var)
        return ClassRows(*(part[arc].expand(-1, self.batch, -1) for part in parts))

    def columns(self, start: int, stop: int) -> LawTable:
        """The law of a run of the batch."""
        parts = {name: getattr(self, name) for name in ("prob", "log_prob", "mean", "var")}
        if self.var.shape[1] > 1:
            parts = {name: part[:, start:stop] for name, part in parts.items()}
        return replace(self, batch=stop - start, **parts)

    def widest(self) -> LawTable:
        """The same as if every arc changed by its widest class, around zero."""
        var = (self.var + self.mean.square()).amax(-1, keepdim=True)
        zero = torch.zeros_like(var)
        return replace(
            self, prob=torch.ones_like(var), log_prob=zero, mean=zero, var=var, gated=False
        )


def law_table(law: ArcLaw, tree: Tree, batch: torch.Size, device: torch.device) -> LawTable:
    """A law for a tree and a batch.

    Raises:
        ShapeError: It has another number of arcs or another batch.
    """
    parts = (law.prob, law.mean, law.var)
    whole = (*batch, tree.num_arcs, law.num_classes)
    shared = torch.broadcast_shapes(*(part.shape for part in parts))
    try:
        fits = torch.broadcast_shapes(shared, whole) == whole
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"law: expected classes that broadcast to (*B, A, J) = {whole}, received "
            f"{_shapes(parts)}"
        )
    shared = (1,) * (len(whole) - len(shared)) + tuple(shared)
    columns = batch if any(size != 1 for size in shared[:-2]) else shared[:-2]

    def table(part: Tensor) -> Tensor:
        part = part.to(device).expand(*columns, *shared[-2:])
        return part.reshape(-1, *shared[-2:]).movedim(1, 0)  # (A or 1, B or 1, J)

    prob, mean, var = map(table, parts)
    certain = torch.zeros_like(prob[:1])
    certain[..., 0] = 1.0
    prob = torch.cat([prob, certain])
    return LawTable(
        prob=prob,
        log_prob=torch.where(prob > 0, prob, 1.0).log() + torch.where(prob > 0, 0.0, DEAD),
        mean=with_helper(mean, 0.0),
        var=with_helper(var, 0.0),
        num_arcs=tree.num_arcs,
        batch=batch.numel(),
        gated=law.gated,
    )


def with_helper(value: Tensor, fill: float) -> Tensor:
    """One more row, for helpers."""
    return torch.cat([value, torch.full_like(value[:1], fill)])
