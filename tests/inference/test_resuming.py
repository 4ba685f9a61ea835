"""``fit(..., start=posterior)``: going on rather than afresh."""

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, TreeError
from tests.brief import mostly_slow, sweeps
from tests.cases.toy import QUICK, identity_fit, star, toy

LEAVES = ["a", "b", "c", "d"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=60, d=4, shift=[("a", 0, 2.0), ("b", 1, -2.0), ("d", 0, -1.5)])
FEW = np.arange(len(X)) % 3 == 0
OPTIONS = tbr.FitOptions(restarts=4, sparse_steps=40, mixture_components=8)


def go_on(start, x=X, y=Y, env=ENV, encoder="linear", options=OPTIONS, tree=TREE, **model):
    latent_dim = model.pop("latent_dim", 2)
    built = tbr.TreeModel(tree, latent_dim, encoder=encoder, **model)
    return tbr.fit(built, x, y, env, start=start, progress=False, options=options)


@pytest.fixture(scope="module")
def few():
    """From a third of the rows."""
    return go_on(None, X[FEW], Y[FEW], ENV[FEW])


@pytest.fixture(scope="module")
def more(few):
    """From all rows, going on from a third."""
    before = few.encode(X)
    posterior = go_on(few)
    np.testing.assert_array_equal(few.encode(X), before)  # the start is untouched
    return posterior


@pytest.mark.parametrize(
    "guide", mostly_slow({guide: guide for guide in ("tree", "mean_field")}, "tree")
)
def test_half_and_half_is_the_whole(guide):
    """Sweeps of the weights' posterior go on where they stopped."""
    model = tbr.TreeModel(TREE, 4, encoder="identity")

    def fit(number, start=None):
        options = tbr.FitOptions(dtype="float64", mixture_components=32)
        with sweeps(number):
            return tbr.fit(
                model, X, Y, ENV, guide=guide, start=start, progress=False, options=options
            )  # fmt: skip

    # A mean-field run ends each time with small steps, so it is compared at its optimum. A tree's
    # sweeps with few components end in a small cycle, and the last two do not quite forget where.
    first, whole = (3, 60) if guide == "tree" else (20, 80)
    halves = fit(40, start=fit(first))
    columns = ["pip", "mean", "sd"]
    tolerance = 3e-3 if guide == "tree" else 2e-2
    np.testing.assert_allclose(
        halves.deltas()[columns], fit(whole).deltas()[columns], atol=tolerance
    )


@pytest.mark.slow
def test_more_rows_sharpen_the_same_latents(few, more):
    before, after = few.encode(X), more.encode(X)
    assert min(np.corrcoef(before[:, k], after[:, k])[0, 1] for k in (0, 1)) > 0.99
    assert int(more.row_counts.sum()) == len(X)
    assert more.model.num_rows == len(X)
    shrunk = more.node_weights()["sd"].mean() / few.node_weights()["sd"].mean()
    assert 0.4 < shrunk < 0.8  # three times the rows: 0.58
    # Against a fit to all rows from scratch: the same predictions.
    afresh = go_on(None)
    gap = np.abs(more.predict(X, ENV).mean - afresh.predict(X, ENV).mean)
    assert gap.mean() < 0.05


def test_steps_are_counted_on(few, more):
    twice = go_on(more)
    steps = twice.history.query("stage == 'sparse'")["step"]
    assert list(steps) == [20, 40, 60, 80, 100, 120]  # those of the fit afresh, too
    assert len(few.history) + 4 == len(twice.history)
    assert np.isfinite(twice.history["loss"].astype(float)).all()


def test_another_prior_starts_from_the_means(few):
    dense = go_on(few, prior=tbr.GaussianPrior())
    assert (dense.pips() == 1).all(axis=None)
    correlation = np.corrcoef(dense.predict(X, ENV).mean, few.predict(X, ENV).mean)[0, 1]
    assert correlation > 0.99


def test_new_leaves_get_rows_and_old_ones_lose_them(few):
    """Only the rows given count: leaf d has none and goes back to its prior."""
    some = ENV != "d"
    less = go_on(few, X[some], Y[some], ENV[some])
    table = less.deltas().query("child == 'd'")
    np.testing.assert_allclose(table["pip"], table["prior_pip"])
    full = go_on(less)
    assert (full.deltas().query("child == 'd' and latent != 'intercept'")["pip"] > 0.5).any()


@pytest.mark.slow
def test_a_cross_fit_is_made_again():
    """A flexible encoder's rows are encoded by encoders of the folds, as in the first fit."""
    options = tbr.FitOptions(
        restarts=2, max_steps=20, sparse_steps=5, cross_fit=2,
        mixture_components=4, encoder_decays=(0.3,),
    )  # fmt: skip
    first = go_on(None, encoder="mlp", options=options)
    again = go_on(first, encoder="mlp", options=options)
    assert first.report.folds == again.report.folds == 2
    assert again.report.decay == first.report.decay


def test_a_saved_posterior_is_a_start(few, more, tmp_path):
    few.save(tmp_path / "few.pt")
    loaded = go_on(tbr.load(tmp_path / "few.pt"))
    pd.testing.assert_frame_equal(loaded.pips(), more.pips())


FRAME = pd.DataFrame(X, columns=["f0", "f1", "f2", "f3"])
WRONG = {
    "kind": ({"start": "few.pt"}, DataError, "start must be a pyro_tbr.Posterior, got str"),
    "tree": ({"tree": star([*LEAVES, "e"])}, TreeError, "nodes of one of them only: 'e'"),
    "arcs": (
        {"tree": tbr.Tree.from_parents(
            {"a": "root", "b": "a", "c": "root", "d": "root"})},
        TreeError, "arcs or lengths differ",
    ),
    "latents": ({"latent_dim": 3}, DataError, "latent_dim.*2, here 3"),
    "encoder": ({"encoder": "mlp"}, DataError, "encoder.*'linear', here 'mlp'"),
    "intercept": ({"intercept": False}, DataError, "intercept.*True, here False"),
    "likelihood": (
        {"y": (Y > 0).astype(float), "likelihood": "bernoulli"}, DataError,
        "likelihood.*Gaussian.*Bernoulli",
    ),
    "features": ({"x": X[:, :3]}, DataError, "number of features.*4, here 3"),
    "names": ({"x": FRAME}, DataError, "features.*without names, here 'f0', 'f1'"),
    "outcomes": ({"y": np.column_stack([Y, Y])}, DataError, "outcomes.*'y0', here 'y1'"),
    "dtype": (
        {"options": tbr.FitOptions(dtype="float64")}, DataError,
        "options.dtype.*'float32', here 'float64'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), WRONG.values(), ids=WRONG)
def test_a_start_that_does_not_fit_is_refused(few, call, error, words):
    with pytest.raises(error, match=words):
        go_on(**{"start": few} | call)


def test_identity_and_no_sparse_steps():
    """Nothing to train: the posterior of the weights alone."""
    first = identity_fit(TREE, X, Y, ENV)
    again = go_on(first, encoder="identity", latent_dim=4, options=QUICK)
    assert again.history.empty
