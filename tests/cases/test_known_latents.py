"""Known latents (``encoder="identity"``) far from zero, and two that are equal."""

import warnings
from functools import cache

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import ConvergenceWarning
from tests.cases.test_constant_outcomes import ENV, PRIORS, TREE, X
from tests.cases.toy import known_fit, star

WEIGHTS = {"a": [1, -1], "b": [1, -1], "c": [1, -1], "d": [3, -1]}
RNG = np.random.default_rng(1)
Y = np.array([np.dot(WEIGHTS[e], row) for e, row in zip(ENV, X, strict=True)])
Y = Y + 0.3 * RNG.normal(size=len(Y))
OPTIONS = tbr.FitOptions(mixture_components=8)


@cache
def fit(prior, shift=0.0):
    model = tbr.TreeModel(TREE, 2, encoder="identity", prior=PRIORS[prior])
    return tbr.fit(model, X + shift, Y, ENV, progress=False, options=OPTIONS)


def r2(posterior, x):
    return 1 - (Y - posterior.predict(x, ENV).mean).var() / Y.var()


@pytest.mark.parametrize("shift", [20.0, 100.0])
@pytest.mark.parametrize("prior", PRIORS)
def test_a_shift_moves_the_intercept_alone(prior, shift):
    plain, far = fit(prior), fit(prior, shift)
    assert r2(plain, X) > 0.95
    assert r2(far, X + shift) == pytest.approx(r2(plain, X), abs=0.01)
    np.testing.assert_allclose(far.pips(), plain.pips(), atol=0.01)
    before, after = (
        one.node_weights().pivot(index="node", columns="latent", values="mean")
        for one in (plain, far)
    )
    slopes = ["z0", "z1"]
    np.testing.assert_allclose(after[slopes], before[slopes], atol=0.01)
    moved = before["intercept"] - shift * after[slopes].sum(axis=1)
    np.testing.assert_allclose(after["intercept"], moved, atol=0.02)


def test_two_equal_columns_share_their_slope():
    """Predictions as with one of them, or a warning that the weights did not come to rest."""
    env = np.repeat(np.array(list("abcd"), dtype=object), 30)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 1))
    slope = np.where(env == "d", 2.2, 1.0)
    y = slope * x[:, 0] + 0.5 * rng.normal(size=120)
    single = known_fit(TREE, x, y, env, 0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        double = known_fit(TREE, x[:, [0, 0]], y, env, 0.5)
    if any(issubclass(one.category, ConvergenceWarning) for one in caught):
        return
    sums = double.node_weights().groupby("node")["mean"].sum()
    alone = single.node_weights().set_index("node")["mean"]
    np.testing.assert_allclose(sums[alone.index], alone, atol=0.1)


def test_mean_field_finds_the_one_change_of_a_star():
    """Not that all but this leaf changed, which it says where it starts at the wrong root."""
    leaves = ["a", "b", "c", "d"]
    env = np.repeat(np.array(leaves, dtype=object), 40)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 1))
    y = np.where(env == "d", 2.0, 0.0) * x[:, 0] + 0.3 * rng.normal(size=160)
    model = tbr.TreeModel(
        star(leaves),
        1,
        encoder="identity",
        prior=tbr.SpikeSlabPrior(inclusion_prob=0.2, slab_scale=1.0, root_scale=1.0),
        likelihood=tbr.GaussianLikelihood(scale=0.3),
        intercept=False,
    )
    pips = tbr.fit(model, x, y, env, guide="mean_field", progress=False).pips()["z0"]
    assert pips["root", "d"] > 0.9
    assert pips.drop(("root", "d")).max() < 0.5
