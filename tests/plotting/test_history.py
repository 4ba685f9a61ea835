"""How a fit came about: something for every fit, or a line that says why not."""

import numpy as np
import pandas as pd
import pytest

from pyro_tbr.errors import DataError
from pyro_tbr.plotting import plot_history
from pyro_tbr.posterior.rivals import SAME_BASIS, latent_match


def _lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_a_trained_encoder_has_the_losses_of_all_stages(trained):
    _, posterior = trained
    history = posterior.history
    assert list(history["stage"].unique()) == ["choosing", "dense", "sparse"]
    held_out = history.set_index("stage")["held_out"].notna()
    assert held_out["choosing"].all()
    assert not held_out[["dense", "sparse"]].any()
    ax = plot_history(posterior)
    lines = _lines(ax)
    assert list(lines) == [
        "choosing: rows of training", "choosing: held-out rows",
        "dense: rows of training", "sparse: rows of training",
    ]  # fmt: skip
    for label, line in lines.items():
        rows = history[history["stage"] == label.split(":")[0]]
        column = "held_out" if "held-out" in label else "loss"
        np.testing.assert_array_equal(line.get_ydata(), rows[column])
    starts = [line.get_xdata()[0] for line in lines.values()]
    assert starts == sorted(starts)  # stage after stage
    chosen = history[history["stage"] == "choosing"]
    best = chosen["step"].iloc[chosen["held_out"].argmin()]  # where training on all rows ends
    last = chosen["step"].max()
    assert f"steps that trained the encoder: choosing {last}, dense {best}, sparse 20" in str(
        posterior.report
    )


def test_a_closed_form_has_the_evidence_of_the_search(learnt):
    _, posterior = learnt
    report = posterior.report
    assert posterior.history.empty
    ax = plot_history(posterior)
    behind = np.append(0.0, report.evidence - report.alternative_evidence)
    same = [True] + [latent_match(report.basis, o) > SAME_BASIS for o in report.alternatives]
    points = np.concatenate([line.get_xydata() for line in _lines(ax).values()])
    points = points[np.argsort(points[:, 0])]
    np.testing.assert_allclose(points[:, 1], behind)
    assert ax.get_legend().get_texts()[0].get_text() == (
        f"latents of the fit ({sum(same)} of {len(same)})"
    )
    assert ax.get_ylim()[0] > behind.max()  # the best at the top


def test_a_part_can_be_asked_for(trained, learnt):
    assert "solution" in plot_history(trained[1], "search").get_xlabel()
    with pytest.raises(DataError, match="the fit had no training; part='search' is there"):
        plot_history(learnt[1], "training")
    with pytest.raises(DataError, match="part='loss' is not known"):
        plot_history(learnt[1], "loss")


def test_known_latents_have_no_history(awkward):
    with pytest.raises(DataError, match="nothing to show; its latents were known from the start"):
        plot_history(awkward[-1])


def test_steps_of_later_stages_stand_behind_those_before(learnt, monkeypatch):
    stages = ["choosing"] * 2 + ["dense"] * 3
    rows = {"stage": stages, "step": [1, 2, 1, 2, 3], "loss": [3.0, 2, 4, 2, 1], "held_out": np.nan}
    monkeypatch.setattr(type(learnt[1]), "history", pd.DataFrame(rows))
    lines = _lines(plot_history(learnt[1]))
    assert [list(line.get_xdata()) for line in lines.values()] == [[1, 2], [3, 4, 5]]
