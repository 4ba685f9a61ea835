"""Columns of features far from zero for their spread, such as time stamps, and constant ones."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import pyro_tbr as tbr
from pyro_tbr.data import SparseFeatures, align_training
from pyro_tbr.errors import DataError, DataWarning
from pyro_tbr.evaluation.baselines import Pooled
from pyro_tbr.models import LinearEncoder
from tests.cases.toy import QUICK, linear_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=40, d=2)
NOW = 1.7e9  # seconds; the spread is one


def r2(posterior, x):
    residual = Y - np.asarray(posterior.predict(x, ENV).mean)
    return 1 - residual.var() / Y.var()


def aligned(x, **options):
    """Features as an encoder is given them."""
    return align_training(TREE, x, Y, ENV, keep=True, **options)[0].x


def encoder_of(x):
    encoder = LinearEncoder(x.shape[1], 2)
    encoder.fit_preparation(x)
    return encoder


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_time_stamps_count_as_any_feature(encoder):
    model, x = tbr.TreeModel(TREE, 2, encoder=encoder), X + [0, NOW]
    posterior = tbr.fit(model, x, Y, ENV, progress=False, options=QUICK)
    residual = Y - posterior.predict(x, ENV).mean
    assert residual.var() < 0.1 * Y.var()  # 0.05 by all features, above 0.5 by one of them


STAMPS = {
    "array": X + [0, NOW],
    "all": X + NOW,
    "frame": pd.DataFrame(X + [0, NOW], columns=["temperature", "time"]),
    "tensor": torch.from_numpy(X + [0, NOW]),
    "sparse": sp.csc_array(X + [0, NOW]),
    "milliseconds": 1e3 * (X + [0, NOW]),
    "kelvin": X * [1, 1e-7] + [0, 273.15],
}


@pytest.mark.parametrize("x", STAMPS.values(), ids=STAMPS.keys())
def test_moments_are_in_double(x):
    """An offset and a unit change nothing in what a trained map sees."""
    plain, far = aligned(X), aligned(x)
    expected, found = encoder_of(plain).prepare(plain), encoder_of(far).prepare(far)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-3, atol=1e-3)


def test_time_stamps_among_more_features_than_rows():
    """Of a wide sparse matrix too, whose products are never made dense."""
    rng = np.random.default_rng(0)
    wide = np.where(rng.random((60, 200)) < 0.1, rng.normal(size=(60, 200)), 0)
    wide[:, 0] = rng.normal(size=60)
    plain, far = (LinearEncoder(200, 2) for _ in range(2))
    plain.fit_preparation(torch.from_numpy(wide))
    wide[:, 0] += NOW
    stored = SparseFeatures(sp.csr_array(wide))
    far.fit_preparation(stored)
    expected = plain.component_share
    torch.testing.assert_close(far.component_share, expected, rtol=1e-3, atol=1e-6)
    dense = far.prepare(torch.from_numpy(wide))
    torch.testing.assert_close(far.prepare(stored), dense, rtol=1e-3, atol=1e-4)


def test_baselines_see_time_stamps():
    x = X + [0, NOW]
    fitted, plain = Pooled().fit(TREE, x, Y, ENV), Pooled().fit(TREE, X, Y, ENV)
    np.testing.assert_allclose(fitted.predict(x, ENV).mean, plain.predict(X, ENV).mean, atol=1e-4)


@pytest.mark.parametrize("spread", [1e-11, 1e-13, 0.0])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_warning_and_encoder_agree_on_what_is_constant(spread, form):
    """One bound: a column that is not warned of is used, one that is warned of is not."""
    x = form(X * [1, spread * NOW] + [0, NOW])
    if spread > 1e-12:
        assert encoder_of(aligned(x)).projection[1].abs().max() > 0
    else:
        with pytest.warns(DataWarning, match="1 constant column.*: 1$"):
            features = aligned(x)
        assert encoder_of(features).projection[1].abs().max() == 0


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array, pd.DataFrame])
def test_nothing_that_varies_is_said_so(form):
    with pytest.raises(DataError, match="x does not vary: its one column is the same") as caught:
        linear_fit(TREE, form(X[:, 1:] * 1e-13 * NOW + NOW), Y, ENV, latent_dim=1)
    assert "latent_dim" not in str(caught.value)


SINGLE = {
    "array": (X * [1, 20] + [0, NOW]).astype(np.float32),
    "tensor": torch.tensor(X * [1, 20] + [0, NOW]).float(),
    "sparse": sp.csr_array((X * [1, 20] + [0, NOW]).astype(np.float32)),
    "frame": pd.DataFrame(X * [1, 20] + [0, NOW], columns=[0, 1]).astype({1: np.float32}),
    "nullable": pd.DataFrame(X * [1, 20] + [0, NOW], columns=[0, 1]).astype({1: "Float32"}),
    "half": (X * [1, 1e-3] + [0, 300.25]).astype(np.float16),
    "bfloat16": torch.tensor(X * [1, 1] + [0, 300.25]).to(torch.bfloat16),
}


@pytest.mark.parametrize("x", SINGLE.values(), ids=SINGLE.keys())
def test_a_spread_lost_before_it_came_here_is_told(x):
    with pytest.warns(
        DataWarning, match="rounding of the numbers given: 1; give them in double|1 c"
    ):
        aligned(x)


def test_small_whole_numbers_are_exact_in_single_precision():
    years = np.column_stack([X[:, 0], 2019 + (X[:, 1] > 0)])
    for dtype in (np.float32, np.float16, np.int64):
        aligned(years.astype(dtype))  # no warning


@pytest.mark.parametrize("encoder", ["identity", torch.nn.Linear(2, 2)], ids=["identity", "own"])
def test_encoders_that_take_features_as_they_are(encoder):
    """In single precision a thermometer's digits are lost to them: they say so."""
    x = pd.DataFrame(X * [1, 1e-5] + [0, 300.15], columns=["size", "kelvin"])
    model = tbr.TreeModel(TREE, 2, encoder=encoder)
    match = r"1 column.* rounding of float32.*'kelvin'; subtract their means, or .*dtype='float64'"
    with pytest.warns(DataWarning, match=match) as caught:
        tbr.fit(model, x, Y, ENV, progress=False, options=QUICK)
    assert caught[0].filename == __file__  # at the line of the user
    aligned(x, precision=torch.float64)  # no warning


@pytest.mark.own_random_state
def test_an_encoder_that_ends_constant_is_named():
    dead = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Threshold(1e9, 0.0))
    model = tbr.TreeModel(TREE, 2, encoder=dead)
    match = "encoder gives all 120 rows the same latents: .* constant"
    with pytest.raises(tbr.TrainingError, match=match):
        tbr.fit(model, X, Y, ENV, progress=False, options=QUICK)
