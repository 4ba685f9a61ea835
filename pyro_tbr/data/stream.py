"""Features left where they are, a file or a torch ``Dataset``, and read by blocks of rows.

What holds them is asked for runs of rows in order and for some rows at a time, nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyro_tbr.data.features import Features
from pyro_tbr.data.numbers import LARGEST, NOT_FINITE, TOO_LARGE, cell_text
from pyro_tbr.data.sources import reader_of
from pyro_tbr.data.sparse import SparseFeatures, is_sparse
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.progress import beat
from pyro_tbr.tree.readers.naming import listed

_BLOCK_ELEMENTS = 1_000_000  # of a dense block, 8 MB,
_LEAST_ROWS = 256  # unless that were fewer rows
_LARGE = 25_000_000  # cells of an array that is not copied, 200 MB in double precision
_LOOSE = 16  # rows of so many times as long a stretch are read as that stretch


class FeatureStream(Features):
    """Features (N, D) that stay where they are; of them a block of rows is in memory at a time.

    ``fit``, ``predict``, ``encode`` and ``update`` make one themselves of a memory map
    (``numpy.load(path, mmap_mode="r")``), a dataset of h5py or zarr, the ``X`` of an AnnData object
    in backed mode, and a map-style torch ``Dataset`` whose items are a row each. Make it yourself
    to give names, or of an array in memory that is too large to be copied.

    Args:
        source: What holds the features; it must not change meanwhile.
        names: Of the columns; ``None``: they go by position.
        index: Labels of the rows, by which outcomes and environments are matched; ``None``: they go
            by position.
        columns: Places of the columns to take, in this order; ``None``: all.

    Raises:
        ShapeError: Not two dimensions, or as many names or labels as there are columns or rows.
        DataError: No real numbers, or a source that cannot be asked for rows by their places. Cells
            that are not finite are refused when they are read.

    Example:
        >>> import numpy as np
        >>> FeatureStream(np.zeros((3, 2)), names=["age", "mass"])
        FeatureStream(3 rows, 2 features of a ndarray)
    """

    def __init__(
        self,
        source: Any,
        names: Iterable[Hashable] | None = None,
        index: Any = None,
        columns: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        self._reader = reader_of(source)
        self._kind = type(source).__name__
        self._rows: NDArray[np.int64] | None = None
        self._columns = None if columns is None else np.asarray(columns, dtype=np.int64)
        num_rows, num_columns = self._reader.shape
        if self._columns is not None:
            beyond = [j for j in self._columns.tolist() if not 0 <= j < num_columns]
            if beyond:
                raise ShapeError(f"columns has {beyond[0]}, x has {num_columns}, from 0 on")
            num_columns = len(self._columns)
        self.shape, self.device = (num_rows, num_columns), torch.device("cpu")
        self.dtype = self._reader.dtype
        self.names = None if names is None else tuple(names)
        self.index = None if index is None else pd.Index(index)
        sizes = (("names", self.names, num_columns), ("index", self.index, num_rows))
        for what, labels, number in sizes:
            if labels is not None and len(labels) != number:
                raise ShapeError(
                    f"{what} has {len(labels)} labels, x has shape {self.shape}: give {number}"
                )
        if self.names is not None and len(set(self.names)) < len(self.names):
            double = tuple(name for name, n in Counter(self.names).items() if n > 1)
            raise DataError(f"x has columns of the same name: {listed(double)}; rename them")

    def __getitem__(self, rows: Tensor) -> FeatureStream:
        """These rows, without their labels."""
        picked = rows.cpu().numpy()
        picked = np.flatnonzero(picked) if picked.dtype == bool else picked
        new = self._like(self.device)
        new._rows = picked if self._rows is None else self._rows[picked]
        new.index, new.shape = None, (len(picked), self.shape[1])
        return new

    def to(self, device: torch.device | str) -> FeatureStream:
        """See :meth:`Features.to`."""
        new = self._like(torch.device(device))
        if "summary" in vars(self):  # the same rows need not be gone through again
            vars(new)["summary"] = self.summary
        return new

    def with_columns(self, places: Sequence[int]) -> FeatureStream:
        """Some columns, in this order."""
        new, at = self._like(self.device), np.asarray(places, dtype=np.int64)
        new._columns = at if self._columns is None else self._columns[at]
        new.names = None if self.names is None else tuple(self.names[j] for j in places)
        new.shape = len(self), len(places)
        return new

    def _like(self, device: torch.device) -> FeatureStream:
        """A view; what is known of the columns is not of other rows or columns."""
        new = object.__new__(FeatureStream)
        new.__dict__ |= {name: value for name, value in vars(self).items() if name != "summary"}
        new.device = device
        return new

    def runs(self) -> Iterator[Any]:
        """See :meth:`Features.runs`; sparse where the source is."""
        size = max(_LEAST_ROWS, _BLOCK_ELEMENTS // max(1, self.shape[1]))
        for start in range(0, max(1, len(self)), size):
            yield self._read(start, min(start + size, len(self)))

    def dense(self) -> Tensor:
        """See :meth:`Features.dense`."""
        run = self._read(0, len(self))
        return run if isinstance(run, Tensor) else run.dense()

    def _read(self, start: int, stop: int) -> Tensor | SparseFeatures:
        """Some rows, checked."""
        beat()
        raw = self._raw(start, stop)
        if is_sparse(raw):
            if float(np.abs(raw.data).max(initial=0)) <= LARGEST:
                return SparseFeatures(raw).to(self.device)
            self._refuse()
        table = _as_double(raw)
        low_high = table.aminmax() if table.numel() else None
        if low_high is not None and not all(abs(end.item()) <= LARGEST for end in low_high):
            self._refuse()
        return table.to(self.device)

    def _raw(self, start: int, stop: int) -> Any:
        """Some rows as the source has them, in the columns asked for."""
        if self._rows is None:
            found = self._reader.stretch(start, stop)
        else:
            found = self._picked(self._rows[start:stop])
        return found if self._columns is None else found[:, self._columns]

    def _picked(self, rows: NDArray[np.int64]) -> Any:
        """Rows in any order: the source is asked for rising ones, or the stretch they are in."""
        if not len(rows):
            return self._reader.stretch(0, 0)
        rising, place = rows, None
        if (np.diff(rows) <= 0).any():
            rising, place = np.unique(rows, return_inverse=True)
        first, last = int(rising[0]), int(rising[-1])
        if last - first < _LOOSE * len(rising):
            found = self._reader.stretch(first, last + 1)
            place = rising - first if place is None else (rising - first)[place]
            return found[place]
        found = self._reader.pick(rising)
        return found if place is None else found[place]

    def _refuse(self) -> None:
        """Raises what is said of cells that are no usable numbers, all rows counted."""
        for is_bad, what, remedy in (
            (lambda table: ~table.isfinite(), *NOT_FINITE),
            (lambda table: table.abs() > LARGEST, *TOO_LARGE),
        ):
            number, first = 0, None
            size = max(1, _BLOCK_ELEMENTS // self.shape[1])
            for start in range(0, len(self), size):
                table = _as_double(self._raw(start, min(start + size, len(self))))
                bad = is_bad(table)
                number += int(bad.sum())
                if first is None and bad.any():
                    row, column = bad.nonzero()[0].tolist()
                    first = table[row, column].item(), (start + row, column)
            if first is not None:
                text = cell_text(*first, self.names, self.index)
                raise DataError(f"x has {number} {what}, first {text}: {remedy}")
        raise DataError("x has changed while it was read: features must stay as they are")

    def __repr__(self) -> str:
        return f"FeatureStream({self.shape[0]} rows, {self.shape[1]} features of a {self._kind})"


def is_stream(x: Any) -> bool:
    """Whether features are to be left where they are.

    That is if they are no array, an array in a file, or one that is too large to be copied.
    """
    if isinstance(x, FeatureStream | Dataset):
        return True
    if is_table(x):
        return math.prod(x.shape) > _LARGE or _in_a_file(x)
    known = isinstance(x, Tensor | np.ndarray | pd.DataFrame | pd.Series) or is_sparse(x)
    lazy = not known and hasattr(x, "dtype") and hasattr(x, "__getitem__")
    return lazy and len(getattr(x, "shape", ())) == 2


def is_table(x: Any) -> bool:
    """An array or tensor of numbers with two dimensions, which may be read where it is."""
    if isinstance(x, Tensor):
        return x.dim() == 2 and x.layout == torch.strided and not x.is_complex()
    return type(x) in (np.ndarray, np.memmap) and x.ndim == 2 and x.dtype.kind in "fiub"


def _in_a_file(x: Any) -> bool:
    """A memory map, or a view of one."""
    while x is not None and not isinstance(x, np.memmap):
        x = getattr(x, "base", None)
    return x is not None


def as_stream(x: Any) -> FeatureStream:
    """What :func:`is_stream` says yes to."""
    return x if isinstance(x, FeatureStream) else FeatureStream(x)


def _as_double(found: Any) -> Tensor:
    """Rows of a source as a dense tensor of their own, (n, D) float64."""
    if isinstance(found, Tensor):
        return found.detach().to("cpu", torch.float64, copy=True)
    found = found.toarray() if is_sparse(found) else found
    return torch.from_numpy(np.array(found, dtype=np.float64, order="C"))
