"""The user's units and names: latents that the model centres and scales, names of every type."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.models import Encoder
from pyro_tbr.posterior import LatentUnits
from pyro_tbr.posterior.view import weights_at

SHIFT, SCALE = torch.tensor([2000.0, -3.0]).double(), torch.tensor([5.0, 0.1]).double()


class Centred(Encoder):
    """Known latents, centred and scaled inside."""

    trainable = False
    latent_units = LatentUnits(SHIFT, SCALE)

    def prepare(self, x):
        return x.double()

    def body(self, prepared):
        return (prepared - SHIFT) / SCALE

    def encode(self, prepared):
        return self.body(prepared)


class Plain(Encoder):
    """The same latents in units of their own."""

    trainable = False

    def body(self, prepared):
        return prepared


def to_features(z):
    return SHIFT.numpy() + SCALE.numpy() * np.asarray(z)


@pytest.fixture(scope="module")
def centred(several):
    """As ``plain``, its latents being features that the encoder centres and scales."""
    model = copy.deepcopy(several.model)
    model.encoder = Centred(2, 2)
    return replace(several, model=model)


@pytest.fixture(scope="module")
def plain(several):
    model = copy.deepcopy(several.model)
    model.encoder = Plain(2, 2)
    return replace(several, model=model)


@pytest.fixture(scope="module")
def rows(frames):
    """Latents, features and environments of some rows."""
    x, _, env = frames
    z = x.iloc[::20]
    return z, pd.DataFrame(to_features(z), index=z.index, columns=z.columns), env.iloc[::20]


def table_of(posterior):
    return posterior.node_weights().set_index(["latent", "node", "outcome"]).sort_index()


def test_features_are_their_own_latents(centred, rows):
    _, x, _ = rows
    assert centred.encode(x).to_numpy() == pytest.approx(x.to_numpy(), rel=1e-9)


def test_weights_are_per_unit_of_a_feature(centred, plain):
    plain_table, found = table_of(plain), table_of(centred)
    for k, latent in enumerate(("size", "depth")):
        for column in ("mean", "sd"):
            expected = plain_table.loc[latent, column] / SCALE[k].item()
            assert found.loc[latent, column].to_numpy() == pytest.approx(expected.to_numpy())


def test_weights_times_features_are_the_predictions(centred, plain, rows):
    """The intercept is that at features of 0, far from the rows."""
    z, x, env = rows
    found, other = centred.predict(x, env), plain.predict(z, env)
    for name in ("mean", "sd", "lower", "upper"):
        one, two = getattr(found, name).to_numpy(), getattr(other, name).to_numpy()
        assert one == pytest.approx(two, rel=1e-6, abs=1e-6)
    table = table_of(centred)["mean"].unstack("latent")
    for i, leaf in enumerate(env):
        for outcome in "abc":
            at = table.loc[(leaf, outcome)]
            by_hand = at["intercept"] + at[["size", "depth"]].to_numpy() @ x.iloc[i].to_numpy()
            assert found.mean.iloc[i][outcome] == pytest.approx(by_hand, abs=1e-6)


def test_draws_have_the_moments_of_the_table(centred):
    num = 4000
    draws = centred.sample(num, seed=3)
    table = centred.node_weights()
    root = table[table["node"] == centred.tree.root]
    mean, sd = (root[name].to_numpy().reshape(3, 3) for name in ("mean", "sd"))
    found = draws["root_weights"]
    assert (np.abs(found.mean(0) - mean) < (5 / np.sqrt(num) + 0.01) * sd).all()
    assert found.std(0) == pytest.approx(sd, rel=0.1)
    nodes = torch.arange(centred.tree.num_nodes)
    own = centred.draws(num, torch.Generator().manual_seed(3))
    weights = centred.user_weight_draws(weights_at(centred.tree, nodes, own)).numpy()
    assert weights[:, 0] == pytest.approx(found)
    mean, sd = (table[name].to_numpy().reshape(-1, 3, 3) for name in ("mean", "sd"))
    assert (np.abs(weights.mean(0) - mean) < (5 / np.sqrt(num) + 0.02) * sd).all()


def test_changes_are_per_unit_of_a_feature_and_the_intercepts_stay(centred, plain):
    names = ["parent", "child", "latent", "outcome"]
    found, other = (p.deltas().set_index(names) for p in (centred, plain))
    unit = pd.Series({"size": 1 / 5.0, "depth": 1 / 0.1, "intercept": 1.0})
    unit = unit.loc[other.index.get_level_values("latent")].to_numpy()
    for column in ("mean", "sd", "lower", "upper"):
        assert found[column].to_numpy() == pytest.approx(other[column].to_numpy() * unit)
    for column in ("pip", "lfsr", "log_odds"):
        assert found[column].to_numpy() == pytest.approx(other[column].to_numpy())
    draws = [p.sample(5)["deltas"] for p in (centred, plain)]
    assert draws[0] == pytest.approx(draws[1] * unit[:9].reshape(3, 3))
    moments = centred.user_deltas()
    assert moments.mean.numpy().ravel() == pytest.approx(found["mean"].to_numpy())
    assert moments.var.sqrt().numpy().ravel() == pytest.approx(found["sd"].to_numpy())
    limits = {"size": 0.2 / 5.0, "depth": 0.2 / 0.1, "intercept": 0.2}
    expected = plain.exceedance(0.2).set_index(names)["exceedance"]
    for latent, limit in limits.items():
        one = centred.exceedance(limit).set_index(names)["exceedance"]
        here = one.index.get_level_values("latent") == latent
        assert one[here].to_numpy() == pytest.approx(expected[here].to_numpy(), abs=1e-3)


def test_update_takes_features_as_they_are(centred, plain, rows):
    z, x, env = rows
    y = np.zeros((len(x), 3))
    one, two = centred.update(x, y, env), plain.update(z, y, env)
    assert isinstance(one, tbr.Posterior)
    assert (one.pips() - two.pips()).abs().to_numpy().max() < 1e-3


NAMES = {
    "numbers": (2019, 2021, 2023),
    "mixed": (2019, "2019", 1.5),
    "tuples": (("a", 1), ("a", 2), ("b", 1)),
    "dates": tuple(pd.to_datetime(["2019-01-01", "2020-01-01", "2021-01-01"])),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_names_of_outcomes_keep_their_types(names, several, frames, tmp_path):
    named = replace(several, schema=replace(several.schema, outcome_names=names))
    x, _, env = frames
    named.save(tmp_path / "posterior.pt")
    for posterior in (named, tbr.load(tmp_path / "posterior.pt")):
        assert_typed(posterior.outcome_names, names)
        assert_typed(posterior.pips().columns.get_level_values("outcome")[::3], names)
        for table in (posterior.deltas(), posterior.node_weights(), posterior.exceedance(0.1)):
            assert_typed(table["outcome"][:3], names)
            assert len(table[table["outcome"].map(lambda name: name == names[1])]) > 0
        assert_typed(posterior.path_pips("leaf0").columns, names)
        assert_typed(posterior.summary().noise_scale.index, names)
        assert_typed(posterior.predict(x[:3], env[:3]).mean.columns, names)
        assert set(posterior.credible_sets(num_draws=500)["outcome"]) <= set(names)
        assert str(posterior.summary())


def assert_typed(found, names):
    plain = {np.int64: int, np.float64: float}
    kinds = [plain.get(type(name), type(name)) for name in found]
    assert (kinds, list(found)) == ([type(name) for name in names], list(names))
