"""What inclusion probabilities are worth: whether they rank changes, and whether they are true."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyro_tbr.errors import DataError
from pyro_tbr.evaluation.checks import Array, as_float, check_same_shape, require


def pip_auroc(pips: Any, gates: Any) -> float:
    """Probability that a true change has a higher PIP than a place without one.

    Args:
        pips: Inclusion probabilities, any shape.
        gates: Whether there is a change, same shape.

    Raises:
        ShapeError: The shapes differ.
        DataError: PIPs outside [0, 1], gates that are not 0 or 1, or no change, or changes only.
    """
    pips, gates = _pips_and_gates(pips, gates, both=True)
    return float(require("sklearn.metrics").roc_auc_score(gates, pips))


def pip_average_precision(pips: Any, gates: Any) -> float:
    """Average precision of the PIPs; arguments and errors as :func:`pip_auroc`."""
    pips, gates = _pips_and_gates(pips, gates, both=True)
    return float(require("sklearn.metrics").average_precision_score(gates, pips))


def reliability(pips: Any, gates: Any, bins: int | Sequence[float] = 10) -> pd.DataFrame:
    """What PIPs of a size are worth: the share of true changes among them.

    Args:
        pips: Inclusion probabilities, any shape.
        gates: Whether there is a change, same shape.
        bins: Number of bins of equal width, or increasing edges from 0 to 1. A bin holds its
            lower edge, the last one its upper edge too.

    Returns:
        A row for each bin: ``lower``, ``upper``, ``mean_pip``, ``true_share``, ``count``; the
        means of an empty bin are NaN.

    Raises:
        ShapeError: The shapes differ.
        DataError: PIPs outside [0, 1], gates that are not 0 or 1, or unusable bins.
    """
    pips, gates = _pips_and_gates(pips, gates)
    edges = np.linspace(0, 1, bins + 1) if isinstance(bins, int) else np.asarray(bins, float)
    if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or (np.diff(edges) <= 0).any():
        raise DataError(f"bins is {bins!r}: give a number of bins, or increasing edges from 0 to 1")
    place = np.searchsorted(edges[1:-1], pips, side="right")
    count = np.bincount(place, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        mean_pip = np.bincount(place, pips, len(count)) / count
        true_share = np.bincount(place, gates, len(count)) / count
    return pd.DataFrame(
        {
            "lower": edges[:-1],
            "upper": edges[1:],
            "mean_pip": mean_pip,
            "true_share": true_share,
            "count": count,
        }
    )


def _pips_and_gates(pips: Any, gates: Any, both: bool = False) -> tuple[Array, Array]:
    pips, gates = as_float(pips), as_float(gates)
    check_same_shape("pips", pips, "gates", gates)
    for name, value, bad in (
        ("pips", pips, ~((pips >= 0) & (pips <= 1))),
        ("gates", gates, (gates != 0) & (gates != 1)),
    ):
        if bad.any():
            raise DataError(
                f"{name} has {bad.sum()} value(s) out of range, first {float(value[bad][0])!r} at "
                f"{tuple(map(int, np.argwhere(bad)[0]))}: PIPs lie in [0, 1], gates are 0 or 1"
            )
    if pips.size == 0 or (both and gates.min() == gates.max()):
        raise DataError(
            f"gates has {int(gates.sum())} change(s) among {gates.size}: "
            "ranking needs places with and without"
        )
    return pips.ravel(), gates.ravel()
