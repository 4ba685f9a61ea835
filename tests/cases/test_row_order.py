"""Rows in the order of the first index there is: of ``x``, else of ``y``, ``env``, ``groups``."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.evaluation.baselines import Pooled
from tests.cases.toy import identity_fit, same_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=30, d=2)
INDEX = pd.Index([f"r{i}" for i in range(90)])
MOUSE = np.array([f"m{i % 9}" for i in range(90)], dtype=object)
Y = Y + np.random.default_rng(1).normal(size=9)[np.arange(90) % 9]  # alike within a mouse
ORDER = np.random.default_rng(2).permutation(90)
NOTHING = slice(None)


def series(values, order=NOTHING):
    return pd.Series(values, INDEX).iloc[order]


def frame(values, order=NOTHING):
    return series(values, order).to_frame("label")


def fit(x=X, y=Y, env=ENV, groups=MOUSE):
    model = tbr.TreeModel(TREE, 2, encoder="identity")
    options = tbr.FitOptions(mixture_components=2)
    return tbr.fit(model, x, y, env, groups=groups, progress=False, options=options)


@pytest.fixture(scope="module")
def fitted():
    return fit()


SAME = {
    "groups": {"y": series(Y), "groups": series(MOUSE, ORDER)},
    "groups after env": {"env": series(ENV), "groups": frame(MOUSE, ORDER)},
    "env": {"y": series(Y), "env": series(ENV, ORDER)},
    "all after y": {"y": frame(Y), "env": frame(ENV, ORDER), "groups": series(MOUSE, ORDER[::-1])},
    "groups alone": {"groups": series(MOUSE)},
    "tensor": {"x": torch.from_numpy(X), "env": series(ENV), "groups": series(MOUSE, ORDER)},
    "all after x": {
        "x": pd.DataFrame(X, INDEX), "y": series(Y, ORDER), "groups": series(MOUSE, ORDER[::-1]),
    },
}  # fmt: skip


@pytest.mark.parametrize("given", SAME.values(), ids=SAME.keys())
def test_fit_brings_labelled_rows_into_one_order(given, fitted):
    same_fit(fit(**given), fitted)
    assert fit(**given).report.group_correlation.item() > 0.2


@pytest.mark.parametrize("given", SAME.values(), ids=SAME.keys())
def test_update_does_as_fit(given, fitted):
    whole = {"x": X, "y": Y, "env": ENV, "groups": MOUSE}
    same_fit(fitted.update(**(whole | given)), fitted.update(**whole))


def test_predictions_and_scores_do_as_fit(fitted):
    prediction = fitted.predict(X, series(ENV))
    assert isinstance(prediction.mean, np.ndarray)  # the form of the features
    expected = prediction.log_score(Y)
    assert prediction.log_score(series(Y, ORDER)) == expected
    assert fitted.predict(X, ENV).log_score(series(Y)) == expected
    assert fitted.predict(pd.DataFrame(X, INDEX), series(ENV, ORDER)).log_score(Y) == expected
    baseline = Pooled().fit(TREE, X, series(Y), series(ENV, ORDER), groups=series(MOUSE, ORDER))
    prediction = baseline.predict(X, series(ENV))
    assert prediction.log_score(series(Y, ORDER)) == prediction.log_score(Y)


def test_draws_for_other_tools_do_as_fit(fitted):
    pytest.importorskip("arviz_base", reason="needs ArviZ: pip install pyro-tbr[arviz]")
    from pyro_tbr.io.arviz import to_datatree

    expected = to_datatree(fitted, X, Y, ENV, num_draws=5)["log_likelihood"]["y"].values
    for given in ((series(Y), series(ENV, ORDER)), (Y, series(ENV)), (frame(Y), ENV)):
        found = to_datatree(fitted, X, *given, num_draws=5)["log_likelihood"]["y"].values
        np.testing.assert_array_equal(found, expected)


OTHER = {
    "groups": ({"y": series(Y), "groups": pd.Series(MOUSE)}, "groups has no row for 90 .* of y"),
    "groups of env": (
        {"env": series(ENV), "groups": series(MOUSE).rename({"r3": "s3"})},
        "groups has no row for 1 index label.* of env, first 'r3'",
    ),
    "env": ({"y": series(Y), "env": pd.Series(ENV)}, "env has no row for 90 .* of y, first 'r0'"),
    "y": ({"x": pd.DataFrame(X, INDEX), "y": pd.Series(Y)}, "y has no row for 90 .* of x"),
    "doubled": (
        {"y": series(Y), "groups": series(MOUSE, ORDER).rename({"r1": "r2"})},
        "groups and y have other rows .* index of groups holds 'r2' more than once",
    ),
}


@pytest.mark.parametrize(("given", "message"), OTHER.values(), ids=OTHER.keys())
def test_another_index_is_refused(given, message, fitted):
    with pytest.raises(DataError, match=message):
        fit(**given)
    with pytest.raises(DataError, match=message):
        fitted.update(**({"x": X, "y": Y, "env": ENV, "groups": MOUSE} | given))


def test_a_score_refuses_another_index(fitted):
    with pytest.raises(DataError, match="y has no row for 90 index label.* of env"):
        fitted.predict(X, series(ENV)).log_score(pd.Series(Y))


def test_scikit_learn_goes_by_position():
    sklearn = pytest.importorskip("pyro_tbr.io.sklearn")
    table = pd.DataFrame(X, INDEX, columns=["f0", "f1"]).assign(env=ENV, mouse=MOUSE)
    model = sklearn.TreeRegressor(
        TREE, encoder="identity", groups_column="mouse",
        options=tbr.FitOptions(mixture_components=2),
    )  # fmt: skip
    same_fit(model.fit(table, pd.Series(Y)).posterior_, fit(pd.DataFrame(X)))


def test_labels_that_hold_no_rows_are_values():
    """An Index of environments is a column of labels, not the labels of rows."""
    whole = identity_fit(TREE, X, series(Y), pd.Index(ENV))
    same_fit(whole, identity_fit(TREE, X, Y, ENV))
