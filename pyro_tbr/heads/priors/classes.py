"""Changes as mixtures of normals: what priors say of them, and what q expects of that."""

from collections.abc import Mapping
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Generator, Tensor
from torch.distributions import constraints

Values = Mapping[str, Tensor]


class Classes(NamedTuple):
    """The law of a change given the hyperparameters: a mixture of J normals.

    Attributes:
        prob: Probability of each class, broadcastable to (*S, A, W, Q, J).
        mean: Mean of a change in each class, likewise.
        var: Its variance, likewise; 0 for no change.
    """

    prob: Tensor
    mean: Tensor
    var: Tensor


class ExpectedLaw(NamedTuple):
    """What q of the hyperparameters expects of the law of a change, broadcastable to (A, W, Q, J).

    The expected log density of a change in class j is that of ``Normal(mean, var)`` plus ``excess``
    for every q, as it is quadratic in the change.

    Attributes:
        prob: Mean probability of each class.
        log_prob: Mean of its logarithm.
        mean: Mean of the normal.
        var: Its variance; 0 for no change.
        excess: What the expected log density has over the normal's.
        square: Mean of probability times squared change: changes that no row tells of.
    """

    prob: Tensor
    log_prob: Tensor
    mean: Tensor
    var: Tensor
    excess: Tensor
    square: Tensor


def one_class(inverse: Tensor, log_scale: Tensor, square: Tensor) -> ExpectedLaw:
    """One class around zero, from E[1 / scale^2], E[log scale] and E[scale^2], (A or 1, W, Q)."""
    inverse, log_scale, square = (p.unsqueeze(-1) for p in (inverse, log_scale, square))
    one, zero = torch.ones_like(inverse), torch.zeros_like(inverse)
    return ExpectedLaw(one, zero, zero, 1 / inverse, -log_scale - 0.5 * inverse.log(), square)


class ChangeSums(NamedTuple):
    """Expected changes by class, 0 on arcs that no row tells of, (A, W, Q, J) each.

    Attributes:
        count: Probability of the class.
        first: Mean of the change times the indicator of its class.
        second: Of the squared change, likewise.
    """

    count: Tensor  # type: ignore[assignment]
    first: Tensor
    second: Tensor


def stacked(parts: list[Tensor]) -> Tensor:
    """Classes behind, from (..., W, Q) that broadcast against each other."""
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def normal_mixture(prob: Tensor, mean: Tensor, var: Tensor) -> dist.TorchDistribution:
    """The mixture of normals whose classes lie in the last dimension, weighed by ``prob``."""
    scale = var.sqrt()
    if prob.shape[-1] == 1:
        return dist.Normal(mean[..., 0], scale[..., 0])
    # An arc that cannot change has no odds; any will do.
    odds = torch.where(prob.sum(-1, keepdim=True) > 0, prob, 1.0)
    return _NormalMixture(dist.Categorical(odds), dist.Normal(mean, scale))


class _NormalMixture(dist.MixtureSameFamily):
    """Says that its support is the real line, so autoguides and NUTS can move it there."""

    support = constraints.real


def draw_classes(
    classes: Classes, shape: tuple[int, ...], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draws of changes and of their classes, ``shape`` each."""
    prob, mean, var = (part.expand(*shape, part.shape[-1]) for part in classes)
    pick = torch.zeros(shape, dtype=torch.int64, device=prob.device)
    if prob.shape[-1] > 1:
        uniform = torch.rand(shape, generator=generator, dtype=prob.dtype).to(prob.device)
        pick = (uniform.unsqueeze(-1) >= prob.cumsum(-1)[..., :-1]).sum(-1)
    mean, var = (part.gather(-1, pick.unsqueeze(-1)).squeeze(-1) for part in (mean, var))
    noise = torch.randn(shape, generator=generator, dtype=prob.dtype).to(prob.device)
    return mean + var.sqrt() * noise, pick


def expected_law(classes: Classes) -> ExpectedLaw:
    """Averages over the first dimension, along which the hyperparameters have been drawn."""
    prob, mean, var = torch.broadcast_tensors(*classes)
    still = (var == 0).all(0)
    inverse = torch.where(still, 0.0, 1 / torch.where(var > 0, var, 1.0))
    precision = torch.where(still, 1.0, inverse.mean(0))
    loc = (mean * inverse).mean(0) / precision
    log_var = torch.where(var > 0, var, 1.0).log()
    excess = precision * loc.square() - (mean.square() * inverse + log_var).mean(0)
    excess = torch.where(still, 0.0, 0.5 * (excess - precision.log()))
    tiny = torch.finfo(prob.dtype).tiny
    return ExpectedLaw(
        prob.mean(0),
        prob.clamp(min=tiny).log().mean(0),
        loc,
        torch.where(still, 0.0, 1 / precision),
        excess,
        (prob * (var + mean.square())).mean(0),
    )


def expected_log_density(law: ExpectedLaw, sums: ChangeSums) -> Tensor:
    """Expected log density of changes under q of the hyperparameters, (A, W, Q)."""
    precision = torch.where(law.var > 0, 1 / torch.where(law.var > 0, law.var, 1.0), 0.0)
    log_scale = 0.5 * torch.where(law.var > 0, law.var, 1.0).log()
    square = sums.second - 2 * law.mean * sums.first + law.mean.square() * sums.count
    each = sums.count * (law.log_prob + law.excess - log_scale) - 0.5 * precision * square
    return each.sum(-1)
