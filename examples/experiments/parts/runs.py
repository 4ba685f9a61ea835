"""Tables of repeated runs: means with standard errors, and differences between methods by pairs."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from pyro_tbr.errors import DataError

_COLUMNS = ["mean", "se", "n"]


def summarise_runs(
    results: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    *,
    by: Sequence[str] = ("setting", "method"),
    seed: str = "seed",
) -> pd.DataFrame:
    """Mean and standard error of each metric over seeds.

    Args:
        results: A row a run: the columns ``by``, ``seed``, and a column a metric; NaN where a run
            has no such number, which is then not counted.
        metrics: Columns to summarise; ``None``: all other numeric ones.
        by: Columns that say what was run.
        seed: Column that tells runs of the same thing apart.

    Returns:
        Rows ``(*by, metric)`` in the order they come; columns ``mean``, ``se`` (sample standard
        deviation over the square root of n; NaN for a single run) and ``n``.

    Raises:
        DataError: A column is missing, or a run occurs twice.

    Example:
        >>> runs = pd.DataFrame({"setting": "a", "method": "ours", "seed": [0, 1, 2],
        ...                      "mcc": [0.9, 1.0, 0.8]})
        >>> summarise_runs(runs).round(3).loc[("a", "ours", "mcc")].to_list()
        [0.9, 0.058, 3.0]
    """
    names = _checked(results, metrics, by, seed)
    rows = {}
    for key, part in results.groupby(list(by), sort=False, dropna=False):
        for name in names:
            rows[(*key, name)] = _moments(part[name])
    return _table(rows, [*by, "metric"])


def paired_differences(
    results: pd.DataFrame,
    reference: Hashable,
    metrics: Sequence[str] | None = None,
    *,
    by: Sequence[str] = ("setting",),
    method: str = "method",
    seed: str = "seed",
) -> pd.DataFrame:
    """Each method less a reference, run by run: what they share (data, split) drops out.

    Args:
        results: As in :func:`summarise_runs`.
        reference: The method that is subtracted.
        metrics: Columns to compare; ``None``: all other numeric ones.
        by: Columns that, with ``seed``, say which runs belong together.
        method: Column of the method.
        seed: Column that tells repeated runs apart.

    Returns:
        Rows ``(*by, method, metric)``; columns ``mean`` of the differences, ``se`` and ``n`` pairs.
        A run without its partner, or with NaN in either, is not counted.

    Raises:
        DataError: A column is missing, a run occurs twice, or ``reference`` does not occur.
    """
    names = _checked(results, metrics, [*by, method], seed)
    is_reference = results[method] == reference
    if not is_reference.any():
        known = list(results[method].unique())
        raise DataError(f"reference={reference!r} is no method of results: choose among {known}")
    pair = [*by, seed]
    base = results[is_reference].set_index(pair)[names]
    rows = {}
    for key, part in results[~is_reference].groupby([*by, method], sort=False, dropna=False):
        own = part.set_index(pair)[names]
        shared = own.index.intersection(base.index)
        difference = own.loc[shared] - base.loc[shared]
        for name in names:
            rows[(*key, name)] = _moments(difference[name])
    return _table(rows, [*by, method, "metric"])


def _moments(values: pd.Series) -> tuple[float, float, int]:
    seen = values.dropna().to_numpy(dtype=np.float64)
    if len(seen) == 0:
        return np.nan, np.nan, 0
    se = seen.std(ddof=1) / np.sqrt(len(seen)) if len(seen) > 1 else np.nan
    return float(seen.mean()), float(se), len(seen)


def _table(rows: dict[tuple, tuple[float, float, int]], names: list[str]) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(list(rows), names=names)
    table = pd.DataFrame(list(rows.values()), index=index, columns=_COLUMNS)
    return table.astype({"n": np.int64})


def _checked(
    results: pd.DataFrame, metrics: Sequence[str] | None, by: Sequence[str], seed: str
) -> list[str]:
    """The metrics, once all columns are there and no run is doubled."""
    keys = [*by, seed]
    if metrics is None:
        numeric = results.select_dtypes("number").columns
        metrics = [name for name in numeric if name not in keys]
    missing = [name for name in [*keys, *metrics] if name not in results]
    if missing or not metrics:
        what = f"lacks the column(s) {missing}" if missing else "has no column of numbers"
        raise DataError(f"results {what}; it has {list(results.columns)}")
    double = results.duplicated(keys)
    if double.any():
        first = dict(results.loc[double, keys].iloc[0])
        raise DataError(f"results has {int(double.sum())} run(s) more than once, first {first}")
    return list(metrics)
