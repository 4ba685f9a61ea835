"""What aligned data look like: rows, and what later rows have to fit."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_tbr.data.matching import RowOrder


@dataclass(frozen=True)
class Schema:
    """What later tables have to fit.

    Attributes:
        feature_names: Columns of ``x`` where it was a DataFrame, else None: then only the number
            of features is checked later.
        num_features: D.
        outcome_names: The user's column names, of whatever type, else ``y0``, ``y1``, ...
        outcome_ndim: 1 where ``y`` was (N,), 2 where it was (N, Q).
    """

    feature_names: tuple[Hashable, ...] | None
    num_features: int
    outcome_names: tuple[Hashable, ...]
    outcome_ndim: int


@dataclass(frozen=True)
class Rows:
    """Rows of data that fit together.

    Attributes:
        x: Features, (N, D) float64, finite: a tensor, or SparseFeatures where these were asked for.
        y: Outcomes, (N, Q) float64, NaN where not observed; None where none were given.
        env_index: Position in ``tree.nodes`` of each row's environment, (N,) int64.
        order: Of the rows: the index of ``x``, else of ``y`` or ``env``, if one of them has one.
        rounding: Relative rounding of each feature as it was given, (D,); 0 for double precision.
    """

    x: Any
    y: Tensor | None
    env_index: Tensor
    order: RowOrder
    rounding: Tensor
