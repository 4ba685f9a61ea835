"""What features are read from: arrays in memory or in a file, and datasets of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pyro_tbr.errors import DataError, ShapeError


class Reader(Protocol):
    """What holds features (N, D); runs of them are arrays, scipy matrices or tensors."""

    shape: tuple[int, int]
    dtype: Any

    def stretch(self, start: int, stop: int) -> Any:
        """Rows from one place to another."""

    def pick(self, rows: NDArray[np.int64]) -> Any:
        """Rows at some places, which rise."""


class ArrayReader:
    """Of whatever is indexed as an array is: a memory map, a dataset of h5py or zarr."""

    def __init__(self, source: Any) -> None:
        if not all(hasattr(source, part) for part in ("shape", "dtype", "__getitem__")):
            raise DataError(
                f"x cannot be read from a {type(source).__name__}: give an array, a dataset of "
                "h5py or zarr, or a torch Dataset; of a table its to_numpy(), and names"
            )
        shape = tuple(source.shape)
        if len(shape) != 2:
            raise ShapeError(f"x has shape {shape}: give a table (rows, features)")
        if not _is_real(source.dtype):
            raise DataError(f"x has dtype {source.dtype}: give real numbers")
        self._source, self.shape, self.dtype = source, shape, source.dtype

    def stretch(self, start: int, stop: int) -> Any:
        """See :class:`Reader`."""
        return self._source[start:stop]

    def pick(self, rows: NDArray[np.int64]) -> Any:
        """See :class:`Reader`."""
        return self._source[torch.from_numpy(rows) if isinstance(self._source, Tensor) else rows]


class DatasetReader:
    """Of a map-style torch ``Dataset`` whose items are a row each."""

    def __init__(self, source: Any) -> None:
        if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
            raise DataError(
                f"x is a {type(source).__name__}, which can only be gone through in order: give a "
                "Dataset with __len__ and __getitem__, as random rows are asked for"
            )
        if not len(source):
            raise ShapeError("x is a Dataset of no items: fitting needs rows and columns")
        self._source = source
        first = self._items([0])
        self.shape, self.dtype = (len(source), first.shape[1]), first.dtype

    def stretch(self, start: int, stop: int) -> Tensor:
        """See :class:`Reader`."""
        return self._items(range(start, stop))

    def pick(self, rows: NDArray[np.int64]) -> Tensor:
        """See :class:`Reader`."""
        return self._items(rows.tolist())

    def _items(self, rows: Sequence[int]) -> Tensor:
        together = getattr(self._source, "__getitems__", None)  # as torch's DataLoader does
        items = together(list(rows)) if together else [self._source[row] for row in rows]
        tensors = [torch.as_tensor(_only(item)) for item in items]
        for row, tensor in zip(rows, tensors, strict=True):
            if tensor.dim() != 1 or len(tensor) != len(tensors[0]):
                raise ShapeError(
                    f"x: item {row} of the Dataset has shape {tuple(tensor.shape)}: give rows of "
                    "the same length, (D,)"
                )
        return torch.stack(tensors) if tensors else torch.empty(0, self.shape[1])


def reader_of(source: Any) -> Reader:
    """How rows are read from it."""
    return DatasetReader(source) if isinstance(source, Dataset) else ArrayReader(source)


def read_dataset(values: Any) -> Any:
    """All items of a Dataset of outcomes or environments, as a list; all else as it is."""
    if not isinstance(values, Dataset):
        return values
    source: Any = values
    if not isinstance(source, IterableDataset):
        source = map(source.__getitem__, range(len(source)))
    return [_plain_item(_only(item)) for item in source]


def _only(item: Any) -> Any:
    """The one part of an item."""
    if isinstance(item, tuple | list) and item and not isinstance(item[0], int | float):
        if len(item) > 1:
            raise DataError(
                f"an item of the Dataset has {len(item)} parts: give a Dataset whose items are the "
                "features alone, and y and env as arrays, such as [item[1] for item in dataset]"
            )
        return item[0]
    return item


def _plain_item(item: Any) -> Any:
    return item.tolist() if isinstance(item, Tensor | np.ndarray) else item


def _is_real(dtype: Any) -> bool:
    """Of numbers, in torch or as numpy understands it."""
    if isinstance(dtype, torch.dtype):
        return not dtype.is_complex
    return np.dtype(dtype).kind in "fiub"
