"""What the passes work with: the law of the changes, the data, and the shapes of both."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree.messages.mixtures import DEAD, Message
from pyro_tbr.tree.tree import Tree

WORK = torch.float64


@dataclass(frozen=True)
class ArcLaw:
    """How weights change along arcs: by a draw from one of J normals, its class drawn first.

    Spike and slab has two classes, of which the first is no change (or a small one), or three where
    the slab has two halves; arcs that all change have one; a scale mixture of normals has as many
    as it takes. The last row stands for arcs of helpers, which are in the first class and do not
    change.

    Attributes:
        prob: Probability of each class, ``(A + 1, B, J)``.
        log_prob: Its logarithm, ``DEAD`` where it is zero, ``(A + 1, B, J)``.
        mean: Mean of a change in each class, ``(A + 1, B, J)``.
        var: Its variance, likewise.
        gated: Whether the first class is the closed gate, so that the others are an open one.
    """

    prob: Tensor
    log_prob: Tensor
    mean: Tensor
    var: Tensor
    gated: bool = False

    @property
    def num_classes(self) -> int:
        """J."""
        return self.var.shape[-1]

    def at(self, arc: Tensor) -> "ArcLaw":
        """Rows of some arcs."""
        return self._map(lambda values: values[arc])

    def rows(self, start: int, stop: int) -> "ArcLaw":
        """A run of rows."""
        return self._map(lambda values: values[start:stop])

    def widest(self) -> "ArcLaw":
        """The same as if every arc changed by its widest class, around zero."""
        var = (self.var + self.mean.square()).amax(-1, keepdim=True)
        zero = torch.zeros_like(var)
        return ArcLaw(torch.ones_like(var), zero, zero, var)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ArcLaw":
        parts = (self.prob, self.log_prob, self.mean, self.var)
        prob, log_prob, mean, var = (change(part) for part in parts)
        return ArcLaw(prob, log_prob, mean, var, self.gated)


def gated_arcs(
    tree: Tree,
    eta: Tensor,
    batch: torch.Size,
    inclusion_prob: Tensor | float,
    slab_scale: Tensor | float,
    slab_loc: Tensor | float | None = None,
    spike_scale: Tensor | float = 0.0,
) -> ArcLaw:
    """Arcs that change with some probability; shapes as in ``sum_product``."""
    rate = _by_arc("inclusion_prob", inclusion_prob, batch, tree, eta)
    var = _by_slab("slab_scale", slab_scale, batch, tree, eta).square()
    spike = _by_slab("spike_scale", spike_scale, batch, tree, eta).square()
    if slab_loc is None:
        return _law([1 - rate, rate], [spike, var], gated=True)
    loc = _by_slab("slab_loc", slab_loc, batch, tree, eta)
    mean = [torch.zeros_like(loc), loc, -loc]
    return _law([1 - rate, rate / 2, rate / 2], [spike, var, var], mean, gated=True)


def changing_arcs(tree: Tree, eta: Tensor, batch: torch.Size, delta_var: Tensor | float) -> ArcLaw:
    """Arcs that all change; shapes as in ``gaussian_smoothing``."""
    var = _by_arc("delta_var", delta_var, batch, tree, eta)
    return _law([torch.ones_like(var)], [var])


def mixed_arcs(
    tree: Tree, eta: Tensor, batch: torch.Size, class_prob: Tensor, class_var: Tensor
) -> ArcLaw:
    """Arcs whose changes are mixtures of normals; shapes as in ``mixture_inside_pass``."""
    if class_prob.dim() < 1 or class_var.dim() < 1 or class_prob.shape[-1] != class_var.shape[-1]:
        raise ShapeError(
            f"class_prob, class_var: expected as many classes in the last dimension of both, "
            f"received {tuple(class_prob.shape)} and {tuple(class_var.shape)}"
        )
    prob, var = (
        [_by_arc(name, part, batch, tree, eta) for part in value.unbind(-1)]
        for name, value in (("class_prob", class_prob), ("class_var", class_var))
    )
    return _law(prob, var)


def _law(
    prob: list[Tensor],
    var: list[Tensor],
    mean: list[Tensor] | None = None,
    gated: bool = False,
) -> ArcLaw:
    """From probabilities, variances and means ``(A, B)`` of each class; means of 0 if absent."""
    mean = [torch.zeros_like(part) for part in var] if mean is None else mean
    certain = [1.0, *[0.0] * (len(prob) - 1)]
    probs = [with_helper(part, fill) for part, fill in zip(prob, certain, strict=True)]
    return ArcLaw(
        torch.stack(probs, -1),
        torch.stack([_safe_log(part) for part in probs], -1),
        torch.stack([with_helper(part, 0.0) for part in mean], -1),
        torch.stack([with_helper(part, 0.0) for part in var], -1),
        gated,
    )


def potentials(eta: Tensor, lam: Tensor) -> tuple[Message, Tensor, Tensor]:
    """Messages of the data at every node and the helpers; where there are data; their height."""
    eta, lam = (_flat(part.to(WORK)) for part in (eta, lam))
    has_data = lam > 0
    mean = torch.where(has_data, eta / torch.where(has_data, lam, 1.0), 0.0)
    lam = torch.where(has_data, lam, 0.0)
    message = Message(
        *(with_helper(p, 0.0).unsqueeze(-1) for p in (torch.zeros_like(lam), mean, lam))
    )
    return message, has_data, 0.5 * (lam * mean.square()).sum(0)


def batch_shape(tree: Tree, eta: Tensor, lam: Tensor) -> torch.Size:
    """``*B``, if the potentials fit each other and the tree."""
    if eta.shape != lam.shape or eta.dim() < 1 or eta.shape[-1] != tree.num_nodes:
        raise ShapeError(
            f"eta, lam: expected (*B, {tree.num_nodes}) each, a potential for every node of "
            f"{tree!r}; received {tuple(eta.shape)} and {tuple(lam.shape)}"
        )
    return eta.shape[:-1]


def by_batch(name: str, value: Tensor | float, batch: torch.Size, eta: Tensor) -> Tensor:
    """One number per element of the batch, ``(1, B, 1)``."""
    value = torch.as_tensor(value, dtype=WORK, device=eta.device)
    try:
        return value.expand(batch).reshape(1, -1, 1)
    except RuntimeError as error:
        raise ShapeError(
            f"{name}: expected a number or (*B) = {tuple(batch)}, received {tuple(value.shape)}"
        ) from error


def _by_slab(
    name: str, value: Tensor | float, batch: torch.Size, tree: Tree, eta: Tensor
) -> Tensor:
    """The same from one number per element of the batch, or one per arc too."""
    value = torch.as_tensor(value, dtype=WORK)
    if value.dim() <= len(batch):
        value = value.unsqueeze(-1)
    return _by_arc(name, value, batch, tree, eta)


def _by_arc(name: str, value: Tensor | float, batch: torch.Size, tree: Tree, eta: Tensor) -> Tensor:
    """One number per arc and element of the batch, ``(A, B)``."""
    value = torch.as_tensor(value, dtype=WORK, device=eta.device)
    try:
        return _flat(value.expand(*batch, tree.num_arcs))
    except RuntimeError as error:
        raise ShapeError(
            f"{name}: expected what broadcasts to (*B, A) = {(*batch, tree.num_arcs)}, received "
            f"{tuple(value.shape)}"
        ) from error


def _flat(value: Tensor) -> Tensor:
    """``(*B, M)`` with the batch in one dimension and behind: ``(M, B)``."""
    return value.reshape(-1, value.shape[-1]).T


def with_helper(value: Tensor, fill: float) -> Tensor:
    """One more row, for helpers."""
    return torch.cat([value, torch.full_like(value[:1], fill)])


def _safe_log(prob: Tensor) -> Tensor:
    """Log of a probability; ``DEAD``, with gradient zero, where it is zero."""
    return torch.where(prob > 0, prob, 1.0).log() + torch.where(prob > 0, 0.0, DEAD)
