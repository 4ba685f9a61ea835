"""What every method keeps: forms, seeds, missing outcomes, held-out leaves, untouched input."""

import functools

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError

HELD_OUT = "leaf3"


@functools.cache
def data():
    return tbr.simulate(
        num_leaves=8, latent_dim=2, num_features=3, num_outcomes=2, rows_per_leaf=40,
        noise_scale=0.5, missing=0.1, intercept_scale=3.0, seed=2,
    )  # fmt: skip


@functools.cache
def fitted(method):
    """The method fitted to tables; the same object for all tests that ask for it."""
    return fitted_anew(method)


def fitted_anew(method):
    x, y, env = data().without(HELD_OUT)
    x = pd.DataFrame(x, columns=["f0", "f1", "f2"], index=[f"row{i}" for i in range(len(x))])
    y = pd.DataFrame(y, columns=["height", "mass"], index=x.index)
    before = x.copy(), y.copy()
    found = method.fit(data().tree, x, y, env, latent_dim=2)
    pd.testing.assert_frame_equal(before[0], x)
    pd.testing.assert_frame_equal(before[1], y)
    return found


def check_predictions(method):
    found = fitted(method)
    new_x, new_y, _ = data().rows("leaf0", 30, seed=1)
    frame = pd.DataFrame(new_x, columns=["f0", "f1", "f2"])[["f2", "f0", "f1"]]
    for leaf in ("leaf0", HELD_OUT):
        at = found.predict(frame, leaf, level=0.8)
        assert list(at.mean.columns) == ["height", "mass"]
        assert at.mean.index.equals(frame.index)
        assert np.isfinite(at.mean.to_numpy()).all()
        assert at.sample(3).shape == (3, 30, 2)
        if method.distribution:
            assert (at.sd > 0).all(axis=None)
            assert (at.lower < at.upper).all(axis=None)
            np.testing.assert_array_equal(at.sample(3, seed=1), at.sample(3, seed=1))
        else:
            assert at.sd.isna().all(axis=None)
            assert at.lower.isna().all(axis=None)
        assert np.isfinite(at.log_score(new_y)) == method.distribution
    # Rows stand for themselves: alone, in another order, beside rows of other leaves.
    mixed = found.predict(frame, ["leaf0", HELD_OUT] * 15)
    alone = found.predict(frame.iloc[[4]], "leaf0")
    np.testing.assert_allclose(mixed.mean.iloc[[4]], alone.mean, rtol=1e-9)
    if method.distribution:
        np.testing.assert_allclose(mixed.sd.iloc[[4]], alone.sd, rtol=1e-6)
    again = fitted_anew(method).predict(frame, "leaf0")
    np.testing.assert_array_equal(again.mean, found.predict(frame, "leaf0").mean)
    if method.has_latents:
        z = found.encode(frame)
        assert list(z.columns) == ["z0", "z1"]
        assert z.index.equals(frame.index)
    else:
        with pytest.raises(DataError, match="no latents"):
            found.encode(frame)


def check_units(method):
    """Outcomes in another unit give the same predictions in that unit; arrays are fine too."""
    x, y, env = data().without(HELD_OUT)
    one = method.fit(data().tree, x, y[:, 0], env, latent_dim=2).predict(x[:5], env[:5])
    other = method.fit(data().tree, x * 10, 100 * y[:, 0] + 1e3, env, latent_dim=2)
    other = other.predict(x[:5] * 10, env[:5])
    assert one.mean.shape == (5,)
    np.testing.assert_allclose(other.mean, 100 * one.mean + 1e3, rtol=2e-3)
    if method.distribution:
        np.testing.assert_allclose(other.sd, 100 * one.sd, rtol=2e-2)


def check_intervals(method):
    """They cover at leaves with data, on average: a pooled noise is too wide at some of them."""
    found = fitted(method)
    covered = []
    for leaf in data().tree.leaves:
        if leaf != HELD_OUT:
            new_x, new_y, _ = data().rows(leaf, 100, seed=2)
            at = found.predict(new_x, leaf)
            covered.append(((at.lower <= new_y) & (new_y <= at.upper)).mean())
    assert 0.8 < np.mean(covered) < 0.97


def check_what_cannot_be_learnt(method):
    rows = data().tree, data().x, data().y, data().env
    for encoder, message in [("identity", "no latents to learn"), ("cnn", "'cnn' is not known")]:
        with pytest.raises(DataError, match=message):
            method.fit(*rows, latent_dim=3, encoder=encoder)


def name(method):
    return type(method).__name__
