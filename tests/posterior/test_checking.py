"""What rows say against a model: each part on data that break it, and on data that do not."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.heads import DesignRows
from pyro_tbr.posterior.chance import Reference, Residuals
from pyro_tbr.posterior.checking import MOST_ROWS, checked, some_rows

PLAIN = {
    "num_leaves": 12, "latent_dim": 3, "num_features": 3, "rows_per_leaf": 60, "noise_scale": 0.5,
    "changes": "bernoulli", "intercept_scale": 1.0,
}  # fmt: skip


def simulated(**more):
    return tbr.simulate(**(PLAIN | more))


def fitted(sim, latents=3, **more):
    """A fit of some of the true latents, and the categories of its warnings."""
    model = tbr.TreeModel(sim.tree, latents, "identity", **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = tbr.fit(model, sim.z[:, :latents], sim.y, sim.env, progress=False)
    return posterior, [one.category for one in caught]


@pytest.mark.parametrize("more", [
    {},
    {"num_outcomes": 3, "missing": 0.2},
    pytest.param({"likelihood": "bernoulli", "rows_per_leaf": 150}, marks=pytest.mark.slow),
    pytest.param({"latent_shift": 1.0, "latent_stretch": 0.3}, marks=pytest.mark.slow),
], ids=["plain", "outcomes", "binary", "shifted"])  # fmt: skip
def test_nothing_is_said_where_nothing_is_wrong(more):
    sim = simulated(**more)
    posterior, caught = fitted(sim, likelihood=sim.likelihood)
    check = posterior.check()
    assert tbr.ModelWarning not in caught
    assert check.reasons == ()
    assert str(check).startswith("Nothing speaks against the model.")
    assert len(check.environments) == sim.tree.num_leaves * posterior.model.num_outcomes
    z = check.environments["z"] if sim.likelihood == "gaussian" else np.zeros(1)
    assert np.mean(z**2) < 2
    assert check.latents["z"].abs().max() < 4.5
    assert np.isnan(check.missing_share)
    again = posterior.check(
        *(lambda x, y, z: (z, y))(*sim.rows(sim.tree.leaves[0], 400, seed=1)), sim.tree.leaves[0]
    )
    assert again.reasons == ()


def test_uneven_noise_is_said_with_its_place():
    sim = simulated(noise_ratio=6.0, seed=1)
    posterior, caught = fitted(sim, likelihood=tbr.GaussianLikelihood(noise="common"))
    table = posterior.check().environments.set_index("node")
    leaves = list(sim.tree.leaves)
    truth = sim.law.noise_scales[sim.tree.leaf_index.numpy()]
    assert np.abs(np.log(table.loc[leaves, "residual_sd"] / truth)).max() < 0.35
    assert tbr.ModelWarning in caught
    (reason,) = posterior.check().reasons
    worst = table["z"].abs().idxmax()
    assert f"{worst} (" in reason
    assert 'GaussianLikelihood(noise="by_environment")' in reason
    better, caught = fitted(sim)
    assert tbr.ModelWarning not in caught
    assert better.check().environments["ratio"].between(0.6, 1.5).all()


def test_noise_that_was_given_and_is_not_so_is_said():
    sim = simulated(seed=1)
    posterior, caught = fitted(sim, likelihood=tbr.GaussianLikelihood(scale=0.1))
    assert tbr.ModelWarning in caught
    assert "the noise was given, GaussianLikelihood(scale=0.1)" in posterior.check().reasons[0]
    assert not fitted(sim, likelihood=tbr.GaussianLikelihood(scale=0.5))[0].check().reasons


def test_curvature_is_found():
    sim = simulated(curvature=0.2, rows_per_leaf=100, seed=2)
    posterior, caught = fitted(sim)
    table = posterior.check().latents
    unit = posterior.latent_units.scale.numpy()  # c is by the model's own latents
    off = (table["curvature"] - 0.2 * unit) / table["sd"]
    assert off.abs().max() < 4
    assert tbr.ModelWarning in caught
    assert any("curve in latents" in reason for reason in posterior.check().reasons)


def test_outliers_are_said():
    sim = simulated(noise="outliers", rows_per_leaf=200, seed=3)
    posterior, caught = fitted(sim)
    assert tbr.ModelWarning in caught
    assert any("outliers" in reason for reason in posterior.check().reasons)
    # 1 % of the rows have noise ten times as large.
    assert 0.002 < posterior.check().tails["beyond"].item() < 0.01


def test_latents_that_correlate_are_said():
    sim = simulated(latent_correlation=0.95, seed=7)
    posterior, caught = fitted(sim)
    assert tbr.ModelWarning in caught
    (reason,) = posterior.check().reasons
    assert "sample_posterior" in reason
    assert posterior.check().latents["correlation"].between(0.93, 0.97).all()
    # Means that differ between environments are no such correlation.
    apart = simulated(latent_shift=3.0, seed=7)
    assert fitted(apart)[0].check().latents["correlation"].max() < 0.3


def test_outcomes_that_correlate_are_worth_fewer():
    sim = simulated(num_outcomes=4, noise_correlation=0.7, rows_per_leaf=100, seed=4)
    posterior, caught = fitted(sim)
    check = posterior.check()
    assert check.worth == pytest.approx(16 / (4 + 12 * 0.49), rel=0.1)
    assert tbr.ModelWarning in caught
    assert any("worth 1." in reason for reason in check.reasons)
    off = check.correlations.to_numpy()[np.triu_indices(4, 1)]
    assert abs(off - 0.7).max() < 4 * (1 - 0.49) / 1200**0.5
    assert list(check.correlations.index) == list(check.correlations.columns)
    # Identification counts evidence by it.
    found = posterior.identification()
    assert found.worth == check.worth
    independent = fitted(simulated(num_outcomes=4, seed=4))[0].check()
    assert independent.worth == pytest.approx(4, abs=0.1)


def check_by(posterior, sim, latents, features):
    design = torch.from_numpy(np.c_[sim.z[:, :latents], np.ones(len(sim.z))])
    unit = posterior.latent_units
    design[:, :latents] = (design[:, :latents] - unit.shift) / unit.scale
    scale = posterior.scaling.scale
    y = posterior.scaling.to_model(torch.from_numpy(sim.y).reshape(len(sim.y), -1))
    index = torch.tensor([sim.tree.index(one) for one in sim.env])
    rows = DesignRows(design, y, index)
    names = posterior.latent_names, posterior.outcome_names
    features = torch.from_numpy(features)
    stats = posterior.stats
    return checked(posterior.guide, rows, features, scale, names, stats, seen=True)


def test_a_latent_that_is_missing_is_said():
    sim = simulated(seed=5)
    complete = check_by(fitted(sim)[0], sim, 3, sim.x)
    assert complete.missing_share == 0  # three features are the three latents
    rng = np.random.default_rng(0)
    features = np.c_[sim.z, rng.standard_normal((len(sim.z), 20))] @ rng.standard_normal((23, 23))
    without = check_by(fitted(sim, 2)[0], sim, 2, features)
    assert without.missing_z > 10
    assert any("one more latent would explain" in reason for reason in without.reasons)
    # By a regression on the latent itself, leaf by leaf, of what the two others leave.
    rows = pd.DataFrame({"env": sim.env, "y": sim.y, "one": 1.0}).join(pd.DataFrame(sim.z))
    left = [
        [own["y"] - d @ np.linalg.lstsq(d, own["y"], rcond=None)[0] for d in
         (own[[0, 1, "one"]].to_numpy(), own[[0, 1, 2, "one"]].to_numpy())]
        for _, own in rows.groupby("env")
    ]  # fmt: skip
    two, three = (sum(float(np.square(part[i]).sum()) for part in left) for i in (0, 1))
    assert 0.5 * (1 - three / two) < without.missing_share < 1.1 * (1 - three / two)
    spare = check_by(fitted(sim)[0], sim, 3, features)
    assert spare.missing_z < 4.5
    assert spare.reasons == ()


def test_what_a_column_explains_is_that_of_regressions():
    rng = np.random.default_rng(1)
    env = np.repeat([3, 1, 2], [40, 30, 5])
    design, column = rng.standard_normal((75, 3)), rng.standard_normal((75, 1))
    y = rng.standard_normal((75, 2))
    y[rng.random((75, 2)) < 0.1] = np.nan
    sd = np.array([[1.0, 2.0]]).repeat(75, 0)
    tensors = (torch.from_numpy(part) for part in (design, y, env))
    reference = Reference(DesignRows(*tensors), Residuals(*map(torch.from_numpy, (y / sd, sd) * 2)))
    found, total = reference.explained(torch.from_numpy(column)), 0.0
    for node in (1, 2, 3):
        for q in (0, 1):
            own = (env == node) & ~np.isnan(y[:, q])
            d, r = design[own], y[own, q] / sd[0, q]
            f = column[own] - d @ np.linalg.lstsq(d, column[own], rcond=None)[0]
            total += ((f.T @ r) ** 2 / (f.T @ f)).item()
    number = np.nansum((y / sd) ** 2)
    # Less what chance gives: one for each regression, within the error of forty draws.
    assert found.share[0] * number == pytest.approx(total - 6, abs=4 * (12 / 40) ** 0.5)


def test_it_is_kept_and_asked_again(tmp_path):
    sim = simulated(num_outcomes=2, seed=6, rows_per_leaf=30)
    posterior, _ = fitted(sim)
    posterior.save(tmp_path / "fit.tbr")
    again = tbr.load(tmp_path / "fit.tbr").check()
    assert str(again) == str(posterior.check())
    for name in ("environments", "latents", "correlations", "tails"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(posterior.check(), name))
    with pytest.raises(tbr.DataError, match="y and env missing: give x, y and env, or none"):
        posterior.check(sim.z)


def test_many_rows_are_looked_at_evenly():
    picked = some_rows(5 * MOST_ROWS)
    assert len(picked) == MOST_ROWS == len(picked.unique())
    assert picked[0] == 0
    assert picked[-1] == 5 * MOST_ROWS - 1
    assert (some_rows(7) == torch.arange(7)).all()


def test_environments_of_few_rows_are_no_curve():
    """With hardly more rows than weights, what is left of a leaf's noise is one direction or two.

    Judged by signs of residuals turned alone, squares explained 4 to 7 % of such data by chance.
    """
    tree = tbr.simulate(num_leaves=150, shape="random", rows_per_leaf=1, seed=2).tree
    sim = simulated(tree=tree, num_leaves=None, rows_per_leaf=5, seed=2)
    posterior, caught = fitted(sim)
    check = posterior.check()
    assert tbr.ModelWarning not in caught
    assert check.latents["z"].abs().max() < 3
    assert check.latents["share"].abs().max() < 0.03
    assert check.environments["ratio"].mean() == pytest.approx(1, abs=0.15)


def test_chance_is_that_of_the_noise_where_weights_take_up_most_of_it():
    """Residuals of a regression a leaf, five rows and four columns each, over fifty draws."""
    rng = np.random.default_rng(4)
    env = np.repeat(np.arange(60), 5)
    design, column = rng.standard_normal((300, 4)), rng.standard_normal((300, 1))
    hat = np.zeros((300, 300))
    for node in range(60):
        own = env == node
        hat[np.ix_(own, own)] = design[own] @ np.linalg.pinv(design[own])
    left = np.clip(1 - np.diag(hat), 0.05, None)[:, None] ** 0.5
    rows = (torch.from_numpy(part) for part in (design, np.zeros((300, 1)), env))
    rows, found = DesignRows(*rows), []
    for _ in range(50):
        raw = rng.standard_normal((300, 1))
        raw = raw - hat @ raw
        parts = (torch.from_numpy(part) for part in (raw / left, left, raw, np.ones((300, 1))))
        found.append(Reference(rows, Residuals(*parts)).explained(torch.from_numpy(column)).z[0])
    assert abs(np.mean(found)) < 3 * np.std(found) / 50**0.5
    assert np.abs(found).max() < 4
