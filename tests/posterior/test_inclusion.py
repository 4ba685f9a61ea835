"""Log odds and path PIPs against enumeration of all patterns of changes."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from tests.oracles import all_gates, enumerate_posterior
from tests.posterior.small_fits import BALANCED, CHAIN, known_fit, toy
from tests.tree.small_trees import SMALL_TREES, dense_paths


def restricted_evidence(posterior, gates, outcome=0):
    """Log evidence of one latent and outcome over these patterns of changes only."""
    guide = posterior.guide
    law, (root_loc, root_scale) = guide.factor.arc_law(), guide.factor.root_law()
    num_arcs = posterior.tree.num_arcs
    return enumerate_posterior(
        dense_paths(posterior.tree),
        guide.eta[0, outcome],
        guide.lam[0, outcome],
        law.prob[0, outcome, :, 1].expand(num_arcs),
        law.var[0, outcome, :, 1].sqrt().expand(num_arcs),
        root_scale[0, outcome].item(),
        root_loc[0, outcome].item(),
        gates=gates,
    ).log_evidence


@pytest.mark.parametrize("name", ["one arc", "cherry", "balanced", "caterpillar", "mixed"])
def test_path_pips_match_enumeration(name):
    tree = SMALL_TREES[name]
    shift = dict(zip(tree.leaves, (1.5, 1.5, 0.4, -0.6, 0.0, 0.0), strict=False))
    posterior = known_fit(tree, *toy(tree.leaves, 20, 1.0, shift, 2), noise=1.0)
    gates = all_gates(tree.num_arcs)
    for node in tree.nodes:
        table = posterior.path_pips(node)
        arcs = tree.path(node)
        off = gates[(gates[:, arcs] == 0).all(1)]
        for q, outcome in enumerate(posterior.outcome_names):
            whole, none = (restricted_evidence(posterior, g, q) for g in (gates, off))
            exact = 1 - torch.exp(none - whole).item()
            assert table.loc["z0", outcome] == pytest.approx(exact, abs=0.01)


def test_path_of_a_chain_is_sure_where_its_arcs_are_not():
    """Case O-05: 0.441 each, 0.977 together."""
    posterior = known_fit(CHAIN, *toy("ab", shift={"a": 2.0}))
    assert posterior.pips().loc[("u", "v"), "z0"] == pytest.approx(0.44, abs=0.02)
    found = posterior.path_pips("a")
    assert isinstance(found, pd.Series)
    assert found.index.name == "latent"
    assert found["z0"] == pytest.approx(0.977, abs=0.005)
    assert posterior.path_pips("r")["z0"] == 0.0
    single = posterior.pips().loc[("r", "b"), "z0"]
    assert posterior.path_pips("b")["z0"] == pytest.approx(single, abs=1e-9)


def test_path_of_several_outcomes_is_a_table(several):
    leaf = several.tree.leaves[0]
    table = several.path_pips(leaf)
    assert list(table.index) == list(several.latent_names)
    assert list(table.columns) == list(several.outcome_names)
    assert table.columns.name == "outcome"
    with pytest.raises(tbr.TreeError):
        several.path_pips("nowhere")


def test_path_is_the_share_of_draws(several):
    num = 4000
    gates = several.sample(num, seed=9)["gates"]
    for leaf in several.tree.leaves[:3]:
        arcs = several.tree.path(leaf)
        share = gates[:, arcs].max(1).mean(0)
        error = 5 * np.sqrt(share * (1 - share) / num) + 0.015
        assert (np.abs(several.path_pips(leaf).to_numpy() - share) < error).all()


def test_path_of_mean_field_is_a_product():
    posterior = known_fit(CHAIN, *toy("ab", shift={"a": 1.0}), guide="mean_field")
    pips = posterior.pips()["z0"]
    off = np.prod([1 - pips[arc] for arc in (("r", "u"), ("u", "v"), ("v", "a"))])
    assert posterior.path_pips("a")["z0"] == pytest.approx(1 - off, abs=1e-9)


def test_log_odds_are_the_logit_of_the_pips():
    table = known_fit(BALANCED, *toy("abcd", 20, shift={"d": 0.7})).deltas()
    assert table["log_odds"].to_numpy() == pytest.approx(
        np.log(table["pip"] / (1 - table["pip"])), abs=1e-6
    )


def test_log_odds_stay_finite_and_ordered_where_pips_round_to_one():
    """Case O-20; of sure changes against enumeration, which has no rounding.

    A change at one leaf could also be changes at all others, so it takes many for a PIP of 1.
    """
    tree = tbr.Tree.from_parents(dict.fromkeys("abcdefgh", "r"))
    data = toy(tree.leaves, 2000, noise=0.01, shift={"a": 2.0, "b": 3.0}, num_outcomes=2)
    posterior = known_fit(tree, *data, noise=0.01, rate=0.1, slab=2.0)
    table = posterior.deltas()
    assert table["pip"].between(0, 1).all()
    assert np.isfinite(table["log_odds"]).all()
    assert table.sort_values("log_odds")["pip"].is_monotonic_increasing
    gates = all_gates(tree.num_arcs)
    sure = table[table["pip"] == 1.0]
    assert len(sure) == 4
    for row in sure.itertuples():
        arc, q = tree.index(row.child) - 1, int(row.outcome[1:])
        on, off = (restricted_evidence(posterior, gates[gates[:, arc] == g], q) for g in (1, 0))
        assert row.log_odds == pytest.approx((on - off).item(), abs=0.1)
        assert row.log_odds > 30


def test_log_odds_of_mean_field_are_its_logits():
    posterior = known_fit(BALANCED, *toy("abc", 50, shift={"a": 3.0}), guide="mean_field")
    table = posterior.deltas().set_index("child")
    assert table.loc["d", "log_odds"] == pytest.approx(np.log(0.2 / 0.8))  # no data: the prior
    logit = np.log(table["pip"] / (1 - table["pip"]))
    assert table["log_odds"].to_numpy() == pytest.approx(logit.to_numpy(), abs=1e-6)
