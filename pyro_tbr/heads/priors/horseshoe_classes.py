r"""A horseshoe's local scales as a few classes: a sum in place of an integral.

Given the global scale :math:`\tau` and the slab's scale c, a change is normal with
:math:`s^{-2} = (\tau\lambda)^{-2} + c^{-2}` and :math:`\lambda` half-Cauchy, so
:math:`u = \log\lambda` has density :math:`1 / (\pi \cosh u)`. As a function of u both it and the
evidence are smooth: their nearest poles are at a distance of :math:`\pi/2` from the real line, and
the trapezoid rule with step h is off by some :math:`2 e^{-\pi^2 / h}`. What is too narrow to be
seen, and what the slab has flattened, are lumped together in the end classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

NUM_CLASSES = 10
_NARROWEST = 0.1  # scale of the first class, over the standard error of a change
_LEAST_RANGE = 0.02  # and at most this share of that of the last one
_WIDEST = 3.0  # scale of the last class before the slab, over the slab's
_TAIL = 3 * (math.pi / 2 - math.atan(3.0))  # mean of s^2 / c^2 beyond that, for t of density t^-2
_LEAST = 1e-12  # probability of a class

_NUM_CELLS = 64  # for draws of a local scale given its change
_BELOW, _ABOVE = math.log(6.0), 9.0  # reach of these cells in log scale, beyond change and one
_CHUNK = 1 << 16  # changes at once


class ScaleClasses(NamedTuple):
    """Classes of the scale of a change, each ``(..., J)``.

    Attributes:
        prob: Prior probability.
        var: Variance of a change.
        log_local: Log of the local scale.
    """

    prob: Tensor
    var: Tensor
    log_local: Tensor


def scale_classes(
    log_global: Tensor, log_slab: Tensor, precision: Tensor, num_classes: int = NUM_CLASSES
) -> ScaleClasses:
    """Classes for the changes of some arcs.

    Args:
        log_global: Log global scale, broadcastable to ``(...)``.
        log_slab: Log scale of the slab, likewise.
        precision: Precision with which data alone could tell the change, zero for none, likewise.
        num_classes: J.
    """
    log_global, log_slab, precision = torch.broadcast_tensors(log_global, log_slab, precision)
    last = log_slab + math.log(_WIDEST)
    error = math.log(_NARROWEST) - 0.5 * precision.clamp(min=1e-300).log()
    first = torch.minimum(error, last + math.log(_LEAST_RANGE))
    step = ((last - first) / (num_classes - 1)).unsqueeze(-1)
    order = torch.arange(num_classes, dtype=step.dtype, device=step.device)
    log_wide = first.unsqueeze(-1) + step * order  # of global times local scale
    local = log_wide - log_global.unsqueeze(-1)
    prob = step / (math.pi * torch.cosh(local.clamp(-300, 300)))
    slab = log_slab.unsqueeze(-1)
    var = torch.exp(2 * slab) * torch.sigmoid(2 * (log_wide - slab))

    # The last class: half a step, and all beyond.
    half, beyond = prob[..., -1] / 2, 1 - 2 / math.pi * torch.atan(local[..., -1].exp())
    prob_last = half + beyond
    share = torch.where(prob_last > 0, beyond / prob_last.clamp(min=1e-300), 1.0)
    var_last = (1 - share) * var[..., -1] + share * _TAIL * torch.exp(2 * log_slab)
    # The first: half a step and all below, by its mean square: a change too small to be seen
    # matters by its variance alone.
    half, bound = prob[..., 0] / 2, local[..., 0].exp()
    below = 2 / math.pi * torch.atan(bound)
    small = bound < 1e-3  # where the difference would lose its digits
    square = torch.where(small, bound**3 / 3, bound - torch.atan(bound)) * 2 / math.pi
    square = square * torch.exp(2 * log_global)
    var_first = (half * var[..., 0] + square) / (half + below)

    # The rule's correction for a slope at its end, by Euler and Maclaurin.
    slope = -prob[..., 0] * torch.tanh(local[..., 0]) * step[..., 0] / 12
    prob_first = half + below + slope
    prob = torch.cat([prob_first.unsqueeze(-1), prob[..., 1:-1], prob_last.unsqueeze(-1)], -1)
    prob = prob.clamp(min=_LEAST)
    var = torch.cat([var_first.unsqueeze(-1), var[..., 1:-1], var_last.unsqueeze(-1)], -1)
    return ScaleClasses(prob / prob.sum(-1, keepdim=True), var, local)


def draw_half_cauchy(shape: tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    """Draws by the quantiles, of dtype and device of ``like``."""
    return torch.tan(
        0.5 * math.pi * torch.rand(shape, generator=generator, dtype=like.dtype).to(like)
    )


def draw_local_scales(
    deltas: Tensor, global_scale: Tensor, slab_scale: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Local scales given the changes and all other scales, ``(...)``: a draw and its log density.

    By cells of log local scale, each with a uniform density: of what the true density has, one in
    some 10,000 lies beyond them. Changes are ``(...)``, scales broadcastable to that.
    """
    parts = torch.broadcast_tensors(deltas, global_scale, slab_scale)
    flat = [part.reshape(-1).split(_CHUNK) for part in parts]
    found = [_draw_local(d, g, s, generator) for d, g, s in zip(*flat, strict=True)]
    local, log_density = (torch.cat(p).reshape(parts[0].shape) for p in zip(*found, strict=True))
    return local, log_density


def _draw_local(
    delta: Tensor, whole: Tensor, slab: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """See :func:`draw_local_scales`; each ``(n,)``."""
    size = (delta.abs() / whole).clamp(min=1e-12).log()
    low, high = size - _BELOW, size.clamp(min=0.0) + _ABOVE
    width = ((high - low) / _NUM_CELLS).unsqueeze(-1)
    order = torch.arange(_NUM_CELLS, dtype=delta.dtype, device=delta.device)
    local = low.unsqueeze(-1) + width * (order + 0.5)
    log_whole, log_slab = whole.log().unsqueeze(-1), slab.log().unsqueeze(-1)
    log_var = -torch.logaddexp(-2 * (local + log_whole), -2 * log_slab)
    log_mass = -0.5 * (log_var + delta.square().unsqueeze(-1) * (-log_var).exp())
    # log of 1 / cosh, up to a constant
    log_mass = (log_mass - local.abs() - torch.log1p((-2 * local.abs()).exp())).log_softmax(-1)
    uniform = torch.rand(2, *delta.shape, generator=generator, dtype=delta.dtype).to(delta.device)
    cell = (log_mass.exp().cumsum(-1) < uniform[0].unsqueeze(-1)).sum(-1, keepdim=True)
    cell = cell.clamp(max=_NUM_CELLS - 1)
    drawn = local.gather(-1, cell) + width * (uniform[1].unsqueeze(-1) - 0.5)
    log_density = log_mass.gather(-1, cell) - width.log() - drawn
    return drawn.squeeze(-1).exp(), log_density.squeeze(-1)
