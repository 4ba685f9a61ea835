"""Answers about some changes are those about all, though only what they need is worked out."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.posterior.tables import changes
from tests.posterior.small_fits import BALANCED, known_fit, toy


def two_outcomes(gates):
    """A leaf without rows, and gates that are off change a little."""
    x, y, env = toy("abc", num_rows=40, shift={"a": 2.0}, num_outcomes=2)
    prior = tbr.SpikeSlabPrior(gates=gates, spike_scale=0.05, root_scale=1.0)
    return known_fit(BALANCED, x, y, env, prior=prior)


@pytest.fixture(scope="module")
def separate():
    return two_outcomes("separate")


@pytest.fixture(scope="module")
def grouped():
    return two_outcomes("grouped")


@pytest.fixture(params=["separate", "grouped"])
def outcomes(request):
    return request.getfixturevalue(request.param)


def as_rows(table, whole):
    """Which rows of the whole table these are."""
    keys = ["child", "latent", "outcome"]
    place = {key: row for row, key in enumerate(whole[keys].itertuples(index=False, name=None))}
    return [place[key] for key in table[keys].itertuples(index=False, name=None)]


@pytest.mark.parametrize("name", ["separate", "grouped", "held_out", "several"])
def test_a_summary_and_a_selection_have_rows_of_all_changes(request, name):
    posterior = request.getfixturevalue(name).copy()
    chosen, shown = posterior.select(fdr=0.5), posterior.summary().changes
    whole = posterior.deltas()
    assert len(chosen) > 0
    for table in (chosen.drop(columns=["fdr", "determined"]), shown):
        expected = whole.iloc[as_rows(table, whole)].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, expected[list(table.columns)], rtol=1e-12)


def test_rows_in_any_order_and_none(outcomes):
    whole = changes(outcomes, 0.8)
    for rows in (np.array([5, 0, 11]), np.array([], dtype=np.int64)):
        expected = whole.iloc[rows].reset_index(drop=True)
        pd.testing.assert_frame_equal(changes(outcomes, 0.8, rows), expected, rtol=1e-12)


def test_quantiles_are_those_of_the_draws(outcomes):
    table, guide = outcomes.deltas(level=0.8), outcomes.guide
    generator = torch.Generator().manual_seed(173_205)
    draws = torch.cat(list(guide.sample_arcs("deltas", 4000, generator))).double().flatten(1)
    unit = outcomes.weight_unit.expand(guide.head.prior.delta_shape).flatten()
    for name, probability in [("lower", 0.1), ("upper", 0.9)]:
        expected = (torch.quantile(draws, probability, dim=0) * unit).numpy()
        np.testing.assert_allclose(table[name], expected, rtol=1e-5, atol=1e-7)
    sides = torch.stack([(draws < 0).double().mean(0), (draws > 0).double().mean(0)])
    np.testing.assert_allclose(table["lfsr"], 1 - sides.amax(0), atol=1e-12)


def test_messages_are_kept_until_the_guide_moves_and_go_nowhere(held_out):
    guide = held_out.copy().guide
    kept = guide.messages()
    assert guide.messages() is kept
    anew = guide.factor.inside(guide.evidence())
    assert torch.equal(kept.log_evidence, anew.log_evidence)
    for one, other in zip(kept.node, anew.node, strict=True):
        assert all(map(torch.equal, sum(one, ()), sum(other, ())))
    assert pickle.loads(pickle.dumps(guide))._messages is None
    guide.refresh()
    assert guide._messages is None
    assert guide.messages() is not kept


def test_identification_is_asked_once_and_its_tables_are_the_askers(linear, monkeypatch):
    posterior = linear.copy()
    first = posterior.identification()
    first.latents["used"] = False
    first.separation.iloc[:, :] = -1.0

    def asked_again(*_):
        raise AssertionError("the answer is known")

    monkeypatch.setattr(type(posterior.guide), "weight_evidence", asked_again)
    again = posterior.identification()
    assert again.latents["used"].all()
    assert (again.separation.to_numpy() != -1).all()
    assert posterior.summary().latents["used"].all()
