"""Methods that only the tables compare with: the contract of baselines, and known answers."""

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.evaluation.baselines import LeafRegression, Pooled
from rivals import IRM, AutoencoderLeafRegression, DendroNet, GroupDRO, MOReTreeS
from tests.evaluation.baselines import contract

STAR = tbr.Tree.from_parents({f"leaf{i}": "r" for i in range(8)})
METHODS = [
    DendroNet(strengths=(0.1, 0.01)),
    AutoencoderLeafRegression(steps=100, sparsities=(0.1,)),
    GroupDRO(steps=100),
    IRM(penalties=(0.0, 10.0)),
]
SLOW = pytest.param(
    MOReTreeS(options=tbr.FitOptions(mixture_components=8)), marks=pytest.mark.slow, id="MOReTreeS"
)
every = pytest.mark.parametrize("method", [*METHODS, SLOW], ids=contract.name)


@every
def test_predictions(method):
    contract.check_predictions(method)


@every
def test_units(method):
    contract.check_units(method)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.distribution] + [SLOW], ids=contract.name
)
def test_intervals(method):
    contract.check_intervals(method)


def test_encoders_that_cannot_be_learnt():
    contract.check_what_cannot_be_learnt(AutoencoderLeafRegression())


def test_dendronet_finds_the_changed_arc():
    parents = {"a": "u", "b": "u", "c": "v", "d": "v", "u": "r", "v": "r"}
    tree = tbr.Tree.from_parents(parents)
    generator = np.random.default_rng(0)
    env = np.repeat(list("abcd"), 50)
    x = generator.normal(size=(200, 2))
    slope = np.where(np.isin(env, ["a", "b"]), 2.0, 0.0)
    y = slope * x[:, 0] + x[:, 1] + 0.1 * generator.normal(size=200)
    fitted = DendroNet().fit(tree, x, y, env)
    table = fitted.deltas().set_index(["child", "latent"])["mean"].abs()
    at_the_root = table["u"]["x0"] + table["v"]["x0"]  # the pair under the root is one change
    assert at_the_root == pytest.approx(2, abs=0.2)
    assert table.sum() - at_the_root < 0.3


def test_spike_and_slab_finds_the_change_on_given_latents():
    generator = np.random.default_rng(0)
    tree = tbr.Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r", "d": "r"})
    env = np.repeat(list("abcd"), 60)
    z = generator.normal(size=(240, 2))
    y = z[:, 0] + np.where(env == "a", 2.0, 0.0) * z[:, 1] + 0.3 * generator.normal(size=240)
    fitted = MOReTreeS().fit(tree, z, y, env)
    slopes = [np.diff(fitted.predict([[0.0, 0], [0, 1]], leaf).mean)[0] for leaf in "abcd"]
    np.testing.assert_allclose(slopes, [2, 0, 0, 0], atol=0.15)
    # Mean field may spread the change over the arcs around; the largest part is where it is.
    table = fitted.deltas().set_index(["child", "latent"])["mean"]
    assert table.abs().idxmax() == ("a", "z1")
    assert fitted.predict(z, env).sd.mean() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_autoencoder_latents_span_the_true_ones(encoder):
    data = tbr.simulate(num_leaves=6, latent_dim=2, num_features=5, rows_per_leaf=100)
    method = AutoencoderLeafRegression(sparsities=(0.01,), steps=300)
    fitted = method.fit(data.tree, data.x, data.y, data.env, latent_dim=2, encoder=encoder)
    assert tbr.linear_r2(data.z, fitted.encode(data.x)) > (0.999 if encoder == "linear" else 0.95)
    if encoder == "linear":
        leaf = LeafRegression().fit(data.tree, data.z, data.y, data.env)
        new_x, new_y, new_z = data.rows("leaf1", 50)
        ours, known = fitted.predict(new_x, "leaf1"), leaf.predict(new_z, "leaf1")
        assert ours.log_score(new_y) == pytest.approx(known.log_score(new_y), abs=0.05)


def test_sparse_features_are_told_apart_by_the_autoencoder():
    """Latents that are mostly near 0: the rotation of least mean absolute value is theirs."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(2000, 3)) * (generator.random((2000, 3)) < 0.2)
    x = z / z.std(0) @ generator.normal(size=(3, 3))
    env = np.array([f"leaf{i}" for i in np.arange(2000) % 8])
    method = AutoencoderLeafRegression(sparsities=(1.0,), steps=600)
    fitted = method.fit(STAR, x, z[:, 0], env, latent_dim=3)
    assert tbr.mcc(z, fitted.encode(x)) > 0.99


def test_group_dro_is_the_midpoint_of_extremes():
    """Slopes 0, 0, 0 and 4 with the same features: the mean is 1, the best worst case 2."""
    x = np.tile([-1.0, 1.0], 40)[:, None]
    env = np.repeat(["leaf0", "leaf1", "leaf2", "leaf3"], 20)
    y = np.where(env == "leaf3", 4.0, 0.0) * x[:, 0]
    slope = {}
    for method in (GroupDRO(), Pooled()):
        at = method.fit(STAR, x, y, env).predict([[0.0], [1.0]], "leaf7").mean
        slope[type(method)] = at[1] - at[0]
    assert slope[GroupDRO] == pytest.approx(2, abs=0.1)
    assert slope[Pooled] == pytest.approx(1, abs=0.1)


def test_irm_leaves_the_spurious_feature():
    """x1 causes y; x2 follows y by an amount that differs between environments."""
    generator = np.random.default_rng(0)
    env = np.repeat([f"leaf{i}" for i in range(7)], 300)
    x1 = generator.normal(size=2100)
    y = x1 + generator.normal(size=2100)
    follow = np.repeat([2.0, 1.5, 1.0, 0.6, 0.3, 1.8, 0.8], 300)
    x2 = follow * y + generator.normal(size=2100)
    x = np.stack([x1, x2], axis=1)
    slopes = {}
    for method in (IRM(penalties=(0.0, 10.0, 1000.0)), IRM(penalties=(1000.0,)), Pooled()):
        at = method.fit(STAR, x, y, env).predict([[0.0, 0.0], [0.0, 1.0]], "leaf7").mean
        slopes[str(method)] = at[1] - at[0]
    chosen, strong, pooled = slopes.values()
    assert pooled > 0.2
    assert abs(strong) < 0.4 * pooled
    assert chosen <= pooled + 1e-6
