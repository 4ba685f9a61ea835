"""What a newcomer gets wrong, and words of the answer: argument, value, place, count, remedy."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, ShapeError, TreeError
from tests.cases.toy import QUICK, assert_answer, linear_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=20, d=3)
FRAME = pd.DataFrame(X, columns=["size", "depth", "age"])


def changed(values, place, value):
    values = np.array(values, copy=True)
    values[place] = value
    return values


def model(**arguments):
    return tbr.TreeModel(TREE, **({"latent_dim": 2, "encoder": "linear"} | arguments))


def fit(x=X, y=Y, env=ENV, **arguments):
    keys = {"guide", "seed", "options", "start"} & arguments.keys()
    own = {key: arguments.pop(key) for key in keys}
    built = arguments.pop("model", None) or model(**arguments)
    return tbr.fit(built, x, y, env, progress=False, **({"options": QUICK} | own))


CALLS = {
    # Trees
    "a cycle": (
        lambda p: tbr.Tree.from_parents({"a": "b", "b": "c", "c": "a"}),
        TreeError, "parents: 3 nodes form a cycle: 'b' -> 'a' -> 'c' -> 'b'; remove one",
    ),
    "children for parents": (
        lambda p: tbr.Tree.from_parents({"r": ["a", "b"]}),
        TreeError, "parents: a list 'r': ['a', 'b'] Tree.from_children(",
    ),
    "an undirected graph": (
        lambda p: tbr.Tree.from_networkx(nx.Graph([("r", "a"), ("r", "b")])),
        TreeError, "graph: undirected has no root; direct its arcs",
    ),
    "a file that is not there": (
        lambda p: tbr.Tree.from_newick("tree.nwk"),
        TreeError, "newick: 'tree.nwk' is no file check the path",
    ),
    # Models
    "no tree": (
        lambda p: tbr.TreeModel([("r", "a")], 2),
        DataError, "tree Tree, got list Tree.from_parents",
    ),
    "half a latent": (
        lambda p: model(latent_dim=2.5), DataError, "latent_dim=2.5 whole number, 1 or more",
    ),
    "more latents than features": (
        lambda p: fit(latent_dim=5, encoder="identity"),
        ShapeError, "encoder='identity' x has 3 columns latent_dim=5: make them equal",
    ),
    "a misspelt encoder": (
        lambda p: model(encoder="linaer"),
        DataError, "encoder='linaer' 'identity', 'linear', 'mlp'",
    ),
    "a prior by name": (
        lambda p: model(prior="horseshoe"), DataError, "prior='horseshoe' HorseshoePrior()",
    ),
    "a class for a prior": (
        lambda p: model(prior=tbr.SpikeSlabPrior),
        DataError, "prior=SpikeSlabPrior is a class: call it, SpikeSlabPrior()",
    ),
    "a probability of 2": (
        lambda p: tbr.SpikeSlabPrior(inclusion_prob=2),
        DataError, "inclusion_prob positive and below 1, got 2 None to learn it",
    ),
    "a number as text": (
        lambda p: tbr.SpikeSlabPrior(slab_scale="1"),
        DataError, "slab_scale='1' is no number: give",
    ),
    "an unknown likelihood": (
        lambda p: model(likelihood="gamma"),
        DataError, "likelihood='gamma' 'bernoulli', 'binomial', 'gaussian', 'negative_binomial'",
    ),
    # Fits
    "no model": (
        lambda p: tbr.fit(X, Y, ENV, model()),
        DataError, "model got ndarray: fit(model, x, y, env)",
    ),
    "a wrong label": (
        lambda p: fit(env=changed(ENV, 4, "A")),
        TreeError, "env: 1 of 60 'A' (row 4; nearest node 'a'",
    ),
    "no label": (
        lambda p: fit(env=changed(ENV, 0, None)), TreeError, "env: 1 of 60 rows no label drop them",
    ),
    "too few outcomes": (
        lambda p: fit(y=Y[:-1]), ShapeError, "y has 59 rows, x has 60: give one for each row",
    ),
    "a missing feature": (
        lambda p: fit(x=changed(X, (3, 1), np.nan)),
        DataError, "x has 1 cell(s) NaN or infinite row 3, column 1: impute",
    ),
    "text among features": (
        lambda p: fit(x=FRAME.assign(sex="male")),
        DataError, "x has 60 cell(s) 'male' at row 0 column 'sex' pd.get_dummies",
    ),
    "one feature as a vector": (
        lambda p: fit(x=X[:, 0]), ShapeError, "x has shape (60,): table x[:, None]",
    ),
    "numbers for a binary outcome": (
        lambda p: fit(likelihood="bernoulli"),
        DataError, "y 60 value(s) 0 or 1 row 0, column 'y0' recode it",
    ),
    "words for a binary outcome": (
        lambda p: fit(y=np.where(Y > 0, "yes", "no"), likelihood="bernoulli"),
        DataError, "y has 60 cell(s) 'yes' at row 0 two classes are 0 and 1",
    ),
    "a misspelt guide": (
        lambda p: fit(guide="meanfield"), DataError, "guide='meanfield' 'tree', 'mean_field'",
    ),
    "options as a dict": (
        lambda p: fit(options={"restarts": 2}),
        DataError, "options FitOptions, got dict FitOptions(",
    ),
    "an option of 0": (
        lambda p: tbr.FitOptions(restarts=0), DataError, "restarts=0 whole number >= 1",
    ),
    "a device that is none": (
        lambda p: tbr.FitOptions(device="gpu"), DataError, "device='gpu' use 'cpu', or 'cuda'",
    ),
    "a seed as text": (lambda p: fit(seed="1"), DataError, "seed='1' whole number, or None"),
    # Questions
    "another column": (
        lambda p: p.predict(FRAME.rename(columns={"age": "Age"}), "a"),
        DataError, "x lacks 1 column(s) 'age' add them 'Age' meant",
    ),
    "fewer columns": (
        lambda p: p.predict(X[:, :2], "a"), ShapeError, "x has 2 columns fitted to 3: give",
    ),
    "a leaf that is new": (
        lambda p: p.predict(FRAME, "NK"), TreeError, "env: 'NK' NewLeaf('NK', parent=...)",
    ),
    "a parent that is none": (
        lambda p: p.predict(FRAME, tbr.NewLeaf("NK", parent="rot")),
        TreeError, "'rot' nearest: 'root'",
    ),
    "per cent": (lambda p: p.predict(FRAME, "a", level=90), DataError, "level=90 such as 0.9"),
    "a rate in per cent": (lambda p: p.select(fdr=5), DataError, "fdr=5 such as 0.05"),
    "no draws": (lambda p: p.sample(0), DataError, "n=0 whole number, 1 or more"),
    "rows at a new leaf": (
        lambda p: p.update(FRAME[:2], Y[:2], tbr.NewLeaf("NK", parent="root")),
        DataError, "update: 'NK' not in the tree; add the leaf under 'root' before fitting",
    ),
    "a start of another shape": (
        lambda p: fit(x=FRAME, latent_dim=1, start=p),
        DataError, "start latent_dim 2, here 1 make them the same",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def posterior():
    return linear_fit(TREE, FRAME, Y, ENV)


@pytest.mark.parametrize(("call", "error", "words"), CALLS.values(), ids=CALLS)
def test_the_answer_names_what_is_wrong_and_the_way_out(call, error, words, posterior):
    assert_answer(lambda: call(posterior), error, words)


def test_a_model_can_be_fitted_twice():
    """It is left untouched, so a second fit is no mistake; nor is a model that was built."""
    built = model().build(3, 1)
    first, second = (fit(model=built) for _ in range(2))
    pd.testing.assert_frame_equal(first.pips(), second.pips())
