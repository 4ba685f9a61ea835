"""Cases O-09 to O-19 but O-12: labels, columns, values and types, through fit and predict.

What only the alignment decides is tested in ``tests/data`` for every container; here the same holds
for whole fits.
"""

import tracemalloc

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import pyro_tbr as tbr
from pyro_tbr.data import Schema, align_features
from pyro_tbr.errors import DataError, DataWarning, ShapeError, TreeError
from tests.cases.toy import identity_fit, linear_fit, same_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=30, d=2)
NAMES = ["f0", "f1"]
FRAME = pd.DataFrame(X, columns=NAMES, index=[f"r{i}" for i in range(len(X))])


@pytest.fixture(scope="module")
def fitted():
    return identity_fit(TREE, FRAME, Y, ENV)


@pytest.fixture(scope="module")
def plain():
    return identity_fit(TREE, X, Y, ENV)


def test_o09_labels_of_another_type():
    """What equals a node is that node; text for ints is refused, and the types are told."""
    tree = tbr.Tree.from_networkx(nx.DiGraph([(0, 1), (0, 2), (2, 3), (2, 4)]))
    x, y, env = toy([1, 3, 4], n=10, d=2)
    whole = env.astype(int)
    quick = {"mixture_components": 2}
    reference = identity_fit(tree, x, y, env.tolist(), **quick)
    forms = [env.astype(np.int64), env.astype(float), pd.Categorical(whole)]
    for form in [*forms, pd.array(whole, dtype="Int64"), pd.Series(whole).astype("category")]:
        same_fit(identity_fit(tree, x, y, form, **quick), reference)
    assert reference.node_weights()["node"].map(type).eq(int).all()
    with pytest.raises(TreeError, match=r"env labels are str \('1'\), tree nodes are int \(1\)"):
        identity_fit(tree, x, y, env.astype(str))
    with pytest.raises(TreeError, match=r"env labels are str \('1.0'\), tree nodes are int \(1\)"):
        identity_fit(tree, x, y, env.astype(float).astype(str))
    with pytest.raises(TreeError, match="bytes"):
        identity_fit(TREE, X, Y, ENV.astype("S"))


def test_o10_unused_categories_and_leaves_without_rows():
    """Labels that do not occur do nothing; a leaf without rows has its prior and more spread."""
    tree = star(["a", "b", "c", "d"])
    env = pd.Categorical(ENV, categories=["a", "b", "c", "d", "zz"])
    posterior = identity_fit(tree, X, Y, env)
    for form in (ENV.tolist(), env.remove_unused_categories()):
        same_fit(identity_fit(tree, X, Y, form), posterior)
    held_out = posterior.deltas().query("child == 'd'")
    np.testing.assert_allclose(held_out["pip"], held_out["prior_pip"], atol=1e-5)
    sd = {label: posterior.predict(X[:1], label).sd[0] for label in ("a", "d")}
    assert sd["d"] > 1.02 * sd["a"]


def test_o11_missing_and_misspelt_labels():
    """One error with the count, the rows, and the nearest node for each bad label."""
    tree = star(["T cell", "B cell", "NK"])
    env = np.repeat(np.array(["T cell", "B cell", "NK"], dtype=object), 30)
    missing = env.copy()
    missing[[3, 7]] = [None, np.nan]
    for form in (missing, pd.Series(missing).astype("string"), pd.Categorical(missing)):
        with pytest.raises(TreeError, match="2 of 90 rows have no label.*rows 3, 7"):
            identity_fit(tree, X, Y, form)
    with pytest.raises(TreeError, match="-1"):
        identity_fit(tree, X, Y, pd.Categorical(missing).codes)
    typos = env.copy()
    typos[:3] = ["T cell ", "t cell", "T\u00a0cell"]
    with pytest.raises(TreeError, match="3 of 90 rows carry 3 labels") as caught:
        identity_fit(tree, X, Y, typos)
    assert str(caught.value).count("nearest node 'T cell'") == 3
    # What looks the same in print is shown by its codes: a Cyrillic letter, two ways to write é.
    for node, label in (("T cell", "\u0422 cell"), ("Caf\u00e9", "Cafe\u0301")):
        with pytest.raises(TreeError) as caught:
            identity_fit(star([node, "NK"]), X[:1], Y[:1], [label])
        assert f"{label!a} (row 0; nearest node {node!a})" in str(caught.value)
    with pytest.raises(TreeError, match="10 of 90"):
        identity_fit(tree, X, Y, [f"x{i}" for i in range(90)])


@pytest.mark.parametrize("batch_size", [128, 1000, 1])
def test_o13_one_row_left_over(batch_size):
    """Batches of one row, and a leaf with one row, are as good as any other."""
    x, y, env = toy(["a", "b"], n=64, d=3)
    x, y, env = np.vstack([x, x[:1]]), np.r_[y, y[:1]], np.r_[env, ["c"]]
    options = tbr.FitOptions(
        restarts=2, max_steps=3, sparse_steps=2, cross_fit=0,
        mixture_components=4, batch_size=batch_size, encoder_decays=(0.0,),
    )  # fmt: skip
    posterior = linear_fit(TREE, x, y, env, options=options)
    assert posterior.row_counts.sum() == 129
    assert np.isfinite(posterior.deltas()[["pip", "mean", "sd"]].to_numpy()).all()
    many, single = posterior.predict(x, env), posterior.predict(x[5:6], env[5:6])
    np.testing.assert_allclose(single.mean, many.mean[5:6], rtol=1e-5, atol=1e-5)


def test_o14_columns_in_another_order(fitted):
    """By name; never other numbers."""
    expected = fitted.predict(FRAME, ENV).mean
    pd.testing.assert_series_equal(fitted.predict(FRAME[NAMES[::-1]], ENV).mean, expected)
    with pytest.warns(DataWarning, match="'zz'"):
        found = fitted.predict(FRAME.assign(zz=0.0), ENV).mean
    pd.testing.assert_series_equal(found, expected)
    with pytest.raises(DataError, match="'f1'"):
        fitted.predict(FRAME.drop(columns="f1"), ENV)
    with pytest.raises(DataError, match="same name: 'f0'"):
        identity_fit(TREE, FRAME.set_axis(["f0", "f0"], axis=1), Y, ENV)
    with pytest.raises(ShapeError, match="3 columns, the model was fitted to 2"):
        fitted.predict(np.ones((2, 3)), "a")


def test_o14_rows_are_matched_by_index(fitted):
    """Some rows of ``x`` with the labels of all rows; so in fit, update and predict."""
    every = pd.Series(ENV, FRAME.index)
    some = FRAME.iloc[[40, 3, 77]]
    expected = fitted.predict(some, ENV[[40, 3, 77]]).mean
    pd.testing.assert_series_equal(fitted.predict(some, every).mean, expected)
    pd.testing.assert_series_equal(fitted.predict(some, every.iloc[::-1]).mean, expected)
    outcome = pd.Series(Y, FRAME.index)
    half = FRAME.iloc[::2]
    same_fit(identity_fit(TREE, half, outcome, every), identity_fit(TREE, half, Y[::2], ENV[::2]))
    fitted.update(some, outcome, every)
    with pytest.raises(DataError, match="no row for 1 index label.*'r77'"):
        fitted.predict(some, every.drop("r77"))


def test_o15_bad_values_and_constant_columns(plain):
    """Refused before training, with the cell; columns that tell nothing are named and harmless."""
    for value in (np.nan, np.inf):
        bad = X.copy()
        bad[[3, 5], 1] = value
        for call in (lambda x: identity_fit(TREE, x, Y, ENV), lambda x: plain.predict(x, ENV)):
            with pytest.raises(DataError, match="2 cell.*row 3, column 1"):
                call(bad)
            with pytest.raises(DataError, match="2 cell.*row 3, column 1"):
                call(sp.csr_matrix(bad))
    wide = np.column_stack([X, np.full(len(X), 7.0)])
    nearly = np.column_stack([X, np.r_[2e-30, np.full(len(X) - 1, 1e-30)]])
    for x in (wide, nearly):
        with pytest.warns(DataWarning, match="1 constant column.*: 2"):
            posterior = linear_fit(TREE, x, Y, ENV)
        found = posterior.encode(x)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(posterior.encode(x + [0, 0, 1e-31]), found, atol=1e-6)
    for x in (np.ones_like(X), sp.csr_matrix(X.shape), X[:1], FRAME * 0.0):
        with pytest.raises(DataError, match="x does not vary: its 2 columns are the same in all"):
            linear_fit(TREE, x, Y[: x.shape[0]], ENV[: x.shape[0]])
    with pytest.warns(DataWarning, match="constant"):  # the mean alone: nothing is learnt from x
        assert np.isfinite(identity_fit(TREE, np.ones((90, 1)), Y, ENV).pips()).all(axis=None)
    huge = X.astype(object)
    huge[3, 1] = 10**400
    with pytest.raises(DataError, match="1 cell.*inf at row 3, column 1"):
        identity_fit(TREE, huge, Y, ENV)
    for form in (X * 1e200, sp.csc_array(X * 1e200)):
        with pytest.raises(DataError, match=r"beyond 1e\+100, first .*e\+19.*: give it in another"):
            plain.predict(form, ENV)
    with pytest.raises(DataError, match="y has 90 value.*beyond"):
        identity_fit(TREE, X, Y * 1e200, ENV)
    empty = X.copy()
    empty[:10] = 0
    assert np.isfinite(identity_fit(TREE, empty, Y, ENV).predict(empty, ENV).mean).all()
    same_fit(identity_fit(TREE, X.astype(object), Y, ENV), plain)


def test_o16_sparse_features():
    """Every flavour is the dense result; a sparse y is refused."""
    x = np.where(np.abs(X) < 1, 0, X)
    x[7] = 0
    dense = identity_fit(TREE, x, Y, ENV)
    long = sp.csr_matrix(x)
    long.indices, long.indptr = long.indices.astype("int64"), long.indptr.astype("int64")
    explicit = sp.coo_matrix((np.r_[1.0, -1.0, 0.0], ([7, 7, 7], [0, 0, 1])), shape=x.shape)
    forms = [sp.csr_matrix(x), sp.csc_matrix(x), sp.coo_array(x), sp.csr_array(x), sp.lil_matrix(x)]
    summed = sp.coo_matrix(x) + explicit
    for form in [*forms, long, summed, sp.dok_array(x), sp.bsr_matrix(x)]:
        np.testing.assert_allclose(dense.encode(form), dense.encode(x), atol=1e-5)
        found = dense.predict(form, ENV).mean
        np.testing.assert_allclose(found, dense.predict(x, ENV).mean, atol=1e-5)
    for form in (forms[1], long):
        for sparse, other in (
            (identity_fit(TREE, form, Y, ENV), dense),
            (dense.update(form, Y, ENV), dense.update(x, Y, ENV)),
        ):  # sums of blocks and of the whole are rounded differently
            np.testing.assert_allclose(sparse.pips(), other.pips(), rtol=0, atol=1e-9)
            found, expected = (p.node_weights()[["mean", "sd"]] for p in (sparse, other))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    with pytest.raises(DataError, match="y is a sparse matrix"):
        identity_fit(TREE, x, sp.csr_matrix(Y[:, None]), ENV)
    with pytest.raises(ShapeError, match="x is a single"):
        dense.predict(np.asarray(sp.csr_matrix(x)), ENV)


def test_o16_wide_sparse_features_stay_sparse():
    """A matrix of 800 MB is never made dense; fits: ``inference/encoder/test_rows``."""
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 5000, 100_000), rng.integers(0, 20_000, 100_000)
    wide = sp.csc_matrix((np.ones(100_000), (rows, columns)), shape=(5000, 20_000))
    tracemalloc.start()
    features, _ = align_features(Schema(None, 20_000, ("y0",), 1), wide, keep=True)
    total = sum(block.sum().item() for block in features.blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 100_000
    assert peak < 60e6  # two blocks of 8 MB and the matrix itself


XS = [X.astype(t) for t in ("float32", "float16", "int64", ">f8")] + [X > 0, np.asfortranarray(X)]


@pytest.mark.parametrize("x", XS, ids=lambda x: str(x.dtype))
def test_o17_types_of_features(x):
    """Any real dtype, read-only too; nothing is changed in place."""
    x = x.copy()
    x.setflags(write=False)
    before = x.copy()
    posterior = identity_fit(TREE, x, Y, ENV)
    assert np.isfinite(posterior.predict(x, ENV).mean).all()
    np.testing.assert_array_equal(x, before)


def test_o17_types_of_outcomes_and_columns():
    """Nullable, boolean and categorical columns mean their numbers; NA is not observed."""
    yes = Y + 2 * np.random.default_rng(0).normal(size=len(Y)) > 0  # settles after a few rounds
    options = {"likelihood": "bernoulli", "mixture_components": 2}
    reference = identity_fit(TREE, X, yes.astype(float), ENV, **options)
    series = pd.Series(yes)
    forms = [yes, yes.astype("uint8"), series.astype("boolean"), series.astype(int).astype("Int64")]
    for form in [*forms, pd.Categorical(yes.astype(int))]:
        same_fit(identity_fit(TREE, X, form, ENV, **options), reference)
    missing = pd.Series(yes.astype(int)).astype("Int64")
    missing.iloc[[1, 4]] = pd.NA
    posterior = identity_fit(TREE, X, missing, ENV, **options)
    keep = missing.notna().to_numpy()
    assert np.isfinite(posterior.predict(X, ENV).mean).all()
    left_out = identity_fit(TREE, X[keep], yes[keep], ENV[keep], **options)
    np.testing.assert_allclose(posterior.pips(), left_out.pips(), atol=0.1)
    table = pd.DataFrame({"n": pd.array(np.rint(X[:, 0]), dtype="Int64"), "b": series})
    columns = table.assign(b=series.astype("boolean"), n=table["n"].astype("category"))
    quick = {"mixture_components": 2}
    plain = identity_fit(TREE, table.astype(float), Y, ENV, **quick)
    same_fit(identity_fit(TREE, columns, Y, ENV, **quick), plain)
    with pytest.raises(DataError, match="get_dummies"):
        identity_fit(TREE, table.assign(b=pd.Categorical(ENV)), Y, ENV)


def test_o18_outcomes_that_the_likelihood_cannot_use():
    """Never a silent cast: the values are named, with row and count."""
    yes = (Y > 0).astype(int)
    bad = {
        "single value 1 in all 90 rows": np.ones_like(yes),
        "y holds 1.0, 2.0": yes + 1,
        "'resistant'": np.where(yes == 1, "resistant", "susceptible"),
        "first 0.[19] at row 0": np.where(yes == 1, 0.9, 0.1),
    }
    for message, y in bad.items():
        with pytest.raises(DataError, match=message):
            identity_fit(TREE, X, y, ENV, likelihood="bernoulli")
    separable = np.where(ENV == "b", 1, yes)
    posterior = identity_fit(TREE, X, separable, ENV, "bernoulli", mixture_components=2)
    assert np.isfinite(posterior.node_weights()["mean"]).all()
    assert posterior.predict(X, ENV).mean.min() >= 0
    assert posterior.predict(X, ENV).mean.max() <= 1


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_o19_scale_of_the_outcome(plain, scale):
    """The same PIPs; everything else in the user's units."""
    posterior = identity_fit(TREE, X, scale * Y, ENV)
    np.testing.assert_allclose(posterior.pips(), plain.pips(), atol=0.02)
    for part in ("mean", "sd"):
        found = getattr(posterior.predict(X, ENV), part)
        expected = scale * getattr(plain.predict(X, ENV), part)
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-3 * scale)


def test_o19_shift_of_the_outcome(plain):
    """Taken off in double precision, so that single precision loses nothing."""
    posterior = identity_fit(TREE, X, Y + 1e6, ENV)
    np.testing.assert_allclose(posterior.pips(), plain.pips(), atol=0.02)
    found, expected = posterior.predict(X, ENV).mean, plain.predict(X, ENV).mean
    np.testing.assert_allclose(found - 1e6, expected, atol=1e-3)
