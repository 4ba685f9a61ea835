"""Fits whose rows come block by block end where those of all rows in memory do."""

import numpy as np
import pytest
import torch
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.data import FeatureStream, stream
from pyro_tbr.heads import rows as head_rows
from pyro_tbr.inference.encoder import latents
from pyro_tbr.inference.encoder import rows as encoder_rows
from tests.brief import mostly_slow, sweeps
from tests.cases.toy import QUICK

SIM = tbr.simulate(
    num_leaves=8, latent_dim=2, num_features=6, rows_per_leaf=20, num_outcomes=2, missing=0.1,
    feature_noise=0.3, delta_min=1.0, seed=1,
)  # fmt: skip
WIDE = tbr.simulate(num_leaves=4, latent_dim=2, num_features=60, rows_per_leaf=30, seed=2)


def own_module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


KINDS = {
    "linear": {"encoder": "linear"},
    "network": {"encoder": "mlp"},
    "own module": {"encoder": own_module()},
    "known latents": {"encoder": "identity"},
    "binary": {"encoder": "linear", "likelihood": "bernoulli"},
    "outliers": {"encoder": "linear", "likelihood": "student_t"},
    "covariance": {
        "encoder": "linear", "likelihood": tbr.GaussianLikelihood(covariance="full"),
    },
    "groups": {"encoder": "linear"},
    "mean field": {"encoder": "linear"},
}  # fmt: skip


EXACT = tbr.FitOptions(**(vars(QUICK) | {"dtype": "float64"}))


def fitted(kind, x):
    """A quick fit; few steps, so that the last digits do not decide where it goes."""
    y = SIM.y
    if kind == "binary":
        y = np.where(np.isnan(y), np.nan, y > 0)
    model = tbr.TreeModel(SIM.tree, x.shape[1] if kind == "known latents" else 2, **KINDS[kind])
    groups = np.arange(len(y)) // 4 if kind == "groups" else None
    guide = "mean_field" if kind == "mean field" else "tree"
    with sweeps(60 if kind == "mean field" else 10):  # mean field comes to rest slowly
        return tbr.fit(
            model, x, y, SIM.env, groups=groups, guide=guide, progress=False, options=EXACT
        )


@pytest.mark.filterwarnings("ignore::pyro_tbr.IdentificationWarning")
@pytest.mark.filterwarnings("ignore::pyro_tbr.ModelWarning")
@pytest.mark.parametrize("kind", mostly_slow({kind: kind for kind in KINDS}, "linear", "network"))
def test_blocks_of_rows_change_nothing(kind, monkeypatch):
    """Features in a stream of 20 blocks, never there as a whole, latents in blocks of 13 rows."""
    whole = fitted(kind, SIM.x)
    monkeypatch.setattr(stream, "_BLOCK_ELEMENTS", 36)
    monkeypatch.setattr(stream, "_LEAST_ROWS", 1)
    if kind != "groups":  # whose correlation the encoder's start then takes as it is
        monkeypatch.setattr(encoder_rows, "_MOST_ELEMENTS", 0)
    for module in (head_rows, encoder_rows, latents):
        monkeypatch.setattr(module, "BLOCK_ROWS", 13)
    x = FeatureStream(SIM.x)
    parts = fitted(kind, x)
    np.testing.assert_allclose(parts.pips(), whole.pips(), atol=1e-3)
    np.testing.assert_allclose(parts.encode(x), whole.encode(SIM.x), atol=1e-3)
    ours, theirs = parts.predict(x, SIM.env), whole.predict(SIM.x, SIM.env)
    np.testing.assert_allclose(ours.mean, theirs.mean, atol=1e-3)
    np.testing.assert_allclose(ours.sd, theirs.sd, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::pyro_tbr.IdentificationWarning")
@pytest.mark.filterwarnings("ignore::pyro_tbr.ModelWarning")
def test_wide_features_in_a_file(tmp_path, monkeypatch):
    """Of 60 features a few components, chosen on held-out rows."""
    monkeypatch.setattr(stream, "_LEAST_ROWS", 7)
    np.save(tmp_path / "x.npy", WIDE.x)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = tbr.FitOptions(**(vars(EXACT) | {"num_components": (4, 8)}))
    model = tbr.TreeModel(WIDE.tree, 2, "linear")
    ours, theirs = (
        tbr.fit(model, one, WIDE.y, WIDE.env, progress=False, options=options)
        for one in (x, WIDE.x)
    )
    assert ours.report.num_components == theirs.report.num_components
    np.testing.assert_allclose(ours.pips(), theirs.pips(), atol=1e-4)
    np.testing.assert_allclose(ours.encode(x), theirs.encode(WIDE.x), atol=1e-4)


@pytest.mark.filterwarnings("ignore::pyro_tbr.IdentificationWarning")
@pytest.mark.filterwarnings("ignore::pyro_tbr.ModelWarning")
def test_what_follows_a_fit_takes_streams(tmp_path):
    x, y, env, checkpoint = FeatureStream(SIM.x), SIM.y, SIM.env, tmp_path / "fit.pt"
    model = tbr.TreeModel(SIM.tree, 2, "linear")
    how = {"progress": False, "options": QUICK}
    posterior = tbr.fit(model, x, y, env, checkpoint=checkpoint, **how)
    again = tbr.fit(model, x, y, env, resume=checkpoint, **how)
    assert again.pips().equals(posterior.pips())
    with pytest.raises(tbr.DataError, match="rows"):
        tbr.fit(model, FeatureStream(SIM.x + 1), y, env, resume=checkpoint, **how)
    more = posterior.update(x, y, env)
    assert more.pips().equals(posterior.update(SIM.x, y, env).pips())
    assert posterior.check(x, y, env).reasons == posterior.check(SIM.x, y, env).reasons
    assert posterior.score(x, y, env).equals(posterior.score(SIM.x, y, env))
    on = tbr.fit(model, x, y, env, start=posterior, **how)
    same = tbr.fit(model, SIM.x, y, env, start=posterior, **how)
    np.testing.assert_allclose(on.pips(), same.pips(), atol=1e-4)
    table = posterior.effects(features=None)
    assert len(table)
