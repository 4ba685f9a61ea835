"""How well outcomes that were seen were predicted, a row an outcome."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_tbr.errors import DataError
from pyro_tbr.posterior.tables import names_index

Array = NDArray[np.float64]
_COLUMNS = ["num_rows", "log_score", "r2", "auroc", "coverage"]


def score_table(
    names: tuple[Hashable, ...],
    binary: NDArray[np.bool_],
    y: Array,
    log_scores: Array,
    mean: Array,
    interval: tuple[Array, Array],
) -> pd.DataFrame:
    """See ``Prediction.score``.

    Args:
        names: Of the outcomes, Q.
        binary: Which are 0 or 1, so that means and interval are of their probability, (Q,).
        y: Outcomes in the user's units, (N, Q), NaN where not observed.
        log_scores: Log densities, (N, Q).
        mean: Predictive means, (N, Q).
        interval: Its ends, (N, Q) each.
    """
    seen = ~np.isnan(y)
    if not seen.any():
        raise DataError("y has no observed value; there is nothing to score")
    inside = (interval[0] <= y) & (y <= interval[1])
    table = []
    for q, rows in enumerate(seen.T):
        truth, found = y[rows, q], mean[rows, q]
        if not len(truth):
            table.append((0, *[np.nan] * 4))
        elif binary[q]:
            auroc = _auroc(truth, found)
            table.append((len(truth), log_scores[rows, q].mean(), np.nan, auroc, np.nan))
        else:
            share = inside[rows, q].mean()
            table.append((len(truth), log_scores[rows, q].mean(), _r2(truth, found), np.nan, share))
    return pd.DataFrame(table, index=names_index(names, "outcome"), columns=_COLUMNS)


def _r2(truth: Array, found: Array) -> float:
    """1 - residual sum of squares over that around the mean; NaN where outcomes are constant."""
    spread = np.square(truth - truth.mean()).sum()
    return 1 - np.square(truth - found).sum() / spread if spread > 0 else np.nan


def _auroc(truth: Array, found: Array) -> float:
    """Probability that a 1 is given more than a 0, ties a half; NaN where either is missing."""
    ones = truth == 1
    pairs = ones.sum() * (~ones).sum()
    if not pairs:
        return np.nan
    ranks = pd.Series(found).rank().to_numpy()[ones].sum()
    return (ranks - ones.sum() * (ones.sum() + 1) / 2) / pairs
