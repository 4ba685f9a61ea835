"""What a fit says of itself: the verdict everywhere, changes worth a look, short texts."""

import dataclasses
import re

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataWarning, IdentificationWarning
from pyro_tbr.posterior.fit_report import FitReport
from tests.posterior.small_fits import CHERRY, FAST, known_fit, toy


@pytest.fixture(scope="module")
def doubtful(sim):
    """Two latents of one outcome at three environments: nothing determines them."""
    x, y, env = sim.without(["leaf3", "leaf4", "leaf5"])
    model = tbr.TreeModel(sim.tree, 2, encoder="linear")
    with pytest.warns(IdentificationWarning, match="NOT determined"):
        return tbr.fit(model, x, y, env, progress=False, options=FAST)


def test_the_verdict_stands_in_summary_and_selection_after_loading_too(doubtful, tmp_path):
    doubtful.save(tmp_path / "fit.pt")
    for posterior in (doubtful, tbr.load(tmp_path / "fit.pt")):
        found = posterior.identification()
        assert found.verdict.startswith("Latents NOT determined (3 environments times 1 outcomes")
        assert "Read predictions and effects() of features, not PIPs of slopes." in found.verdict
        summary, selected = posterior.summary(), posterior.select(fdr=0.5)
        assert summary.verdict == selected.attrs["verdict"] == found.verdict
        assert not summary.determined
        assert found.verdict in str(summary).splitlines()
        assert found.verdict in summary._repr_html_()
        slopes = selected["latent"] != "intercept"
        assert len(selected)
        assert not selected["determined"][slopes].any()
        assert selected["determined"][~slopes].all()


def test_known_latents_have_nothing_to_determine(several):
    found = several.identification()
    assert found.known
    assert found.verdict == "Latents are known."
    assert several.select(fdr=0.3)["determined"].all()


def test_answers_of_the_identification_are_copies(several):
    found = several.identification()
    found.latents["used"] = False
    found.separation.iloc[:] = -1.0
    assert several.identification().latents["used"].all()
    assert not (several.identification().separation == -1).any(axis=None)


def test_surest_changes_are_of_arcs_with_data_and_latents_in_use(held_out):
    """The PIP of an arc without data is the prior's, 0.3, above that of most others."""
    changes = held_out.summary().changes
    assert "leaf5" not in set(changes["child"])
    table = held_out.deltas()
    assert (table[table["child"] == "leaf5"]["pip"] > 0.29).all()
    assert (changes["pip"].diff().dropna() <= 0).all()


def test_a_latent_that_is_not_used_has_no_sure_changes(linear):
    report = dataclasses.replace(linear.report, rank=1)  # as where the second does not exist
    posterior = dataclasses.replace(linear, report=report)
    assert posterior.identification().unused == ("z1",)
    assert posterior.identification().verdict.endswith(" Not used: z1.")
    summary = posterior.summary()
    assert "z1" in set(linear.summary().changes["latent"])
    assert set(summary.changes["latent"]) == {"z0", "intercept"}
    assert not summary.latents.loc["z1", "used"]


def test_nodes_without_a_name_are_told_below_the_changes():
    tree = tbr.Tree.from_newick("((a,b),(c,d));")
    x, y, env = toy("abcd", shift={"a": 2.0, "b": 2.0})
    summary = known_fit(tree, x, y, env).summary()
    assert "inner1 (a, b)" in summary.nodes
    assert "  inner1 (a, b)" in str(summary).splitlines()
    assert "inner1 (a, b)" in summary._repr_html_()


def test_one_environment_is_never_determined():
    x, y, env = toy("a", num_rows=80)
    with pytest.warns(IdentificationWarning, match="all rows are of one environment"):
        posterior = known_fit(CHERRY, x, y, env)
    assert not posterior.identification().determined
    assert "one environment" in posterior.summary().verdict


def test_more_latents_than_features_are_never_determined(sim):
    model = tbr.TreeModel(sim.tree, 5, encoder="linear")
    with pytest.warns(IdentificationWarning, match="latent_dim=5 is above the number of features"):
        posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=FAST)
    assert not posterior.identification().determined


@pytest.mark.parametrize("columns", [1, 2])
def test_outcomes_of_0_and_1_name_their_likelihood(columns):
    x, y, env = toy("ab", num_rows=40)
    y = (y > 0).astype(float)
    y[3] = np.nan
    table = y if columns == 1 else np.stack([y, x[:, 0]], 1)
    which = "y holds" if columns == 1 else "y: 'y0' hold"
    with pytest.warns(DataWarning, match=f"{re.escape(which)}.* 0 and 1 alone.*'bernoulli'"):
        known_fit(CHERRY, x, table, env)


@pytest.mark.parametrize("case", [
    (0.02, 5, "5 folds: rows held out from training fit as well as rows of training"),
    (-0.298, 5, "fit 30% better than rows of training"),
    (0.3, 5, "fit 30% worse than rows of training"),
    (0.3, 0, "the one encoder.*30% worse.*too sure: leave options.cross_fit to the fit"),
    (2.0, 5, "200% worse.*learns its rows by heart"),
])  # fmt: skip
def test_how_well_held_out_rows_fit_is_said_plainly(case):
    optimism, folds, expected = case
    report = FitReport(rank=2, optimism=optimism, folds=folds, options={"cross_fit": folds})
    text = report.how_latents
    assert re.search(expected, text)
    assert not re.search(r"-\d", text)


def test_what_is_printed_is_short(linear, doubtful, sim):
    report = str(linear.report)
    assert len(report.splitlines()) <= 12
    assert "seed 0" in report
    assert "restarts=4" in report
    for reason in doubtful.report.check.reasons:
        assert reason in str(doubtful.report)
    bare = dataclasses.replace(linear.report, options={}, check=None)
    assert "options not kept" in repr(bare)
    text = repr(linear.model)
    assert len(text.splitlines()) <= 12
    assert all(word in text for word in ("2 latents", "'linear', 4 features", "SpikeSlabPrior"))
    unbuilt = repr(tbr.TreeModel(sim.tree, None, encoder="linear"))
    assert "latent_dim to be chosen" in unbuilt
    assert "not built yet" in unbuilt


def test_notebooks_show_posterior_summary_and_tree(linear):
    shown = linear._repr_html_()
    assert shown == linear.summary()._repr_html_()
    assert shown.count("<table>") == 2
    assert linear.identification().verdict in shown
    tree = tbr.Tree.from_parents({"<b>": "r & s", "c": "r & s"})._repr_html_()
    assert "├─ &lt;b&gt;" in tree
    assert "r &amp; s" in tree
    star = tbr.Tree.from_parents(dict.fromkeys(range(200), "r"))._repr_html_()
    assert "... and 141 more nodes" in star
