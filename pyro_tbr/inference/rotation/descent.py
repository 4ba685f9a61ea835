"""The descent of the rotation search in compiled loops, many restarts side by side.

What :func:`~pyro_tbr.inference.rotation.search.descend` does by torch's tensors and its Adam, in
the same float32. Arrays have the restarts along their last dimension, so every operation is one on
a run of neighbouring numbers, whatever the numbers of latents and outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from pyro_tbr.jit import jit

Array = Any  # numpy's, or the compiler's

ABREAST = 64  # restarts side by side: what moves at once stays in the cache
_TOLD = 100  # steps after which it tells how far it is
_BETA, _BETA_SQUARE, _EPS = 0.9, 0.99, 1e-8  # of Adam


class Task(NamedTuple):
    """What is to be fitted, float32.

    Attributes:
        parent: Parent of the node that each arc leads to, (A,).
        nodes: Nodes with rows, (E,).
        precision: Curvature of a node's log likelihood, (E, Q or 1, W, W).
        target: Where it peaks, (E, Q, W).
        offset_scale: See ``RotationProblem``.
    """

    parent: Array
    nodes: Array
    precision: Array
    target: Array
    offset_scale: float


class Point(NamedTuple):
    """Where S restarts stand; also gradients, and Adam's moments; float32.

    Attributes:
        basis: (K, K, S), of any length of the columns.
        offset: (K, S).
        root: (W, Q, S).
        deltas: (A, W, Q, S).
    """

    basis: Array
    offset: Array
    root: Array
    deltas: Array


@jit
def added(total: Array, factor: Array, values: Array, sign: Any) -> None:
    """Adds the product of two runs of numbers, or takes it off."""
    for s in range(len(total)):
        total[s] += sign * factor[s] * values[s]


@jit
def scaled(total: Array, factor: Any, values: Array) -> None:
    """Adds a multiple of a run of numbers."""
    for s in range(len(total)):
        total[s] += factor * values[s]


@jit
def unit_columns(basis: Array, unit: Array, length: Array) -> None:
    """Columns of unit length, and their lengths (K, S)."""
    k = len(basis)
    for j in range(k):
        length[j] = 0
        for i in range(k):
            added(length[j], basis[i, j], basis[i, j], np.float32(1))
        for s in range(basis.shape[2]):
            length[j, s] = sqrt(length[j, s])
        for i in range(k):
            for s in range(basis.shape[2]):
                unit[i, j, s] = basis[i, j, s] / length[j, s]


@jit
def misfit(
    task: Task, unit: Array, at: Point, weights: Array, slope: Array, gradient: Point,
    spare: Array, pulled: Array, total: Array,
) -> None:  # fmt: skip
    """Adds half the squared misfit to ``total`` (S,), and its slopes: nodes (V, W, Q, S), basis.

    The slope of the offset is that of an offset in units of the latents.
    """
    one = np.float32(1)
    num_latents, (num_weights, num_outcomes) = len(unit), at.root.shape[:2]
    shift = np.float32(task.offset_scale)
    for e in range(len(task.nodes)):
        v = task.nodes[e]
        for q in range(num_outcomes):
            precision = task.precision[e, min(q, task.precision.shape[1] - 1)]
            for i in range(num_weights):
                error = spare[i]
                error[:] = -task.target[e, q, i]
                if i < num_latents:
                    for j in range(num_latents):
                        added(error, unit[i, j], weights[v, j, q], one)
                else:
                    for s in range(len(error)):
                        error[s] += weights[v, i, q, s]
                    for j in range(num_latents):
                        for s in range(len(error)):
                            error[s] -= shift * at.offset[j, s] * weights[v, j, q, s]
            for i in range(num_weights):
                pull = pulled[i]
                pull[:] = 0
                for j in range(num_weights):
                    scaled(pull, precision[i, j], spare[j])
                added(total, spare[i], pull, np.float32(0.5))
            for j in range(num_latents):
                for i in range(num_latents):
                    added(slope[v, j, q], unit[i, j], pulled[i], one)
                    added(gradient.basis[i, j], pulled[i], weights[v, j, q], one)
                if num_weights > num_latents:
                    last = pulled[num_latents]
                    for s in range(len(last)):
                        slope[v, j, q, s] -= shift * at.offset[j, s] * last[s]
                    added(gradient.offset[j], last, weights[v, j, q], -one)
            if num_weights > num_latents:
                for s in range(len(total)):
                    slope[v, num_latents, q, s] += pulled[num_latents, s]


@jit
def adam(value: Array, gradient: Array, mean: Array, square: Array, rate: Any, root: Any) -> None:
    """A step of flat arrays; ``rate`` and ``root`` have the corrections of the moments."""
    keep, keep_square = np.float32(_BETA), np.float32(_BETA_SQUARE)
    new, new_square = np.float32(1 - _BETA), np.float32(1 - _BETA_SQUARE)
    eps = np.float32(_EPS)
    for i in range(len(value)):
        mean[i] = keep * mean[i] + new * gradient[i]
        square[i] = keep_square * square[i] + new_square * gradient[i] * gradient[i]
        value[i] -= rate * mean[i] / (root * np.float32(sqrt(square[i])) + eps)


@jit
def sparse_slope(deltas: Array, gradient: Array, width: Any) -> None:
    """Adds the slope of the penalty log(1 + |delta| / width) to that of flat deltas."""
    one, none = np.float32(1), np.float32(0)
    for i in range(len(deltas)):
        here = deltas[i]
        sign = one if here > none else (-one if here < none else none)
        gradient[i] += sign / (width + abs(here))


@jit
def value_and_slope(
    task: Task, at: Point, width: Any, unit: Array, length: Array, weights: Array, slope: Array,
    gradient: Point, spare: Array, pulled: Array, total: Array,
) -> None:  # fmt: skip
    """The misfit of the rows (S,) and the gradient of misfit and penalty."""
    unit_columns(at.basis, unit, length)
    total[:] = 0
    gradient.basis[:] = 0
    gradient.offset[:] = 0
    slope[:] = 0
    weights[0] = at.root
    for a in range(len(task.parent)):
        here, above, change = weights[a + 1], weights[task.parent[a]], at.deltas[a]
        for k in range(here.shape[0]):
            for q in range(here.shape[1]):
                for s in range(here.shape[2]):
                    here[k, q, s] = above[k, q, s] + change[k, q, s]
    misfit(task, unit, at, weights, slope, gradient, spare, pulled, total)
    for a in range(len(task.parent) - 1, -1, -1):
        here, above = slope[a + 1], slope[task.parent[a]]
        for k in range(here.shape[0]):
            for q in range(here.shape[1]):
                for s in range(here.shape[2]):
                    above[k, q, s] += here[k, q, s]
        gradient.deltas[a] = here
    gradient.root[:] = slope[0]
    sparse_slope(at.deltas.reshape(-1), gradient.deltas.reshape(-1), width)
    shift = np.float32(task.offset_scale)
    num_latents = len(unit)
    for j in range(num_latents):
        along = spare[0]
        along[:] = 0
        for i in range(num_latents):
            added(along, gradient.basis[i, j], unit[i, j], np.float32(1))
        for i in range(num_latents):
            for s in range(len(along)):
                off = gradient.basis[i, j, s] - along[s] * unit[i, j, s]
                gradient.basis[i, j, s] = off / length[j, s]
        for s in range(len(along)):
            gradient.offset[j, s] = shift * gradient.offset[j, s] + at.offset[j, s]


@jit
def descend_abreast(
    task: Task, at: Point, widths: Array, rates: Array, offset_rate: float, hold: bool,
    first: Point, second: Point, gradient: Point, weights: Array, slope: Array, loss: Array,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Moves ``at`` by steps ``begin`` to ``end`` of Adam; behind the last the penalised loss, (S,).

    The other points are Adam's moments, zero at the start, and room for gradients; slopes and
    weights of nodes, (V, W, Q, S), are room too. Bases that are held keep as they are.
    """
    lanes = at.basis.shape[2]
    num_latents, num_weights = len(at.basis), len(at.root)
    unit, length = np.empty_like(at.basis), np.empty((num_latents, lanes), np.float32)
    spare = np.empty((num_weights, lanes), np.float32)
    pulled = np.empty((num_weights, lanes), np.float32)
    decay, decay_square = _BETA**begin, _BETA_SQUARE**begin
    for step in range(begin, end):
        width = np.float32(widths[step])
        value_and_slope(
            task, at, width, unit, length, weights, slope, gradient, spare, pulled, loss
        )
        decay *= _BETA
        decay_square *= _BETA_SQUARE
        rate = np.float32(rates[step] / (1 - decay))
        root = np.float32(1 / sqrt(1 - decay_square))
        adam(at.root.reshape(-1), gradient.root.reshape(-1), first.root.reshape(-1),
             second.root.reshape(-1), rate, root)  # fmt: skip
        adam(at.deltas.reshape(-1), gradient.deltas.reshape(-1), first.deltas.reshape(-1),
             second.deltas.reshape(-1), rate, root)  # fmt: skip
        if not hold:
            adam(at.basis.reshape(-1), gradient.basis.reshape(-1), first.basis.reshape(-1),
                 second.basis.reshape(-1), rate, root)  # fmt: skip
        if num_weights > num_latents:
            adam(at.offset.reshape(-1), gradient.offset.reshape(-1), first.offset.reshape(-1),
                 second.offset.reshape(-1), np.float32(offset_rate) * rate, root)  # fmt: skip
    if end < len(rates):
        return
    width = np.float32(widths[end])
    value_and_slope(task, at, width, unit, length, weights, slope, gradient, spare, pulled, loss)
    at.basis[:] = unit
    for k in range(num_weights):
        for a in range(len(at.deltas)):
            for q in range(at.deltas.shape[2]):
                for s in range(lanes):
                    loss[s] += np.float32(np.log1p(abs(at.deltas[a, k, q, s]) / width))
    for j in range(num_latents):
        added(loss, at.offset[j], at.offset[j], np.float32(0.5))


def descend(
    task: Task,
    start: Point,
    widths: Array,
    rates: Array,
    offset_rate: float,
    *,
    hold: bool,
    tell: Callable[[float], None],
) -> tuple[Point, Array]:
    """Restarts moved by one step of Adam for each rate, and their penalised losses (S,).

    ``widths`` of the penalty, one more than rates; ``tell`` hears now and then how many steps are
    done since. The bases that are returned have unit columns; numbers are float32.
    """
    number = start.basis.shape[-1]
    found, losses = [], []
    for begin in range(0, number, ABREAST):
        at = Point(*(np.ascontiguousarray(part[..., begin : begin + ABREAST]) for part in start))
        one, two, slope = (Point(*(np.zeros_like(part) for part in at)) for _ in range(3))
        nodes = np.zeros((len(task.parent) + 1, *at.root.shape), np.float32)
        loss = np.empty(at.basis.shape[-1], np.float32)
        pulls = np.zeros_like(nodes)
        for first in range(0, len(rates), _TOLD) or (0,):
            last = min(first + _TOLD, len(rates))
            descend_abreast(
                task, at, widths, rates, offset_rate, hold, one, two, slope, nodes, pulls, loss,
                first, last,
            )  # fmt: skip
            tell((last - first) * len(loss) / number)
        found.append(at)
        losses.append(loss)
    parts = (np.concatenate(same, -1) for same in zip(*found, strict=True))
    return Point(*parts), np.concatenate(losses)
