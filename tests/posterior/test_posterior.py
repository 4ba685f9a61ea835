"""The posterior: forms and labels of its tables, units, and that the numbers agree."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.evaluation import pip_auroc
from pyro_tbr.posterior import tables
from tests.brief import mostly_slow
from tests.posterior.small_fits import FAST, NOISE_SCALE

WEIGHTS = ["z0", "z1", "intercept"]
NAMED = ["size", "depth", "intercept"]  # where latents are the features


def test_tables_of_one_outcome(linear, sim):
    pips, deltas, nodes = linear.pips(), linear.deltas(), linear.node_weights()
    assert pips.index.names == ["parent", "child"]
    assert tuple(pips.index) == sim.tree.arcs
    assert pips.columns.name == "latent"
    assert list(pips.columns) == WEIGHTS
    assert list(deltas.columns) == [
        "parent", "child", "latent", "outcome",
        "pip", "prior_pip", "mean", "sd", "lower", "upper", "lfsr", "log_odds",
    ]  # fmt: skip
    assert list(nodes.columns) == ["node", "latent", "outcome", "mean", "sd"]
    assert len(deltas) == sim.tree.num_arcs * 3
    assert list(nodes["node"]) == [node for node in sim.tree.nodes for _ in WEIGHTS]
    assert set(deltas["outcome"]) == set(nodes["outcome"]) == {"y0"}


def test_tables_of_several_outcomes(several, frame_sim):
    pips, deltas = several.pips(), several.deltas()
    assert pips.columns.names == ["outcome", "latent"]
    assert list(pips.columns) == [(outcome, w) for outcome in "abc" for w in NAMED]
    assert len(deltas) == frame_sim.tree.num_arcs * 9
    assert several.outcome_names == ("a", "b", "c")
    long = deltas.set_index(["parent", "child", "latent", "outcome"])["pip"]
    for arc in frame_sim.tree.arcs:
        for outcome, weight in pips.columns:
            assert pips.loc[arc, (outcome, weight)] == long[(*arc, weight, outcome)]


def by(table, *keys):
    return table.set_index([*keys, "latent", "outcome"])


@pytest.mark.parametrize("name", ["linear", "several", "held_out", "binary"])
def test_change_is_the_difference_of_the_weights_at_its_ends(name, request):
    posterior = request.getfixturevalue(name)
    changes = by(posterior.deltas(), "parent", "child")
    weight = by(posterior.node_weights(), "node")["mean"]
    shift = dict(zip(posterior.latent_names, posterior.latent_units.shift.tolist(), strict=False))
    for (parent, child, latent, outcome), change in changes.iterrows():
        ends = weight[(child, latent, outcome)] - weight[(parent, latent, outcome)]
        if latent == "intercept":  # its change is that at the latents' reference point
            for other, at in shift.items():
                slopes = (weight[(node, other, outcome)] for node in (child, parent))
                ends += at * (next(slopes) - next(slopes))
        # Equal but for the cap on components and single precision.
        assert change["mean"] == pytest.approx(ends, abs=0.02 * change["sd"] + 1e-5)


def test_weights_of_known_latents_are_near_the_truth(several, frame_sim):
    sim = frame_sim
    rows = by(several.node_weights(), "node")
    for leaf in sim.tree.leaves:
        at = sim.tree.index(leaf)
        for q, outcome in enumerate("abc"):
            truth = [*sim.node_weights[at, :, q], sim.node_intercepts[at, q]]
            for weight, value in zip(NAMED, truth, strict=True):
                found = rows.loc[(leaf, weight, outcome)]
                assert abs(found["mean"] - value) < 4.5 * found["sd"]
    # Standard error of a regression with 30 rows; shared strength makes it smaller, not larger.
    leaves = rows.loc[list(sim.tree.leaves)]
    assert leaves["sd"].max() < 2 * sim.noise_scale / math.sqrt(30)


def test_pips_of_known_latents_tell_changes(several, frame_sim):
    pips = np.stack([several.pips()[outcome][["size", "depth"]] for outcome in "abc"], axis=-1)
    # Arcs under a root with two children share their evidence: which of the two is not known.
    below = np.array([parent != frame_sim.tree.root for parent, _ in frame_sim.tree.arcs])
    assert pip_auroc(pips[below], frame_sim.gates[below]) > 0.8


@pytest.mark.parametrize("name", ["several", "held_out"])
def test_draws_have_the_moments_of_the_tables(name, request):
    """Within 5 standard errors, for messages of so many components that few are merged."""
    posterior, num = request.getfixturevalue(name).copy(), 2000
    posterior.guide.num_components = 96
    posterior.guide.refresh()
    draws = posterior.sample(num, seed=3)
    tree, num_outcomes = posterior.tree, len(posterior.outcome_names)
    shape = (tree.num_arcs, 3, num_outcomes)
    assert draws["deltas"].shape == draws["gates"].shape == (num, *shape)
    assert draws["root_weights"].shape == (num, 3, num_outcomes)
    table = posterior.deltas()
    pip, mean, sd = (table[name].to_numpy().reshape(shape) for name in ("pip", "mean", "sd"))
    assert (np.abs(draws["gates"].mean(0) - pip) < gate_error(pip, num)).all()
    assert (np.abs(draws["deltas"].mean(0) - mean) < 5 * sd / math.sqrt(num) + 1e-3 * sd).all()
    rows = posterior.node_weights()
    root = rows[rows["node"] == tree.root]
    mean, sd = (root[column].to_numpy().reshape(3, -1) for column in ("mean", "sd"))
    assert (np.abs(draws["root_weights"].mean(0) - mean) < 5 * sd / math.sqrt(num)).all()


def gate_error(pip, num):
    return 5 * np.sqrt(pip * (1 - pip) / num) + 2e-3


def test_draws_have_the_pips_of_the_table_with_merged_components(several):
    gates = several.sample(4000, seed=3)["gates"].mean(0)
    pip = several.deltas()["pip"].to_numpy().reshape(gates.shape)
    assert (np.abs(gates - pip) < gate_error(pip, 4000) + 0.01).all()


def test_prediction_is_design_times_weights(several, frames):
    x, _, env = frames
    rows = slice(0, len(x), 20)
    found = several.predict(x.iloc[rows], env.iloc[rows])
    design = x.iloc[rows].assign(intercept=1.0).to_numpy()
    weights = by(several.node_weights(), "node")
    noise = several.noise().set_index(["node", "outcome"])["mean"]
    for i, leaf in enumerate(env.iloc[rows]):
        for outcome in "abc":
            at = [weights.loc[(leaf, w, outcome)] for w in NAMED]
            mean = sum(d * w["mean"] for d, w in zip(design[i], at, strict=True))
            spread = sum((d * w["sd"]) ** 2 for d, w in zip(design[i], at, strict=True))
            one = found.mean.iloc[i][outcome]
            assert one == pytest.approx(mean, abs=1e-5)
            sd = math.sqrt(spread + noise[leaf, outcome] ** 2)
            assert found.sd.iloc[i][outcome] == pytest.approx(sd, rel=0.01)


def test_intervals_cover_new_rows(held_out, sim):
    """At seen leaves a new outcome is in its 90 % interval nine times in ten."""
    inside, rng = [], np.random.default_rng(5)
    for leaf in ("leaf0", "leaf2", "leaf4"):
        _, _, z = sim.rows(leaf, 1000, seed=5)
        at = sim.tree.index(leaf)
        y = z @ sim.node_weights[at, :, 0] + sim.node_intercepts[at, 0]
        y = y + NOISE_SCALE * rng.standard_normal(1000)  # the noise this fit was told
        found = held_out.predict(z, leaf, level=0.9)
        inside.append((found.lower <= y) & (y <= found.upper))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


@pytest.fixture(scope="module")
def known(sim):
    """As ``linear``, with the latents for features."""
    model = tbr.TreeModel(sim.tree, 2, encoder="identity")
    return tbr.fit(model, sim.z, sim.y, sim.env, progress=False, options=FAST)


UNITS = {  # a fit with a learnt encoder takes seconds, so the extremes have known latents
    "linear, larger": ("linear", 1e3, 0.0),
    "linear, shifted": ("linear", 1.0, 1e6),
    "known, tiny": ("identity", 1e-6, 0.0),
    "known, huge": ("identity", 1e6, 0.0),
    "known, shifted": ("identity", 1.0, 1e6),
}


@pytest.mark.parametrize(
    ("encoder", "scale", "shift"),
    mostly_slow(UNITS, *(name for name in UNITS if name != "linear, shifted")),
)
def test_unit_of_the_outcome_does_not_matter(encoder, scale, shift, linear, known, sim):
    x = sim.x if encoder == "linear" else sim.z
    base = linear if encoder == "linear" else known
    model = tbr.TreeModel(sim.tree, 2, encoder=encoder)
    other = tbr.fit(model, x, shift + scale * sim.y, sim.env, progress=False, options=FAST)
    assert (other.pips() - base.pips()).abs().max().max() < 0.02
    weights, base_weights = by(other.node_weights(), "node"), by(base.node_weights(), "node")
    moved = pd.Series(0.0, weights.index).where(
        weights.index.get_level_values("latent") != "intercept", shift
    )
    largest = base_weights["mean"].abs().max()
    gap = (weights["mean"] - moved) / scale - base_weights["mean"]
    assert gap.abs().max() < 0.02 * largest
    found, before = other.predict(x, sim.env), base.predict(x, sim.env)
    assert found.sd / scale == pytest.approx(before.sd, rel=0.01)
    for name in ("mean", "lower", "upper"):
        value = (getattr(found, name) - shift) / scale
        assert value == pytest.approx(getattr(before, name), abs=0.02 * sim.y.std())
    draws, base_draws = other.sample(50), base.sample(50)
    ratio = draws["noise_scale"].mean() / base_draws["noise_scale"].mean()
    assert ratio == pytest.approx(scale, rel=0.01)
    assert other.summary().noise_scale["y0"] / scale == pytest.approx(
        base.summary().noise_scale["y0"], rel=0.01
    )


def test_arrays_in_arrays_out(linear, sim):
    found = linear.predict(sim.x[:7], sim.env[:7])
    for value in (found.mean, found.sd, found.lower, found.upper):
        assert isinstance(value, np.ndarray)
        assert value.shape == (7,)
    assert linear.encode(sim.x[:7]).shape == (7, 2)
    assert found.sample(5).shape == (5, 7)


def test_pandas_in_pandas_out(several, frames):
    x, _, env = frames
    some = x.iloc[[5, 3, 100]]
    found = several.predict(some, env.loc[some.index])
    for value in (found.mean, found.sd, found.lower, found.upper):
        assert value.index.equals(some.index)
        assert list(value.columns) == ["a", "b", "c"]
    z = several.encode(some)
    assert z.index.equals(some.index)
    assert list(z.columns) == ["size", "depth"]
    assert z.to_numpy() == pytest.approx(some.to_numpy(), rel=1e-6)  # the features are the latents
    assert found.sample(5).shape == (5, 3, 3)
    swapped = several.predict(some[["depth", "size"]], env.loc[some.index])
    assert swapped.mean.equals(found.mean)


def test_env_series_is_matched_by_index(several, frames):
    x, _, env = frames
    some = x.iloc[[5, 60, 100]]
    by_label = several.predict(some, env.loc[some.index[::-1]])
    by_place = several.predict(some, env.loc[some.index].to_numpy())
    assert by_label.mean.equals(by_place.mean)


@pytest.mark.parametrize("row", [0, 17, 179])
def test_one_row_is_predicted_as_in_a_big_batch(linear, sim, row):
    batch = linear.predict(sim.x, sim.env)
    one = linear.predict(sim.x[[row]], sim.env[row])
    for name in ("mean", "sd", "lower", "upper"):
        assert getattr(one, name)[0] == pytest.approx(getattr(batch, name)[row], rel=1e-5, abs=1e-5)


def test_same_call_same_numbers_and_another_seed_others(linear, sim):
    one, two = linear.predict(sim.x, sim.env), linear.predict(sim.x, sim.env)
    other = linear.predict(sim.x, sim.env, seed=1)
    assert one.upper.tolist() == two.upper.tolist()
    assert one.upper.tolist() != other.upper.tolist()
    assert one.sample(3, seed=1).tolist() == two.sample(3, seed=1).tolist()
    assert one.sample(3, seed=1).tolist() != two.sample(3, seed=2).tolist()
    draws = [linear.sample(10, seed=seed)["deltas"].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_asking_changes_nothing(linear, sim):
    before, moments = linear.pips(), copy.deepcopy(linear.guide.state_dict())
    history = linear.history
    history["loss"] = None
    linear.predict(sim.x, None)
    linear.sample(10)
    str(linear.summary())
    linear.predict(sim.x[:2], tbr.NewLeaf("new", sim.tree.root))
    assert linear.pips().equals(before)
    assert all((linear.guide.state_dict()[name] == old).all() for name, old in moments.items())
    assert linear.history.equals(linear.report.history)


@pytest.mark.parametrize("name", ["linear", "several", "binary"])
def test_copies_are_equal_and_independent(name, request):
    posterior = request.getfixturevalue(name)
    before = posterior.deltas()
    for other in (posterior.copy(), pickle.loads(pickle.dumps(posterior))):
        assert other.guide.head is other.model.head
        assert other.deltas().equals(before)
        assert str(other.summary()) == str(posterior.summary())
        assert repr(other) == repr(posterior)
        for parameter in (*other.model.parameters(), *other.guide.parameters()):
            parameter.data.fill_(math.nan)
        for buffer in other.guide.buffers():
            buffer.zero_()
    assert posterior.deltas().equals(before)


class WithDropout(torch.nn.Linear):
    """An encoder that is the same each time only once training is over."""

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.own_random_state  # torch draws the module's weights
def test_dropout_of_an_encoder_is_off(linear, sim):
    own = tbr.TreeModel(sim.tree, 2, encoder=WithDropout(4, 2)).build(4, 1)
    posterior = tbr.Posterior(
        own,
        tbr.TreeGuide(own),
        linear.stats,
        linear.schema,
        linear.scaling,
        linear.row_counts,
        linear.report,
    )
    module = own.encoder.module
    by_hand = sim.x.astype(np.float32) @ module.weight.detach().numpy().T
    by_hand = by_hand + module.bias.detach().numpy()
    assert posterior.encode(sim.x) == pytest.approx(by_hand, abs=1e-5)


def test_summary_adds_up(several, frame_sim, tmp_path):
    summary = several.summary()
    assert (summary.num_rows, summary.num_environments, summary.num_arcs) == (180, 6, 10)
    assert summary.latents["variance_share"].sum() == pytest.approx(1.0)
    assert summary.noise_scale.to_numpy() == pytest.approx(
        np.full(3, frame_sim.noise_scale), rel=5 / math.sqrt(2 * 180)
    )
    pips = several.pips()
    for weight in NAMED:
        total = pips.xs(weight, axis=1, level="latent").to_numpy().sum()
        assert summary.latents.loc[weight, "expected_changes"] == pytest.approx(total, rel=1e-5)
    surest = np.sort(pips.to_numpy().ravel())[::-1][: len(summary.changes)]
    assert summary.changes["pip"].to_numpy() == pytest.approx(surest)
    summary.to_csv(tmp_path / "changes.csv")
    written = pd.read_csv(tmp_path / "changes.csv", dtype={"parent": object, "child": object})
    pd.testing.assert_frame_equal(written, summary.changes, check_dtype=False)
    text = str(summary)
    assert text.splitlines()[0] == "180 rows in 6 environments, 10 arcs"
    assert "intercept" in text


def test_summary_of_binary_outcomes_has_no_noise(binary):
    summary = binary.summary()
    assert summary.noise_scale.empty
    assert "BernoulliLikelihood()" in str(summary)
    assert "noise_scale" not in binary.sample(3)


def test_the_table_of_changes_is_made_once_a_level(linear, monkeypatch):
    """A horseshoe's comes from draws that take seconds; what a user does to one changes nothing."""
    posterior, levels = linear.copy(), []
    made = tables._deltas
    monkeypatch.setattr(
        tables, "_deltas", lambda own, level: levels.append(level) or made(own, level)
    )
    first = posterior.deltas()
    expected = first.copy()
    first["pip"] = -1.0
    pd.testing.assert_frame_equal(posterior.deltas(), expected)
    assert (posterior.deltas(level=0.5)["upper"] <= expected["upper"]).all()
    posterior.summary()
    assert levels == [0.9, 0.5]
    updated = posterior.update(np.zeros((1, 4)), [0.0], "leaf0")
    assert updated.deltas() is not None
    assert levels == [0.9, 0.5, 0.9]


def test_nothing_of_a_posterior_is_assigned(linear):
    with pytest.raises(dataclasses.FrozenInstanceError):
        linear.report = None
    other = dataclasses.replace(linear, report=dataclasses.replace(linear.report, folds=77))
    assert isinstance(other, tbr.Posterior)
    assert other.summary().folds == 77
    assert linear.report.folds != 77
