"""Metrics against known answers: hand-made cases, closed forms, brute force."""

import sys
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation import (
    crps,
    interval_coverage,
    linear_r2,
    log_score,
    match_latents,
    mcc,
    pip_auroc,
    pip_average_precision,
    reliability,
)


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(400, 4))


def test_match_undoes_permutation_sign_and_scale(z):
    scrambled = z[:, [2, 0, 3, 1]] * [-3.0, 1.0, 0.1, -1.0] + 7
    match = match_latents(z, scrambled)
    np.testing.assert_array_equal(match.permutation, [1, 3, 0, 2])
    np.testing.assert_array_equal(match.sign, [1, -1, -1, 1])
    np.testing.assert_allclose(match.correlations, 1)
    assert mcc(z, scrambled) == pytest.approx(1)


def test_mcc_is_best_over_all_permutations(z):
    mixed = z @ np.random.default_rng(1).normal(size=(4, 4))
    correlation = np.abs(np.corrcoef(z.T, mixed.T)[:4, 4:])
    best = max(correlation[range(4), list(p)].mean() for p in permutations(range(4)))
    assert mcc(z, mixed) == pytest.approx(best)
    assert best < 0.9  # a rotation is not a permutation, though linear R2 cannot tell
    assert linear_r2(z, mixed) == pytest.approx(1)


def test_mcc_with_other_numbers_of_estimates(z):
    more = np.hstack([np.random.default_rng(2).normal(size=(400, 3)), z, np.ones((400, 1))])
    assert mcc(z, more) == pytest.approx(1)
    assert mcc(z, z[:, :3]) == pytest.approx(3 / 4)
    np.testing.assert_array_equal(match_latents(z, z[:, 1:]).permutation, [-1, 0, 1, 2])


def test_constant_estimate_correlates_with_nothing(z):
    match = match_latents(z, np.full_like(z, 0.1))  # 0.1 is not exact: centring leaves rounding
    np.testing.assert_array_equal(match.correlations, 0)


def test_linear_r2_is_share_of_variance(z):
    assert linear_r2(z, z[:, :1]) == pytest.approx(1 / 4, abs=0.01)  # one latent of four
    noise = np.random.default_rng(3).normal(size=z.shape)
    assert linear_r2(z, z + noise) == pytest.approx(0.5, abs=0.05)


def test_ranking_metrics_by_hand():
    gates, pips = [0, 1, 0, 1], [0.1, 0.4, 0.35, 0.3]
    assert pip_auroc(pips, gates) == pytest.approx(3 / 4)  # one of four pairs is wrong
    assert pip_average_precision(pips, gates) == pytest.approx((1 + 2 / 3) / 2)


def test_reliability_by_hand():
    pips = torch.tensor([[0.0, 0.1], [0.5, 1.0]])
    table = reliability(pips, np.array([[0, 1], [1, 1]]), bins=[0, 0.5, 0.75, 1])
    assert table["count"].tolist() == [2, 1, 1]
    np.testing.assert_allclose(table["mean_pip"], [0.05, 0.5, 1], atol=1e-7)
    np.testing.assert_allclose(table["true_share"], [0.5, 1, 1])


def test_empty_bin_keeps_its_row():
    table = reliability([0.05, 0.95], [0, 1], bins=4)
    assert table["count"].tolist() == [1, 0, 0, 1]
    assert table["mean_pip"].isna().tolist() == [False, True, True, False]


def test_coverage_skips_what_was_not_observed():
    y = np.array([0.0, 1.0, np.nan, 5.0])
    assert interval_coverage(y, np.zeros(4), np.ones(4)) == pytest.approx(2 / 3)


def test_crps_of_a_normal():
    draws = np.random.default_rng(5).normal(size=(20_000, 2, 1))
    y = np.array([[0.0], [np.nan]])
    exact = (np.sqrt(2) - 1) / np.sqrt(np.pi)  # Gneiting & Raftery 2007, at y = 0
    assert crps(y, draws) == pytest.approx(exact, abs=4 / np.sqrt(20_000))


def test_crps_by_the_definition():
    generator = np.random.default_rng(6)
    y, draws = generator.normal(size=5), generator.normal(size=(7, 5))
    pairs = np.abs(draws[:, None] - draws[None]).sum(axis=(0, 1)) / (7 * 6)
    expected = (np.abs(draws - y).mean(axis=0) - pairs / 2).mean()
    assert crps(y, draws) == pytest.approx(expected)


def test_log_score_against_scipy():
    from scipy.stats import norm

    y, mean, sd = np.array([0.3, np.nan, -2.0]), np.array([0.0, 1.0, 2.0]), np.array([1.0, 2, 3])
    expected = norm.logpdf(y, mean, sd)[[0, 2]].mean()
    assert log_score(y, mean, sd) == pytest.approx(expected)
    assert log_score(y, np.stack([mean, mean]), sd) == pytest.approx(expected)
    means = np.array([[0.0], [4.0]])
    mixture = np.log(norm.pdf(1.0, means, 0.5).mean())
    assert log_score([1.0], means, 0.5) == pytest.approx(mixture)


ERRORS = {
    "rows differ": (lambda: mcc(np.ones((3, 2)), np.ones((4, 2))), ShapeError, "(4, 2)"),
    "one row": (lambda: mcc(np.ones((1, 2)), np.ones((1, 2))), ShapeError, "N > 1"),
    "nan": (lambda: mcc([[0.0], [np.nan]], [[0.0], [1.0]]), DataError, "nan at row 1, column 0"),
    "flat": (lambda: linear_r2([[1.0], [1.0]], [[0.0], [1.0]]), DataError, "column 0"),
    "pips shape": (lambda: pip_auroc([0.1], [0, 1]), ShapeError, "pips has shape (1,)"),
    "pip 1.5": (lambda: pip_auroc([0.1, 1.5], [0, 1]), DataError, "first 1.5 at (1,)"),
    "pip nan": (lambda: reliability([0.1, np.nan], [0, 1]), DataError, "first nan"),
    "gate 2": (lambda: reliability([0.1, 0.5], [0, 2]), DataError, "first 2.0 at (1,)"),
    "no change": (lambda: pip_auroc([0.1, 0.5], [0, 0]), DataError, "0 change(s) among 2"),
    "bins": (lambda: reliability([0.1], [0], bins=[0, 0.5]), DataError, "[0, 0.5]"),
    "no bins": (lambda: reliability([0.1], [0], bins=0), DataError, "bins is 0"),
    "unseen": (lambda: interval_coverage([np.nan], [0.0], [1.0]), DataError, "no observed value"),
    "interval nan": (lambda: interval_coverage([0.0], [np.nan], [1.0]), DataError, "lower has 1"),
    "one draw": (lambda: crps([0.0], [[0.0]]), ShapeError, "at least 2"),
    "draws shape": (lambda: crps([0.0], [[0.0, 1.0]] * 3), ShapeError, "(3, 2)"),
    "sd 0": (lambda: log_score([0.0], [0.0], [0.0]), DataError, "sd must be positive"),
    "mean shape": (lambda: log_score([0.0], [0.0, 1.0], 1.0), ShapeError, "mean has shape (2,)"),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_culprit(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("scipy.optimize", lambda: mcc(np.eye(3), np.eye(3))),
        ("sklearn.metrics", lambda: pip_auroc([0.1, 0.5], [0, 1])),
    ],
)
def test_missing_extra_gives_a_hint(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install pyro-tbr\[evaluation\]"):
        call()


def test_tables_are_taken():
    pips = pd.DataFrame({"z0": [0.9, 0.1], "z1": [0.2, 0.8]})
    assert pip_auroc(pips, pips > 0.5) == 1
