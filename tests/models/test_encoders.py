"""Encoders: standardisation, the output map, and what must not depend on the batch."""

import copy

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.testing import assert_close

from pyro_tbr.data import FeatureStream, SparseFeatures
from pyro_tbr.errors import ShapeError
from pyro_tbr.models import IdentityEncoder, LinearEncoder, MLPEncoder, ModuleEncoder
from pyro_tbr.models.principal_axes import principal_axes

D, K, N = 6, 3, 40
ENCODERS = {
    "linear": lambda: LinearEncoder(D, K),
    "linear, 4 components": lambda: LinearEncoder(D, K, num_components=4),
    "mlp": lambda: MLPEncoder(D, K, hidden=(16, 8)),
    "mlp, 4 components": lambda: MLPEncoder(D, K, num_components=4, hidden=(16,)),
    "module": lambda: ModuleEncoder(user_module(), D, K),
    "identity": lambda: IdentityEncoder(D, D),
}
encoders = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
PREPARED = {name: make for name, make in ENCODERS.items() if name.startswith(("linear", "mlp"))}
prepared_encoders = pytest.mark.parametrize("make", PREPARED.values(), ids=PREPARED.keys())


def user_module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K))


def features(num_rows=N, num_columns=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_columns, num_columns, generator=generator, dtype=torch.float64)
    rows = torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    return rows @ mixing + 5.0


def fitted(make, x=None):
    encoder = make().double()
    encoder.fit_preparation(features() if x is None else x)
    encoder.reset(torch.Generator().manual_seed(1))
    return encoder.double()


@encoders
def test_a_row_is_encoded_as_in_any_batch(make):
    encoder, x = fitted(make), features()
    together = encoder(x)
    assert together.shape == (N, encoder.latent_dim)
    alone = torch.cat([encoder(row[None]) for row in x])
    assert_close(alone, together, rtol=1e-12, atol=1e-12)
    assert encoder(x[:0]).shape == (0, encoder.latent_dim)


@encoders
def test_every_parameter_gets_a_gradient_and_half_widths_agree(make):
    encoder, x = fitted(make), features()
    z = encoder(x)
    if encoder.trainable:
        z.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())
    assert_close(copy.deepcopy(encoder).float()(x.float()).double(), z, rtol=1e-4, atol=1e-4)
    for name, tensor in encoder.state_dict().items():
        assert tensor.dtype == torch.float64, name
    if encoder.trainable:
        moved = encoder.float().state_dict()
        assert all(tensor.dtype == torch.float32 for tensor in moved.values())


@encoders
def test_state_dict_round_trip(make):
    encoder, x = fitted(make), features()
    encoder.set_output(torch.ones(encoder.latent_dim), 2 * torch.eye(encoder.latent_dim))
    other = fitted(make, features(seed=5))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(x), encoder(x))


@encoders
def test_set_output_composes(make):
    encoder, x = fitted(make), features()
    generator = torch.Generator().manual_seed(2)
    z = encoder(x).detach()
    k = encoder.latent_dim
    for with_offset in (False, True, True):
        loc, offset = torch.randn(2, k, generator=generator, dtype=torch.float64)
        linear = torch.randn(k, k, generator=generator, dtype=torch.float64)
        encoder.set_output(loc, linear, offset if with_offset else None)
        z = (z - loc) @ linear - (offset if with_offset else 0)
        assert_close(encoder(x), z)
    linear[:, 0] = 0
    encoder.set_output(loc, linear)
    assert (encoder(x)[:, 0] == 0).all()


@prepared_encoders
def test_prepared_features_are_white(make):
    encoder, x = fitted(make), features()
    prepared = encoder.prepare(x)
    assert prepared.shape == (N, encoder.width)
    assert_close(prepared.mean(0), torch.zeros_like(prepared[0]), rtol=0, atol=1e-10)
    second = prepared.T @ prepared / N
    assert_close(second, torch.eye(encoder.width, dtype=torch.float64), rtol=0, atol=1e-9)
    assert encoder.component_share[0] == 1
    assert (encoder.component_share.diff() <= 0).all()


@prepared_encoders
def test_constant_columns_have_no_influence(make):
    x = features()
    x[:, 2], x[:, 4] = 0.1, 1e7
    encoder = fitted(make, x)
    moved = x.clone()
    moved[:, 2] += 3.0
    moved[:, 4] -= 1e6
    assert torch.equal(encoder(moved), encoder(x))
    assert encoder.width == 4  # D less the two


@prepared_encoders
def test_scale_and_offset_of_columns_do_not_matter(make):
    x = features()
    shifted = x * torch.tensor([1.0, 1e-3, 10, 1e4, 1, 7], dtype=torch.float64) + 1e6
    assert_close(fitted(make, shifted)(shifted), fitted(make, x)(x), rtol=1e-4, atol=1e-4)


@prepared_encoders
def test_features_are_prepared_in_double_precision(make):
    x = features().float().double() + 1e6  # at 1e6 float32 resolves 0.06
    encoder = make()
    encoder.fit_preparation(x)
    encoder.reset(torch.Generator().manual_seed(1))
    assert encoder.prepare(x).dtype == torch.float32
    assert_close(encoder(x).double(), fitted(make, x - 1e6)(x - 1e6), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_components", [None, 5])
def test_more_features_than_rows(num_components):
    x = features(12, 50)
    encoder = LinearEncoder(50, K, num_components=num_components).double()
    encoder.fit_preparation(x)
    encoder.reset(torch.Generator().manual_seed(0))
    encoder.double()
    assert encoder.width == (num_components or 11)  # N - 1 directions are left after centring
    prepared = encoder.prepare(x)
    second = prepared.T @ prepared / 12
    assert_close(second, torch.eye(encoder.width, dtype=torch.float64), rtol=0, atol=1e-9)
    # the same components as by the singular value decomposition of the standardised table
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    _, singular, _ = torch.linalg.svd(standard)
    share = (singular / singular[0]).square()[: encoder.width]
    assert_close(encoder.component_share, share)
    assert encoder(x).shape == (12, K)


def test_a_repeated_column_is_dropped_with_its_direction():
    x = features()
    x[:, 3] = 2 * x[:, 1] - 1
    assert fitted(ENCODERS["linear"], x).width == D - 1


def test_identity_leaves_features_untouched():
    encoder, x = IdentityEncoder(D, D), features().float()
    encoder.fit_preparation(x)
    encoder.reset(torch.Generator())
    assert torch.equal(encoder(x), x)
    assert not list(encoder.parameters())
    assert not encoder.trainable


def test_linear_directions_are_taken_over():
    encoder, x = fitted(ENCODERS["linear"]), features()
    directions = torch.randn(D, K, generator=torch.Generator().manual_seed(0)).double()
    encoder.set_directions(directions)
    assert_close(encoder(x), encoder.prepare(x) @ directions)


@prepared_encoders
def test_reset_draws_from_its_generator_alone(make):
    state = torch.get_rng_state()
    one, two, other = fitted(make), fitted(make), fitted(make)
    other.reset(torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(one.parameters()), next(other.double().parameters()))


def test_users_module_stays_the_users():
    module = user_module()
    before = copy.deepcopy(module.state_dict())
    encoder = ModuleEncoder(module, D, K)
    x = features().float()
    assert_close(encoder(x), module(x))
    encoder.set_output(torch.ones(K), torch.eye(K))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


ERRORS = {
    "identity of other width": (lambda: IdentityEncoder(4, 3), "make them equal"),
    "columns": (lambda: LinearEncoder(4, 3)(torch.zeros(2, 5)), "x has 5 columns, .* built for 4"),
    "wrong K": (lambda: ModuleEncoder(nn.Linear(4, 2), 4, 3)(torch.zeros(5, 4)), r"\(5, 2\)"),
    "no last dimension": (
        lambda: ModuleEncoder(nn.Flatten(0), 4, 3)(torch.zeros(5, 4)), "one column a latent",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(call, message):
    with torch.random.fork_rng(), pytest.raises(ShapeError, match=message):
        call()


@encoders
def test_a_call_leaves_the_param_store_alone(make):
    make()(features().float())
    assert not list(pyro.get_param_store().keys())


@pytest.mark.own_random_state
def test_a_pyro_module_as_encoder_keeps_its_parameters_to_itself():
    class Bayesian(PyroModule):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(K))
            self.weight = PyroSample(pyro.distributions.Normal(0.0, 1.0).expand([D, K]).to_event(2))

        def forward(self, x):
            return x @ self.weight + self.bias

    encoder, x = ModuleEncoder(Bayesian(), D, K), features().float()
    encoder(x)
    trace = pyro.poutine.trace(encoder).get_trace(x)
    assert trace.nodes["module.weight"]["value"].shape == (D, K)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize(
    ("shape", "num_components"),
    [((60, 8), None), ((60, 8), 3), ((30, 50), None), ((90, 40), 4), ((40, 90), 4)],
    ids=["narrow", "some of few", "wide", "few of many", "few of many, wide"],
)
def test_sparse_features_are_prepared_as_dense_ones(shape, num_components):
    """By sums over blocks, by the dual problem, or by Lanczos steps: the same encoder."""
    x = features(*shape)
    x = torch.where(x.abs() < 4, 0.0, x)
    x[:, 2] = 7.0  # constant: no influence
    dense, sparse = (LinearEncoder(shape[1], K, num_components).double() for _ in range(2))
    dense.fit_preparation(x)
    stored = SparseFeatures(sp.csc_matrix(x.numpy()))
    sparse.fit_preparation(stored)
    assert dense.width == sparse.width
    assert_close(sparse.component_share, dense.component_share, rtol=1e-8, atol=1e-10)
    assert_close(sparse.prepare(x), dense.prepare(x), rtol=0, atol=1e-6)
    sparse.reset(torch.Generator().manual_seed(1))
    sparse.double()
    assert_close(sparse(stored), sparse(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spread", ["even", "steep", "flat"])
def test_leading_axes_by_few_passes_are_those_of_all(spread, monkeypatch):
    """Whatever the variances do: they fall evenly, fast, or are all alike but for three."""
    generator = np.random.default_rng(0)
    variance = {
        "even": 0.97 ** np.arange(300), "steep": 0.5 ** np.arange(300),
        "flat": np.r_[9.0, 4.0, 2.0, np.full(297, 1.0)],
    }[spread]  # fmt: skip
    turn = np.linalg.qr(generator.standard_normal((300, 300)))[0]
    x = (generator.standard_normal((800, 300)) * np.sqrt(variance)) @ turn.T
    passes, total = [], FeatureStream.total
    monkeypatch.setattr(
        FeatureStream, "total", lambda self, f: (passes.append(f), total(self, f))[1]
    )
    loc, inverse = torch.tensor(x.mean(0)), torch.ones(300, dtype=torch.float64)
    found, axes = principal_axes(FeatureStream(x), loc, inverse, 5)
    expected, true = principal_axes(torch.tensor(x), loc, inverse, 5)
    assert len(passes) < 20
    assert_close(found, expected, rtol=1e-6, atol=0)
    sure = 3 if spread == "flat" else 5  # the others are a hair apart
    assert_close(axes[:, :sure], true[:, :sure], rtol=0, atol=1e-3)


@prepared_encoders
def test_without_preparation_features_are_as_they_are(make):
    encoder = make().double()
    assert_close(encoder.prepare(features()), features()[:, : encoder.width])
