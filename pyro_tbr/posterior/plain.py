"""Values as what ``torch.load(weights_only=True)`` reads: no class of any library in the file.

Tensors, text, numbers, ``None`` and lists stand for themselves; what has no plain twin becomes a
dict of one entry whose key says what it was, so tuples do not come back as lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.errors import DataError

_ITSELF = (type(None), bool, int, float, str)


def to_plain(value: Any, what: str) -> Any:
    """A value as plain data; scalars of numpy become Python's.

    Args:
        value: Text, number, bytes, time, tensor, array, DataFrame, or list, tuple or dict of such.
        what: What it is, for the error.

    Raises:
        DataError: A type that would not come back as it is.
    """
    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value)
    if kind in _ITSELF:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        # A clone: a view would take its whole storage into the file.
        return value.detach().cpu().clone()
    if kind is bytes:
        return {"bytes": list(value)}
    if kind is pd.Timestamp and value.tz is None:
        return {"time": [value.isoformat(), value.unit]}
    if kind is list:
        return [to_plain(part, what) for part in value]
    if kind is tuple:
        return {"tuple": [to_plain(part, what) for part in value]}
    if kind is dict:
        pairs = [[to_plain(key, what), to_plain(part, what)] for key, part in value.items()]
        return {"dict": pairs}
    if isinstance(value, pd.DataFrame):
        rows = [list(row) for row in value.itertuples(index=False, name=None)]
        return {"table": to_plain([list(value.columns), rows], what)}
    raise DataError(
        f"{what}: {value!r} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved so "
        "that it comes back as it is: use text, a number, bytes or a tuple of such"
    )


def from_plain(value: Any) -> Any:
    """The value that :func:`to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == "bytes":
        return bytes(parts)
    parts = from_plain(parts)
    if kind == "time":
        return pd.Timestamp(parts[0]).as_unit(parts[1])
    if kind == "tuple":
        return tuple(parts)
    if kind == "dict":
        return dict(parts)
    assert kind == "table", kind
    columns, rows = parts
    return pd.DataFrame(rows, columns=columns)
