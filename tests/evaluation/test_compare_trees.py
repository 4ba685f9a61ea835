"""Trees compared on the same rows: what each of them is, what is held out, and what is refused."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.evaluation.compare_trees import _candidates, _folds, _star
from tests.brief import search_steps, sweeps

PARENTS = {"u": "r", "v": "r", "a": "u", "b": "u", "c": "v", "d": "v"}
TREE = tbr.Tree.from_parents(PARENTS)
NUMBERS = torch.arange(4.0).double()[:, None]
OTHER = tbr.Tree.from_parents({"u": "r", "v": "r", "a": "u", "c": "u", "b": "v", "d": "v"})


@pytest.fixture(autouse=True, scope="module")
def _few_rounds():
    with search_steps(40), sweeps(6):
        yield


@functools.cache
def rows():
    """One known latent whose slope is 1 below u and -1 below v; some outcomes missing."""
    rng = np.random.default_rng(0)
    env = np.repeat(list("abcd"), 12)
    z = rng.standard_normal((48, 1))
    y = z * np.where(np.isin(env, ["a", "b"]), 1.5, -1.5)[:, None]
    y = y + 0.4 * rng.standard_normal((48, 2))
    y[0], y[1, 0] = np.nan, np.nan
    return z, y, env


@functools.cache
def compared(hold_out):
    prior = tbr.SpikeSlabPrior(inclusion_prob=0.3, slab_scale=2.0)  # less to learn: quicker
    model = tbr.TreeModel(TREE, 1, "identity", prior, tbr.GaussianLikelihood(noise="common"))
    how = {"hold_out": hold_out, "num_folds": 2, "progress": False}
    return tbr.compare_trees(model, *rows(), {"mixed": OTHER}, **how)


def test_pooling_is_worst_where_slopes_differ():
    found = compared("rows")
    table = found.table
    assert table.index.tolist() == ["given", "star", "no sharing", "one environment", "mixed"]
    assert table["arcs"].tolist() == [6, 4, 4, 0, 6]
    assert (table.loc["given", ["evidence", "difference", "difference_se"]] == 0).all()
    assert table["log_score"].idxmin() == table["evidence"].idxmin() == "one environment"
    pooled = table.loc["one environment"]
    assert pooled["difference"] < -5 * pooled["difference_se"] < 0
    assert found.best == table["log_score"].idxmax() != "one environment"


def test_differences_are_those_of_the_scores():
    found = compared("rows")
    scores = found.scores
    assert scores.shape == (48, 5)
    assert scores.iloc[0].isna().all()  # nothing was observed there
    assert scores.iloc[1:].notna().to_numpy().all()
    difference = scores["star"] - scores["given"]
    star = found.table.loc["star"]
    assert star["difference"] == pytest.approx(difference.mean())
    assert star["difference_se"] == pytest.approx(difference.std() / 47**0.5)
    assert "47 rows held out by rows in 2 folds" in repr(found)
    assert "no sharing" in str(found)


def test_leaves_are_held_out_whole_and_count_as_one():
    found = compared("leaves")
    table, scores = found.table, found.scores
    difference = (scores["star"] - scores["given"]).dropna()
    sums = (difference - difference.mean()).groupby(rows()[2][difference.index]).sum()
    error = (np.square(sums).sum() * 4 / 3) ** 0.5 / len(difference)
    assert table.loc["star", "difference_se"] == pytest.approx(error)
    assert table.loc["given", "log_score"] < compared("rows").table.loc["given", "log_score"]


def test_folds_of_leaves():
    env = torch.tensor([0, 1, 3, 3, 4, 5, 6, 6])  # root and u are no leaves
    fold, unit = _folds(TREE, env, None, "leaves", 2, 0)
    assert (fold[:2] == -1).all()
    assert fold[2] == fold[3]
    assert fold[6] == fold[7]
    assert sorted(fold[[2, 4, 5, 6]].tolist()) == [0, 0, 1, 1]
    assert torch.equal(unit, env)


def test_a_star_has_the_lengths_of_the_ways():
    tree = tbr.Tree.from_newick("((a:0.5,b:1.5)u:1,c:2)r;")
    star = _star(tree, torch.tensor([0, 1, 3]))  # rows at the root and at u too
    assert {child: parent for parent, child in star.arcs} == dict.fromkeys("cabu", "r")
    lengths = {child: length for (_, child), length in zip(star.arcs, star.lengths, strict=True)}
    assert lengths == {"c": 2.0, "a": 1.5, "b": 2.5, "u": 1.0}


def test_what_is_said_of_single_arcs_is_of_the_given_tree():
    prior = tbr.SpikeSlabPrior(2.0, never_arcs=["u"])
    model = tbr.TreeModel(TREE, 1, "identity", prior)
    aligned = type("Rows", (), {"y": NUMBERS, "x": NUMBERS,
                                "env_index": torch.tensor([3, 4, 5, 6])})  # fmt: skip
    found = _candidates(model, aligned, {"mixed": OTHER})
    assert found["given"].model.prior_spec is prior
    for name in ("star", "mixed", "one environment"):
        described = found[name].model.prior_spec.description
        assert described["never_arcs"] is None
        assert described["expected_num_nonzero"] == 2.0


def call(**how):
    model = tbr.TreeModel(TREE, 1, "identity")
    return tbr.compare_trees(model, *rows(), progress=False, **how)


OTHER_LEAVES = tbr.Tree.from_parents({"a": "r", "b": "r", "e": "r"})
ERRORS = {
    "hold_out": ({"hold_out": "genes"}, DataError, "hold_out='genes' is not known"),
    "folds": ({"num_folds": 1}, DataError, "num_folds=1 must be"),
    "leaves": ({"hold_out": "leaves", "num_folds": 9}, DataError, "but 4 leaves have rows"),
    "name": ({"trees": {"star": OTHER}}, DataError, "the name 'star' cannot be used"),
    "no tree": ({"trees": {"x": PARENTS}}, DataError, r"trees\['x'\] is a dict"),
    "no dict": ({"trees": [OTHER]}, DataError, "no dict from names to trees"),
    "other leaves": ({"trees": {"x": OTHER_LEAVES}}, TreeError, "lacks 'c', 'd', and has .* 'e'"),
}


@pytest.mark.parametrize(("how", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_refused(how, error, message):
    with pytest.raises(error, match=message):
        call(**how)


def test_inner_nodes_with_rows_have_to_be_there():
    z, y, env = rows()
    env = pd.Series(env).replace("a", "u")
    other = tbr.Tree.from_parents({"a": "r", "b": "r", "c": "r", "d": "r"})
    with pytest.raises(TreeError, match=r"trees\['flat'\] lacks inner nodes that rows are at: 'u'"):
        tbr.compare_trees(tbr.TreeModel(TREE, 1, "identity"), z, y, env, {"flat": other})
