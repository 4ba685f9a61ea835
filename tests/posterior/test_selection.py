"""Lists with a bounded Bayesian false discovery rate, and sizes of changes, against draws."""

from dataclasses import replace

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.posterior import select_at_fdr
from tests.posterior.small_fits import BALANCED, known_fit, toy

PIPS = np.array([0.99, 0.97, 0.80, 0.30, 0.02])
NAN = float("nan")


@pytest.mark.parametrize(
    ("fdr", "num", "level"), [(0.1, 3, 0.08), (0.05, 2, 0.02), (0.005, 0, 0.0), (0.01, 1, 0.01)]
)
def test_largest_list_within_the_level(fdr, num, level):
    order = np.array([3, 0, 4, 2, 1])
    found = select_at_fdr(PIPS[order], fdr)
    assert order[found.chosen].tolist() == list(range(num))
    assert found.fdr == pytest.approx(level, abs=1e-12)
    assert found.running.tolist() == pytest.approx([0.01, 0.02, 0.08][:num], abs=1e-12)


def test_log_odds_rank_what_rounds_to_one_and_ties_keep_their_order():
    found = select_at_fdr([1.0, 0.5, 1.0, 1.0], 0.05, order_by=[40.0, 0.0, 90.0, 40.0])
    assert found.chosen.tolist() == [2, 0, 3]
    assert found.fdr == 0.0
    assert select_at_fdr([], 0.05).chosen.tolist() == []


@pytest.mark.parametrize(("pips", "fdr"), [(PIPS, 1.0), (PIPS, -0.1), (PIPS, NAN), ([NAN], 0.1),
                                           ([1.1], 0.1)])  # fmt: skip
def test_no_probabilities_are_refused(pips, fdr):
    with pytest.raises(tbr.DataError, match="0 to"):
        select_at_fdr(pips, fdr)


def test_a_table_of_pips_is_refused():
    with pytest.raises(tbr.DataError, match=r"one dimension expected, received \(2, 2\)"):
        select_at_fdr([[0.1, 0.9], [0.5, 0.5]], 0.1)


@pytest.fixture(scope="module")
def changed():
    x, y, env = toy("abcd", shift={"d": 3.0, "a": -2.0})
    return known_fit(BALANCED, x, y, env, rate=0.1, slab=2.0)


def test_selection_is_rows_of_deltas_surest_first(changed):
    found = changed.select(fdr=0.05)
    deltas = changed.deltas()
    assert list(found.columns) == [*deltas.columns, "fdr", "determined"]
    assert found["child"].tolist() == ["d", "a"]
    assert found["log_odds"].is_monotonic_decreasing
    level = (1 - found["pip"]).mean()
    assert found.attrs["fdr"] == pytest.approx(level, abs=1e-9)
    assert found["fdr"].iloc[-1] == pytest.approx(level, abs=1e-9)
    # One more would be too many.
    assert (1 - np.sort(deltas["pip"])[::-1][: len(found) + 1]).mean() > 0.05
    rows = deltas.set_index("child").loc[found["child"], "mean"]
    assert rows.tolist() == found["mean"].tolist()


def test_nothing_selected_is_an_empty_table_with_its_columns():
    posterior = known_fit(BALANCED, *toy("abcd", num_rows=50, noise=1.0), noise=1.0, rate=0.1)
    found = posterior.select()
    assert found.empty
    assert list(found.columns) == [*posterior.deltas().columns, "fdr", "determined"]
    assert found.attrs["fdr"] == 0.0


def test_arcs_without_data_are_not_selected():
    """At a prior rate of 0.99 an arc without data has that PIP, but nothing was found there."""
    x, y, env = toy("abc", shift={"a": 3.0, "b": -2.0, "c": 1.0})
    posterior = known_fit(BALANCED, x, y, env, rate=0.99, slab=2.0)
    assert posterior.pips().loc[("v", "d"), "z0"] == pytest.approx(0.99)
    found = posterior.select(fdr=0.3)
    assert len(found) >= 4
    assert "d" not in set(found["child"])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_exceedance_is_the_share_of_draws(held_out, threshold):
    """Of other draws; includes an arc without data."""
    num = 4000
    draws = held_out.sample(num, seed=5)["deltas"]
    share = (np.abs(draws) > threshold).mean(0).ravel()
    table = held_out.exceedance(threshold)
    assert list(table.columns) == [
        "parent", "child", "latent", "outcome", "exceedance", "threshold",
    ]  # fmt: skip
    assert (table["threshold"] == threshold).all()
    error = 5 * np.sqrt(share * (1 - share) / num) * np.sqrt(2) + 1e-3
    assert (np.abs(table["exceedance"] - share) < error).all()


def test_exceedance_is_in_the_units_of_the_outcome(several):
    one = several.exceedance(0.4)
    scaling = several.scaling._replace(scale=1000 * several.scaling.scale)
    scaled = replace(several, scaling=scaling)
    assert scaled.exceedance(400.0)["exceedance"].to_numpy() == pytest.approx(
        one["exceedance"].to_numpy(), abs=1e-3
    )


def test_exceedance_of_nothing_is_the_pip_where_zeros_are_exact(several):
    x, y, env = toy("abcd", shift={"a": 0.3, "c": 1.0})
    posterior = known_fit(BALANCED, x, y, env)
    pip, found = posterior.deltas()["pip"], posterior.exceedance(0.0)["exceedance"]
    assert pip.between(0.2, 0.8).any()
    assert (np.abs(pip - found) < 5 * np.sqrt(pip * (1 - pip) / 4000) + 0.015).all()
    assert (several.exceedance(0.0)["exceedance"] == 1).all()  # there all change a little


@pytest.fixture(scope="module")
def horseshoe():
    x, y, env = toy("abc", shift={"a": 2.0})
    return known_fit(BALANCED, x, y, env, prior=tbr.HorseshoePrior(expected_num_nonzero=1))


@pytest.fixture(scope="module")
def changes(horseshoe):
    """Draws of its changes, (S, A)."""
    return horseshoe.sample(20_000, seed=2)["deltas"][..., 0, 0]


def test_intervals_of_a_horseshoe_are_quantiles_of_its_changes(horseshoe, changes):
    """A change shrunk to zero has tails: mean and sd would give another interval."""
    table = horseshoe.deltas(level=0.8)
    draws = changes
    lower, upper = np.quantile(draws, [0.1, 0.9], axis=0)
    assert np.abs((table["lower"] - lower) / table["sd"]).max() < 0.1
    assert np.abs((table["upper"] - upper) / table["sd"]).max() < 0.1
    sign = np.maximum((draws > 0).mean(0), (draws < 0).mean(0))
    assert np.abs(table["lfsr"] - (1 - sign)).max() < 0.04
    assert table.equals(horseshoe.deltas(level=0.8))


def test_exceedance_of_a_horseshoe_also_where_there_are_no_data(horseshoe, changes):
    """On the silent arc the law has heavy tails: a normal of its variance would be far off."""
    table = horseshoe.exceedance(1.0).set_index("child")["exceedance"]
    draws = np.abs(changes) > 1.0
    share = dict(zip(horseshoe.deltas()["child"], draws.mean(0), strict=True))
    assert table["a"] > 0.95
    for child in ("a", "b", "d"):
        assert table[child] == pytest.approx(share[child], abs=0.02)


def test_shrinkage_has_the_labels_of_the_changes(horseshoe, several):
    table, deltas = horseshoe.shrinkage(), horseshoe.deltas()
    names = ["parent", "child", "latent", "outcome"]
    assert list(table) == [*names, "shrinkage"]
    assert table[names].equals(deltas[names])
    kappa = table.set_index("child")["shrinkage"]
    assert kappa["a"] < 0.1  # where the change is
    assert 0.5 < kappa["b"] <= 1
    with pytest.raises(tbr.DataError, match="horseshoe's, SpikeSlabPrior has none: use pips"):
        several.shrinkage()


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.select(),
        lambda p: p.credible_sets(),
        lambda p: p.path_pips("a"),
    ],
)
def test_priors_without_gates_say_what_to_use(horseshoe, call):
    with pytest.raises(tbr.DataError, match=r"exceedance\(threshold\)"):
        call(horseshoe)
    assert horseshoe.deltas()["log_odds"].isna().all()


@pytest.mark.parametrize("threshold", [-0.1, float("inf"), NAN])
def test_thresholds_that_are_no_sizes_are_refused(changed, threshold):
    with pytest.raises(tbr.DataError, match="threshold"):
        changed.exceedance(threshold)
