"""What aligned data look like: rows, and what later rows have to fit."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor


@dataclass(frozen=True)
class Schema:
    """What later tables have to fit.

    Attributes:
        feature_names: Columns of ``x`` where it was a DataFrame, else None: then only the number
            of features is checked later.
        num_features: D.
        outcome_names: The user's column names, else ``y0``, ``y1``, ...
        outcome_ndim: 1 where ``y`` was (N,), 2 where it was (N, Q).
    """

    feature_names: tuple[Hashable, ...] | None
    num_features: int
    outcome_names: tuple[str, ...]
    outcome_ndim: int


@dataclass(frozen=True)
class Rows:
    """Rows of data that fit together.

    Attributes:
        x: Features, (N, D) float64, finite: a tensor, or SparseFeatures where these were asked for.
        y: Outcomes, (N, Q) float64, NaN where not observed; None where none were given.
        env_index: Position in ``tree.nodes`` of each row's environment, (N,) int64.
        index: The index of ``x`` where it was a DataFrame, else None.
    """

    x: Any
    y: Tensor | None
    env_index: Tensor
    index: pd.Index | None
