"""The estimators do what scikit-learn's tools expect of an estimator, on rows of a tree."""

import importlib
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    LeaveOneGroupOut,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, ShapeError, TreeError
from pyro_tbr.io.sklearn import TreeClassifier, TreeRegressor

FAST = tbr.FitOptions(mixture_components=4)
KNOWN = {"encoder": "identity", "options": FAST}


@pytest.fixture(scope="module")
def sim():
    return tbr.simulate(num_leaves=4, latent_dim=2, num_features=2, rows_per_leaf=30, seed=1)


@pytest.fixture(scope="module")
def frame(sim):
    """The true latents as features beside a column of text in their middle."""
    index = [f"row{i}" for i in range(len(sim.y))]
    return pd.DataFrame({"a": sim.z[:, 0], "leaf": sim.env, "b": sim.z[:, 1]}, index=index)


@pytest.fixture(scope="module")
def binary():
    return tbr.simulate(
        num_leaves=4, latent_dim=1, num_features=1, rows_per_leaf=40, likelihood="bernoulli", seed=3
    )


def regressor(sim, **kwargs):
    return TreeRegressor(sim.tree, 2, **{"env_column": "leaf"} | KNOWN | kwargs)


def test_fit_is_that_of_the_library(sim, frame):
    model = regressor(sim)
    assert model.fit(frame, sim.y) is model
    direct = tbr.fit(
        tbr.TreeModel(sim.tree, 2, encoder="identity"),
        frame[["a", "b"]],
        sim.y,
        frame["leaf"],
        progress=False,
        options=FAST,
    )
    pd.testing.assert_frame_equal(model.pip_, direct.pips())
    expected = direct.predict(frame[["a", "b"]], frame["leaf"])
    mean, sd = model.predict(frame, return_std=True)
    np.testing.assert_array_equal(mean, expected.mean)
    np.testing.assert_array_equal(sd, expected.sd)
    assert model.score(frame, sim.y) == pytest.approx(r2_score(sim.y, mean))
    assert model.score(frame, sim.y) > 0.95
    assert model.n_features_in_ == 3
    assert model.feature_names_in_.tolist() == ["a", "leaf", "b"]
    assert model.transform(frame).shape == (len(frame), 2)


def test_arguments_are_kept_as_they_are_and_cloned(sim):
    prior = tbr.SpikeSlabPrior(inclusion_prob=0.2)
    model = regressor(sim, prior=prior, seed=4)
    assert model.get_params()["tree"] is sim.tree
    assert model.get_params()["prior"] is prior
    copy = clone(model)
    assert copy.get_params()["seed"] == 4
    assert copy.tree == sim.tree
    assert not hasattr(copy, "posterior_")
    assert copy.set_params(latent_dim=3, seed=5).latent_dim == 3
    assert "TreeRegressor(" in repr(copy)
    for kind in (TreeRegressor, TreeClassifier):
        assert kind().get_params().keys() == model.get_params().keys()


def test_tags_say_what_it_is(sim):
    model, classifier = regressor(sim), TreeClassifier(sim.tree)
    assert is_regressor(model)
    assert is_classifier(classifier)
    assert get_tags(model).input_tags.string
    assert get_tags(model).target_tags.multi_output
    assert not get_tags(classifier).classifier_tags.multi_class


def test_left_out_environments_are_held_out_leaves(sim, frame):
    groups = frame["leaf"]
    scores = cross_val_score(
        regressor(sim), frame, sim.y, groups=groups, cv=LeaveOneGroupOut(), error_score="raise"
    )
    assert len(scores) == 4
    assert np.isfinite(scores).all()
    held = groups == sim.tree.leaves[0]
    model = regressor(sim).fit(frame[~held], sim.y[~held])
    assert scores[0] == pytest.approx(model.score(frame[held], sim.y[held]))
    assert int(model.posterior_.row_counts[sim.tree.index(sim.tree.leaves[0])]) == 0
    _, far = model.predict(frame[held], return_std=True)
    _, near = model.predict(frame[~held], return_std=True)
    assert far.mean() > 2 * near.mean()


def test_pipeline_and_grid(sim, frame):
    scaled = ColumnTransformer(
        [("scale", StandardScaler(), ["a", "b"]), ("env", "passthrough", ["leaf"])]
    )
    pipeline = Pipeline([("scale", scaled), ("tree", regressor(sim, env_column=-1))])
    grid = GridSearchCV(
        pipeline,
        {"tree__intercept": [True, False], "tree__encoder": ["identity"]},
        cv=GroupKFold(2),
        error_score="raise",
    )
    grid.fit(frame, sim.y, groups=frame["leaf"])
    assert np.isfinite(grid.cv_results_["mean_test_score"]).all()
    assert grid.best_estimator_.score(frame, sim.y) > 0.95
    assert grid.best_estimator_["tree"].pip_.shape[0] == sim.tree.num_arcs


def test_latents_are_features_of_what_comes_next(sim, frame):
    model = regressor(sim)
    with pytest.raises(NotFittedError):
        model.get_feature_names_out()
    latents = model.fit_transform(frame, sim.y)
    assert latents.index.equals(frame.index)
    names = model.get_feature_names_out()
    assert names.tolist() == list(latents.columns) == ["a", "b"]  # the features are the latents
    assert model.get_feature_names_out(frame.columns).tolist() == ["a", "b"]
    np.testing.assert_array_equal(latents, model.posterior_.encode(frame[["a", "b"]]))
    rows = frame.to_numpy(dtype=object)
    by_place = regressor(sim, env_column=1).set_output(transform="pandas")
    found = by_place.fit(rows, sim.y).transform(rows)
    assert isinstance(found, pd.DataFrame)
    assert list(found.columns) == ["z0", "z1"]
    assert isinstance(by_place.set_output(transform="default").transform(rows), np.ndarray)
    pipeline = Pipeline([("tree", regressor(sim)), ("scale", StandardScaler())])
    scaled = pipeline.set_output(transform="pandas").fit_transform(frame, sim.y)
    np.testing.assert_allclose(scaled.std(ddof=0), 1)
    assert pipeline.get_feature_names_out().tolist() == ["a", "b"]
    for wrong, message in (
        (["a"], r"length equal to the number of features \(3\), got 1"),
        (["a", "b", "leaf"], "not equal to feature_names_in_"),
    ):
        with pytest.raises(DataError, match=message):
            model.get_feature_names_out(wrong)
    with pytest.raises(ShapeError, match="X has 2 features, but TreeRegressor is expecting 3"):
        by_place.predict(rows[:, :2])


def test_latents_as_polars_without_pandas_in_between(sim, frame):
    polars = pytest.importorskip("polars", reason="pip install polars")
    table = polars.DataFrame({name: frame[name].to_list() for name in frame})
    model = regressor(sim).set_output(transform="polars").fit(table, sim.y)
    latents = model.transform(table)
    assert isinstance(latents, polars.DataFrame)
    assert latents.columns == ["a", "b"]


def test_environment_by_position_in_arrays(sim, frame):
    expected = regressor(sim).fit(frame, sim.y).predict(frame)
    table = frame.to_numpy(dtype=object)
    for rows, column in ((table, 1), (table, -2), (table.tolist(), 1), (frame, 1)):
        model = regressor(sim, env_column=column).fit(rows, sim.y)
        np.testing.assert_allclose(model.predict(rows), expected)
    codes = {leaf: place for place, leaf in enumerate(sim.tree.leaves)}
    numbers = tbr.Tree.from_parents(
        {codes.get(child, child): codes.get(parent, parent) for parent, child in sim.tree.arcs}
    )
    rows = np.column_stack([sim.z, [codes[leaf] for leaf in sim.env]]).astype(float)
    model = TreeRegressor(numbers, 2, env_column=2, **KNOWN).fit(rows, sim.y)
    np.testing.assert_allclose(model.predict(rows), expected, atol=0.05)


def test_groups_are_a_column(sim, frame):
    groups = np.arange(len(sim.y)) // 5
    direct = tbr.fit(
        tbr.TreeModel(sim.tree, 2, encoder="identity"),
        frame[["a", "b"]],
        pd.Series(sim.y, index=frame.index),
        sim.env,
        groups=groups,
        progress=False,
        options=KNOWN["options"],
    )
    rows = frame.assign(mouse=groups)
    model = regressor(sim, groups_column="mouse").fit(rows, sim.y)
    assert model.n_features_in_ == 4
    np.testing.assert_allclose(model.pip_, direct.pips())
    np.testing.assert_allclose(
        model.posterior_.report.group_correlation, direct.report.group_correlation
    )
    table = rows.to_numpy(dtype=object)  # a, leaf, b, mouse
    other = regressor(sim, env_column=1, groups_column=-1).fit(table, sim.y)
    np.testing.assert_allclose(other.predict(table), model.predict(rows))


def test_rows_of_y_go_by_position_as_everywhere_in_scikit_learn(sim, frame):
    other = pd.Series(sim.y, index=frame.index[::-1], name="weight")
    model = regressor(sim).fit(frame, other)
    assert model.posterior_.outcome_names == ("weight",)
    assert model.score(frame, other) > 0.95


def test_several_outcomes_with_gaps(sim, frame):
    y = np.stack([sim.y, -2 * sim.y], axis=1)
    y[::7, 1] = np.nan
    model = regressor(sim).fit(frame, y)
    assert model.predict(frame).shape == y.shape
    assert model.score(frame, y) > 0.95
    assert np.isfinite(cross_val_score(model, frame, y, cv=2)).all()
    with pytest.raises(DataError, match="an outcome without observed values"):
        model.score(frame, np.full_like(y, np.nan))


@pytest.mark.parametrize("names", [(0, 1), ("no", "yes"), (False, True)])
def test_classifier_has_the_users_classes(binary, names):
    rows = pd.DataFrame({"z": binary.z[:, 0], "env": binary.env})
    y = np.array(names)[binary.y.astype(int)]
    model = TreeClassifier(binary.tree, 1, **KNOWN).fit(rows, pd.Series(y))
    assert model.classes_.tolist() == list(names)
    proba = model.predict_proba(rows)
    np.testing.assert_allclose(proba.sum(1), 1)
    predicted = model.predict(rows)
    assert set(predicted.tolist()) == set(names)
    assert ((proba[:, 1] > 0.5) == (predicted == names[1])).all()
    assert model.score(rows, y) == (predicted == y).mean() > 0.7


def test_classifier_in_cross_validation(binary):
    rows = pd.DataFrame({"z": binary.z[:, 0], "env": binary.env})
    model = TreeClassifier(binary.tree, 1, **KNOWN)
    folds = StratifiedKFold(2, shuffle=True, random_state=0)  # rows come leaf by leaf
    proba = cross_val_predict(model, rows, binary.y, cv=folds, method="predict_proba")
    assert proba.shape == (len(rows), 2)
    assert roc_auc_score(binary.y, proba[:, 1]) > 0.7


def test_a_fitted_estimator_survives_pickle(sim, frame):
    model = regressor(sim).fit(frame, sim.y)
    back = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(back.predict(frame), model.predict(frame))


WRONG = {
    "no tree": (lambda s, f: TreeRegressor().fit(f, s.y), DataError, "tree must be a .*NoneType"),
    "no column": (
        lambda s, f: TreeRegressor(s.tree).fit(f, s.y),
        DataError,
        "env_column='env' is no column of X, whose columns are 'a', 'leaf', 'b'",
    ),
    "a name in an array": (
        lambda s, f: TreeRegressor(s.tree).fit(f.to_numpy(object), s.y),
        DataError,
        "env_column='env', but X is no DataFrame: give the position .* -3 to 2",
    ),
    "beyond": (
        lambda s, f: TreeRegressor(s.tree, env_column=3).fit(f, s.y),
        DataError,
        "env_column=3 is no column",
    ),
    "one column for both": (
        lambda s, f: regressor(s, groups_column="leaf").fit(f, s.y),
        DataError,
        "'env_column', 'groups_column' are both 'leaf'",
    ),
    "no column of groups": (
        lambda s, f: regressor(s, groups_column="mouse").fit(f, s.y),
        DataError,
        "groups_column='mouse' is no column of X",
    ),
    "groups of classes": (
        lambda s, f: TreeClassifier(s.tree, 2, env_column="leaf", groups_column="a").fit(
            f, s.y > 0
        ),
        DataError,
        "groups need numeric outcomes",
    ),
    "doubled": (
        lambda s, f: regressor(s).fit(f.rename(columns={"a": "leaf"}), s.y),
        DataError,
        "name of 2 columns",
    ),
    "one dimension": (
        lambda s, f: TreeRegressor(s.tree, env_column=0).fit(s.y, s.y),
        ShapeError,
        r"X has shape \(120,\)",
    ),
    "labels": (
        lambda s, f: regressor(s).fit(f.assign(leaf="leaf9"), s.y),
        TreeError,
        "'leaf9'",
    ),
    "no outcomes": (lambda s, f: regressor(s).fit(f, None), DataError, "requires y to be passed"),
    "nothing but labels": (
        lambda s, f: regressor(s).fit(f[["leaf"]], s.y),
        ShapeError,
        r"0 feature\(s\) .*labels",
    ),
    "numbers for classes": (
        lambda s, f: TreeClassifier(s.tree, env_column="leaf").fit(f, s.y),
        DataError,
        "type of the target is continuous; use TreeRegressor",
    ),
    "classes": (
        lambda s, f: TreeClassifier(s.tree, env_column="leaf").fit(f, f["leaf"]),
        DataError,
        "y has 4 class.*needs exactly two",
    ),
    "missing class": (
        lambda s, f: TreeClassifier(s.tree, env_column="leaf").fit(f, [None, *(s.y[1:] > 0)]),
        DataError,
        "1 missing class",
    ),
    "not fitted": (lambda s, f: regressor(s).predict(f), NotFittedError, "not fitted"),
    "not fitted pip": (lambda s, f: regressor(s).pip_, NotFittedError, "not fitted"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_calls_say_what_and_how(call, error, message, sim, frame):
    with pytest.raises(error, match=message):
        call(sim, frame)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "pyro_tbr.io.sklearn")
    with pytest.raises(ImportError, match=r"need scikit-learn: pip install pyro-tbr\[sklearn\]$"):
        importlib.import_module("pyro_tbr.io.sklearn")


def test_counts_with_exposures_and_weights():
    sim = tbr.simulate(
        num_leaves=4, latent_dim=1, num_features=1, rows_per_leaf=40, likelihood="poisson",
        weight_scale=0.5, intercept_mean=1.0, exposure_ratio=5.0, seed=2,
    )  # fmt: skip
    frame = pd.DataFrame({"a": sim.z[:, 0], "leaf": sim.env, "hours": sim.exposure})
    kind = {"env_column": "leaf", "exposure_column": "hours", "likelihood": "poisson"}
    weights = np.ones(len(frame))
    weights[::5] = 2.0
    model = TreeRegressor(sim.tree, 1, **kind | KNOWN).fit(frame, sim.y, sample_weight=weights)
    direct = tbr.fit(
        tbr.TreeModel(sim.tree, 1, "identity", likelihood="poisson"),
        frame[["a"]], sim.y, sim.env, exposure=sim.exposure, row_weights=weights, progress=False,
        options=FAST,
    )  # fmt: skip
    expected = direct.predict(frame[["a"]], sim.env, exposure=sim.exposure).mean
    np.testing.assert_array_equal(model.predict(frame), expected)
    assert model.n_features_in_ == 3
    assert model.score(frame, sim.y) > 0.3
    with pytest.raises(DataError, match="TreeClassifier has that of two classes"):
        TreeClassifier(sim.tree, 1, likelihood="poisson").fit(frame, sim.y > 2)


@pytest.mark.slow
def test_the_number_of_latents_may_be_chosen(sim, frame):
    model = TreeRegressor(
        sim.tree, None, env_column="leaf", options=tbr.FitOptions(restarts=2, sparse_steps=0)
    )
    assert clone(model).latent_dim is None
    found = model.fit(frame, sim.y)
    assert found.posterior_.model.latent_dim in (1, 2)
    assert found.posterior_.report.latent_choice.tried == (1, 2)
