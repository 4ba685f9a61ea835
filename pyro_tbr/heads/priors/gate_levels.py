"""Gates at two levels: an arc is active for a latent or not, and where it is, outcomes follow."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_tbr.heads.priors.gates import zero_or_one

_LEAST = 1e-100  # probability whose logarithm is taken
_REST = 1e-26  # likewise, where it is one less another


class GateLevels(NamedTuple):
    """Probabilities of the two levels; their product is the probability of an open gate.

    Attributes:
        active: Of an arc to be active for a latent, (*B, A, W, 1).
        within: Of an outcome's gate to be open where it is, (*B, A, W, Q) or (*B, A, W, 1).
    """

    active: Tensor
    within: Tensor


def gate_levels(prob: Tensor, sharing: Tensor) -> GateLevels:
    r"""The two levels of gates that are open with probability :math:`\pi` each.

    .. math:: a = \pi^t, \quad b = \pi^{1 - t}

    so that :math:`a b = \pi` whatever the sharing t is: at 0 every arc is active and gates are
    independent, at 1 all gates of an active arc are open. Where outcomes differ in :math:`\pi` the
    largest makes a.

    Args:
        prob: :math:`\pi`, (*B, A, W, Q) or (*B, A, W, 1).
        sharing: t, in [0, 1], (*B, 1, W, 1) or what broadcasts.

    Example:
        >>> gate_levels(torch.full((1, 1, 1), 0.25, dtype=torch.float64), torch.tensor(0.5)).active
        tensor([[[0.5000]]], dtype=torch.float64)
    """
    active = prob.amax(-1, keepdim=True).pow(sharing)
    # An arc that cannot change is not active, and what follows from that does not count.
    return GateLevels(active, (prob / torch.where(active > 0, active, 1.0)).clamp(max=1.0))


class LevelLogs(NamedTuple):
    """Logarithms of both levels' probabilities and of their rests, shapes as of the levels.

    Attributes:
        active: log a.
        inactive: log(1 - a).
        open: log b.
        closed: log(1 - b).
    """

    active: Tensor
    inactive: Tensor
    open: Tensor
    closed: Tensor


def level_logs(prob: Tensor, sharing: Tensor) -> LevelLogs:
    """Logarithms of :func:`gate_levels`, all finite."""
    log_prob = prob.double().clamp(min=_LEAST).log()
    log_active = log_prob.amax(-1, keepdim=True) * sharing.double()
    log_within = log_prob - log_active
    rests = (torch.log((-torch.expm1(p)).clamp(min=_REST)) for p in (log_active, log_within))
    inactive, closed = rests
    return LevelLogs(log_active, inactive, log_within, closed)


def drawn_gates(prob: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws of gates or of activity, 0 or 1, of a shape that their probabilities expand to."""
    prob = prob.expand(shape)
    uniform = torch.rand(shape, generator=generator, dtype=prob.dtype).to(prob.device)
    return (uniform < prob).to(prob.dtype)


class GroupedGates(dist.TorchDistribution):
    r"""Gates of Q outcomes, the activity of their arc summed out.

    .. math::
        p(g) = (1 - a) \prod_q 1[g_q = 0] + a \prod_q b_q^{g_q} (1 - b_q)^{1 - g_q}

    Args:
        active: a, in [0, 1], (*B).
        within: b, in [0, 1], (*B, Q).

    Example:
        Open together more often than one by one:

        >>> gates = GroupedGates(torch.tensor(0.5), torch.tensor([0.5, 0.5]))
        >>> gates.log_prob(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])).exp()
        tensor([0.1250, 0.1250, 0.6250])
    """

    arg_constraints = {
        "active": constraints.unit_interval,
        "within": constraints.independent(constraints.unit_interval, 1),
    }
    support = constraints.independent(zero_or_one, 1)

    def __init__(self, active: Tensor, within: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(active.shape, within.shape[:-1])
        self.active = active.expand(batch)
        self.within = within.expand(*batch, within.shape[-1])
        super().__init__(batch, within.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> GroupedGates:
        """The same of a larger batch."""
        active, within = self.active.expand(batch_shape), self.within
        within = within.expand(*batch_shape, within.shape[-1])
        return GroupedGates(active, within, validate_args=False)

    def sample(self, sample_shape: Size = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Draws (*sample_shape, *B, Q) of zeros and ones, from torch's global generator."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            active = torch.bernoulli(self.active.expand(shape[:-1]))
            return active.unsqueeze(-1) * torch.bernoulli(self.within.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of gates (*B, Q)."""
        each = torch.xlogy(value, self.within) + torch.xlogy(1 - value, 1 - self.within)
        follow = self.active.log() + each.sum(-1)
        still = torch.logaddexp(torch.log1p(-self.active), follow)
        return torch.where(value.sum(-1) == 0, still, follow)
