"""Tables against draws: intervals and sign rates of a spike and slab, and the user's labels."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_tbr.heads.guide import NodeMoments
from pyro_tbr.heads.moments import DeltaMoments
from pyro_tbr.posterior.tables import arc_index, delta_table, node_table, pip_table
from pyro_tbr.tree import Tree

NUM_DRAWS = 200_000
ODD_LABELS = [("a", 1), ("b", 2), "10", 10, 1.5, b"x"]


def moments_of(inclusion, slab_mean, slab_sd):
    """One latent, one outcome, an arc a number."""
    pip, mean, sd = (
        torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1)
        for value in (inclusion, slab_mean, slab_sd)
    )
    first, second = pip * mean, pip * (mean.square() + sd.square())
    return DeltaMoments(first, second - first.square(), pip, 0.5 * pip, mean, sd.square())


def star(labels):
    return Tree.from_parents(dict.fromkeys(labels, "root"))


def table_of(moments, scale=1.0, level=0.9):
    tree = star([f"leaf{i}" for i in range(len(moments.mean))])
    return delta_table(tree, moments, torch.tensor([scale]).double(), ("z0",), ("y0",), level)


# Inclusion, mean and sd of the slab.
SPIKE_SLABS = {
    "sure and positive": (0.999, 2.0, 0.5),
    "sure, sign open": (0.99, 0.2, 1.0),
    "half": (0.5, 1.0, 0.3),
    "half and negative": (0.5, -1.0, 0.3),
    "hardly": (0.04, 3.0, 0.1),
    "wide": (0.3, 0.0, 10.0),
    "always": (1.0, -0.5, 1.0),
    "never": (0.0, 1.0, 1.0),
}


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("case", SPIKE_SLABS.values(), ids=SPIKE_SLABS.keys())
def test_intervals_and_sign_rates_are_those_of_draws(case, level):
    pip, mean, sd = case
    row = table_of(moments_of(*case), level=level).iloc[0]
    rng = np.random.default_rng(0)
    draws = np.where(rng.random(NUM_DRAWS) < pip, mean + sd * rng.standard_normal(NUM_DRAWS), 0.0)
    for value, probability in [(row.lower, (1 - level) / 2), (row.upper, (1 + level) / 2)]:
        # At the point mass the distribution function jumps over the probability.
        error = 5 * math.sqrt(probability * (1 - probability) / NUM_DRAWS)
        assert (draws < value).mean() <= probability + error
        assert (draws <= value).mean() >= probability - error
    wrong_sign = 1 - max((draws > 0).mean(), (draws < 0).mean())
    assert row.lfsr == pytest.approx(wrong_sign, abs=5 * 0.5 / math.sqrt(NUM_DRAWS))
    assert row["mean"] == pytest.approx(draws.mean(), abs=5 * row.sd / math.sqrt(NUM_DRAWS))
    assert row["sd"] == pytest.approx(draws.std(), rel=0.02)
    assert (row.pip, row.prior_pip) == (pip, pip / 2)


def test_without_gates_the_interval_is_the_normal_one():
    row = table_of(moments_of(1.0, -0.5, 2.0), level=0.8).iloc[0]
    normal = stats.norm(-0.5, 2.0)
    assert row.lower == pytest.approx(normal.ppf(0.1), rel=1e-9)
    assert row.upper == pytest.approx(normal.ppf(0.9), rel=1e-9)
    assert row.lfsr == pytest.approx(normal.sf(0), rel=1e-9)


def test_scale_turns_to_the_unit_of_the_outcome():
    moments = moments_of([0.5, 0.9], [1.0, -2.0], [0.3, 0.4])
    one, thousand = table_of(moments), table_of(moments, scale=1000.0)
    for name in ("mean", "sd", "lower", "upper"):
        assert thousand[name].to_numpy() == pytest.approx(1000 * one[name].to_numpy(), rel=1e-12)
    for name in ("pip", "prior_pip", "lfsr"):
        assert thousand[name].equals(one[name])


def test_rows_and_columns_stand_for_arcs_latents_and_outcomes():
    tree = Tree.from_parents({"a": "root", "b": "root"})
    value = torch.arange(12.0).reshape(2, 2, 3).double()  # A, W, Q
    moments = DeltaMoments(value, value, value / 12, value / 24, value, value)
    latents, outcomes = ("z0", "intercept"), ("h", "k", "l")
    pips = pip_table(tree, value, latents, outcomes)
    deltas = delta_table(tree, moments, torch.ones(3).double(), latents, outcomes, 0.9)
    nodes = node_table(
        tree,
        NodeMoments(torch.arange(18.0).reshape(3, 2, 3), torch.ones(3, 2, 3)),
        latents,
        outcomes,
    )
    assert pips.loc[("root", "b"), ("k", "intercept")] == 10.0
    assert pips.loc[("root", "a"), ("l", "z0")] == 2.0
    row = deltas.query("child == 'b' and latent == 'intercept' and outcome == 'k'")
    assert row["mean"].tolist() == [10.0]
    row = nodes.query("node == 'a' and latent == 'intercept' and outcome == 'k'")
    assert row["mean"].tolist() == [10.0]
    one = pip_table(tree, value[:, :, :1], latents, ("h",))
    assert list(one.columns) == list(latents)
    assert one.columns.name == "latent"
    assert one.loc[("root", "b"), "intercept"] == 9.0


@pytest.mark.parametrize("labels", [ODD_LABELS, ODD_LABELS[:2], [1, 1.5, 2]])
def test_labels_keep_their_types(labels):
    tree = star(labels)
    moments = moments_of(*(torch.full((len(labels),), 0.5) for _ in range(3)))
    ones = torch.ones(len(labels) + 1, 1, 1)
    table = delta_table(tree, moments, torch.ones(1).double(), ("z0",), ("y0",), 0.9)
    nodes = node_table(tree, NodeMoments(ones, ones), ("z0",), ("y0",))
    for found in (
        [child for _, child in arc_index(tree)],
        table["child"].tolist(),
        nodes["node"].tolist()[1:],
    ):
        assert [(type(label), label) for label in found] == [(type(k), k) for k in labels]


def test_variance_of_rounding_below_zero_is_zero():
    tree = Tree.from_parents({"a": "root"})
    moments = NodeMoments(torch.zeros(2, 1, 1), torch.tensor([-1e-9, 4.0]).reshape(2, 1, 1))
    assert node_table(tree, moments, ("z0",), ("y0",))["sd"].tolist() == [0.0, 2.0]
