"""Calls from inside ``torch.no_grad`` and its kin: they work, and leave the caller's setting."""

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.evaluation.baselines import ALL
from tests.cases.toy import QUICK, same_fit, toy

TREE = tbr.Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r"})
X, Y, ENV = toy(["a", "b", "c"], n=30, d=3)
OFF = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
}


class Switch:
    """Gradients off by the plain call, which stays until it is taken back."""

    def __enter__(self):
        torch.set_grad_enabled(False)

    def __exit__(self, *error):
        torch.set_grad_enabled(True)


OFF["plain call"] = Switch


def setting():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def fit(tree=TREE, encoder="linear", y=Y, likelihood="gaussian", **options):
    model = tbr.TreeModel(tree, 2, encoder=encoder, likelihood=likelihood)
    x = torch.from_numpy(X).clone()
    return tbr.fit(model, x, y, ENV, progress=False, options=QUICK, **options)


@pytest.mark.parametrize("off", OFF.values(), ids=OFF.keys())
@pytest.mark.parametrize("encoder", ["linear", "mlp", "identity", "own"])
@pytest.mark.own_random_state
def test_fit_is_the_same_with_gradients_off(encoder, off):
    tree, latents = TREE, {"encoder": encoder}
    if encoder == "own":
        with off():  # its parameters may themselves be made there
            latents["encoder"] = torch.nn.Linear(3, 2)
    if encoder == "identity":
        model = tbr.TreeModel(tree, 3, encoder="identity")
        one = lambda: tbr.fit(model, X, Y, ENV, progress=False, options=QUICK)  # noqa: E731
    else:
        one = lambda: fit(**latents)  # noqa: E731
    with off():
        before = setting()
        found = one()
        assert setting() == before
    same_fit(found, one())


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_what_was_made_there_works_outside(off, likelihood, tmp_path):
    y = Y if likelihood == "gaussian" else (Y > 0).astype(float)
    tree = tbr.Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r"})
    plain = fit(y=y, likelihood=likelihood)
    plain.save(tmp_path / "fit.pt")
    with off():
        before = setting()
        posterior = fit(tree, y=torch.from_numpy(y), likelihood=likelihood)
        loaded = tbr.load(tmp_path / "fit.pt")
        prediction = posterior.predict(X, ENV)
        updated = posterior.update(torch.from_numpy(X[:9]), y[:9], ENV[:9])
        z = posterior.encode(X)
        for ask in ("pips", "deltas", "node_weights", "identification", "summary", "sample"):
            getattr(posterior, ask)()
        assert setting() == before
    same_fit(posterior, plain)
    np.testing.assert_array_equal(posterior.encode(X), z)
    assert prediction.log_score(y) == plain.predict(X, ENV).log_score(y)
    same_fit(updated, plain.update(X[:9], y[:9], ENV[:9]))
    same_fit(updated.update(X[9:], y[9:], ENV[9:]), loaded.update(X[:9], y[:9], ENV[:9]).update(
        X[9:], y[9:], ENV[9:]))  # fmt: skip
    same_fit(fit(y=y, likelihood=likelihood, start=loaded), fit(y=y, likelihood=likelihood,
             start=posterior))  # fmt: skip
    loss = loaded.model.encoder(torch.from_numpy(X)).square().sum()
    loss.backward()  # its parameters train like any others


@pytest.mark.parametrize("name", [name for name in ALL if name in ("AutoencoderLeafRegression",)])
def test_baselines_fit_with_gradients_off(name):
    baseline = ALL[name]()
    with torch.inference_mode():
        before = setting()
        found = baseline.fit(TREE, X, Y, ENV, latent_dim=1)
        assert setting() == before
    expected = baseline.fit(TREE, X, Y, ENV, latent_dim=1).predict(X, ENV).mean
    np.testing.assert_array_equal(found.predict(X, ENV).mean, expected)
