"""A second start of the hyperparameters, where their optimum may be one of two.

At fixed potentials, where latents do not touch each other, every latent's hyperparameters are moved
to their optimum once from where they are and once from what the prior offers as a second start, and
it keeps the better one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads.hyper.base import HyperFactor
from pyro_tbr.heads.priors import PriorFactor
from pyro_tbr.heads.tree_state import TreeState

_MOST_UPDATES = 30
_SETTLED = 0.02  # moves of a latent's log evidence below which updates end
_WORTH = 0.1  # log evidence by which the second start must be better

State = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def choose_start(guide: TreeState, num_components: int | None) -> bool:
    """Moves hyperparameters to the better of two optima, latent by latent.

    Args:
        guide: Its potentials are left as they are.
        num_components: Cap on the components of a message.

    Returns:
        Whether any latent has left the optimum it was at.
    """
    kept = _state(guide.factor)
    if not guide.factor.second_start(guide.current, guide.informed_arcs):
        return False
    second = _state(guide.factor)
    _restore(guide.factor, kept)
    first, bound = _climbed(guide, num_components, kept)
    own = _own(guide, kept)
    _restore(guide.factor, {name: second[name] for name in own})
    second, other = _climbed(guide, num_components, kept)
    better = other > bound + _WORTH  # (W,)
    for name in own:
        pairs = zip(first[name], second[name], strict=True)
        loc, log_scale = (torch.where(better[:, None], new, old) for old, new in pairs)
        first[name] = (loc, log_scale)
    _restore(guide.factor, first)
    guide.refresh()
    return bool(better.any())


def _climbed(guide: TreeState, num_components: int | None, kept: State) -> tuple[State, Tensor]:
    """The hyperparameters at their optimum given the potentials, and each latent's bound (W,).

    What latents share stays as in ``kept``, so that each is judged alone; afterwards all are there
    again.
    """
    own, last, factors = _own(guide, kept), None, _learnt(guide.factor)
    for _ in range(_MOST_UPDATES):
        guide.refresh(guide.passes(num_components=num_components))
        bound = guide.log_evidence() - sum(factors[name].kl().sum(-1) for name in own)
        state = _state(guide.factor)
        if last is not None and (bound - last).abs().max() < _SETTLED:
            break
        last = bound
        guide.factor.learn(guide.current, guide.informed_arcs)
        _restore(guide.factor, {name: pair for name, pair in kept.items() if name not in own})
    _restore(guide.factor, kept)
    return state, bound


def _own(guide: TreeState, state: State) -> list[str]:
    """Hyperparameters of which every latent has its own."""
    return [name for name, (loc, _) in state.items() if len(loc) == len(guide.eta)]


def _learnt(factor: PriorFactor) -> dict[str, HyperFactor]:
    return {name: f for name, f in factor.own().items() if f.learnt}


def _state(factor: PriorFactor) -> State:
    """Mean and log spread of every learnt factor on the real line, as copies."""
    return {name: (f.loc.clone(), f.log_scale.clone()) for name, f in _learnt(factor).items()}


def _restore(factor: PriorFactor, state: State) -> None:
    for name, (loc, log_scale) in state.items():
        _learnt(factor)[name].loc.copy_(loc)
        _learnt(factor)[name].log_scale.copy_(log_scale)
