"""Sandwich errors of the leaves' weights."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.heads.rows import DesignRows
from pyro_tbr.heads.sandwich import inflation
from pyro_tbr.heads.statistics import Sites, statistics

E, ROWS, W = 12, 150, 3


def problem(kind, num_outcomes=1, seed=0, rows=ROWS):
    """Rows whose noise is even, larger at some leaves, or larger where the first feature is.

    Returns rows, their statistics and the true weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    env = torch.arange(E).repeat_interleave(rows)
    design = torch.cat([normal(E * rows, W - 1), torch.ones(E * rows, 1, dtype=torch.float64)], 1)
    scale = torch.full((E * rows,), 0.3, dtype=torch.float64)
    if kind == "leaves":
        scale = torch.where(env % 3 == 0, 0.9, 0.3).double()
    elif kind == "leverage":
        scale = 0.3 * design[:, 0].abs()
    weights = normal(E, W, num_outcomes)
    y = torch.einsum("nw,nwq->nq", design, weights[env]) + scale[:, None] * normal(
        E * rows, num_outcomes
    )
    rows = DesignRows(design, y, env)
    return rows, stats_of(rows), weights


def stats_of(rows):
    shares = rows.shares()
    return statistics(
        rows, Sites(torch.ones_like(shares), rows.y, torch.zeros_like(shares), shares)
    )


def test_even_noise_is_left_alone():
    found = torch.stack([inflation(*problem("even", seed=s)[:2]) for s in range(40)])
    assert (found == 1).double().mean() > 0.85
    assert abs(found.mean() - 1) < 0.02


def test_noisy_leaves_get_larger_errors():
    found = inflation(*problem("leaves")[:2])  # (E, Q, W)
    noisy = torch.arange(E) % 3 == 0
    # Noise variances 0.81 and 0.09; the common one is their mean, 0.33.
    assert_close(found[noisy].mean(), torch.tensor(0.81 / 0.33).double(), rtol=0.15, atol=0)
    assert_close(found[~noisy].mean(), torch.tensor(0.09 / 0.33).double(), rtol=0.15, atol=0)


def test_noise_that_grows_with_a_latent_inflates_its_weight_alone():
    found = inflation(*problem("leverage", rows=400)[:2]).mean((0, 1))
    assert found[0] == pytest.approx(3.0, rel=0.2)  # E[z^4] / E[z^2]^2
    assert found[1:] == pytest.approx([1.0, 1.0], abs=0.15)


@pytest.mark.parametrize("kind", ["even", "leaves", "leverage"])
def test_errors_are_those_of_repeated_data(kind):
    """Mean squared error over the flattened likelihood's variance is 1, in 60 data sets."""
    squares = []
    for seed in range(60):
        rows, stats, weights = problem(kind, seed=100 + seed)
        flat = stats._replace(inflation=inflation(rows, stats)).flattened()
        cov = torch.linalg.inv(flat.gram)
        peak = (cov @ flat.cross.unsqueeze(-1)).squeeze(-1)
        noise = flat.square - (flat.cross * peak).sum(-1)
        noise = noise.sum(0) / (flat.count - W).sum(0)
        var = cov.diagonal(dim1=-2, dim2=-1) * noise[:, None]
        squares.append((peak - weights.transpose(1, 2)).square() / var)
    squares = torch.stack(squares)
    error = squares.mean((1, 2)).std(0) / 60**0.5
    assert (squares.mean((0, 1, 2)) - 1).abs().max() < 0.06 + 4 * error.max()


def test_flattening_keeps_peaks_residuals_and_correlations():
    _, stats, _ = problem("even", num_outcomes=2)
    ratio = torch.rand(E, 2, W, generator=torch.Generator().manual_seed(0)).double() + 0.5
    flat = stats._replace(inflation=ratio).flattened()
    old = torch.linalg.inv(stats.gram).expand(E, 2, W, W)
    new = torch.linalg.inv(flat.gram)
    root = ratio.sqrt()
    assert_close(new, old * root[..., None] * root[..., None, :])
    peaks = [(c @ s.cross.unsqueeze(-1)).squeeze(-1) for c, s in ((old, stats), (new, flat))]
    assert_close(*peaks)
    residuals = [s.square - (s.cross * peak).sum(-1)
                 for s, peak in zip((stats, flat), peaks, strict=True)]  # fmt: skip
    assert_close(*residuals)
    assert flat.inflation is None  # else a second use would flatten it once more
    assert stats._replace(inflation=torch.ones(E, 2, W)).flattened().gram is stats.gram


def test_missing_outcomes_and_poor_leaves():
    rows, _, _ = problem("leaves", num_outcomes=2)
    design, y, env = rows.design, rows.y, rows.env_index
    y[::3, 1] = torch.nan
    keep = (env != 4) | (torch.arange(len(env)) % ROWS < 2)  # two rows at leaf 4
    design, y, env = design[keep], y[keep], env[keep]
    rows = DesignRows(design, y, env)
    found = inflation(rows, stats_of(rows))
    assert found.isfinite().all()
    assert (found > 0).all()
    others = torch.arange(E) != 4
    assert_close(found[4].log(), found[others].log().mean(0), rtol=0.5, atol=0.5)
    perfect = torch.einsum("nw,w->n", design, torch.ones(W).double())[:, None]
    rows = DesignRows(design, perfect, env)
    stats = stats_of(rows)
    flat = stats._replace(inflation=inflation(rows, stats)).flattened()
    assert flat.cross.isfinite().all()
