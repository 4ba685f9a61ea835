"""Tables of signs that agree: shares, their errors, and as many changes of every method."""

import numpy as np
import pandas as pd
import pytest

from parts.agreement import (
    by_pip,
    compared,
    error_over_splits,
    figure,
    largest,
    with_all_methods,
)


def changes(number=400, seed=0, splits=4):
    """Changes of ours whose signs agree as the posterior says."""
    rng = np.random.default_rng(seed)
    pip = rng.uniform(size=number)
    expected = 0.5 + pip / 2
    return pd.DataFrame(
        {
            "data": "birds", "method": "ours_groups",
            "split": rng.integers(splits, size=number),
            "direction": rng.integers(2, size=number),
            "kind": np.where(np.arange(number) % 2, "slopes", "intercepts"),
            "pip": pip, "selected": pip > 0.95, "expected": expected,
            "agrees": rng.uniform(size=number) < expected,
            "gate": pip, "gate_agrees": 0.9 * pip,
            "size": 2.0, "expected_size": 4.0, "covered": 1.0, "change": rng.normal(size=number),
        }
    )  # fmt: skip


def test_shares_by_pip():
    found = changes()
    table = by_pip(found)
    assert table["a fit"].sum() == pytest.approx(400 / 8)
    last = table.loc[("birds", "ours_groups", "slopes", "0.95 to 1")]
    own = found[(found["kind"] == "slopes") & (found["pip"] >= 0.95)]
    assert last["agree"] == own["agrees"].mean()
    assert last["difference"] == pytest.approx(own["agrees"].mean() - own["expected"].mean())
    assert last["r"] == pytest.approx(0.9)
    assert last["or 1/2"] == pytest.approx((0.9 * own["pip"] + (1 - own["pip"]) / 2).mean())
    assert last["size"] == 0.5
    assert (table["difference"].abs() < 4 * table["difference se"]).all()


def test_the_error_is_that_of_a_split_where_splits_reuse_rows():
    # Splits that differ: what is added to 1 / n does not vanish with their number.
    split = pd.Series(np.repeat(np.arange(50), 100))
    rng = np.random.default_rng(0)
    each = pd.Series(np.repeat(rng.normal(scale=0.2, size=50), 100))
    found = error_over_splits(each - each.mean(), split, 50, 0.5)
    assert found == pytest.approx(each.std() * (1 / 50 + 1) ** 0.5, rel=0.02)


def test_the_error_is_at_least_that_of_independent_changes_of_one_split():
    split = pd.Series(np.repeat(np.arange(10), 20))
    found = error_over_splits(pd.Series(np.zeros(200)), split, 10, 1.0)
    share = 21 / 22
    assert found == pytest.approx((share * (1 - share) / 20) ** 0.5)


def test_as_many_changes_of_another_method():
    ours = changes()
    others = changes(seed=1).assign(method="l1_tbr", split=0)
    others = others.drop(columns=["pip", "selected", "expected"])
    kept = largest(others, ours)
    for kind in ("slopes", "intercepts"):
        own = ours[ours["kind"] == kind]
        mine = kept[kept["kind"] == kind]
        assert mine["FDR 0.05"].sum() == own["selected"].sum()
        assert len(mine) == (own["pip"] > 0.2).sum()
        left_out = others[(others["kind"] == kind) & ~others.index.isin(mine.index)]
        assert mine["change"].abs().min() >= left_out["change"].abs().max()
    table = compared(pd.concat([ours, kept]))
    rows = table.loc[("birds", "slopes", "FDR 0.05")]
    # Ours are of four splits, theirs of one, two fits each.
    assert 2 * rows.loc["l1_tbr", "a fit"] == 8 * rows.loc["ours_groups", "a fit"]
    assert np.isnan(rows.loc["l1_tbr", "expected"])


def test_splits_with_all_methods():
    ours = changes()
    found = with_all_methods(pd.concat([ours, ours[ours["split"] == 2].assign(method="l1_tbr")]))
    assert set(found["split"]) == {2}
    assert (found["method"] == "l1_tbr").mean() == 0.5
    alone = ours.assign(data="neurons")  # a data set with one method
    assert len(with_all_methods(pd.concat([found, alone]))) == len(found) + len(alone)


def test_no_changes_to_compare_with():
    ours = changes().assign(pip=0.1, selected=False)
    kept = largest(changes(seed=1), ours)
    assert kept.empty


def test_figure(tmp_path):
    found = pd.concat([changes(), changes(seed=1).assign(data="neurons")])
    methods = dict.fromkeys(("neurons", "birds"), "ours_groups")
    figure(by_pip(found), methods, tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 10_000
