"""Hyperparameters of chains, from their full conditionals, by slices on the real line.

Rates and scales are learnt per latent, so the conditionals of latents are apart and go as one batch
with the chains. The scale of changes that rows say little of follows these changes, and they it;
so scales of changes are drawn twice a sweep: given the changes, and given the changes in units of
the scale, where it is rows that speak (an interweaving).

Source:
    Yu & Meng, Journal of Computational and Graphical Statistics 20 (2011) 531.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from pyro_tbr.heads.hyper import HyperFactor
from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.heads.priors.classes import Classes
from pyro_tbr.heads.sampling.row_sums import RowSums
from pyro_tbr.heads.sampling.slices import slice_draw
from pyro_tbr.tree import Tree, path_sum

_LEAST = 1e-300


@dataclass
class ChainState:
    """Where the chains stand; all but weights is what a sweep starts from.

    Attributes:
        values: Hyperparameters by site name, noise among them, (C, *shape).
        classes: Of all changes, (C, Q, A, W) int64.
        nodes: Weights, (C, Q, V, W).
        deltas: Changes, (C, Q, A, W); zero on arcs without rows below.
        inclusion: As of ``TreeDraw``.
    """

    values: dict[str, Tensor]
    classes: Tensor
    nodes: Tensor
    deltas: Tensor
    inclusion: Tensor


def draw_real(
    factor: HyperFactor,
    now: Tensor,
    log_lik: Callable[[Tensor], Tensor],
    generator: Generator,
) -> Tensor:
    """A step of a hyperparameter (C, *shape), given its log likelihood as of its real values."""
    if not factor.learnt:
        return now

    def log_density(real: Tensor) -> Tensor:
        return log_lik(real) + factor.log_prior(real)

    return factor.to_support(slice_draw(log_density, factor.to_real(now), generator))


def scale_log_lik(
    square: Tensor, count: Tensor, size: Tensor | float = 0.0
) -> Callable[[Tensor], Tensor]:
    """Log likelihood of normal draws as of the logarithm of their scale; as ``ScaleFactor.update``.

    Args:
        square: Sum of squares.
        count: Number.
        size: Of draws around a mean that is a multiple of the scale, the sum of products with that
            mean over the scale.
    """

    def log_lik(real: Tensor) -> Tensor:
        inverse = torch.exp(-real.clamp(min=-300))
        return size * inverse - 0.5 * square * inverse.square() - count * real

    return log_lik


def rate_log_lik(on: Tensor, off: Tensor, relative_length: Tensor) -> Callable[[Tensor], Tensor]:
    """Log likelihood of gates as of the logit of their rate; gates (C, A, W, .), lengths (A,)."""
    lengths, place = relative_length.double().unique(return_inverse=True)
    empty = on.new_zeros(len(on), len(lengths), *on.shape[2:])
    on, off = (empty.index_add(1, place, part) for part in (on, off))
    lengths = lengths[:, None, None]

    def log_lik(real: Tensor) -> Tensor:
        log_off = lengths * logsigmoid(-real).unsqueeze(1)
        log_on = torch.log(-torch.expm1(log_off.clamp(max=-_LEAST)))
        return torch.where(on > 0, on * log_on, 0.0).sum(1) + (off * log_off).sum(1)

    return log_lik


def separation_log_lik(square: Tensor, size: Tensor, count: Tensor) -> Callable[[Tensor], Tensor]:
    """Log likelihood of changes as of the log separation; see ``SeparationFactor.learn``."""

    def log_lik(real: Tensor) -> Tensor:
        c2 = (2 * real).exp()
        log_lik = -0.5 * square * (1 + c2) + size * (c2 * (1 + c2)).sqrt()
        return log_lik + 0.5 * count * (torch.log1p(c2) - c2)

    return log_lik


def gates_out_log_lik(
    prior: ArcPrior, values: dict[str, Tensor], factor: HyperFactor, deltas: Tensor, known: Tensor
) -> Callable[[Tensor], Tensor]:
    """Log likelihood of one hyperparameter given changes (C, Q, A, W), gates summed out.

    As of its real values (C, *shape). Arcs are those ``known``, (A,) bool, that may change. No
    class of these is a point: else changes say which gates are open, and nothing is won.
    """
    change = deltas.permute(0, 2, 3, 1)
    known = known.reshape(-1, 1, 1) & prior.may_change()
    shape = factor.hyper.shape

    def log_lik(real: Tensor) -> Tensor:
        now = {**values, factor.hyper.name: factor.to_support(real)}
        each = torch.where(known, _log_classes(prior.classes(now), change).logsumexp(-1), 0.0)
        total = each.sum(1)
        dims = [dim for dim in (1, 2) if shape[dim - 1] < total.shape[dim]]
        return total.sum(dims, keepdim=True) if dims else total

    return log_lik


def draw_gates(prior: ArcPrior, state: ChainState, generator: Generator) -> None:
    """Classes given the changes, all of which have a width."""
    weight = _log_classes(prior.classes(state.values), state.deltas.permute(0, 2, 3, 1))
    upto = weight.softmax(-1).cumsum(-1)[..., :-1]
    uniform = torch.rand(upto.shape[:-1], generator=generator, dtype=torch.float64)
    state.classes = (uniform.unsqueeze(-1) >= upto).sum(-1).permute(0, 3, 1, 2)


def _log_classes(law: Classes, change: Tensor) -> Tensor:
    """Log of probability times density of each class, (C, A, W, Q, J)."""
    var = torch.where(law.var > 0, law.var, 1.0)
    square = (change.unsqueeze(-1) - law.mean).square() / var
    return law.prob.log() - 0.5 * (square + var.log())


def per_weight(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums of (C, Q, A, W) over arcs, and over outcomes that share a hyperparameter, (C, W, .)."""
    total = values.sum(2).transpose(1, 2)
    return total.sum(-1, keepdim=True) if shape[-1] == 1 else total


def rescale(
    state: ChainState,
    factor: HyperFactor,
    mask: Tensor,
    tree: Tree,
    rows: RowSums,
    noise: Tensor,
    generator: Generator,
) -> None:
    """A step of a scale with its changes in units of it held: both move, one latent at a time.

    Args:
        state: Changed.
        factor: Of the scale, learnt, (W, 1) or (W, Q).
        mask: Changes of that scale, (C, Q, A, W) bool.
        tree: The environments.
        rows: Their sums.
        noise: Noise scales at the nodes with rows, (C, Q, E).
        generator: On the CPU.
    """
    name = factor.hyper.name
    own = torch.where(mask, state.deltas, 0.0)
    moved = path_sum(tree, own.new_zeros(own[:, :, 0].shape), own)  # (C, Q, V, W)
    pull, precision = rows.pull(state.nodes), rows.precision(noise)
    real = factor.to_real(state.values[name])  # (C, W, .)
    shared = real.shape[-1] == 1
    for k in range(own.shape[-1]):
        along = moved[:, :, rows.nodes, k]
        slope = (precision * pull[..., k] * along).sum(-1)  # (C, Q)
        bend = (precision * rows.gram[..., k, k] * along.square()).sum(-1)
        if shared:
            slope, bend = slope.sum(-1, keepdim=True), bend.sum(-1, keepdim=True)
        before = real[:, k].clone()

        def log_density(
            one: Tensor,
            k: int = k,
            before: Tensor = before,
            slope: Tensor = slope,
            bend: Tensor = bend,
        ) -> Tensor:
            step = torch.expm1((one - before).clamp(max=300))
            whole = real.clone()
            whole[:, k] = one
            return slope * step - 0.5 * bend * step.square() + factor.log_prior(whole)[:, k]

        real[:, k] = slice_draw(log_density, before, generator)
        step = torch.expm1(real[:, k] - before).unsqueeze(-1)  # (C, . , 1)
        pull = pull - rows.gram[..., k] * (step * along).unsqueeze(-1)
        state.nodes[..., k] += step * moved[..., k]
        state.deltas[..., k] += step * own[..., k]
    state.values[name] = factor.to_support(real)
