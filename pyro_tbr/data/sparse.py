"""Sparse features: checked as they are stored, made dense a block of rows at a time, never whole.

They come from scipy, which need not be installed: whoever has such a matrix has it.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.data.features import ColumnSummary, Features
from pyro_tbr.data.numbers import LARGEST, NOT_FINITE, TOO_LARGE, cell_text
from pyro_tbr.errors import DataError, ShapeError

_BLOCK_ELEMENTS = 1_000_000  # of a dense block, 8 MB


def is_sparse(x: Any) -> bool:
    """A matrix of scipy, of any flavour."""
    return hasattr(x, "toarray") and hasattr(x, "tocsr")


def sparse_of_frame(frame: pd.DataFrame) -> Any:
    """The scipy matrix of a DataFrame whose columns are all sparse about 0; None for others."""
    types = frame.dtypes
    if not len(types) or not all(
        isinstance(dtype, pd.SparseDtype) and dtype.fill_value == 0 for dtype in types
    ):
        return None
    accessor: Any = frame.sparse
    return accessor.to_coo()


class SparseFeatures(Features):
    """Finite features (N, D), stored by rows, float64; dense blocks of them go to ``device``.

    Any scipy matrix or array will do and is not changed; entries given twice are summed.

    Raises:
        ShapeError: It has not two dimensions.
        DataError: Stored values that are not finite real numbers.
    """

    def __init__(
        self, x: Any, names: tuple[Hashable, ...] | None = None, index: pd.Index | None = None
    ) -> None:
        if len(x.shape) != 2:
            raise ShapeError(
                f"x has shape {x.shape}: give a table (rows, features); a single row is "
                "x.reshape(1, -1)"
            )
        if np.dtype(x.dtype).kind not in "fiub":
            raise DataError(f"x has dtype {x.dtype}: give real numbers")
        self.stored = x.astype(np.float64).tocsr()
        self.stored.sum_duplicates()
        self.shape = self.stored.shape
        self.device = torch.device("cpu")
        data = self.stored.data
        for bad, (what, remedy) in (
            (~np.isfinite(data), NOT_FINITE),
            (np.abs(data) > LARGEST, TOO_LARGE),
        ):
            if bad.any():
                entry, cells = bad.argmax(), self.stored.tocoo()  # in the order of the rows
                first = cell_text(data[entry], (cells.row[entry], cells.col[entry]), names, index)
                raise DataError(f"x has {bad.sum()} {what}, first {first}: {remedy}")

    def __getitem__(self, rows: Tensor) -> SparseFeatures:
        """These rows, sparse."""
        return self._like(self.stored[rows.cpu().numpy()], self.device)

    def to(self, device: torch.device | str) -> SparseFeatures:
        """The same matrix, its blocks on this device."""
        return self._like(self.stored, torch.device(device))

    def _like(self, stored: Any, device: torch.device) -> SparseFeatures:
        """Of a matrix that has been checked."""
        new = object.__new__(SparseFeatures)
        new.stored, new.shape, new.device = stored, stored.shape, device
        return new

    def dense(self) -> Tensor:
        """All of it as a dense tensor, (N, D)."""
        return torch.from_numpy(self.stored.toarray()).to(self.device)

    @functools.cached_property
    def summary(self) -> ColumnSummary:
        """See :attr:`Features.summary`; from the stored entries alone."""
        num_rows, num_columns = self.shape
        if not num_rows:
            return ColumnSummary.of(self.dense())
        loc = np.asarray(self.stored.mean(axis=0)).ravel()
        low, high = (part.toarray().ravel() for part in (self.stored.min(0), self.stored.max(0)))
        column, values = self.stored.indices, self.stored.data
        # Squares of deviations, entry by entry: a difference of sums would lose digits.
        square = np.bincount(column, (values - loc[column]) ** 2, minlength=num_columns)
        empty = num_rows - np.bincount(column, minlength=num_columns)
        square = square + empty * loc**2
        whole = np.bincount(column, values != np.round(values), minlength=num_columns) == 0
        parts = (torch.from_numpy(part) for part in (low, high, loc, square, whole))
        return ColumnSummary(num_rows, *parts)

    def __matmul__(self, matrix: Tensor) -> Tensor:
        """Product with a dense matrix (D, R), (N, R)."""
        return torch.from_numpy(self.stored @ matrix.cpu().numpy()).to(self.device)

    def runs(self) -> Iterator[SparseFeatures]:
        """Runs of rows, sparse, each small enough to be made dense; at least one."""
        size = max(1, _BLOCK_ELEMENTS // max(1, self.shape[1]))
        for start in range(0, max(1, len(self)), size):
            yield self._like(self.stored[start : start + size], self.device)
