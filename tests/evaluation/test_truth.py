"""Truth in a posterior's order: by hand, and for a fit that puts its latents elsewhere."""

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.evaluation import (
    LatentMatch,
    credible_set_coverage,
    match_gates,
    pip_auroc,
    selection_score,
    true_changes,
)

TRUTH = pd.DataFrame(
    {
        "parent": "r",
        "child": ["a", "b", "c", "d"] * 2,
        "latent": ["z0"] * 4 + ["z1"] * 4,
        "outcome": "y0",
        "change": [True, False, False, True, False, False, True, False],
        "informed": [True, True, True, False] * 2,
    }
)


def sets(*rows):
    table = [("z0" if k == 0 else "z1", "y0", [("r", c) for c in arcs], 0.95) for k, arcs in rows]
    return pd.DataFrame(table, columns=["latent", "outcome", "arcs", "coverage"])


def test_gates_follow_the_matching():
    gates = np.zeros((3, 2, 2))
    gates[0, 0], gates[2, 1, 1] = 1, 1
    match = LatentMatch(np.array([2, 0]), np.array([1, -1]), np.ones(2))
    intercept = np.array([[0, 0], [1, 0], [0, 0]])
    matched = match_gates(gates, match, 3, intercept)
    assert matched.shape == (3, 4, 2)
    np.testing.assert_array_equal(matched[:, 2], gates[:, 0])
    np.testing.assert_array_equal(matched[:, 0], gates[:, 1])
    np.testing.assert_array_equal(matched[:, 3], intercept)
    assert not matched[:, 1].any()  # no partner, no change
    left_over = LatentMatch(np.array([-1, 0]), np.ones(2), np.ones(2))
    np.testing.assert_array_equal(match_gates(gates, left_over, 1)[:, 0], gates[:, 1])


def test_coverage_of_sets_by_hand():
    found = credible_set_coverage(sets((0, "ab"), (0, "c"), (1, "bc"), (1, "a")), TRUTH)
    assert found.num_sets == 4
    assert found.covered == 0.5
    assert found.se == pytest.approx(0.25)
    assert found.stated == pytest.approx(0.95)
    assert found.mean_size == 1.5
    assert found.found == 1  # z0 at a and z1 at c; nothing is known of d


def test_no_sets():
    nothing = credible_set_coverage(sets(), TRUTH)
    assert nothing.num_sets == nothing.found == 0
    assert np.isnan(nothing.covered)


def test_selection_by_hand():
    rows = TRUTH.iloc[[0, 1, 6]].assign(pip=[1.0, 0.7, 0.9])
    score = selection_score(rows, TRUTH)
    assert score == pytest.approx((3, 1 / 3, 0.4 / 3, 1.0))
    assert selection_score(rows.iloc[:1], TRUTH).power == 0.5
    assert selection_score(rows.iloc[:0], TRUTH)[:2] == (0, 0.0)


@pytest.mark.slow
def test_truth_of_a_fit():
    data = tbr.simulate(
        num_leaves=24, latent_dim=2, rows_per_leaf=60, changes="half_the_arcs",
        intercept_changes=0.2, seed=3,
    )  # fmt: skip
    x, y, env = data.without("leaf5")
    options = tbr.FitOptions(restarts=4, max_steps=1, sparse_steps=0, cross_fit=0)
    posterior = tbr.fit(
        tbr.TreeModel(data.tree, 2, "linear"), x, y, env, progress=False, options=options
    )
    truth, deltas = true_changes(data, posterior), posterior.deltas()
    pd.testing.assert_frame_equal(truth[["parent", "child"]], deltas[["parent", "child"]])
    assert truth["latent"].equals(deltas["latent"])
    below = truth["informed"]
    assert set(truth.loc[~below, "child"]) == {"leaf5"}
    assert truth["change"].sum() == data.gates.sum() + (data.intercept_deltas != 0).sum()
    assert pip_auroc(deltas["pip"][below], truth["change"][below]) > 0.93
    score = selection_score(posterior.select(0.05), truth)
    assert score.fdr < 0.2
    assert score.power > 0.4  # arcs that share a change have a small PIP each
    coverage = credible_set_coverage(posterior.credible_sets(), truth)
    assert coverage.covered > 0.8
    with pytest.raises(DataError, match="another tree"):
        true_changes(tbr.simulate(num_leaves=4, rows_per_leaf=1), posterior)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: match_gates(np.ones((3, 2)), LatentMatch(*np.ones((3, 2), int)), 2),
            ShapeError,
            "(3, 2)",
        ),
        (
            lambda: match_gates(
                np.ones((3, 2, 1)), LatentMatch(*np.zeros((3, 2), int)), 2, np.ones(3)
            ),
            ShapeError,
            "intercept_gates has shape (3,)",
        ),
        (lambda: credible_set_coverage(sets((0, "x")), TRUTH), DataError, "('r', 'x', 'z0', 'y0')"),
        (lambda: selection_score(TRUTH[["parent"]], TRUTH), DataError, "lacks the column(s)"),
    ],
)
def test_errors_name_the_culprit(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
