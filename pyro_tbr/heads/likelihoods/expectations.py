"""Expectations under a normal predictor and a likelihood's parameters; rows as normal sites."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pyro_tbr.heads.hyper import HyperFactor, HyperFactors, LogNormalMoments, quadrature
from pyro_tbr.heads.hyper.base import gauss_hermite

_PREDICTOR_POINTS = 32  # of a quadrature over a linear predictor
_NUISANCE_POINTS = {1: 5, 2: 3}  # over each of so many parameters of the likelihood
_LEAST_SD = 1e-3  # of a predictor whose points rest
_CHUNK_ELEMENTS = 4_000_000  # rows are taken in chunks of about this many values


class OfNodes(NamedTuple):
    """What rows have of their nodes, in a table that holds each node's once.

    Attributes:
        table: Of some nodes, (n, ...).
        index: Which of these each row is at, (N,).
    """

    table: Tensor
    index: Tensor  # type: ignore[assignment]

    def of_rows(self) -> Tensor:
        """Of each row, (N, ...)."""
        return self.table[self.index]


Seen = LogNormalMoments | OfNodes | Tensor  # what rows see of their own

# Factors by site name as rows see them: of all rows, or moments of each row's; and what is known of
# each row and outcome, (N, Q).
Nuisance = HyperFactors | Mapping[str, HyperFactor | Seen]

# Of rows (n,), predictors (P, n, Q) and parameters (T, 1, 1, *shape): values (T, P, n, Q), or what
# broadcasts to them.
Function = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


def expectation(function: Function, mean: Tensor, var: Tensor, nuisance: Nuisance) -> Tensor:
    """E[function] under q, (N, Q), a chunk of rows at a time; differentiable.

    In double precision its slopes in the predictor's moments are those of the points' density, the
    points staying where they are. So a function with a corner has smooth ones, an order of
    magnitude closer than with points that move. Where a predictor is nearly certain, or in single
    precision, those would be mostly rounding: there points move with the moments. Moments of the
    predictor are (N, Q).
    """
    values, weights = nuisance_points(nuisance, mean)
    # Above 0, where the root has a slope.
    sd = (var.clamp(min=0) + torch.finfo(var.dtype).eps ** 0.75).sqrt()
    parts = []
    for rows in row_chunks(mean, nuisance):
        points, point_weights = quadrature(mean[rows], sd[rows], _PREDICTOR_POINTS)
        points, density = _resting(points, mean[rows], sd[rows])
        here = values | row_values(nuisance, rows)
        each = (density * function(rows, points, here)).expand(len(weights), *points.shape)
        parts.append(torch.einsum("t,p,tpnq->nq", weights.to(each), point_weights.to(each), each))
    return torch.cat(parts)


def _resting(points: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Points that do not move with the moments where that is wise, and their relative density.

    The density has the value 1, and slopes where the points have none.
    """
    if points.dtype != torch.float64 or not points.requires_grad:
        return points, points.new_ones(())
    rests = sd.detach() > _LEAST_SD
    log_density = -0.5 * ((points.detach() - mean) / sd).square() - sd.log()
    relative = (log_density - log_density.detach()).exp()
    return torch.where(rests, points.detach(), points), torch.where(rests, relative, 1.0)


def as_dict(nuisance: Nuisance) -> dict[str, HyperFactor | Seen]:
    """The same as a dict, whatever holds it."""
    return {name: cast(HyperFactor, part) for name, part in nuisance.items()}


def factors_of(nuisance: Nuisance) -> dict[str, HyperFactor]:
    """The factors that all rows share."""
    return {name: part for name, part in nuisance.items() if isinstance(part, HyperFactor)}


def row_values(nuisance: Nuisance, rows: Tensor) -> dict[str, Tensor]:
    """What is known of some rows (n,), (n, Q) by name; of a node's own scales their medians."""
    found = {}
    for name, part in _seen_by(nuisance, rows).items():
        if isinstance(part, LogNormalMoments):
            found[name] = part.loc.exp()
        else:
            found[name] = part.of_rows() if isinstance(part, OfNodes) else part
    return found


def of_rows(nuisance: Nuisance, rows: Tensor) -> dict[str, HyperFactor | Seen]:
    """The factors as some rows (n,) see them."""
    return {**factors_of(nuisance), **_seen_by(nuisance, rows)}


def _seen_by(nuisance: Nuisance, rows: Tensor) -> dict[str, Seen]:
    """What each row has of its own, of some rows (n,)."""
    found: dict[str, Seen] = {}
    for name, part in nuisance.items():
        if isinstance(part, LogNormalMoments):
            found[name] = LogNormalMoments(*(value[rows] for value in part))
        elif isinstance(part, OfNodes):
            found[name] = OfNodes(part.table, part.index[rows])
        elif isinstance(part, Tensor):
            found[name] = part[rows]
    return found


def row_chunks(like: Tensor, nuisance: Nuisance) -> tuple[Tensor, ...]:
    """Rows of (N, Q) in chunks whose values at all points have a bounded number of elements."""
    _, weights = nuisance_points(nuisance, like)
    each = len(weights) * _PREDICTOR_POINTS * like.shape[1]
    return torch.arange(len(like), device=like.device).split(max(1, _CHUNK_ELEMENTS // each))


def nuisance_points(nuisance: Nuisance, like: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Values (T, 1, 1, *shape) by site name and weights (T,) for expectations under all factors.

    An outcome has one or more elements of each parameter, (Q, ...); the elements of other outcomes
    do not matter to it, so they share their points. One element: Gauss-Hermite; two: a grid of
    them; more: the two points sqrt(D) standard deviations up and down each of the D axes, exact
    for polynomials of degree 3.
    """
    factors = factors_of(nuisance)
    learnt = {name: factor for name, factor in factors.items() if factor.learnt}
    sizes = {name: math.prod(factor.hyper.shape[1:]) for name, factor in learnt.items()}
    standard, weights = _standard_points(sum(sizes.values()), like)
    values, first = {}, 0
    for name, factor in factors.items():
        shape = factor.hyper.shape
        if name in learnt:
            axes = standard[:, first : first + sizes[name]]
            first += sizes[name]
        else:
            axes = standard.new_zeros(1, math.prod(shape[1:]))
        values[name] = factor.at(axes.reshape(len(axes), 1, 1, *[1] * len(shape[:1]), *shape[1:]))
    return values, weights


def _standard_points(num_axes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points (T, D) and weights (T,) for expectations under D independent standard normals."""
    if num_axes > max(_NUISANCE_POINTS):
        eye = num_axes**0.5 * torch.eye(num_axes, dtype=like.dtype, device=like.device)
        points = torch.cat([eye, -eye])
        return points, points.new_full((2 * num_axes,), 0.5 / num_axes)
    nodes, weights = (like.new_tensor(p) for p in gauss_hermite(_NUISANCE_POINTS.get(num_axes, 1)))
    if num_axes == 0:
        return nodes.reshape(1, 1)[:, :0], weights
    points = torch.cartesian_prod(*[nodes] * num_axes).reshape(-1, num_axes)
    each = torch.cartesian_prod(*[weights] * num_axes).reshape(-1, num_axes)
    return points, each.prod(-1)


class SiteTerms(NamedTuple):
    """What rows say of their linear predictor, as normal sites; (N, Q) each, double precision.

    At the moments (m, v) they were made at, value and first derivatives in m and v of

    ``log_norm - site_scale * precision * E[(f - response)^2] / 2,   f ~ N(m, v)``

    are those of the expected log density.

    Attributes:
        precision: Above 0; in units of ``Likelihood.site_scale``.
        response: In the predictor's unit.
        log_norm: Log density.
    """

    precision: Tensor
    response: Tensor
    log_norm: Tensor


def touching(
    each: Tensor, mean: Tensor, var: Tensor, precision: Tensor, slope: Tensor
) -> SiteTerms:
    """Sites of these precisions that have value ``each`` and slope in the mean; (N, Q) all."""
    step = slope / precision
    return SiteTerms(precision, mean + step, each + 0.5 * precision * (step.square() + var))
