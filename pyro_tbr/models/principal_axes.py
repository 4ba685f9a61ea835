"""Principal axes of standardised features; of sparse ones without making them dense.

Standardised, a sparse matrix is dense, so it is never written down: its products with vectors and
with itself follow from those of the stored entries. Where a few axes are asked for they come from
Lanczos steps, and where each step is a pass through a file from a few steps of many vectors; else
from the matrix of cross-products, which is summed over blocks of rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.data import Features, SparseFeatures, dense
from pyro_tbr.errors import warn_user

# Directions of the features whose variance is below this share of the largest are dropped: they are
# rounding, and whitening would blow them up.
_MIN_VARIANCE_SHARE = 1e-8
# Columns whose mean is so many standard deviations from 0, such as time stamps, are centred before
# they are multiplied: a difference of such products would be rounding.
_FAR = 1e3
_FEW = 4  # Lanczos steps are for fewer axes than a fourth of all
_SPARE, _MOST_PASSES = 10, 20  # vectors beyond the axes asked for, passes through the rows
_STILL = 1e-6  # error of an axis, in the largest variance, that ends the passes


def column_moments(x: Tensor | Features) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, each (D,), double precision."""
    if isinstance(x, Features):
        return x.column_moments()
    x = x.double()
    loc = x.mean(0)
    return loc, (x - loc).square().mean(0).sqrt()


def principal_axes(
    x: Tensor | Features, loc: Tensor, inverse: Tensor, num_components: int | None
) -> tuple[Tensor, Tensor]:
    """Variances (R,), largest first, and axes (D, R) of ``(x - loc) * inverse``.

    Args:
        x: Features, (N, D).
        loc: Their means, (D,).
        inverse: Inverse scales, (D,).
        num_components: At most this many; ``None``: all but those that are rounding.
    """
    few = min(x.shape) // _FEW
    if isinstance(x, Features) and num_components is not None and num_components < few:
        if isinstance(x, SparseFeatures):
            variance, vectors = _lanczos_axes(x, loc, inverse, num_components)
        else:
            variance, vectors = _krylov_axes(x, loc, inverse, num_components)
    else:
        variance, vectors = _all_axes(x, loc, inverse)
    variance, vectors = variance.flip(0), vectors.flip(1)
    keep = int((variance > _MIN_VARIANCE_SHARE * variance[0].clamp(min=1e-150)).sum())
    keep = max(1, min(keep, num_components or keep))
    # A fixed sign: the same rows give the same encoder on every machine.
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return variance[:keep].clamp(min=1e-150), (vectors * sign)[:, :keep]


def _all_axes(x: Tensor | Features, loc: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Variances, least first, and axes; where features are many by the dual problem, N x N."""
    num_rows, num_features = x.shape

    def product(block: Tensor) -> Tensor:
        standard = (block - loc) * inverse
        return standard.T @ standard

    if num_features <= num_rows:
        gram = x.total(product) if isinstance(x, Features) else product(x.double())
        return torch.linalg.eigh(gram / num_rows)
    if isinstance(x, SparseFeatures):
        variance, images = _sparse_dual(x, loc, inverse)
    else:
        standard = (dense(x).double() - loc) * inverse
        variance, left = torch.linalg.eigh(standard @ standard.T / num_rows)
        images = standard.T @ left
    lengths = (variance.clamp(min=0) * num_rows).sqrt()
    return variance, images / lengths.clamp(min=1e-150)


def _sparse_dual(x: SparseFeatures, loc: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Variances, least first, and images (D, N) of the unit vectors of the dual problem."""
    scaled, shift = _standardised(x, loc, inverse)
    far = np.abs(shift) > _FAR
    centred = scaled[:, far].toarray() - shift[far]
    near, rest = scaled[:, ~far], shift[~far]
    cross = near @ rest  # of each row with the row of means
    dual = (near @ near.T).toarray() + centred @ centred.T
    dual += rest @ rest - cross[:, None] - cross[None, :]
    variance, left = torch.linalg.eigh(torch.from_numpy(dual / len(x)).to(loc.device))
    images = _image(scaled, shift, left.cpu().numpy())
    return variance, torch.from_numpy(images).to(loc.device)


def _lanczos_axes(
    x: SparseFeatures, loc: Tensor, inverse: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The leading ones, least first, by scipy, to rounding."""
    from scipy.sparse.linalg import LinearOperator, eigsh  # there, since the matrix is

    num_rows, num_features = x.shape
    scaled, shift = _standardised(x, loc, inverse)

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        forward = scaled @ vector - shift @ vector
        return _image(scaled, shift, forward) / num_rows

    operator = LinearOperator((num_features, num_features), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(num_features)  # the same in every run
    values, vectors = eigsh(operator, k=number, v0=start)
    order = np.argsort(values)
    found = (torch.from_numpy(part) for part in (values[order], vectors[:, order].copy()))
    variance, axes = (part.to(loc.device) for part in found)
    return variance, axes


def _krylov_axes(x: Features, loc: Tensor, inverse: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The leading ones, least first, where what is dear is going through the rows.

    The axes are sought in the span of some vectors, their images, the images of these, and so on,
    until they stay.

    Source:
        Musco & Musco, Advances in Neural Information Processing Systems 28 (2015) 1396.
    """
    num_rows, num_features = x.shape
    width = number + _SPARE
    start = np.random.default_rng(0).standard_normal((num_features, width))  # in every run the same
    newest = torch.linalg.qr(torch.from_numpy(start).to(loc))[0]
    span = images = newest[:, :0]

    def image(block: Tensor) -> Tensor:
        standard = (block - loc) * inverse
        return standard.T @ (standard @ newest)

    for _ in range(_MOST_PASSES):
        if span.shape[1] + width > num_features:
            return _all_axes(x, loc, inverse)
        span = torch.cat([span, newest], 1)
        images = torch.cat([images, x.total(image) / num_rows], 1)
        within = span.T @ images
        variance, turn = torch.linalg.eigh((within + within.T) / 2)
        variance, turn = variance[-number:], turn[:, -number:]
        axes = span @ turn
        error = torch.linalg.vector_norm(images @ turn - axes * variance, dim=0).max()
        if error <= _STILL * variance[-1]:
            return variance, axes
        rest = images[:, -width:]
        for _ in range(2):  # once leaves the rounding of what is taken away
            rest = rest - span @ (span.T @ rest)
        newest = torch.linalg.qr(rest)[0]
    warn_user(
        f"the leading {number} components of the features are not exact after {_MOST_PASSES} "
        f"passes through the rows: off by {error / variance[-1]:.1g} of the largest variance; "
        "encoders see nearly the same, but give fewer num_components if it matters"
    )
    return variance, axes


def _standardised(x: SparseFeatures, loc: Tensor, inverse: Tensor):  # type: ignore[no-untyped-def]
    """The stored entries in standard deviations, a scipy matrix, and the means (D,) likewise."""
    scaled = x.stored.copy()
    scaled.data = scaled.data * inverse.cpu().numpy()[scaled.indices]
    return scaled, (loc * inverse).cpu().numpy()


def _image(scaled, shift, left):  # type: ignore[no-untyped-def]  # scipy's
    """Standardised features, transposed, times vectors (N,) or (N, M)."""
    return scaled.T @ left - np.multiply.outer(shift, left.sum(0))
