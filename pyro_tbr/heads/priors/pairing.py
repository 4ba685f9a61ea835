"""Joint draws of several outcomes from draws of each: which belong together.

Each outcome's draws are right by themselves. Which draw of one goes with which of another is
decided by how well their gates go together: partners are exchanged by Metropolis steps, two draws
of an outcome at a time. No draw is lost and none is made twice, so what is said of one outcome
stays as it was.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_tbr.heads.priors.gate_levels import LevelLogs

_ROUNDS = 24  # of exchanges, in which each draw meets another one of its outcome
_CERTAIN = 0.01  # arcs that are open in a smaller share of all draws, or closed, do not count


def paired(
    draws: dict[str, Tensor], levels: LevelLogs, known: Tensor, generator: Generator
) -> dict[str, Tensor]:
    """The draws with partners exchanged, latent by latent.

    Args:
        draws: Root weights (S, W, Q), deltas and gates (S, A, W, Q).
        levels: Logarithms of the gates' two levels, (A or 1, W, 1 or Q).
        known: Arcs that count, (A,) bool.
        generator: On the CPU.
    """
    gates = draws["gates"]
    num_samples, _, num_weights, num_outcomes = gates.shape
    if num_samples < 2:
        return draws
    share = gates.mean(0)
    open_somewhere = ((share > _CERTAIN) & (share < 1 - _CERTAIN)).any(-1).any(-1)
    arcs = (open_somewhere & known).nonzero()[:, 0]
    here = gates[:, arcs].double()
    given_open, given_none = (_pick(part, arcs) for part in _log_odds(levels, num_outcomes))
    place = torch.arange(num_samples, device=gates.device).reshape(-1, 1, 1)
    place = place.expand(-1, num_weights, num_outcomes).clone()
    half = num_samples // 2
    total = here.sum(-1)
    for _ in range(_ROUNDS if len(arcs) else 0):
        for q in range(num_outcomes):
            order = torch.randperm(num_samples, generator=generator).to(gates.device)
            one, two = order[:half], order[half : 2 * half]
            own = here[..., q]
            log_odds = torch.where(total - own > 0.5, given_open[..., q], given_none[..., q])
            gain = ((own[two] - own[one]) * (log_odds[one] - log_odds[two])).sum(1)  # (half, W)
            uniform = torch.rand(gain.shape, generator=generator, dtype=gain.dtype).to(gain.device)
            taken = uniform.log() < gain
            for whole in (own, place[..., q]):
                keep = taken.unsqueeze(1) if whole.dim() == 3 else taken
                first, second = whole[one], whole[two]
                whole[one] = torch.where(keep, second, first)
                whole[two] = torch.where(keep, first, second)
            total = here.sum(-1)
    found = {}
    for name in ("root_weights", "deltas", "gates"):
        index = place if name == "root_weights" else place.unsqueeze(1)
        found[name] = draws[name].gather(0, index.expand_as(draws[name]))
    return draws | found


def _pick(values: Tensor, arcs: Tensor) -> Tensor:
    """Of some arcs, where arcs differ."""
    return values if len(values) == 1 else values[arcs]


def _log_odds(levels: LevelLogs, num_outcomes: int) -> tuple[Tensor, Tensor]:
    """Log odds of each gate, (A or 1, W, Q), where another is open and where none is."""
    open_, closed = (
        part.expand(*part.shape[:-1], num_outcomes) for part in (levels.open, levels.closed)
    )
    follow = levels.active + closed.sum(-1, keepdim=True)
    none = torch.logaddexp(levels.inactive, follow)
    return open_ - closed, follow + open_ - closed - none
