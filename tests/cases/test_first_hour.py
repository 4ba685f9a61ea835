"""Wrong calls of a first hour with the library, each with words of the answer, in their order."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, ShapeError, TreeError
from pyro_tbr.heads import Guide, TreeGuide
from pyro_tbr.models import LinearEncoder
from tests.cases.toy import QUICK, assert_answer, identity_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=20, d=3)
FRAME = pd.DataFrame(X[:, :2], columns=["size", "depth"])


class Returns(nn.Module):
    """Whatever a function makes of the features."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class HalfAGuide(Guide):
    """Lacks what is not about moments."""

    def node_moments(self):
        return None

    def delta_moments(self):
        return None


def model(**arguments):
    return tbr.TreeModel(TREE, **({"latent_dim": 2, "encoder": "linear"} | arguments))


def fit(x=X, y=Y, env=ENV, **arguments):
    return tbr.fit(model(), x, y, env, progress=False, **({"options": QUICK} | arguments))


def own(encoder, latent_dim=2):
    built = tbr.TreeModel(TREE, latent_dim, encoder=encoder)
    return tbr.fit(built, X, Y, ENV, progress=False, options=QUICK)


parents, children = tbr.Tree.from_parents, tbr.Tree.from_children
LOST = {"blood": "myeloid", "lymphoid": "B", "T": "CD8", "myeloid": "mono"}
CALLS = {
    # Trees
    "lists of children": (
        lambda p: parents({"T": ["CD4", "CD8"], "blood": ["T", "B"]}),
        TreeError, "parents: 2 of 2 nodes have a list 'T': ['CD4', 'CD8'] Tree.from_children(",
    ),
    "sets of children": (lambda p: parents({"T": {"CD4"}}), TreeError, "a set Tree.from_children("),
    "nested children": (
        lambda p: parents({"blood": {"T": {}}}), TreeError, "a dict Tree.from_children(",
    ),
    "tuples of children": (
        lambda p: parents({"T": ("CD4", "CD8"), "blood": ("T", "B")}),
        TreeError, "2 nodes have no parent no node has two children from_children",
    ),
    "parent: child": (
        lambda p: parents(LOST),
        TreeError, "3 nodes have no parent a dict has one value a key give {child: parent}",
    ),
    "parent: child, a chain": (
        lambda p: identity_fit(parents({"root": "b", "b": "a"}), X, Y, ENV),
        TreeError, "env: 'c' a chain with one leaf: Tree.from_parents takes child -> parent",
    ),
    "pairs for from_children": (
        lambda p: children([("a", "r")]), TreeError, "children: list Tree.from_parents",
    ),
    "nested for from_children": (
        lambda p: children({"r": {"a": ["b"]}}), TreeError, "'r' an entry of its own {'r': ['a']",
    ),
    "two parents for from_children": (
        lambda p: children({"r": ["a", "b"], "a": ["b"]}), TreeError, "children: 'b' 2: 'r', 'a'",
    ),
    "Tree of a dict": (lambda p: tbr.Tree({"a": "r"}), TreeError, "dict alone from_parents({child"),
    "a csv file": (lambda p: parents("tree.csv"), TreeError, "parents: str pd.read_csv first"),
    "children in the index": (
        lambda p: parents(pd.DataFrame({"parent": ["r"]}, index=["a"])),
        TreeError, "received 1: 'parent' reset_index()",
    ),
    "lengths as a list": (
        lambda p: parents({"a": "r"}, lengths=[1.0]), TreeError, "lengths: list third entry",
    ),
    # Models and encoders
    "a truth value": (lambda p: model(latent_dim=True), DataError, "latent_dim=True whole number"),
    "a question to the model": (
        lambda p: model().predict(X, "a"), AttributeError, "'predict' fit(model, x, y, env)",
    ),
    "tables for the model": (
        lambda p: model().build(3, 1)(X, ENV), DataError, "x ndarray tensors fit and predict",
    ),
    "labels for the model": (
        lambda p: model().build(3, 1)(torch.from_numpy(X), list(ENV)),
        DataError, "env_index list places in tree.nodes",
    ),
    "an encoder too wide": (
        lambda p: own(nn.Linear(3, 4)),
        ShapeError, "encoder Linear (60, 4) (60, 3) expected (60, 2) 2 outputs latent_dim=4",
    ),
    "an encoder of other features": (
        lambda p: own(nn.Linear(5, 2)),
        DataError, "encoder Linear fails on x of shape (60, 3), float32 (60x3 and 5x2) take (N, 3)",
    ),
    "an encoder of two": (
        lambda p: own(Returns(lambda x: (x, x))), DataError, "Returns a tuple of 2: one tensor",
    ),
    "an encoder of numpy": (
        lambda p: own(Returns(lambda x: x[:, :2].numpy())), DataError, "Returns ndarray torch",
    ),
    "an encoder of whole numbers": (
        lambda p: own(Returns(lambda x: x[:, :2].long())), DataError, "Returns int64 z.to(x.dtype)",
    ),
    "an encoder that pools": (
        lambda p: own(Returns(lambda x: x[:, :2].mean(0))), ShapeError, "Returns (2,) no pooling",
    ),
    "an encoder that flattens": (
        lambda p: own(Returns(lambda x: x[:, 0]), 1), ShapeError, "(60,) (60, 1) z[:, None]",
    ),
    "an encoder of another dtype": (
        lambda p: own(Returns(lambda x: x @ torch.eye(3, 2, dtype=torch.float64))),
        DataError, "Returns float32 dtype FitOptions(dtype='float64')",
    ),
    "an encoder of other latents": (
        lambda p: own(LinearEncoder(3, 4)), ShapeError, "LinearEncoder 4 latents latent_dim=2",
    ),
    "an encoder made for others": (
        lambda p: own(LinearEncoder(4, 2)), ShapeError, "3 columns LinearEncoder for 4",
    ),
    "half a guide": (
        lambda p: fit(guide=HalfAGuide),
        DataError, "HalfAGuide lacks 5 of the 7 kl, start, update, step, sample; MeanFieldGuide",
    ),
    "a guide that is made": (
        lambda p: fit(guide=TreeGuide(model().build(3, 1))),
        DataError, "guide=<a TreeGuide> 'tree' not an object",
    ),
    # Fits
    "y for x": (
        lambda p: fit(Y, X), ShapeError, "x (60,), y (60, 3): changed places fit(model, x, y, env)",
    ),
    "env for y": (
        lambda p: fit(X, ENV, Y), DataError, "y nodes of the tree 'a' env changed places",
    ),
    "the class of a model": (
        lambda p: tbr.fit(tbr.TreeModel, X, Y, ENV), DataError, "the class TreeModel latent_dim)",
    ),
    "the class of options": (
        lambda p: fit(options=tbr.FitOptions), DataError, "got the class: FitOptions(restarts=16)",
    ),
    "an option as text": (
        lambda p: tbr.FitOptions(max_steps="10"), DataError, "max_steps='10' a number, at least 1",
    ),
    "numbers for labels": (
        lambda p: fit(env=np.repeat([0, 1, 2], 20)), TreeError, "0 (20 rows nodes are 'root', 'a'",
    ),
    "a column's name for env": (
        lambda p: fit(env="species"), TreeError, "'species' 4 nodes table['species']",
    ),
    "a column's name for y": (lambda p: fit(y="growth"), ShapeError, "y str table['growth']"),
    "a file's name": (lambda p: fit(x="x.csv"), ShapeError, "x str pd.read_csv"),
    "a dict of columns": (lambda p: fit(x={"a": Y}), ShapeError, "x dict pd.DataFrame(x)"),
    "a list of dicts": (lambda p: fit(x=[{"a": 1.0}] * 2), DataError, "x {'a': 1.0} give numbers"),
    "a generator": (lambda p: fit(y=(v for v in Y)), ShapeError, "y generator list(y)"),
    "a set": (lambda p: fit(y=set(Y)), ShapeError, "y set order means nothing"),
    "text for numbers": (lambda p: fit(y=Y.astype(str)), DataError, "y 60 cell(s) pd.to_numeric"),
    "groups as a set": (lambda p: fit(groups={1, 2}), DataError, "groups: set Series of 60"),
    "groups as a generator": (
        lambda p: fit(groups=(i for i in range(60))), DataError, "groups: generator 60 labels",
    ),
    # Questions
    "a level as text": (
        lambda p: p.predict(FRAME, "a", level="0.9"), DataError, "level='0.9' a number such as 0.9",
    ),
    "no level": (lambda p: p.deltas(None), DataError, "level=None a number"),
    "a rate as text": (lambda p: p.select("0.05"), DataError, "fdr='0.05' a number such as 0.05"),
    "a threshold as text": (lambda p: p.exceedance("1"), DataError, "threshold='1' finite number"),
    "a coverage as text": (
        lambda p: p.credible_sets("0.9"), DataError, "coverage='0.9' a number such as 0.95",
    ),
    "a purity as text": (
        lambda p: p.credible_sets(min_purity="1"), DataError, "min_purity='1' from 0 to 1",
    ),
    "no seed": (lambda p: p.predict(FRAME, "a", seed=None), DataError, "seed=None whole number"),
    "a seed as text": (lambda p: p.sample(2, seed="1"), DataError, "seed='1' whole number"),
    "a seed of draws": (
        lambda p: p.predict(FRAME, "a").sample(2, seed=1.5), DataError, "seed=1.5 whole number",
    ),
    "a model to sample": (
        lambda p: tbr.sample_posterior(model()), DataError, "got TreeModel fit(model, x, y, env)",
    ),
    "a model to average": (
        lambda p: tbr.average_bases(model()), DataError, "got TreeModel fit(model, x, y, env)",
    ),
    "no posterior": (lambda p: tbr.average_bases(None), DataError, "NoneType fit and load"),
    "a posterior to load": (lambda p: tbr.load(p), DataError, "path got Posterior load('fit.pt')"),
    "nowhere to save": (lambda p: p.save(None), DataError, "path got NoneType save('fit.pt')"),
    "text for a count": (
        lambda p: tbr.simulate(num_leaves="4"), DataError, "num_leaves='4' whole number",
    ),
    "text for a tree": (lambda p: tbr.simulate("tree"), DataError, "tree got str Tree.from_"),
}  # fmt: skip


@pytest.fixture(scope="module")
def posterior():
    return identity_fit(TREE, FRAME, Y, ENV, mixture_components=2)


@pytest.mark.own_random_state
@pytest.mark.parametrize(("call", "error", "words"), CALLS.values(), ids=CALLS)
def test_the_answer_names_what_is_wrong_and_the_way_out(call, error, words, posterior):
    assert_answer(lambda: call(posterior), error, words)


def test_whole_numbers_of_numpy_are_numbers_of_latents():
    assert tbr.TreeModel(TREE, np.int64(2)).latent_dim == 2


def test_children_of_each_node():
    expected = parents({"a": "r", "b": "r", "c": "a"}, lengths={"c": 2.0})
    tree = children({"r": ["a", "b"], "a": "c", "b": []}, lengths=pd.Series({"c": 2.0}))
    assert tree == expected
    assert children(pd.Series({"r": ("a", "b"), "a": {"c"}})).arcs == expected.arcs
    assert children({0: [1, 2]}).arcs == ((0, 1), (0, 2))


def test_methods_of_a_guide_are_those_that_it_has_not():
    """What lacks them is told of all, and only of them."""

    class Empty(Guide):
        pass

    with pytest.raises(DataError, match="Empty lacks 7 of the 7"):
        Empty(model().build(3, 1))
    unwritten = [
        name for name, part in vars(Guide).items()
        if "NotImplementedError" in getattr(getattr(part, "__code__", None), "co_names", ())
    ]  # fmt: skip
    with pytest.raises(DataError, match=f": {', '.join(unwritten)};"):
        Empty(model().build(3, 1))
