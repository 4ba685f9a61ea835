"""Principal axes of standardised features; of sparse ones without making them dense.

Standardised, a sparse matrix is dense, so it is never written down: its products with vectors and
with itself follow from those of the stored entries. Where a few axes are asked for they come from
Lanczos steps, else from the matrix of cross-products, which is summed over blocks of rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.data import SparseFeatures

# Directions of the features whose variance is below this share of the largest are dropped: they are
# rounding, and whitening would blow them up.
MIN_VARIANCE_SHARE = 1e-8
# Columns whose mean is so many standard deviations from 0, such as time stamps, are centred before
# they are multiplied: a difference of such products would be rounding.
_FAR = 1e3
_FEW = 4  # Lanczos steps are for fewer axes than a fourth of all


def column_moments(x: Tensor | SparseFeatures) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, each (D,), double precision."""
    if isinstance(x, SparseFeatures):
        return x.column_moments()
    x = x.double()
    loc = x.mean(0)
    return loc, (x - loc).square().mean(0).sqrt()


def principal_axes(
    x: Tensor | SparseFeatures, loc: Tensor, inverse: Tensor, num_components: int | None
) -> tuple[Tensor, Tensor]:
    """Variances (R,), largest first, and axes (D, R) of ``(x - loc) * inverse``.

    Args:
        x: Features, (N, D).
        loc: Their means, (D,).
        inverse: Inverse scales, (D,).
        num_components: At most this many; ``None``: all but those that are rounding.
    """
    if not isinstance(x, SparseFeatures):
        variance, vectors = _dense_axes((x.double() - loc) * inverse)
    elif num_components is not None and num_components < min(x.shape) // _FEW:
        variance, vectors = _lanczos_axes(x, loc, inverse, num_components)
    else:
        variance, vectors = _sparse_axes(x, loc, inverse)
    variance, vectors = variance.flip(0), vectors.flip(1)
    keep = int((variance > MIN_VARIANCE_SHARE * variance[0].clamp(min=1e-150)).sum())
    keep = max(1, min(keep, num_components or keep))
    # A fixed sign: the same rows give the same encoder on every machine.
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return variance[:keep].clamp(min=1e-150), (vectors * sign)[:, :keep]


def _dense_axes(standard: Tensor) -> tuple[Tensor, Tensor]:
    """Variances, least first, and axes of standardised rows (N, D)."""
    num_rows, num_features = standard.shape
    if num_features <= num_rows:
        return torch.linalg.eigh(standard.T @ standard / num_rows)
    # The dual problem, N x N.
    variance, left = torch.linalg.eigh(standard @ standard.T / num_rows)
    return variance, standard.T @ left / _lengths(variance, num_rows)


def _lengths(variance: Tensor, num_rows: int) -> Tensor:
    """Of the images of unit vectors of the dual problem."""
    return (variance.clamp(min=0) * num_rows).sqrt().clamp(min=1e-150)


def _sparse_axes(x: SparseFeatures, loc: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_dense_axes`, block by block."""
    num_rows, num_features = x.shape
    if num_features <= num_rows:
        gram = inverse.new_zeros(num_features, num_features)
        for block in x.blocks():
            standard = (block - loc) * inverse
            gram += standard.T @ standard
        return torch.linalg.eigh(gram / num_rows)
    scaled, shift = _scaled(x, inverse), (loc * inverse).cpu().numpy()
    far = np.abs(shift) > _FAR
    centred = scaled[:, far].toarray() - shift[far]
    near, rest = scaled[:, ~far], shift[~far]
    cross = near @ rest  # of each row with the row of means
    dual = (near @ near.T).toarray() + centred @ centred.T
    dual += rest @ rest - cross[:, None] - cross[None, :]
    variance, left = torch.linalg.eigh(torch.from_numpy(dual / num_rows).to(loc.device))
    images = _image(scaled, shift, left.cpu().numpy())
    return variance, torch.from_numpy(images).to(loc.device) / _lengths(variance, num_rows)


def _lanczos_axes(
    x: SparseFeatures, loc: Tensor, inverse: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The leading ones, least first, by scipy, to rounding."""
    from scipy.sparse.linalg import LinearOperator, eigsh  # there, since the matrix is

    num_rows, num_features = x.shape
    scaled, shift = _scaled(x, inverse), (loc * inverse).cpu().numpy()

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


def _scaled(x: SparseFeatures, inverse: Tensor):  # type: ignore[no-untyped-def]  # scipy's
    """The stored entries in standard deviations, a scipy matrix."""
    scaled = x.stored.copy()
    scaled.data = scaled.data * inverse.cpu().numpy()[scaled.indices]
    return scaled


def _image(scaled, shift, left):  # type: ignore[no-untyped-def]  # scipy's
    """Standardised features, transposed, times vectors (N,) or (N, M)."""
    return scaled.T @ left - np.multiply.outer(shift, left.sum(0))
