"""Prior weights of arcs and masks: what they mean, against enumeration, and what is refused."""

import functools

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.errors import DataError, TreeError
from pyro_tbr.heads.likelihoods import GaussianLikelihood
from pyro_tbr.heads.priors import GaussianPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.models import TreeModel
from pyro_tbr.tree import Tree
from tests.heads.cases import statistics_of
from tests.oracles import dense_paths, enumerate_posterior
from tests.tree.small_trees import SMALL_TREES

TREE = SMALL_TREES["balanced"]  # r -> u, v; u -> a, b; v -> c, d
RATE, SLAB, ROOT, NOISE = 0.3, 1.2, 2.0, 0.5
WEIGHTS = {("r", "u"): 4.0, "c": 0.5, "d": 0}
WITH_LENGTHS = SMALL_TREES["with lengths"]


def prob_of(tree, **said):
    """Prior inclusion probability of each arc, by child."""
    prior = SpikeSlabPrior(inclusion_prob=RATE, **said).build(tree, 1, 1).double()
    prob = prior.arc_inclusion_prob(prior.inclusion_rate.fixed)[:, 0, 0]
    return {child: value for (_, child), value in zip(tree.arcs, prob.tolist(), strict=True)}


def test_a_weight_counts_as_so_many_arcs():
    prob = prob_of(TREE, arc_weights=WEIGHTS)
    expected = {"u": 1 - 0.7**4, "v": RATE, "a": RATE, "b": RATE, "c": 1 - 0.7**0.5, "d": 0.0}
    assert prob == pytest.approx(expected, rel=1e-6)


def test_weights_multiply_lengths():
    plain = prob_of(WITH_LENGTHS, use_lengths=True)
    double = prob_of(WITH_LENGTHS, use_lengths=True, arc_weights={"a": 2.0})
    assert double == pytest.approx(plain | {"a": 1 - (1 - plain["a"]) ** 2}, rel=1e-6)


def test_the_weight_of_a_wanted_probability():
    wanted = 0.9
    weight = torch.log(torch.tensor(1 - wanted)) / torch.log(torch.tensor(1 - RATE))
    assert prob_of(TREE, arc_weights={"b": weight.item()})["b"] == pytest.approx(wanted, rel=1e-6)


def test_masks():
    for said, free in (
        ({"only_arcs": TREE.arcs_below("u")}, "ab"),
        ({"only_arcs": ["u", ("v", "c")]}, "uc"),
        ({"never_arcs": [("r", "v"), "d"]}, "uabc"),
        ({"only_arcs": []}, ""),
        ({"only_arcs": ["u", "a"], "arc_weights": {"u": 1}}, "ua"),
    ):
        prob = prob_of(TREE, **said)
        assert prob == pytest.approx({n: RATE if n in free else 0.0 for n in prob}, rel=1e-6)


def test_labels_that_are_pairs_are_labels():
    tree = Tree.from_parents({("r", "u"): "r", "u": "r"})
    assert prob_of(tree, only_arcs=[("r", "u")]) == pytest.approx({("r", "u"): RATE, "u": 0.0})


def test_a_series_gives_weights():
    series = pd.Series([4.0, 0.5, 0.0], index=pd.Index([("r", "u"), ("v", "c"), ("v", "d")]))
    assert prob_of(TREE, arc_weights=series) == prob_of(TREE, arc_weights=WEIGHTS)


def test_the_expected_number_is_kept():
    prior = SpikeSlabPrior(2.0, arc_weights=WEIGHTS).build(TREE, 1, 1).double()
    prob = prior.arc_inclusion_prob(prior.inclusion_rate.fixed)
    assert_close(prob.sum().item(), 2.0, rtol=1e-5, atol=0)


def test_pips_are_those_of_enumeration():
    prior = SpikeSlabPrior(None, RATE, SLAB, ROOT, arc_weights=WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    env = torch.randint(TREE.num_nodes, (40,), generator=generator)
    x = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    y = x * (1.0 + (env == 2) * 0.7)[:, None] + NOISE * torch.randn(40, 1, generator=generator)
    model = TreeModel(TREE, 1, "identity", prior, GaussianLikelihood(NOISE), intercept=False,
                      num_features=1, num_outcomes=1).double()  # fmt: skip
    guide = TreeGuide(model, torch.ones(TREE.num_nodes, dtype=torch.bool), None).double()
    guide.update(statistics_of(model, x, env, y), sweeps=5)
    eta, lam = torch.zeros(2, TREE.num_nodes, dtype=torch.float64)
    eta.index_add_(0, env, (x * y)[:, 0] / NOISE**2)
    lam.index_add_(0, env, x[:, 0].square() / NOISE**2)
    rates = torch.tensor(list(prob_of(TREE, arc_weights=WEIGHTS).values()), dtype=torch.float64)
    exact = enumerate_posterior(dense_paths(TREE), eta, lam, rates, SLAB, ROOT)
    moments = guide.delta_moments()
    assert_close(moments.inclusion[:, 0, 0], exact.pips, rtol=0, atol=1e-6)
    assert_close(moments.mean[:, 0, 0], exact.delta_mean, rtol=0, atol=1e-6)
    assert moments.inclusion[5, 0, 0] == 0.0


@functools.cache
def rows():
    return tbr.simulate(num_leaves=6, latent_dim=2, num_features=2, rows_per_leaf=25, seed=2)


@pytest.mark.parametrize("guide", ["tree", pytest.param("mean_field", marks=pytest.mark.slow)])
def test_a_fit_where_some_arcs_never_change(guide, tmp_path):
    data = rows()
    said = {"arc_weights": {data.tree.arcs[1]: 3.0}, "never_arcs": [data.tree.leaves[0]]}
    model = TreeModel(data.tree, 2, "identity", SpikeSlabPrior(**said))
    found = tbr.fit(model, data.z, data.y, data.env, guide=guide, progress=False)
    table = found.deltas().set_index(["parent", "child"])
    still = table.xs(data.tree.leaves[0], level="child")
    assert (still[["pip", "prior_pip", "mean", "sd"]] == 0).to_numpy().all()
    prior = table["prior_pip"].groupby(level=[0, 1], sort=False).first()
    assert prior.loc[data.tree.arcs[1]] == prior.max() > prior.loc[data.tree.arcs[0]] > 0
    found.save(tmp_path / "fit.pt")
    loaded = tbr.load(tmp_path / "fit.pt")
    assert loaded.deltas().equals(found.deltas())
    assert loaded.model.prior_spec.description == found.model.prior_spec.description


def test_no_arc_may_change():
    data = rows()
    model = TreeModel(data.tree, 2, "identity", SpikeSlabPrior(only_arcs=[]))
    found = tbr.fit(model, data.z, data.y, data.env, progress=False)
    weights = found.node_weights().pivot(index="node", columns="latent", values="mean")
    assert_close(torch.tensor(weights.std().to_numpy()), torch.zeros(3).double(), rtol=0, atol=1e-6)


ERRORS = {
    "no such node": ({"arc_weights": {"x": 2}}, TreeError, "arc_weights: 1 of 1 are no arcs"),
    "no such arc": ({"only_arcs": [("r", "a")]}, TreeError, "the parent of 'a' is 'u'"),
    "no such end": ({"only_arcs": [("x", "a")]}, TreeError, "'x' .* none of the 7 nodes"),
    "root": ({"never_arcs": ["r"]}, TreeError, "'r' is the root"),
    "negative": ({"arc_weights": {"a": -1}}, DataError, "'a' has the weight -1"),
    "no number": ({"arc_weights": {"a": "much"}}, DataError, "weight 'much': give a number"),
    "infinite": ({"arc_weights": {"a": float("inf")}}, DataError, "weight inf"),
    "no mapping": ({"arc_weights": ["a"]}, DataError, "no mapping from arcs to weights"),
    "one text": ({"only_arcs": "abc"}, DataError, "only_arcs='abc' is no list of arcs"),
    "twice": ({"arc_weights": {"a": 1, ("u", "a"): 2}}, DataError, "'u' -> 'a' more than once"),
    "both": ({"only_arcs": ["a"], "never_arcs": ["a"]}, DataError, "never_arcs and only_arcs"),
    "too many": ({"expected_num_nonzero": 2, "only_arcs": ["a"]}, DataError, "number of arcs, 1"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(said, error, message):
    with pytest.raises(error, match=message):
        SpikeSlabPrior(**said).build(TREE, 1, 1)


@pytest.mark.parametrize("kind", [GaussianPrior, HorseshoePrior])
def test_priors_without_gates_take_no_weights(kind):
    with pytest.raises(TypeError, match="arc_weights"):
        kind(arc_weights={"a": 2.0})
