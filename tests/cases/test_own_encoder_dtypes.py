"""The user's own encoder in double, half or mixed precision: a copy in the fit's is trained."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.models import ModuleEncoder
from tests.brief import mostly_slow
from tests.cases.toy import star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
QUICK = {
    "restarts": 1, "max_steps": 3, "sparse_steps": 2, "cross_fit": 0,
    "mixture_components": 2, "encoder_decays": (0.0,),
}  # fmt: skip
X, Y, ENV = toy(LEAVES, n=12, d=2)
pytestmark = pytest.mark.own_random_state


class Standardised(nn.Module):
    """Single precision but for its own statistics, which it needs in double."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("loc", torch.full((2,), 1.7e9, dtype=torch.float64))

    def forward(self, x):
        x = x.double() - self.loc + 1.7e9
        return self.layer(x.to(self.layer.weight.dtype)).double()


class Fixed(nn.Module):
    """A map without anything to train."""

    def __init__(self):
        super().__init__()
        self.register_buffer("map", torch.eye(2, dtype=torch.float64))

    def forward(self, x):
        return x @ self.map


MODULES = {
    "double": lambda: nn.Linear(2, 2).double(),
    "half": lambda: nn.Linear(2, 2).half(),
    "bfloat16": lambda: nn.Linear(2, 2).bfloat16(),
    "mixed": lambda: nn.Sequential(nn.Linear(2, 3).double(), nn.Tanh(), nn.Linear(3, 2)),
    "statistics": lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).double(),
    "own statistics in double": Standardised,
    "fixed": Fixed,
}


def dtypes(module):
    return [part.dtype for part in module.state_dict().values()]


CASES = {kind: (kind, "float32") for kind in MODULES} | {
    f"{kind}, fit in double": (kind, "float64") for kind in ("half", "mixed")
}
QUICK_CASES = ("double", "half", "statistics", "fixed", "mixed, fit in double")


@pytest.mark.parametrize(("kind", "dtype"), mostly_slow(CASES, *QUICK_CASES))
def test_fit_casts_a_copy(kind, dtype, tmp_path):
    module = MODULES[kind]()
    before = copy.deepcopy(module)
    options = tbr.FitOptions(**(QUICK | {"dtype": dtype}))
    model = tbr.TreeModel(TREE, 2, encoder=module)
    posterior = tbr.fit(model, X, Y, ENV, progress=False, options=options)
    trained = posterior.model.encoder
    parameters = [part.dtype for part in trained.parameters()]
    assert set(parameters) <= {options.torch_dtype}
    assert np.isfinite(posterior.predict(X, ENV).mean).all()
    for one, other in zip(module.state_dict().values(), before.state_dict().values(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)  # the user's module is as it was
    posterior.save(tmp_path / "fit.pt")
    again = tbr.load(tmp_path / "fit.pt", encoder=module)
    np.testing.assert_array_equal(again.encode(X), posterior.encode(X))
    assert dtypes(module) == dtypes(before)


def test_pretrained_weights_keep_their_digits_in_double():
    module = nn.Linear(2, 2).double().requires_grad_(False)
    options = tbr.FitOptions(**(QUICK | {"dtype": "float64"}))
    model = tbr.TreeModel(TREE, 2, encoder=module)
    posterior = tbr.fit(model, X, Y, ENV, progress=False, options=options)
    assert torch.equal(posterior.model.encoder.module.weight, module.weight)


def test_an_encoder_that_is_used_without_a_fit():
    module = nn.Linear(2, 2).double()
    encoder = ModuleEncoder(module, 2, 2)
    assert encoder(torch.from_numpy(X)).dtype == torch.float32
    assert module.weight.dtype == torch.float64
