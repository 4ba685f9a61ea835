"""What every baseline keeps: forms, seeds, missing outcomes, held-out leaves, untouched input."""

import functools

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.evaluation import baselines

SPARSE = tbr.FitOptions(
    restarts=4, rotation_steps=60, sparse_steps=20, sweeps=10, mixture_components=8
)
QUICK = {
    "SparseTree": {"options": SPARSE},
    "DenseTree": {"options": tbr.FitOptions(sweeps=10)},
    "MOReTreeS": {"options": tbr.FitOptions(sweeps=10)},
    "L1TBR": {"restarts": 4, "steps": 60, "strengths": (0.1, 0.01)},
    "DendroNet": {"strengths": (0.1, 0.01)},
    "AutoencoderLeafRegression": {"steps": 100, "sparsities": (0.1,)},
    "GroupDRO": {"steps": 100},
    "IRM": {"penalties": (0.0, 10.0)},
}
HELD_OUT = "leaf3"
METHODS = (baselines.SparseTree, *baselines.ALL)
WITH_DISTRIBUTION = [cls for cls in METHODS if cls.distribution]


@pytest.fixture(scope="module")
def data():
    return tbr.simulate(
        num_leaves=8, latent_dim=2, num_features=3, num_outcomes=2, rows_per_leaf=40,
        noise_scale=0.5, missing=0.1, intercept_scale=3.0, seed=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted_once(data):
    return functools.cache(lambda cls: fitted(cls, data))


def fitted(cls, data, seed=0):
    x, y, env = data.without(HELD_OUT)
    x = pd.DataFrame(x, columns=["f0", "f1", "f2"], index=[f"row{i}" for i in range(len(x))])
    y = pd.DataFrame(y, columns=["height", "mass"], index=x.index)
    before = x.copy(), y.copy()
    found = cls(**QUICK.get(cls.__name__, {})).fit(data.tree, x, y, env, latent_dim=2, seed=seed)
    pd.testing.assert_frame_equal(before[0], x)
    pd.testing.assert_frame_equal(before[1], y)
    return found


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_contract(cls, data, fitted_once):
    found = fitted_once(cls)
    new_x, new_y, _ = data.rows("leaf0", 30, seed=1)
    frame = pd.DataFrame(new_x, columns=["f0", "f1", "f2"])[["f2", "f0", "f1"]]
    for leaf in ("leaf0", HELD_OUT):
        at = found.predict(frame, leaf, level=0.8)
        assert list(at.mean.columns) == ["height", "mass"]
        assert at.mean.index.equals(frame.index)
        assert np.isfinite(at.mean.to_numpy()).all()
        assert at.sample(3).shape == (3, 30, 2)
        if cls.distribution:
            assert (at.sd > 0).all(axis=None)
            assert (at.lower < at.upper).all(axis=None)
            np.testing.assert_array_equal(at.sample(3, seed=1), at.sample(3, seed=1))
        else:
            assert at.sd.isna().all(axis=None)
            assert at.lower.isna().all(axis=None)
        assert np.isfinite(at.log_score(new_y)) == cls.distribution
    # Rows stand for themselves: alone, in another order, beside rows of other leaves.
    mixed = found.predict(frame, ["leaf0", HELD_OUT] * 15)
    alone = found.predict(frame.iloc[[4]], "leaf0")
    np.testing.assert_allclose(mixed.mean.iloc[[4]], alone.mean, rtol=1e-9)
    if cls.distribution:
        np.testing.assert_allclose(mixed.sd.iloc[[4]], alone.sd, rtol=1e-6)
    again = fitted(cls, data).predict(frame, "leaf0")
    np.testing.assert_array_equal(again.mean, found.predict(frame, "leaf0").mean)
    if cls.has_latents:
        z = found.encode(frame)
        assert list(z.columns) == ["z0", "z1"]
        assert z.index.equals(frame.index)
    else:
        with pytest.raises(DataError, match="no latents"):
            found.encode(frame)


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_plain_arrays_and_units(cls, data):
    """Outcomes in another unit give the same predictions in that unit."""
    x, y, env = data.without(HELD_OUT)
    method = cls(**QUICK.get(cls.__name__, {}))
    one = method.fit(data.tree, x, y[:, 0], env, latent_dim=2).predict(x[:5], env[:5])
    other = method.fit(data.tree, x * 10, 100 * y[:, 0] + 1e3, env, latent_dim=2)
    other = other.predict(x[:5] * 10, env[:5])
    assert one.mean.shape == (5,)
    np.testing.assert_allclose(other.mean, 100 * one.mean + 1e3, rtol=2e-3)
    if cls.distribution:
        np.testing.assert_allclose(other.sd, 100 * one.sd, rtol=2e-2)


@pytest.mark.parametrize("cls", WITH_DISTRIBUTION, ids=lambda cls: cls.__name__)
def test_intervals_cover_at_leaves_with_data(cls, data, fitted_once):
    found = fitted_once(cls)
    covered = []
    for leaf in data.tree.leaves:
        if leaf != HELD_OUT:
            new_x, new_y, _ = data.rows(leaf, 100, seed=2)
            at = found.predict(new_x, leaf)
            covered.append(((at.lower <= new_y) & (new_y <= at.upper)).mean())
    # Averages over the leaves: a pooled noise is too wide at some and too narrow at others.
    assert 0.8 < np.mean(covered) < 0.97


@pytest.mark.parametrize("cls", [baselines.L1TBR, baselines.AutoencoderLeafRegression])
def test_encoders_that_cannot_be_learnt(cls, data):
    for encoder, message in [("identity", "no latents to learn"), ("cnn", "'cnn' is not known")]:
        with pytest.raises(DataError, match=message):
            cls().fit(data.tree, data.x, data.y, data.env, latent_dim=3, encoder=encoder)


def test_deltas_are_a_table_in_the_order_of_posteriors(data, fitted_once):
    table = fitted_once(baselines.L1TBR).deltas()
    assert len(table) == data.tree.num_arcs * 3 * 2
    assert list(table.columns) == ["parent", "child", "latent", "outcome", "mean"]
    assert (table.loc[table["child"] == HELD_OUT, "mean"] == 0).all()
    with pytest.raises(DataError, match="no changes"):
        fitted_once(baselines.Pooled).deltas()
