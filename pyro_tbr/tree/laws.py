"""What the passes work with: the law of the changes, the data, and the shapes of both."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.tree.mixtures import DEAD, Message
from pyro_tbr.tree.tree import Tree

WORK = torch.float64


@dataclass(frozen=True)
class ArcLaw:
    """How weights change along arcs; the last row stands for arcs of helpers: no change.

    Attributes:
        rate: Probability of a change, ``(A + 1, B)``.
        log_off: Log probability of no change, ``(A + 1, B)``; None where every arc changes.
        log_on: Log probability of a change, ``(A + 1, B)``.
        var: Variance of a change, ``(A + 1, B)``.
    """

    rate: Tensor
    log_off: Tensor | None
    log_on: Tensor
    var: Tensor

    def at(self, arc: Tensor) -> "ArcLaw":
        """Rows of some arcs, with a last dimension for components."""
        return self._map(lambda values: values[arc].unsqueeze(-1))

    def rows(self, start: int, stop: int) -> "ArcLaw":
        """A run of rows."""
        return self._map(lambda values: values[start:stop])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ArcLaw":
        log_off = None if self.log_off is None else change(self.log_off)
        return ArcLaw(change(self.rate), log_off, change(self.log_on), change(self.var))


def gated_arcs(
    tree: Tree,
    eta: Tensor,
    batch: torch.Size,
    inclusion_prob: Tensor | float,
    slab_scale: Tensor | float,
) -> ArcLaw:
    """Arcs that change with some probability; shapes as in ``sum_product``."""
    rate = _by_arc("inclusion_prob", inclusion_prob, batch, tree, eta)
    slab_scale = torch.as_tensor(slab_scale, dtype=WORK)
    if slab_scale.dim() <= len(batch):
        slab_scale = slab_scale.unsqueeze(-1)
    var = _by_arc("slab_scale", slab_scale, batch, tree, eta).square()
    log_off, log_on = with_helper(_safe_log(1 - rate), 0.0), with_helper(_safe_log(rate), DEAD)
    return ArcLaw(with_helper(rate, 0.0), log_off, log_on, with_helper(var, 0.0))


def changing_arcs(tree: Tree, eta: Tensor, batch: torch.Size, delta_var: Tensor | float) -> ArcLaw:
    """Arcs that all change; shapes as in ``gaussian_smoothing``."""
    var = with_helper(_by_arc("delta_var", delta_var, batch, tree, eta), 0.0)
    return ArcLaw(torch.ones_like(var), None, torch.zeros_like(var), var)


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
