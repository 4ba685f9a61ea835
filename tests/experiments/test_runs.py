"""Tables of runs against means and differences worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from parts.runs import paired_differences, summarise_runs
from pyro_tbr.errors import DataError


@pytest.fixture
def runs():
    return pd.DataFrame(
        {
            "setting": ["a"] * 6 + ["b"],
            "method": ["ours", "ours", "ours", "l1", "l1", "l1", "ours"],
            "seed": [0, 1, 2, 2, 1, 0, 0],
            "mcc": [1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.5],
            "seconds": [1.0, np.nan, 3.0, 1.0, 1.0, 2.0, 4.0],
            "note": ["x"] * 7,
        }
    )


def test_means_and_standard_errors(runs):
    table = summarise_runs(runs)
    assert table.index.names == ["setting", "method", "metric"]
    mean, se, n = table.loc[("a", "ours", "mcc")]
    assert (mean, se, n) == pytest.approx((0.9, 0.1 / np.sqrt(3), 3))
    assert table.loc[("a", "ours", "seconds"), "n"] == 2  # NaN is no run
    assert table.loc[("a", "l1", "mcc"), "se"] == pytest.approx(0)
    assert np.isnan(table.loc[("b", "ours", "mcc"), "se"])  # a single run has none
    assert set(table.index.get_level_values("metric")) == {"mcc", "seconds"}  # no text, no seed


def test_differences_go_by_pairs(runs):
    table = paired_differences(runs, "ours", ["mcc", "seconds"])
    assert table.index.to_list() == [("a", "l1", "mcc"), ("a", "l1", "seconds")]
    difference = np.array([-0.3, -0.2, -0.1])  # by seed, whatever the order of the rows
    mean, se, n = table.loc[("a", "l1", "mcc")]
    assert (mean, se, n) == pytest.approx((-0.2, difference.std(ddof=1) / np.sqrt(3), 3))
    assert table.loc[("a", "l1", "seconds"), "n"] == 2


def test_pairs_take_out_what_runs_share():
    generator = np.random.default_rng(0)
    data, rows = generator.normal(size=50), []
    for seed, shared in enumerate(data):
        for method, gain in [("base", 0.0), ("new", 0.1)]:
            score = shared + gain + 0.01 * generator.normal()
            rows.append({"setting": 0, "method": method, "seed": seed, "score": score})
    runs = pd.DataFrame(rows)
    paired = paired_differences(runs, "base").loc[(0, "new", "score")]
    assert abs(paired["mean"] - 0.1) < 4.5 * paired["se"]
    assert paired["se"] < 0.05 * summarise_runs(runs).loc[(0, "new", "score"), "se"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda runs: summarise_runs(runs, ["auc"]), "auc"),
        (lambda runs: summarise_runs(runs[["setting", "method", "seed", "note"]]), "no column"),
        (lambda runs: summarise_runs(pd.concat([runs, runs[:1]])), "more than once"),
        (lambda runs: paired_differences(runs, "theirs"), "'theirs' is no method"),
    ],
)
def test_errors_name_the_culprit(runs, call, message):
    with pytest.raises(DataError, match=message):
        call(runs)
