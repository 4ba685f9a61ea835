"""Ranks: uniform for exact posteriors, and not for wrong ones."""

import numpy as np
import pytest

from parts.ranks import ecdf, ecdf_band, rank_among, uniformity
from pyro_tbr.errors import DataError, ShapeError

S = 99


def normal_ranks(num, width, shift=0.0):
    """Ranks for theta ~ N(0, 1), y ~ N(theta, 1), whose posterior is N(y / 2, 1 / 2)."""
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(num)
    y = theta + rng.standard_normal(num)
    draws = y / 2 + shift + width * np.sqrt(0.5) * rng.standard_normal((S, num))
    return rank_among(theta, draws, rng)


def test_exact_posterior_is_uniform_and_wrong_ones_are_not():
    assert uniformity(normal_ranks(500, 1.0), S) > 0.05
    assert uniformity(normal_ranks(500, 0.7), S) < 1e-4
    assert uniformity(normal_ranks(500, 1.0, shift=0.3), S) < 1e-4


def test_ties_are_broken_at_random():
    rng = np.random.default_rng(0)
    ranks = rank_among(np.zeros(2000), np.zeros((S, 2000)), rng)
    assert uniformity(ranks, S) > 0.05
    assert rank_among(1.0, [0.0, 1.0, 2.0], rng) in (1, 2)
    assert rank_among([5.0, -5.0], [[0.0, 0.0], [1.0, 1.0]], rng).tolist() == [2, 0]


def test_band_holds_uniform_ecdfs_as_often_as_it_says():
    band = ecdf_band(100, S)
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(400):
        values = ecdf(rng.integers(0, S + 1, 100), S, band.points)
        inside.append(((values >= band.lower) & (values <= band.upper)).all())
    assert abs(np.mean(inside) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)
    wrong = ecdf(normal_ranks(100, 0.4), S, band.points)
    assert ((wrong < band.lower) | (wrong > band.upper)).any()


def test_ecdf_by_hand():
    assert ecdf([0, 4, 9], 9, np.array([0.1, 0.5, 1.0])).tolist() == pytest.approx(
        [1 / 3, 2 / 3, 1]
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rank_among([1.0], [[1.0, 2.0]], None), ShapeError, r"\(S, \*B\)"),
        (lambda: uniformity([0, 100], S), DataError, "from 0 to 99"),
        (lambda: uniformity([0, 9], S), DataError, "give 50 ranks"),
        (lambda: uniformity([0] * 50, 100), DataError, "one below a multiple"),
    ],
)
def test_errors_name_the_culprit(call, error, message):
    with pytest.raises(error, match=message):
        call()
