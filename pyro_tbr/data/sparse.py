"""Sparse features: checked as they are stored, made dense a block of rows at a time.

They come from scipy, which need not be installed: whoever has such a matrix has it.
"""

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tbr.errors import DataError, ShapeError

_BLOCK_ELEMENTS = 4_000_000  # of a dense block, 32 MB


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


class SparseFeatures:
    """Finite features (N, D), stored by rows.

    Args:
        x: Any scipy sparse matrix or array; entries given twice are summed, whatever the type of
            its indices, and it is not changed.
        names: Names of its columns, for messages.
        index: Index of its rows, likewise.

    Raises:
        ShapeError: It has not two dimensions.
        DataError: Stored values that are not finite real numbers.
    """

    def __init__(
        self,
        x: Any,
        names: tuple[Hashable, ...] | None = None,
        index: pd.Index | None = None,
    ) -> None:
        if len(x.shape) != 2:
            raise ShapeError(
                f"x has shape {x.shape}: give a table (rows, features); a single row is "
                "x.reshape(1, -1)"
            )
        if np.dtype(x.dtype).kind not in "fiub":
            raise DataError(f"x has dtype {x.dtype}: give real numbers")
        self._rows = x.astype(np.float64).tocsr()
        self.shape: tuple[int, int] = self._rows.shape
        bad = ~np.isfinite(self._rows.data)
        if bad.any():
            stored = self._rows.tocoo()  # its entries in the order of the rows
            first = int(bad.argmax())
            row, column = int(stored.row[first]), int(stored.col[first])
            at = f"row {row}" if index is None else f"row {row} (index {index[row]!r})"
            raise DataError(
                f"x has {bad.sum()} cell(s) that are NaN or infinite, first "
                f"{stored.data[first].item()!r} at {at}, column "
                f"{names[column] if names else column!r}: impute these cells or drop their rows"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def toarray(self) -> NDArray[np.float64]:
        """All of it, dense, (N, D)."""
        return self._rows.toarray()

    def blocks(self) -> Iterator[Tensor]:
        """Runs of rows, dense float64, at least one though it be empty."""
        size = max(1, _BLOCK_ELEMENTS // max(1, self.shape[1]))
        for start in range(0, max(1, len(self)), size):
            yield torch.from_numpy(self._rows[start : start + size].toarray())
