r"""Normal messages in W dimensions through arcs whose changes have known means and variances.

A message is :math:`\exp(h'u - u' \Lambda u / 2)`, a change of latent w is
:math:`m_w + s_w x_w` with x standard normal; :math:`s_w = 0` is no change. Matrices are small and
many, so they are solved by elimination over the whole batch at once, column by column, rather than
one after the other.

Source:
    Felsenstein, Am. J. Hum. Genet. 25 (1973) 471: normal changes along a tree.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Said(NamedTuple):
    """What is said of weights: exp(linear'u - u' precision u / 2).

    Attributes:
        precision: (*B, W, W).
        linear: (*B, W).
    """

    precision: Tensor
    linear: Tensor

    def at(self, places: Tensor | int) -> Said:
        """At some nodes, of (C, Q, V, W)."""
        return Said(*(part[:, :, places] for part in self))

    def unsqueezed(self, dim: int) -> Said:
        """With one more dimension of the batch, counted from its end: -1 is the last."""
        return Said(self.precision.unsqueeze(dim - 2), self.linear.unsqueeze(dim - 1))

    def plus(self, other: Said, sign: float = 1.0) -> Said:
        """Both together, or one less the other."""
        return Said(*(one + sign * two for one, two in zip(self, other, strict=True)))

    def where(self, use: Tensor) -> Said:
        """Nothing is said where ``use`` (of the last dimensions of the batch) is False."""
        return Said(
            torch.where(use[..., None, None], self.precision, 0.0),
            torch.where(use[..., None], self.linear, 0.0),
        )

    def halves(self, size: int) -> tuple[Said, Said]:
        """The first ``size`` nodes of (C, Q, 2 size, ...), and the others."""
        return self.at(torch.arange(size)), self.at(torch.arange(size, 2 * size))

    def picked(self, number: Tensor) -> Said:
        """Of (C, Q, n, options, ...) the options of these numbers, (C, Q, n)."""
        index = number[..., None, None]
        linear = self.linear.gather(3, index.expand(*number.shape, 1, self.linear.shape[-1]))
        index = index.unsqueeze(-1).expand(*number.shape, 1, *self.precision.shape[-2:])
        return Said(self.precision.gather(3, index).squeeze(3), linear.squeeze(3))


class Arcs(NamedTuple):
    """The law of changes given the hyperparameters of each chain, (*B, W, J) each.

    Attributes:
        log_prob: Of each class.
        mean: Of a change in it.
        scale: Standard deviation, 0 for no change.
    """

    log_prob: Tensor
    mean: Tensor
    scale: Tensor

    def at(self, arcs: Tensor, sign: Tensor) -> Arcs:
        """At some arcs of (C, Q, A, W, J), walked in the direction of ``sign`` (n, 1)."""
        log_prob, mean, scale = (part[:, :, arcs] for part in self)
        return Arcs(log_prob, mean * sign.unsqueeze(-1), scale)

    def of(self, latent: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log probabilities, means and scales of one latent, (*B, J) each."""
        return self.log_prob[..., latent, :], self.mean[..., latent, :], self.scale[..., latent, :]

    def moments(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale in these classes, (*B, W)."""
        return chosen(self.mean, classes), chosen(self.scale, classes)


def chosen(values: Tensor, index: Tensor) -> Tensor:
    """Of (*B, W, J) the entries of (*B, W), or of one index for all W (*B, 1)."""
    index = index.expand(values.shape[:-1]).unsqueeze(-1)
    return values.gather(-1, index).squeeze(-1)


def combinations(num_classes: int, num_latents: int) -> Tensor:
    """All combinations of classes, (J ** number, number)."""
    return torch.tensor(list(itertools.product(range(num_classes), repeat=num_latents)))


def solved(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions (*B, W, R) and log determinants (*B) of the identity plus a product of two.

    Of :math:`I + A B` with A and B symmetric and positive semidefinite, one of them diagonal: it is
    a positive definite matrix between two diagonal ones, so elimination needs no pivoting.
    """
    size = matrix.shape[-1]
    table = torch.cat([matrix.expand(*right.shape[:-1], size), right], -1)
    table = table.movedim((-2, -1), (0, 1)).contiguous()
    log_det = torch.zeros_like(table[0, 0])
    for j in range(size):
        pivot = table[j, j]
        log_det = log_det + pivot.log()
        row = table[j, j + 1 :] / pivot
        column = table[:, j].clone()
        column[j] = 0.0
        table[:, j + 1 :].sub_(column.unsqueeze(1) * row)
        table[j, j + 1 :] = row
    return table[:, size:].movedim((0, 1), (-2, -1)), log_det


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector.unsqueeze(-2)).sum(-1)


def sent(far: Said, mean: Tensor, scale: Tensor) -> tuple[Said, Tensor]:
    """What the far end says of the near end's weights, and the log of what it says at zero.

    Args:
        far: (*B, W).
        mean: Of the changes from the near to the far end, (*B, W).
        scale: Their standard deviations.
    """
    lam, pull = far.precision, far.linear - _times(far.precision, mean)
    one = torch.eye(mean.shape[-1], dtype=lam.dtype)
    blur = one + lam * scale.square().unsqueeze(-2)
    lam, pull = lam.expand(*blur.shape), pull.unsqueeze(-1)
    found, log_det = solved(blur, torch.cat([lam, pull], -1))
    precision, linear = found[..., :-1], found[..., -1]
    inside = (pull.squeeze(-1) * scale.square() * linear).sum(-1)
    height = 0.5 * (mean * (far.linear + pull.squeeze(-1))).sum(-1) + 0.5 * (inside - log_det)
    return Said(0.5 * (precision + precision.mT), linear), height


def log_weight(at: Tensor, far: Said, mean: Tensor, scale: Tensor) -> Tensor:
    """Log of what the far end says given the weights (*B, W) at the near end, (*B)."""
    loc = at + mean
    pull = far.linear - _times(far.precision, loc)
    inner = scale.unsqueeze(-1) * far.precision * scale.unsqueeze(-2)
    inner = inner + torch.eye(loc.shape[-1], dtype=inner.dtype)
    right = (scale * pull).unsqueeze(-1)
    found, log_det = solved(inner, right)
    inside = (right * found).sum((-1, -2))
    return 0.5 * ((loc * (far.linear + pull)).sum(-1) + inside - log_det)


def draw_change(at: Tensor, far: Said, mean: Tensor, scale: Tensor, generator: Generator) -> Tensor:
    """Changes (*B, W) from the near ends, given their weights there."""
    pull = far.linear - _times(far.precision, at + mean)
    inner = scale.unsqueeze(-1) * far.precision * scale.unsqueeze(-2)
    inner = inner + torch.eye(scale.shape[-1], dtype=inner.dtype)
    return mean + scale * draw_normal(Said(inner, scale * pull), generator)


def draw_normal(said: Said, generator: Generator) -> Tensor:
    """Draws of weights of which this is all that is said."""
    # Latents may have very different units.
    size = said.precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    inner = size.unsqueeze(-1) * said.precision * size.unsqueeze(-2)
    factor = torch.linalg.cholesky(inner)
    noise = torch.randn(size.shape, generator=generator, dtype=torch.float64).unsqueeze(-1)
    right = (size * said.linear).unsqueeze(-1)
    white = torch.linalg.solve_triangular(factor, right, upper=False)
    found = torch.linalg.solve_triangular(factor.mT, white + noise, upper=True)
    return size * found.squeeze(-1)
