"""Optima of a likelihood's parameters that have no closed form."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pyro_tbr.heads.hyper import HyperFactor
from pyro_tbr.heads.hyper.base import check_finite

_MOST_STEPS = 50
_MOST_HALVINGS = 12  # of a step that does not raise the bound
_SETTLED = 1e-3  # moves, in standard deviations of q, below which climbing ends
_ROUNDING = 1e-13  # of the bound
_LONGEST = 1.0  # step of a mean on the real line
_NARROWING = (0.25, 100.0)  # of a variance in one step, as bounds of the factor it is divided by

Factors = dict[str, HyperFactor]


@torch.inference_mode(False)
def climb(factors: Factors, log_lik: Callable[[Factors], Iterable[Tensor]]) -> None:
    """Moves factors to the optimum of expected log likelihood less KL, in double precision.

    With mean l and variance s^2 of a parameter on the real line, and F what the bound is but for
    the entropy log s, the optimum has ``1 / s^2 = -2 dF/ds^2`` (the expected curvature) and
    ``dF/dl = 0``. So a step takes that variance, and Newton's step of the mean with it; it is
    halved until the bound rises. First derivatives are all it needs, and the same numbers give the
    same optimum.

    Args:
        factors: By site name, none of them fixed; changed.
        log_lik: Parts of the expected log likelihood under given factors, one after the other.

    Raises:
        TrainingError: Something is not finite.

    Source:
        Khan & Rue, JMLR 24 (2023) 281: variational online Newton.
    """
    work = {name: factor.hyper.factor().double() for name, factor in factors.items()}
    for name, factor in work.items():
        factor.restore(factors[name].state())
    parameters = [part for factor in work.values() for part in factor.parameters()]
    bound, slopes = _bound(work, parameters, log_lik)
    check_finite(", ".join(work), bound, *slopes)
    for _ in range(_MOST_STEPS):
        start = [part.detach().clone() for part in parameters]
        steps = _steps(start, slopes)
        size = 1.0
        for _ in range(_MOST_HALVINGS):
            _place(parameters, [s + size * step for s, step in zip(start, steps, strict=True)])
            new, new_slopes = _bound(work, parameters, log_lik)
            falls = new < bound - _ROUNDING * bound.abs()
            if not falls and all(torch.isfinite(part).all() for part in (new, *new_slopes)):
                break
            size = 0.5 * size
        else:
            _place(parameters, start)
            break
        bound, slopes = new, new_slopes
        # Moves of means in their standard deviations, and of log standard deviations.
        means = (step / sd.exp() for step, sd in zip(steps[::2], start[1::2], strict=True))
        if max(move.abs().max().item() for move in (*means, *steps[1::2])) < _SETTLED:
            break
    for name, factor in work.items():
        factors[name].restore(factor.state())


def _bound(
    work: Factors, parameters: Sequence[Tensor], log_lik: Callable[[Factors], Iterable[Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """The bound and its slopes in every parameter, a part of the rows at a time."""
    bound = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    slopes = [torch.zeros_like(part) for part in parameters]
    with torch.enable_grad():
        own = (-factor.kl().sum() for factor in work.values())
        for part in itertools.chain(own, log_lik(work)):
            each = torch.autograd.grad(part, parameters, allow_unused=True)
            bound = bound + part.detach()
            slopes = [s if e is None else s + e for s, e in zip(slopes, each, strict=True)]
    return bound, slopes


def _steps(start: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
    """Steps of means and log standard deviations, which come in turn."""
    steps = []
    for log_scale, slope, spread_slope in zip(start[1::2], slopes[::2], slopes[1::2], strict=True):
        # d bound / d log s is 1 + 2 s^2 dF/ds^2, so this is the curvature over that of q.
        narrowing = (1 - spread_slope).clamp(*_NARROWING)
        step = (slope * (2 * log_scale).exp() / narrowing).clamp(-_LONGEST, _LONGEST)
        steps += [step, -0.5 * narrowing.log()]
    return steps


@torch.no_grad()
def _place(parameters: Sequence[Tensor], values: list[Tensor]) -> None:
    for part, value in zip(parameters, values, strict=True):
        part.copy_(value)
