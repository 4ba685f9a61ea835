"""Regressions without a tree against closed forms, brute force and scikit-learn."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_tbr as tbr
from pyro_tbr.evaluation.baselines import LeafRegression, Pooled, PooledOneHot, TreeIntercepts
from pyro_tbr.evaluation.baselines.ridge import evidence_ridge

TREE = tbr.Tree.from_parents({"a": "r", "b": "r", "c": "r", "d": "r"})


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(90, 3)) * [1.0, 5.0, 0.2] + 2
    env = np.array(["a", "b", "c"] * 30)
    slope = {"a": 1.0, "b": 2.0, "c": -1.0}
    y = np.array([slope[e] for e in env]) * x[:, 0] + x[:, 1] + 0.5 * generator.normal(size=90)
    return x, y, env


def standard(x):
    return (x - x.mean(0)) / x.std(0)


def test_evidence_is_that_of_the_normal():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, generator=generator, dtype=torch.float64) + x[:, 0]
    group = torch.tensor([0, 1] * 6)
    evidences, expected = [], []
    for penalty in (0.5, 20.0):
        fit = evidence_ridge(x, y, group, penalties=torch.tensor([penalty]).double())
        evidences.append(fit.log_evidence)
        same = (group[:, None] == group).double()
        cov = fit.noise_var * (torch.eye(12).double() + same * (x @ x.T / penalty))
        density = MultivariateNormal(torch.zeros(12).double(), cov + 1e6 * same)  # flat intercepts
        expected.append(float(density.log_prob(y)))
    assert evidences[0] - evidences[1] == pytest.approx(expected[0] - expected[1], abs=1e-3)


def test_noise_is_at_the_maximum_of_the_evidence():
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)).double()
    y = x[:, 0] + torch.linspace(-1, 1, 12).double()
    fit = evidence_ridge(x, y, torch.zeros(12).long(), penalties=torch.tensor([1.0]).double())

    def density(noise):
        cov = noise * (torch.eye(12).double() + x @ x.T) + 1e6
        return MultivariateNormal(torch.zeros(12).double(), cov).log_prob(y)

    best = density(fit.noise_var)
    assert best > max(density(0.95 * fit.noise_var), density(1.05 * fit.noise_var))


def test_pooled_is_the_closed_form(rows):
    x, y, env = rows
    fitted = Pooled().fit(TREE, x, y, env)
    penalty = fitted.notes["penalty"][0]
    design, outcome = standard(x), standard(y)
    inverse = np.linalg.inv(design.T @ design + penalty * np.eye(3))
    weights = inverse @ design.T @ outcome
    new = (x[:4] + 1 - x.mean(0)) / x.std(0)
    at = fitted.predict(x[:4] + 1, "d")  # held out, and no matter
    np.testing.assert_allclose(at.mean, new @ weights * y.std() + y.mean())
    var = (1 + 1 / 90 + np.einsum("ni,ij,nj->n", new, inverse, new)) * fitted.notes["noise_var"][0]
    np.testing.assert_allclose(at.sd, np.sqrt(var) * y.std())
    np.testing.assert_allclose(at.upper - at.mean, 1.6448536 * at.sd, rtol=1e-4)
    residual = outcome - design @ weights
    freedom = 89 - np.trace(design @ inverse @ design.T)
    assert fitted.notes["noise_var"][0] == pytest.approx(residual @ residual / freedom, rel=0.01)


def test_leaf_regression_is_scikit_learns(rows):
    from sklearn.linear_model import Ridge

    x, y, env = rows
    fitted = LeafRegression().fit(TREE, x, y, env)
    parts = []
    for leaf in ("a", "b", "c"):
        at = env == leaf
        ridge = Ridge(alpha=fitted.notes["penalty"][0]).fit(standard(x)[at], y[at])
        parts.append(ridge.predict(standard(x)))
        np.testing.assert_allclose(fitted.predict(x, leaf).mean, parts[-1])
    # A held-out leaf may be like any of the others.
    held_out = fitted.predict(x, "d")
    np.testing.assert_allclose(held_out.mean, np.mean(parts, axis=0))
    scores = []
    for leaf in ("a", "b", "c"):
        at = fitted.predict(x, leaf)
        scores.append(-0.5 * ((y - at.mean) / at.sd) ** 2 - np.log(at.sd * np.sqrt(2 * np.pi)))
    expected = np.mean(np.logaddexp.reduce(scores, axis=0) - np.log(3))
    assert held_out.log_score(y) == pytest.approx(expected)
    assert 0.4 < np.sqrt(fitted.notes["noise_var"][0]) * y.std() < 0.6  # true sd 0.5


def test_intercepts_by_environment():
    generator = np.random.default_rng(1)
    tree = tbr.Tree.from_parents({f"leaf{i}": "r" for i in range(31)})
    env = np.repeat([f"leaf{i}" for i in range(30)], 20)
    offset = 2 * generator.normal(size=30)
    x = generator.normal(size=(600, 2))
    y = x[:, 0] + np.repeat(offset, 20) + 0.3 * generator.normal(size=600)
    fitted = PooledOneHot().fit(tree, x, y, env)
    at_origin = [fitted.predict(np.zeros((1, 2)), f"leaf{i}") for i in range(31)]
    np.testing.assert_allclose([at.mean[0] for at in at_origin[:30]], offset, atol=0.35)
    assert at_origin[0].sd[0] == pytest.approx(0.3, rel=0.15)
    spread = np.hypot(offset.std(), 0.3)
    assert at_origin[30].sd[0] == pytest.approx(spread, rel=0.3)  # its grid is that coarse
    assert at_origin[30].mean[0] == pytest.approx(offset.mean(), abs=0.1)


def test_intercepts_along_the_tree():
    """A clade's new leaf has the clade's intercept, and the spread of one change on top."""
    generator = np.random.default_rng(2)
    clades = {f"u{i}": "r" for i in range(20)}
    leaves = {f"u{i}_{j}": f"u{i}" for i in range(20) for j in range(8)}
    tree = tbr.Tree.from_parents(clades | leaves)
    clade, own = 2 * generator.normal(size=20), 0.5 * generator.normal(size=(20, 8))
    seen = [leaf for leaf in leaves if not leaf.endswith("_7")]
    env = np.repeat(seen, 20)
    x = generator.normal(size=(len(env), 2))
    offset = {f"u{i}_{j}": clade[i] + own[i, j] for i in range(20) for j in range(8)}
    y = x[:, 0] + np.array([offset[e] for e in env]) + 0.3 * generator.normal(size=len(env))
    fitted = TreeIntercepts().fit(tree, x, y, env)
    new = [fitted.predict(np.zeros((1, 2)), f"u{i}_7") for i in range(20)]
    # Seven leaves with a variance each say of their clade 7 times what its own variance does.
    expected = (clade + own[:, :7].mean(1)) * 7 / 8
    np.testing.assert_allclose([at.mean[0] for at in new], expected, atol=0.15)
    old = fitted.predict(np.zeros((1, 2)), "u3_2")
    assert old.mean[0] == pytest.approx(offset["u3_2"], abs=0.25)
    assert old.sd[0] == pytest.approx(0.3, rel=0.1)
    # One variance for all arcs lies between those of clades and leaves.
    assert np.hypot(0.5, 0.3) < np.mean([at.sd[0] for at in new]) < np.hypot(2.0, 0.3)
    one_hot = PooledOneHot().fit(tree, x, y, env).predict(np.zeros((1, 2)), "u3_7")
    assert one_hot.sd[0] > 1.5 * new[3].sd[0]


@pytest.mark.parametrize("method", [Pooled(), PooledOneHot(), TreeIntercepts(), LeafRegression()])
def test_an_outcome_is_fitted_to_its_own_rows(method, rows):
    x, y, env = rows
    missing = np.where(np.arange(90) % 3 == 0, np.nan, y)  # all of leaf a
    both = method.fit(TREE, x, np.stack([y, missing], 1), env)
    at = both.predict(x, "b")
    alone = method.fit(TREE, x, y, env).predict(x, "b")
    np.testing.assert_allclose(at.mean[:, 0], alone.mean)
    alone = method.fit(TREE, x, missing, env).predict(x, "b")
    np.testing.assert_allclose(at.mean[:, 1], alone.mean)
    assert np.isfinite(both.predict(x, "a").sd).all()
