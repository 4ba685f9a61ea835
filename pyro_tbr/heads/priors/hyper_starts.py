"""A second start for the hyperparameters of large and small changes.

Where no change stands out, much the same data come from many changes of one size and nothing in
between, or from small changes everywhere and few that are larger. Each holds itself up: small
changes taken for changes leave none to widen the spike. So at fixed potentials, where latents do
not touch each other, every latent's hyperparameters are moved to their optimum once from where they
are and once from few changes beside small ones, and it keeps the better one. Parameters drawn from
the prior, known latents (``examples/simulation_based_calibration.py --encoders identity --fits 20
--leaves 24 --first-seed 100``): PIPs of 0.88 are true in 0.71 and those of 0.98 in 0.97; without
the second start in 0.60 and 0.88.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_tbr.heads.hyper.factors import HyperFactor
from pyro_tbr.heads.priors import SpikeSlabPrior

if TYPE_CHECKING:
    from pyro_tbr.heads.tree_guide import TreeGuide

# The second start: inclusion rate, and slab and spike over the root mean square change now.
_RATE, _SLAB, _SPIKE = 0.05, 2.0, 0.5
_SPREAD = 0.2  # of the factors at their start, on the real line
_MOST_UPDATES = 30
_SETTLED = 0.02  # moves of a latent's log evidence below which updates end
_WORTH = 0.1  # log evidence by which the second start must be better

State = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def choose_start(guide: TreeGuide, num_components: int | None) -> bool:
    """Moves hyperparameters to the better of two optima, latent by latent.

    Args:
        guide: Its potentials are left as they are.
        num_components: Cap on the components of a message.

    Returns:
        Whether any latent has left the optimum it was at; never where the prior has no spike of
        learnt width.
    """
    prior = guide.model.prior
    if not (isinstance(prior, SpikeSlabPrior) and prior.wide_spike):
        return False
    if prior.spike_scale.fixed is not None:
        return False
    now = guide.current
    known = guide.informed_arcs.to(now.delta_second.device)
    size = now.delta_second[..., known].mean((1, 2)).sqrt().reshape(-1, 1)
    kept = _state(guide)
    first, bound = _climbed(guide, num_components, kept)
    _factor(guide, "inclusion_rate").initialise(torch.tensor(_RATE), _SPREAD)
    _factor(guide, "slab_scale").initialise(_SLAB * size, _SPREAD)
    _factor(guide, "spike_scale").initialise(_SPIKE * size, _SPREAD)
    second, other = _climbed(guide, num_components, kept)
    better = other > bound + _WORTH  # (W,)
    for name in _own(guide, kept):
        pairs = zip(first[name], second[name], strict=True)
        loc, log_scale = (torch.where(better[:, None], new, old) for old, new in pairs)
        first[name] = (loc, log_scale)
    _restore(guide, first)
    guide.refresh()
    return bool(better.any())


def _climbed(guide: TreeGuide, num_components: int | None, kept: State) -> tuple[State, Tensor]:
    """The hyperparameters at their optimum given the potentials, and each latent's bound (W,).

    What latents share stays as in ``kept``, so that each is judged alone; afterwards all are there
    again.
    """
    own, last = _own(guide, kept), None
    for _ in range(_MOST_UPDATES):
        guide.refresh(guide.passes(num_components=num_components))
        bound = guide.log_evidence() - sum(_factor(guide, name).kl().sum(-1) for name in own)
        state = _state(guide)
        if last is not None and (bound - last).abs().max() < _SETTLED:
            break
        last = bound
        guide.tree_law.learn(guide.current, guide.informed_arcs)
        _restore(guide, {name: pair for name, pair in kept.items() if name not in own})
    _restore(guide, kept)
    return state, bound


def _own(guide: TreeGuide, state: State) -> list[str]:
    """Hyperparameters of which every latent has its own."""
    return [name for name, (loc, _) in state.items() if len(loc) == len(guide.eta)]


def _factor(guide: TreeGuide, name: str) -> HyperFactor:
    factor = guide.hyper[name]
    assert isinstance(factor, HyperFactor)
    return factor


def _state(guide: TreeGuide) -> State:
    """Mean and log spread of every learnt factor on the real line, as copies."""
    return {
        name: (_factor(guide, name).loc.clone(), _factor(guide, name).log_scale.clone())
        for name in guide.hyper
        if _factor(guide, name).hyper.fixed is None
    }


def _restore(guide: TreeGuide, state: State) -> None:
    for name, (loc, log_scale) in state.items():
        _factor(guide, name).loc.copy_(loc)
        _factor(guide, name).log_scale.copy_(log_scale)
