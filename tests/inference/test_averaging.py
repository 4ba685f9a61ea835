"""Averages over bases: the mixture by hand of fits in each basis, and what it costs nothing."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.heads import DesignRows, Statistics, TreeGuide, condition
from pyro_tbr.heads.averaging import AveragedGuide
from pyro_tbr.inference import averaging
from tests.brief import search_steps
from tests.posterior.small_fits import FAST, known_fit, toy

OPTIONS = replace(FAST, mixture_components=8)
EVERY = {"max_gap": 1e9}  # rivals of these tests are far behind
ANGLE = 0.5


@pytest.fixture(autouse=True, scope="module")
def _few_steps():
    """Where weights start from does not matter on small trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaging, "_STEPS", 60)
        with search_steps(200):
            yield


def quiet_fit(data, rows=None, **kwargs):
    likelihood = kwargs.pop("likelihood", "gaussian")
    prior = kwargs.pop("prior", None)
    model = tbr.TreeModel(data.tree, 2, "linear", prior=prior, likelihood=likelihood)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y, env = rows or (data.x, data.y, data.env)
        return tbr.fit(model, x, y, env, progress=False, options=OPTIONS, **kwargs)


def turned(basis, angle, order=(0, 1), sign=(1.0, 1.0)):
    """A basis whose first latent is turned towards the second, columns shuffled."""
    other = basis.clone()
    other[:, 0] = np.cos(angle) * basis[:, 0] + np.sin(angle) * basis[:, 1]
    other = other / other.norm(dim=0)
    return other[:, list(order)] * torch.tensor(sign).to(other)


def with_rivals(posterior, *others, gap=1.0):
    """The posterior, its search having found these bases, each so far behind."""
    report = posterior.report
    evidence = torch.full((len(others),), report.evidence - gap, dtype=torch.float64)
    bases = torch.stack(others) if others else report.basis[None][:0]
    return replace(
        posterior, report=replace(report, alternatives=bases, alternative_evidence=evidence)
    )


@pytest.fixture(scope="module")
def data():
    return tbr.simulate(num_leaves=6, latent_dim=2, num_features=4, num_outcomes=2,
                        rows_per_leaf=30, seed=1)  # fmt: skip


@pytest.fixture(scope="module")
def fitted(data):
    """No rows at leaf5; a value missing."""
    x, y, env = data.without("leaf5")
    y = y.copy()
    y[3, 1] = np.nan
    posterior = quiet_fit(data, (x, y, env))
    basis = posterior.report.basis
    shuffled = turned(basis, ANGLE, order=(1, 0), sign=(-1.0, 1.0))
    return with_rivals(posterior, shuffled, turned(basis, -ANGLE))


@pytest.fixture(scope="module")
def averaged(fitted):
    found = tbr.average_bases(fitted, **EVERY)
    # As a mixture that has something to mix.
    found = found.copy()
    found.guide.weight.copy_(torch.tensor([0.5, 0.3, 0.2]))
    return found


def single(averaged, number):
    """The posterior of one basis by itself: its latents come from the encoder."""
    guide, model = averaged.guide, copy.deepcopy(averaged.model)
    turn = guide.maps[number]
    own = copy.deepcopy(guide.bases[number])
    own._head = (model.head,)
    k = model.latent_dim
    model.encoder.set_output(torch.zeros(k), turn[:k, :k], -turn[-1, :k])
    return replace(averaged, model=model, guide=own, stats=averaged.stats.transform(turn))


@pytest.fixture(scope="module")
def singles(averaged):
    return [single(averaged, c) for c in range(3)]


def mean_of(averaged, parts):
    return sum(w * p for w, p in zip(averaged.bases()["weight"], parts, strict=True))


def test_bases_and_how_alike_they_are(averaged, fitted):
    table = averaged.bases()
    assert table.shape == (3, 4)
    assert table.index.name == "basis"
    assert table.loc[0, ["gap", "z0", "z1"]].tolist() == pytest.approx([0, 1, 1])
    np.testing.assert_allclose(table.loc[1:, "z1"], 1.0, atol=1e-6)
    basis = fitted.report.basis
    for row, other in zip((1, 2), fitted.report.alternatives, strict=True):
        expected = (basis[:, 0] @ other).abs().max()
        assert table.loc[row, "z0"] == pytest.approx(expected.item())
    x = np.random.default_rng(0).standard_normal((400, 4))
    z = fitted.encode(x)
    for row, one in enumerate([single(averaged, c).encode(x) for c in range(3)]):
        signs = [np.corrcoef(one[:, k], z[:, k])[0, 1] for k in range(2)]
        assert min(signs) > 0.5, row


def test_inclusion_and_changes_are_the_mixture_of_each_basis(averaged, singles):
    expected = mean_of(averaged, [one.pips() for one in singles])
    np.testing.assert_allclose(averaged.pips(), expected, atol=1e-6)
    table, own = averaged.deltas(), [one.deltas() for one in singles]
    mean = mean_of(averaged, [one["mean"] for one in own])
    square = mean_of(averaged, [one["sd"] ** 2 + one["mean"] ** 2 for one in own])
    np.testing.assert_allclose(table["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(table["sd"], np.sqrt(square - mean**2), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        table["prior_pip"], mean_of(averaged, [one["prior_pip"] for one in own]), atol=1e-6
    )
    pip = table["pip"].clip(1e-9, 1 - 1e-9)
    seen = pip.between(1e-4, 1 - 1e-4)
    np.testing.assert_allclose(table["log_odds"][seen], np.log(pip / (1 - pip))[seen], atol=0.01)
    assert np.isfinite(table["log_odds"]).all()
    assert (table["lower"] <= table["mean"] + 1e-6).mean() > 0.9
    for node in ("leaf0", "leaf5"):
        expected = mean_of(averaged, [one.path_pips(node) for one in singles])
        np.testing.assert_allclose(averaged.path_pips(node), expected, atol=1e-6)
    expected = mean_of(averaged, [one.exceedance(0.5)["exceedance"] for one in singles])
    np.testing.assert_allclose(averaged.exceedance(0.5)["exceedance"], expected, atol=0.04)


def test_intervals_are_quantiles_of_the_mixture(averaged, singles):
    table = averaged.deltas(0.8)
    draws = np.concatenate([
        one.sample(round(20_000 * weight), seed=3)["deltas"]
        for one, weight in zip(singles, averaged.bases()["weight"], strict=True)
    ])  # fmt: skip
    known = averaged.guide.informed_arcs.numpy()
    for end, tail in (("lower", 0.1), ("upper", 0.9)):
        own = table[end].to_numpy().reshape(draws.shape[1:])
        share = (draws < own - 1e-6).mean(0), (draws <= own + 1e-6).mean(0)
        assert (share[0] < tail + 0.03)[known].all(), end
        assert (share[1] > tail - 0.03)[known].all(), end


@pytest.mark.parametrize("where", ["leaf0", "leaf5", None, "new"])
def test_predictions_are_the_mixture_of_each_basis(averaged, singles, where, data):
    env = tbr.NewLeaf("new", "leaf5") if where == "new" else where
    x = data.x[:7]
    found = averaged.predict(x, env, num_draws=2000)
    own = [one.predict(x, env) for one in singles]
    mean = mean_of(averaged, [one.mean for one in own])
    square = mean_of(averaged, [one.sd**2 + one.mean**2 for one in own])
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.sd, np.sqrt(square - mean**2), rtol=2e-3)
    draws = found.sample(20_000)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.06 * found.sd.max())
    np.testing.assert_allclose(draws.std(0), found.sd, rtol=0.2)  # tails are heavy
    inside = ((found.lower <= draws) & (draws <= found.upper)).mean((0, 1))
    np.testing.assert_allclose(inside, 0.9, atol=0.03)


def test_weights_at_nodes_act_on_the_latents_of_the_fit(averaged, singles, data, fitted):
    """So that latents times weights are what is predicted, and draws say the same."""
    x = data.x[:5]
    np.testing.assert_array_equal(averaged.encode(x), fitted.encode(x))
    design = np.concatenate([averaged.encode(x), np.ones((5, 1))], 1)
    weights = averaged.node_weights().query("node == 'leaf0'")
    mean = weights["mean"].to_numpy().reshape(3, 2)
    np.testing.assert_allclose(design @ mean, averaged.predict(x, "leaf0").mean, atol=1e-4)
    draws = averaged.sample(4000, seed=1)
    assert sorted(set(draws["basis"])) == [0, 1, 2]
    shares = np.bincount(draws["basis"].astype(int)) / 4000
    np.testing.assert_allclose(shares, averaged.bases()["weight"], atol=1e-3)
    path = averaged.tree.path("leaf0")
    total = draws["root_weights"] + draws["deltas"][:, path].sum(1)
    sd = weights["sd"].to_numpy().reshape(3, 2)
    np.testing.assert_allclose(total.mean(0), mean, atol=(5 * sd / 4000**0.5).max())
    np.testing.assert_allclose(total.std(0), sd, rtol=0.1)
    known = averaged.guide.informed_arcs.numpy()
    gates = draws["gates"].mean(0).transpose(0, 2, 1).reshape(len(known), -1)
    np.testing.assert_allclose(gates[known], averaged.pips()[known], atol=0.05)


def test_what_is_chosen_and_sets_come_from_the_mixture(averaged):
    chosen = averaged.select(0.2)
    assert (chosen["fdr"] <= 0.2).all()
    pips = averaged.deltas().set_index(["parent", "child", "latent", "outcome"])["pip"]
    own = chosen.set_index(["parent", "child", "latent", "outcome"])["pip"]
    assert (pips.loc[own.index] == own).all()
    sets = averaged.credible_sets(0.8)
    for _, row in sets.iterrows():
        best = max(pips[(*arc, row["latent"], row["outcome"])] for arc in row["arcs"])
        assert best - 0.05 <= row["coverage"]
        assert row["coverage"] >= 0.8
    assert "latents" in vars(averaged.summary())
    assert "Latents" in str(averaged.identification())


def test_a_guide_in_another_basis_is_that_of_a_fit_with_its_latents(averaged, fitted, data):
    """From rows encoded in the other basis rather than from statistics turned to it."""
    x, y, env = data.without("leaf5")
    y = y.copy()
    y[3, 1] = np.nan
    other = single(averaged, 1)
    design = other.align_design(x)[0]
    index = torch.tensor([data.tree.index(label) for label in env])
    scaled = (torch.as_tensor(y) - fitted.scaling.loc) / fitted.scaling.scale
    nodes = fitted.row_counts > 0
    guide = TreeGuide(other.model, nodes, 8)
    start = other.guide
    guide.start(start.node_moments().mean[0], start.delta_moments().mean)
    condition(guide, DesignRows(design, scaled.to(guide.head.prior.root_loc), index))
    assert torch.allclose(
        guide.delta_moments().inclusion, start.delta_moments().inclusion, atol=0.03
    )
    own, theirs = guide.node_moments(), start.node_moments()
    off = (own.mean - theirs.mean).abs() / own.var.sqrt()
    assert off.max() < 0.2


@pytest.mark.slow
def test_weights_go_by_the_elbo_of_what_outcomes_are_worth(fitted):
    table = tbr.average_bases(fitted, **EVERY).bases()
    worth = fitted.identification().worth
    expected = np.exp(-(table["gap"] - table["gap"].min()))
    np.testing.assert_allclose(table["weight"], expected / expected.sum(), atol=1e-12)
    assert table["gap"][1] > 5  # sparse changes do not stay so under a turn by half a radian
    check = replace(fitted.report.check, worth=worth / 4)
    quarter = replace(fitted, report=replace(fitted.report, check=check))
    np.testing.assert_allclose(
        tbr.average_bases(quarter, **EVERY).bases()["gap"], table["gap"] / 4, rtol=1e-6
    )


@pytest.mark.slow
def test_bases_far_behind_or_too_many_or_the_same_are_left_out(fitted):
    assert len(tbr.average_bases(fitted).bases()) == 1
    assert len(tbr.average_bases(fitted, max_bases=2, **EVERY).bases()) == 2
    same = fitted.report.basis[:, [1, 0]] * torch.tensor([1.0, -1.0])
    assert len(tbr.average_bases(with_rivals(fitted, same), **EVERY).bases()) == 1
    far = with_rivals(fitted, turned(same, ANGLE), gap=1000.0)
    assert len(tbr.average_bases(far, **EVERY).bases()) == 1


def test_one_basis_has_the_answers_of_the_fit(fitted, data):
    before = fitted.deltas()
    alone = tbr.average_bases(with_rivals(fitted))
    assert isinstance(alone.guide, AveragedGuide)
    assert alone.bases()["weight"].tolist() == [1.0]
    assert alone.pips().equals(fitted.pips())
    assert alone.deltas().equals(before)
    # Whether latents are determined goes by the rivals, which were taken away.
    chosen, expected = (one.select().drop(columns="determined") for one in (alone, fitted))
    assert chosen.equals(expected)
    assert alone.credible_sets().equals(fitted.credible_sets())
    assert alone.node_weights().equals(fitted.node_weights())
    assert alone.noise().equals(fitted.noise())
    for env in ("leaf0", "leaf5", None, tbr.NewLeaf("new", "leaf5")):
        one, two = (part.predict(data.x[:4], env) for part in (alone, fitted))
        np.testing.assert_array_equal(one.mean, two.mean)
        np.testing.assert_array_equal(one.sd, two.sd)
        np.testing.assert_array_equal(one.lower, two.lower)
    assert fitted.deltas().equals(before)


def test_noise_is_that_of_the_bases(averaged, singles):
    """By the moments of its logarithm, which is near where bases differ as much as here."""
    expected = mean_of(averaged, [one.noise()["mean"] for one in singles])
    np.testing.assert_allclose(averaged.noise()["mean"], expected, rtol=0.1)


def test_a_file_gives_the_same_answers(averaged, fitted, tmp_path, data):
    averaged.save(tmp_path / "averaged.pt")
    again = tbr.load(tmp_path / "averaged.pt")
    assert again.bases().equals(averaged.bases())
    assert again.pips().equals(averaged.pips())
    assert again.deltas().equals(averaged.deltas())
    x = data.x[:3]
    np.testing.assert_array_equal(
        again.predict(x, "leaf0").upper, averaged.predict(x, "leaf0").upper
    )
    fitted.save(tmp_path / "fitted.pt")
    from_file = tbr.average_bases(tbr.load(tmp_path / "fitted.pt"), **EVERY)
    np.testing.assert_allclose(
        from_file.pips(), tbr.average_bases(fitted, **EVERY).pips(), atol=1e-6
    )


@pytest.mark.slow
def test_after_an_update_all_rows_count(fitted, data):
    x, y, _ = data.rows("leaf5", 10, seed=0)
    updated = fitted.update(x, y, "leaf5")
    found = tbr.average_bases(updated, **EVERY)
    assert found.guide.informed_arcs.all()
    assert all(guide.informed_arcs.all() for guide in found.guide.bases)
    gaps = found.bases()["gap"], tbr.average_bases(fitted, **EVERY).bases()["gap"]
    assert not np.allclose(*gaps)


def test_a_fit_goes_on_from_an_average(averaged, data):
    again = quiet_fit(data, start=averaged)
    assert isinstance(again.guide, TreeGuide)
    truth = tbr.mcc(data.z, again.encode(data.x))
    assert truth == pytest.approx(tbr.mcc(data.z, averaged.encode(data.x)), abs=0.01)


@pytest.mark.parametrize("prior", [tbr.HorseshoePrior(), tbr.GaussianPrior()])
def test_priors_without_gates(prior):
    data = tbr.simulate(num_leaves=4, latent_dim=2, num_features=3, rows_per_leaf=25, seed=2)
    posterior = quiet_fit(data, prior=prior)
    rival = with_rivals(posterior, turned(posterior.report.basis, ANGLE))
    found = tbr.average_bases(rival, **EVERY)
    assert len(found.bases()) == 2
    parts = [single(found, c) for c in range(2)]
    mean = mean_of(found, [one.deltas()["mean"] for one in parts])
    np.testing.assert_allclose(found.deltas()["mean"], mean, atol=1e-5)
    assert (found.pips() == 1).all().all()
    assert found.deltas()["log_odds"].isna().all()
    predicted = mean_of(found, [one.predict(data.x[:5], "leaf0").mean for one in parts])
    np.testing.assert_allclose(found.predict(data.x[:5], "leaf0").mean, predicted, atol=1e-4)
    if isinstance(prior, tbr.HorseshoePrior):
        shrunk = mean_of(found, [one.shrinkage()["shrinkage"] for one in parts])
        np.testing.assert_allclose(found.shrinkage()["shrinkage"], shrunk, atol=1e-6)
    with pytest.raises(tbr.DataError, match="gates"):
        found.path_pips("leaf0")


def test_binary_outcomes():
    data = tbr.simulate(num_leaves=4, latent_dim=2, num_features=3, rows_per_leaf=60,
                        likelihood="bernoulli", seed=2)  # fmt: skip
    posterior = quiet_fit(data, likelihood="bernoulli")
    found = tbr.average_bases(
        with_rivals(posterior, turned(posterior.report.basis, ANGLE)), **EVERY
    )
    parts = [single(found, c) for c in range(2)]
    expected = mean_of(found, [one.predict(data.x[:9], "leaf1").mean for one in parts])
    np.testing.assert_allclose(found.predict(data.x[:9], "leaf1").mean, expected, atol=0.01)


def test_other_faces_take_it(averaged, data):
    pytest.importorskip("arviz_base", reason="needs ArviZ")
    from pyro_tbr.io.arviz import to_datatree

    x, y, env = data.without("leaf5")
    tree = to_datatree(averaged, x, y, env, num_draws=60)
    group = tree["posterior"]
    assert group["basis"].dims == ("chain", "draw")
    np.testing.assert_array_equal(group["deltas"].values[0], averaged.sample(60)["deltas"])
    predictive = tree["posterior_predictive"]["y"].values[0]
    expected = averaged.predict(x, env).mean
    assert np.abs(predictive.mean(0) - expected).mean() < 0.3 * np.std(y)


def test_plots_take_it(averaged):
    pytest.importorskip("matplotlib", reason="needs matplotlib").use("agg")
    from matplotlib import pyplot

    from pyro_tbr.plotting import plot_effect, plot_pips, plot_tree

    for axes in (plot_tree(averaged, "z0", outcome="y0"), plot_pips(averaged, outcome="y0"),
                 plot_effect(averaged, "z0", outcome="y0")):  # fmt: skip
        assert axes is not None
        pyplot.close("all")


@pytest.fixture(scope="module")
def known():
    return known_fit(*_known())


def _known():
    tree = tbr.Tree.from_parents({"a": "r", "b": "r"})
    return tree, *toy("ab", num_rows=20)


@pytest.mark.parametrize(("call", "message"), [
    (lambda a, f, k: tbr.average_bases(a), "already: give the one that fit"),
    (lambda a, f, k: tbr.average_bases(k), "no other basis: use the posterior itself"),
    (lambda a, f, k: tbr.average_bases(f, max_bases=0), "max_bases=0"),
    (lambda a, f, k: tbr.average_bases(f, max_bases=True), "max_bases=True"),
    (lambda a, f, k: tbr.average_bases(f, max_gap=-1), "max_gap=-1"),
    (lambda a, f, k: tbr.average_bases(f, max_gap=float("nan")), "max_gap=nan"),
    (lambda a, f, k: tbr.sample_posterior(a), "average over several"),
    (lambda a, f, k: a.update([[0.0] * 4], [[1.0, 1.0]], "leaf0"), "average_bases\\(\\) again"),
    (lambda a, f, k: a.guide.elbo(a.stats), "average over bases"),
    (lambda a, f, k: a.guide(), "average over bases"),
    (lambda a, f, k: f.bases(), "average_bases\\(posterior\\).bases"),
    (lambda a, f, k: a.convergence(), "sample_posterior"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused(call, message, averaged, fitted, known):
    with pytest.raises(tbr.DataError, match=message):
        call(averaged, fitted, known)


def test_guides_of_another_kind_and_reports_without_bases_are_refused(fitted):
    empty = replace(fitted.report, basis=torch.zeros(0, 0))
    with pytest.raises(tbr.DataError, match="holds no bases"):
        tbr.average_bases(replace(fitted, report=empty))
    other = tbr.MeanFieldGuide(fitted.model, fitted.row_counts > 0)
    with pytest.raises(tbr.DataError, match="MeanFieldGuide: fit with guide='tree'"):
        tbr.average_bases(replace(fitted, guide=other))


def test_statistics_in_another_basis_say_the_same(averaged):
    """The same weights in either basis leave the same residuals."""
    stats: Statistics = averaged.stats
    turn = averaged.guide.maps[1]
    own = averaged.guide.bases[1].node_moments().mean.double()
    zero = torch.zeros_like(own)
    there = stats.transform(turn).residual(own, zero)
    assert torch.allclose(there, stats.residual(turn @ own, zero), rtol=1e-6)
