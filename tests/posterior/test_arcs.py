"""Whether anything changed along an arc: several outcomes, several latents, every guide."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.heads.guide import Guide
from tests.posterior.small_fits import BALANCED, FAST, NOISE_SCALE, toy


def fit_of(gates, guide="tree", num_outcomes=3, leaves="abd", **kwargs):
    """Two latents of which the first changes for all outcomes at "a"; no rows at "c"."""
    x, y, env = toy(leaves, 25, shift={"a": 1.2}, num_outcomes=num_outcomes)
    x = np.concatenate([x, np.random.default_rng(5).standard_normal((len(x), 1))], 1)
    prior = tbr.SpikeSlabPrior(inclusion_prob=0.2, slab_scale=1.0, root_scale=1.0, gates=gates)
    likelihood = tbr.GaussianLikelihood(scale=NOISE_SCALE)
    model = tbr.TreeModel(BALANCED, 2, "identity", prior, likelihood)
    return tbr.fit(model, x, y, env, guide=guide, progress=False, options=FAST, **kwargs)


@pytest.fixture(scope="module")
def fits():
    return {kind: fit_of(kind) for kind in ("separate", "grouped", "shared")}


@pytest.mark.parametrize("kind", ["separate", "grouped", "shared"])
def test_table(fits, kind):
    posterior = fits[kind]
    table = posterior.arc_pips()
    assert list(table.columns) == [*posterior.latent_names, "any_slope", "any"]
    assert table.index.equals(posterior.pips().index)
    assert table.index.names == ["parent", "child"]
    assert ((table >= 0) & (table <= 1)).all(axis=None)
    slopes, whole = table[["z0", "z1"]], table[["z0", "z1", "intercept"]]
    known = posterior.guide.informed_arcs.numpy()
    for columns, name in ((slopes, "any_slope"), (whole, "any")):
        expected = 1 - (1 - columns).prod(axis=1)
        np.testing.assert_allclose(table[name][known], expected[known])
    pips = posterior.guide.delta_moments().inclusion
    assert (whole.to_numpy() >= pips.amax(-1).numpy() - 0.005).all()
    assert table.loc[("u", "a"), "z0"] > 0.95


def test_separate_gates_are_independent(fits):
    posterior = fits["separate"]
    pips = posterior.guide.delta_moments().inclusion.double()
    found = posterior.arc_pips().iloc[:, :3].to_numpy()
    np.testing.assert_allclose(found, (1 - (1 - pips).prod(-1)).numpy(), atol=1e-6)


def test_shared_gates_are_those_of_any_outcome(fits):
    found = fits["shared"].arc_pips()["z0"].to_numpy()
    pips = fits["shared"].guide.delta_moments().inclusion[:, 0].numpy()
    assert np.abs(found - pips.max(1)).max() < 0.02


def test_arcs_without_rows_have_the_prior(fits):
    """Grouped gates are open together more often than separate ones, so some less often."""
    arc = ("v", "c")
    assert fits["separate"].arc_pips().loc[arc, "z0"] == pytest.approx(1 - 0.8**3, abs=1e-6)
    assert fits["shared"].arc_pips().loc[arc, "z0"] == pytest.approx(0.2, abs=1e-6)
    grouped = fits["grouped"]
    some = grouped.arc_pips().loc[arc, "z0"]
    assert 0.2 < some < 1 - 0.8**3
    gates = grouped.sample(8_000, seed=1)["gates"]
    place = BALANCED.arcs.index(arc)
    assert gates[:, place, 0].max(-1).mean() == pytest.approx(some, abs=0.03)


def test_one_outcome_alone(fits):
    for posterior in fits.values():
        pips = posterior.pips()
        for outcome in posterior.outcome_names:
            found = posterior.arc_pips(outcome)
            np.testing.assert_allclose(
                found.iloc[:, :3].to_numpy(), pips[outcome].to_numpy(), atol=2e-3
            )
        with pytest.raises(tbr.DataError, match=r"outcome='y7' .*'y0', 'y1', 'y2'"):
            posterior.arc_pips("y7")


def test_one_outcome_is_the_pips():
    posterior = fit_of("grouped", num_outcomes=1)
    found = posterior.arc_pips().iloc[:, :3]
    pd.testing.assert_frame_equal(found, posterior.pips(), atol=1e-6)


def test_mean_field_and_any_other_guide():
    posterior = fit_of("grouped", "mean_field")
    pips = posterior.guide.delta_moments().inclusion.detach().double()
    known = posterior.guide.informed_arcs
    found = torch.tensor(posterior.arc_pips().iloc[:, :3].to_numpy())
    torch.testing.assert_close(found[known], (1 - (1 - pips).prod(-1))[known], atol=1e-6, rtol=0)
    by_draws = Guide.arc_inclusion(posterior.guide, torch.arange(3), torch.tensor(True))
    assert (by_draws.each - found).abs().max() < 0.04
    slopes = torch.tensor(posterior.arc_pips()["any_slope"].to_numpy())
    assert (by_draws.slopes - slopes).abs().max() < 0.04


@pytest.mark.slow
def test_sampled(fits):
    sampled = tbr.sample_posterior(fits["grouped"], num_sweeps=1000)
    found, fitted = sampled.arc_pips(), fits["grouped"].arc_pips()
    assert (found - fitted).abs().to_numpy().max() < 0.1


def test_without_gates():
    x, y, env = toy("abcd", 20, num_outcomes=2)
    model = tbr.TreeModel(BALANCED, 1, "identity", tbr.GaussianPrior(1.0, 1.0))
    posterior = tbr.fit(model, x, y, env, progress=False, options=FAST)
    with pytest.raises(tbr.DataError, match=r"arc_pips\(\) needs gates"):
        posterior.arc_pips()


def test_saved_loaded_updated(fits, tmp_path):
    for kind, posterior in fits.items():
        posterior.save(tmp_path / "fit.pt")
        again = tbr.load(tmp_path / "fit.pt")
        assert again.model.prior.gates == kind
        pd.testing.assert_frame_equal(again.arc_pips(), posterior.arc_pips())
        pd.testing.assert_frame_equal(again.deltas(), posterior.deltas())
        rng = np.random.default_rng(0)
        more = again.update(rng.standard_normal((12, 2)), rng.standard_normal((12, 3)), "c")
        arc = ("v", "c")
        assert more.arc_pips().loc[arc, "z0"] != pytest.approx(again.arc_pips().loc[arc, "z0"])


def test_files_of_before_have_separate_gates(fits, tmp_path):
    """What version 0.3.0 wrote says nothing of gates."""
    fits["separate"].save(tmp_path / "fit.pt")
    content = torch.load(tmp_path / "fit.pt", weights_only=True)

    def without(part):
        if isinstance(part, dict):
            return {key: without(value) for key, value in part.items() if key != "gates"}
        if isinstance(part, list):
            pairs = [one for one in part if not (isinstance(one, list) and one[:1] == ["gates"])]
            return [without(one) for one in pairs]
        return part

    assert "gates" in str(content)
    content["posterior"]["model"] = without(content["posterior"]["model"])
    assert "gates" not in str(content["posterior"]["model"])
    torch.save(content, tmp_path / "old.pt")
    old = tbr.load(tmp_path / "old.pt")
    assert old.model.prior.gates == "separate"
    pd.testing.assert_frame_equal(old.pips(), fits["separate"].pips())


def test_summary_has_the_sharing(fits):
    assert (fits["shared"].summary().latents["sharing"] == 1).all()
    assert fits["grouped"].summary().latents["sharing"].between(0.1, 0.99).all()
    assert "sharing" not in fits["separate"].summary().latents


def test_scikit_learn_and_arviz_faces():
    pytest.importorskip("sklearn")
    pytest.importorskip("arviz_base")
    from pyro_tbr.io.arviz import to_datatree
    from pyro_tbr.io.sklearn import TreeRegressor

    x, y, env = toy(BALANCED.leaves, 15, shift={"a": 1.5}, num_outcomes=2)
    frame = pd.DataFrame({"feature": x[:, 0], "leaf": env})
    prior = tbr.SpikeSlabPrior(gates="grouped")
    made = TreeRegressor(BALANCED, latent_dim=1, encoder="identity", prior=prior,
                         env_column="leaf", options=FAST)  # fmt: skip
    fitted = made.fit(frame, y)
    assert fitted.predict(frame).shape == y.shape
    data = to_datatree(fitted.posterior_, num_draws=50)
    assert data["posterior"]["sharing"].shape == (1, 50, 2)


def test_new_leaves_and_draws(fits):
    posterior = fits["shared"]
    x = np.ones((4, 2))
    leaf = tbr.NewLeaf("new", parent="u")
    assert np.isfinite(posterior.predict(x, leaf).lower).all()
    assert np.isfinite(posterior.predict(x, "c").lower).all()
    draws = posterior.sample(500, seed=0)
    place = BALANCED.arcs.index(("v", "c"))
    gates = draws["gates"][:, place, 0]
    assert (gates.min(-1) == gates.max(-1)).all()  # all outcomes change or none
    assert draws["sharing"].shape == (500, 3, 1)
