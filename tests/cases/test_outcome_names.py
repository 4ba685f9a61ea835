"""Outcomes named by years, pairs, dates or a mixture: the names stay what they are, everywhere."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.data.outcomes import names_as_text
from pyro_tbr.errors import DataError
from pyro_tbr.evaluation.baselines import Pooled
from pyro_tbr.plotting.selection import outcome_place, pick_outcome
from tests.cases.toy import identity_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=20, d=2, shift=[("b", 0, 3.0)])
TWO = np.stack([Y, Y[::-1]], 1)
COLUMNS = {
    "years": pd.Index([2019, 2021]),
    "range": pd.RangeIndex(2019, 2021),
    "turned": pd.Index([1, 0]),
    "levels": pd.MultiIndex.from_tuples([("growth", 2019), ("growth", 2021)]),
    "tuples": pd.Index([("growth", 1), ("yield", 2)], tupleize_cols=False),
    "days": pd.to_datetime(["2019-01-01", "2021-01-01"]),
    "mixed": pd.Index([2019, "growth"], dtype=object),
    "alike": pd.Index([1, "1"], dtype=object),
    "categories": pd.CategoricalIndex(["p", "q"]),
    "numbers": pd.Index([0.5, 1.5]),
}


def table(columns):
    return pd.DataFrame(TWO, columns=columns)


@cache
def fitted(kind):
    return identity_fit(TREE, X, table(COLUMNS[kind]), ENV, mixture_components=2)


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_frame_of_the_fit_works_everywhere(kind):
    posterior, names, frame = fitted(kind), tuple(COLUMNS[kind]), table(COLUMNS[kind])
    assert posterior.outcome_names == names
    assert [type(name) for name in posterior.outcome_names] == [type(name) for name in names]
    turned = frame.iloc[:, ::-1]  # by name, not by position
    updated = posterior.update(X, turned, ENV).node_weights()
    pd.testing.assert_frame_equal(updated, posterior.update(X, frame, ENV).node_weights())
    prediction = posterior.predict(pd.DataFrame(X), ENV)
    assert tuple(prediction.mean.columns) == names
    assert prediction.log_score(turned) == prediction.log_score(frame) == prediction.log_score(TWO)
    assert prediction.mean[names[1]].shape == (60,)
    baseline = Pooled().fit(TREE, X, frame, ENV).predict(X, ENV)
    assert baseline.log_score(turned) == baseline.log_score(frame)
    # Tables by latent, with the outcome in a column or among the columns.
    for long in (posterior.deltas(), posterior.node_weights(), posterior.exceedance(0.1)):
        assert tuple(long["outcome"].unique()) == names
        assert set(long["outcome"].map(type)) == {type(name) for name in names}
    assert set(posterior.select(0.5)["outcome"]) <= set(names)
    assert set(posterior.credible_sets(num_draws=50)["outcome"]) <= set(names)
    pips = posterior.pips()
    assert tuple(pips.columns.get_level_values("outcome").unique()) == names
    assert pips[names[1], "z0"].shape == (3,)
    assert tuple(posterior.path_pips("a").columns) == names
    assert tuple(posterior.summary().noise_scale.index) == names
    assert str(posterior.summary())
    assert TREE.to_newick(comments=pips).count("z0") == 6


@pytest.mark.parametrize("kind", COLUMNS)
def test_files_keep_names(kind, tmp_path):
    posterior = fitted(kind)
    posterior.save(tmp_path / "fit.pt")
    again = tbr.load(tmp_path / "fit.pt")
    assert again.outcome_names == posterior.outcome_names
    assert [type(n) for n in again.outcome_names] == [type(n) for n in posterior.outcome_names]
    again.update(X, table(COLUMNS[kind]), ENV)


def test_files_refuse_names_that_would_not_come_back(tmp_path):
    months = pd.period_range("2019-01", periods=2, freq="M")
    posterior = identity_fit(TREE, X, table(months), ENV)
    with pytest.raises(DataError, match=r"names of .*outcomes: Period\('2019-01.*: use text"):
        posterior.save(tmp_path / "fit.pt")


def test_a_year_that_was_not_fitted_is_named():
    with pytest.raises(DataError, match=r"y lacks 1 column.*: 2021; add them \(is 2022 meant"):
        fitted("years").update(X, table([2019, 2022]), ENV)


def test_a_series_keeps_its_name():
    posterior = identity_fit(TREE, X, pd.Series(Y, name=2019), ENV)
    assert posterior.outcome_names == (2019,)
    assert posterior.predict(pd.DataFrame(X), ENV).mean.name == 2019
    posterior.update(X, pd.Series(Y, name="other"), ENV)  # a single one needs no name
    assert identity_fit(TREE, X, pd.Series(Y), ENV).outcome_names == ("y0",)


def test_counted_columns_are_no_names():
    """Those that pandas gives where nobody gave names; then columns go by position."""
    posterior = identity_fit(TREE, X, pd.DataFrame(TWO), ENV)
    assert posterior.outcome_names == ("y0", "y1")
    posterior.update(X, table(["p", "q"]), ENV)


def test_names_of_features_keep_their_types():
    x = pd.DataFrame(X, columns=[2019, "size"])
    posterior = identity_fit(TREE, x, Y, ENV)
    expected = posterior.predict(x, ENV).mean
    pd.testing.assert_series_equal(posterior.predict(x[["size", 2019]], ENV).mean, expected)


def test_names_as_text_are_all_different():
    assert names_as_text((2019, "2021")) == ["2019", "2021"]
    assert names_as_text((1, "1")) == ["1", "'1'"]
    assert names_as_text((("p", 1), "q")) == ["('p', 1)", "q"]


def test_other_tools_get_names_as_text():
    from pyro_tbr.io.arviz import to_datatree

    pytest.importorskip("arviz_base", reason="needs ArviZ: pip install pyro-tbr[arviz]")
    for kind in ("years", "levels", "alike"):
        frame = table(COLUMNS[kind]).iloc[:, ::-1]
        tree = to_datatree(fitted(kind), X, frame, ENV, num_draws=5)
        assert list(tree["posterior"]["outcome"].values) == names_as_text(tuple(COLUMNS[kind]))


def test_plots_take_a_name_before_a_number():
    posterior = fitted("turned")
    assert [outcome_place(posterior, name) for name in (1, 0)] == [0, 1]
    posterior = fitted("years")
    assert [outcome_place(posterior, name) for name in (2019, 2021, 0, 1)] == [0, 1, 0, 1]
    values = np.arange(24.0).reshape(3, 4, 2)
    assert pick_outcome(posterior, values, 2021)[1] == "2021"
    with pytest.raises(DataError, match="outcome=2020 .* 2019, 2021"):
        outcome_place(posterior, 2020)
