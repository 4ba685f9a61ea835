"""A second start of the hyperparameters, where their optimum may be one of two.

At fixed potentials, where latents do not touch each other, every latent's hyperparameters are moved
to their optimum once from where they are and once from what the prior offers as a second start, and
it keeps the better one.
"""

import torch
from torch import Tensor

from pyro_tbr.heads.hyper.base import FactorState, HyperFactor
from pyro_tbr.heads.tree_state import TreeState
from pyro_tbr.progress import stage, step

_MOST_UPDATES, _MOSTLY = 30, 20
_SETTLED = 0.02  # moves of a latent's log evidence below which updates end
_TALK = 0.6  # step of what outcomes tell each other
_WORTH = 0.1  # log evidence by which the second start must be better

Factors = dict[str, HyperFactor]
State = dict[str, FactorState]


@torch.no_grad()
def choose_start(guide: TreeState, num_components: int | None) -> bool:
    """Moves hyperparameters to the better of two optima, latent by latent; potentials stay.

    Returns:
        Whether any latent has left the optimum it was at.
    """
    learnt = _learnt(guide)
    kept = {name: factor.state() for name, factor in learnt.items()}
    if not guide.factor.second_start(guide.current, guide.informed_arcs):
        return False
    own = _own(guide, learnt)
    start = {name: factor.state() for name, factor in own.items()}
    _restore(learnt, kept)
    with stage("second start", about=_MOSTLY, units=0):
        first, bound = _climbed(guide, num_components, own, learnt, kept)
        _restore(own, start)
        second, other = _climbed(guide, num_components, own, learnt, kept)
    better = other > bound + _WORTH  # (W,)
    for name, factor in own.items():
        pairs = zip(first[name], second[name], strict=True)
        factor.restore(FactorState(*(torch.where(better[:, None], new, old) for old, new in pairs)))
    guide.refresh()
    return bool(better.any())


@torch.no_grad()
def gain_by_small_changes(without: TreeState, guide: TreeState) -> Tensor:
    """By how much each weight's evidence is larger if changes may be small everywhere, (W,).

    Args:
        without: At its optimum, of a prior that has none.
        guide: Of the same prior with small changes, as it is made; moved to the same potentials,
            hyperparameters to the better of two optima.
    """
    learnt, plain = _learnt(guide), _learnt(without)
    guide.eta.copy_(without.eta)
    guide.lam.copy_(without.lam)
    _restore({name: learnt[name] for name in plain}, {n: f.state() for n, f in plain.items()})
    guide.refresh()
    choose_start(guide, guide.factor.rough_components)
    return _bound(guide, _own(guide, learnt)) - _bound(without, _own(without, plain))


def _learnt(guide: TreeState) -> Factors:
    return {name: f for name, f in guide.factor.own().items() if f.learnt}


def _own(guide: TreeState, factors: Factors) -> Factors:
    """Of these those that each latent has for itself."""
    return {name: factor for name, factor in factors.items() if len(factor.loc) == len(guide.eta)}


def _bound(guide: TreeState, own: Factors) -> Tensor:
    """Each latent's evidence at these potentials, less what its hyperparameters cost, (W,)."""
    return guide.log_evidence() - sum(factor.kl().sum(-1) for factor in own.values())


def _climbed(
    guide: TreeState, num_components: int | None, own: Factors, learnt: Factors, kept: State
) -> tuple[State, Tensor]:
    """The hyperparameters at their optimum given the potentials, and each latent's bound (W,).

    What latents share stays as in ``kept``, so that each is judged alone; afterwards all are there
    again.
    """
    last = None
    for _ in range(_MOST_UPDATES):
        guide.refresh(guide.passes(num_components=num_components))
        step()
        bound = _bound(guide, own)
        state = {name: factor.state() for name, factor in own.items()}
        if last is not None and (bound - last).abs().max() < _SETTLED:
            break
        last = bound
        guide.factor.exchange(guide.current, guide.informed_arcs, _TALK)
        guide.factor.learn(guide.current, guide.informed_arcs)
        _restore({name: f for name, f in learnt.items() if name not in own}, kept)
    _restore(learnt, kept)
    return state, bound


def _restore(factors: Factors, state: State) -> None:
    for name, factor in factors.items():
        factor.restore(state[name])
