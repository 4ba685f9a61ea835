"""Calls from inside ``torch.no_grad`` and its kin: they work, and leave the caller's setting."""

from functools import cache

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.evaluation.baselines import L1TBR
from rivals import AutoencoderLeafRegression
from tests.cases.toy import same_fit, toy

X, Y, ENV = toy(["a", "b"], n=15, d=2)
OPTIONS = tbr.FitOptions(
    restarts=1, max_steps=3, sparse_steps=2, cross_fit=0,
    mixture_components=2, encoder_decays=(0.0,),
)  # fmt: skip


class PlainCall:
    """Gradients off by the plain call, which stays until it is taken back."""

    def __enter__(self):
        torch.set_grad_enabled(False)

    def __exit__(self, *error):
        torch.set_grad_enabled(True)


def switched():
    return torch.set_grad_enabled(False)


def setting():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def cherry():
    return tbr.Tree.from_parents({"a": "r", "b": "r"})


def fit(encoder="linear", likelihood="gaussian", tree=None, **options):
    y = Y if likelihood == "gaussian" else (Y > 0).astype(float)
    tree = cherry() if tree is None else tree
    model = tbr.TreeModel(tree, 2, encoder=encoder, likelihood=likelihood)
    x = torch.from_numpy(X).clone()
    y = torch.from_numpy(y).clone()
    return tbr.fit(model, x, y, ENV, progress=False, options=OPTIONS, **options)


plain = cache(fit)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, switched, PlainCall])
def test_fit_is_the_same_with_gradients_off(off):
    with off():
        before = setting()
        found = fit()
        assert setting() == before
    assert setting() == (True, False)
    same_fit(found, plain())


@pytest.mark.own_random_state
def test_with_an_encoder_that_was_itself_made_there():
    with torch.inference_mode():
        module = torch.nn.Linear(2, 2)
        found = fit(module)
    same_fit(found, fit(module))


@pytest.mark.parametrize("encoder", ["mlp", "identity"])
def test_with_other_encoders(encoder):
    with torch.inference_mode():
        found = fit(encoder)
    same_fit(found, plain(encoder))


@pytest.mark.parametrize(
    ("off", "likelihood", "encoder"),
    [
        (torch.no_grad, "gaussian", "linear"),
        (torch.inference_mode, "gaussian", "linear"),
        (torch.inference_mode, "bernoulli", "identity"),
    ],
)
def test_what_was_made_there_works_outside(off, likelihood, encoder, tmp_path):
    y = Y if likelihood == "gaussian" else (Y > 0).astype(float)
    kind, tree = (encoder, likelihood), cherry()
    plain(*kind).save(tmp_path / "fit.pt")
    with off():
        before = setting()
        posterior = fit(*kind, tree)
        loaded = tbr.load(tmp_path / "fit.pt")
        prediction = posterior.predict(X, ENV)
        updated = posterior.update(torch.from_numpy(X[:9]), y[:9], ENV[:9])
        z = posterior.encode(X)
        for ask in ("pips", "deltas", "node_weights", "identification", "summary", "sample"):
            getattr(posterior, ask)()
        assert setting() == before
    same_fit(posterior, plain(*kind))
    np.testing.assert_array_equal(posterior.encode(X), z)
    assert prediction.log_score(y) == plain(*kind).predict(X, ENV).log_score(y)
    expected = plain(*kind).update(X[:9], y[:9], ENV[:9])
    same_fit(updated, expected)
    same_fit(updated.update(X[9:], y[9:], ENV[9:]), expected.update(X[9:], y[9:], ENV[9:]))
    same_fit(fit(*kind, tree, start=loaded), fit(*kind, start=posterior))


def test_a_loaded_encoder_trains_like_any_other(tmp_path):
    plain("mlp").save(tmp_path / "fit.pt")
    with torch.inference_mode():
        loaded = tbr.load(tmp_path / "fit.pt")
    loaded.model.encoder(torch.from_numpy(X)).square().sum().backward()


@pytest.mark.parametrize("baseline", [AutoencoderLeafRegression(), L1TBR((0.1,), 1, 5)])
def test_baselines_fit_with_gradients_off(baseline):
    with torch.inference_mode():
        found = baseline.fit(cherry(), X, Y, ENV, latent_dim=1)
    assert np.isfinite(found.predict(X, ENV).mean).all()
