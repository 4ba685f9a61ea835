"""Cases O-20 to O-31: inclusion probabilities, training, seeds, two models, files.

Plots of O-31 are tested in ``tests/plotting``.
"""

import concurrent.futures
import copy
import pickle
import random
import subprocess
import sys

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.evaluation import match_latents
from pyro_tbr.posterior import select_at_fdr
from tests.brief import FULL_SEARCH, mostly_slow, search_steps, sweeps
from tests.cases.toy import QUICK, identity_fit, linear_fit, same_fit, star, toy

LEAVES = ["a", "b", "c"]
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=30, d=2)


def test_o20_saturated_inclusion_probabilities():
    """Log odds stay finite and ordered where a PIP rounds to 1."""
    leaves = ["a", "b", "c", "d"]
    x, y, env = toy(leaves, n=2000, d=2, noise=0.01, shift=[("d", 0, 50.0), ("c", 1, 20.0)])
    table = identity_fit(star(leaves), x, y, env).deltas()
    assert table["pip"].between(0, 1).all()
    assert np.isfinite(table["log_odds"]).all()
    sure = table[table["pip"] == 1]["log_odds"]
    assert len(sure) >= 1
    assert sure.nunique() == len(sure)


@pytest.mark.parametrize(("fdr", "chosen"), [(0.1, 3), (0.05, 2), (0.005, 0)])
def test_o20_selection_by_bayesian_fdr(fdr, chosen):
    """The largest set from the top whose mean of 1 - PIP is at most the level."""
    found = select_at_fdr([0.99, 0.97, 0.80, 0.30, 0.02], fdr)
    assert sorted(found[0]) == list(range(chosen))


def test_o20_nothing_is_selected():
    """Every getter and export works without a single change, and keeps its columns."""
    rng = np.random.default_rng(0)
    posterior = identity_fit(TREE, X, rng.normal(size=len(X)), ENV)
    selected = posterior.select(fdr=0.001)
    assert len(selected) == 0
    assert set(posterior.deltas().columns) <= set(selected.columns)
    assert list(posterior.credible_sets(0.99)) == [
        "latent", "outcome", "set", "arcs", "coverage", "purity"
    ]  # fmt: skip
    assert str(posterior.summary())
    assert str(posterior.identification())
    assert TREE == tbr.Tree.from_newick(posterior.tree.to_newick(posterior.pips()))


EDGES = {
    f"{guide}-{rate}": (guide, rate)
    for guide in ("tree", "mean_field")
    for rate in (1e-6, 0.5, 1 - 1e-6)
}


@pytest.mark.parametrize(
    ("guide", "rate"), mostly_slow(EDGES, "tree-1e-06", "tree-0.999999", "mean_field-0.999999")
)
def test_o21_gates_at_the_edges(guide, rate):
    """There are no relaxed gates: drawn ones are 0 or 1, PIPs are closed forms, ELBO a bound."""
    prior = tbr.SpikeSlabPrior(inclusion_prob=rate, slab_scale=1.0, root_scale=1.0)
    model = tbr.TreeModel(TREE, 2, encoder="identity", prior=prior)
    posterior = tbr.fit(model, X, Y, ENV, guide=guide, progress=False)
    gates = posterior.sample(50)["gates"]
    assert set(np.unique(gates)) <= {0.0, 1.0}
    table = posterior.deltas()
    assert np.isfinite(table[["pip", "log_odds", "mean", "sd"]].to_numpy()).all()


def test_o22_outliers_and_few_rows():
    """A huge outcome and six rows under a horseshoe train to finite values."""
    y = Y.copy()
    y[11] = 1e8
    assert np.isfinite(identity_fit(TREE, X, y, ENV).predict(X, ENV).mean).all()
    few = [0, 1, 30, 31, 60, 61]
    prior = tbr.HorseshoePrior(expected_num_nonzero=1)
    model = tbr.TreeModel(TREE, 1, encoder="identity", prior=prior)
    posterior = tbr.fit(model, X[few, :1], Y[few], ENV[few], progress=False)
    assert np.isfinite(posterior.deltas()[["mean", "sd"]].to_numpy()).all()


@pytest.mark.slow
def test_o22_high_learning_rates():
    """Finite values in the end, an error or a warning; never a posterior that holds NaN."""
    options = tbr.FitOptions(
        restarts=2, max_steps=30, sparse_steps=5, cross_fit=0,
        encoder_lr=5.0, encoder_decays=(0.0,), mixture_components=4,
    )  # fmt: skip
    model = tbr.TreeModel(TREE, 2, encoder="mlp")
    try:
        with sweeps(8):
            posterior = tbr.fit(model, X, Y, ENV, progress=False, options=options)
    except (tbr.TrainingError, tbr.ConvergenceWarning):
        return
    assert np.isfinite(posterior.predict(X, ENV).mean).all()


@pytest.mark.slow  # three fits at the default options, half a minute each
def test_o23_three_seeds_tell_the_same():
    """After matching, tables of changes agree; order and sign follow a rule."""
    leaves = [f"l{i}" for i in range(8)]
    x, y, env = toy(leaves, n=200, shift=[("l1", 0, 2.0), ("l5", 1, -2.0)])
    tree = star(leaves)
    with search_steps(FULL_SEARCH):
        fits = [linear_fit(tree, x, y, env, seed=s, options=tbr.FitOptions()) for s in (0, 1, 2)]
    for other in fits[1:]:
        match = match_latents(fits[0].encode(x), other.encode(x))
        assert match.correlations.min() > 0.99
        columns = [f"z{k}" for k in match.permutation]
        found = other.pips()[columns].to_numpy()
        np.testing.assert_allclose(fits[0].pips()[["z0", "z1"]].to_numpy(), found, atol=0.05)


def test_o23_relabelled_features_change_nothing():
    """Order and sign of learnt latents don't follow those of the columns."""
    x, y, env = toy(["a", "b", "c"], n=60, d=2, shift=[("a", 0, 2.0), ("b", 1, -2.0)])
    options = tbr.FitOptions(restarts=4, max_steps=10, sparse_steps=0,
                             cross_fit=0, mixture_components=4, dtype="float64")  # fmt: skip
    first = linear_fit(TREE, x, y, env, options=options)
    other_x = x[:, [1, 0]] * [1.0, -1.0]
    other = linear_fit(TREE, other_x, y, env, options=options)
    np.testing.assert_allclose(other.encode(other_x), first.encode(x), atol=0.05)


def test_o24_the_order_of_rows_and_batches():
    """Sorted or shuffled, the same result; the batch size changes nothing where there are none."""
    order = np.random.default_rng(0).permutation(len(X))
    first = identity_fit(TREE, X, Y, ENV, dtype="float64")
    second = identity_fit(TREE, X[order], Y[order], ENV[order], dtype="float64", batch_size=7)
    np.testing.assert_allclose(first.pips(), second.pips(), atol=1e-6)
    np.testing.assert_allclose(first.deltas()["sd"], second.deltas()["sd"], rtol=1e-6)


def global_state():
    return (
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    )  # fmt: skip


def test_o25_seeds():
    """The same seed gives the same bits, and no generator of the process moves."""
    before = global_state()
    fits = [linear_fit(TREE, X, Y, ENV, seed=seed) for seed in (3, 3)]
    same_fit(*fits)
    first, second, other = (fits[0].predict(X, ENV, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.sample(3, seed=1), second.sample(3, seed=1))
    assert (first.sample(3, seed=1) != second.sample(3, seed=2)).any()
    np.testing.assert_array_equal(first.mean, other.mean)  # from moments; quantiles are of draws
    assert (first.lower != other.lower).any()
    assert global_state() == before


def test_o26_two_models_in_one_process():
    """They don't meet, nor do they touch the user's parameters; a posterior survives a worker."""
    store = pyro.get_param_store()
    names = set(store.keys())
    first = linear_fit(TREE, X, Y, ENV)
    before, pips = first.predict(X, ENV).mean, first.pips()
    wide, y, env = toy(["a", "b"], n=40, d=4, seed=1)
    linear_fit(star(["a", "b"]), wide, y, env)
    np.testing.assert_array_equal(first.predict(X, ENV).mean, before)
    pd.testing.assert_frame_equal(first.pips(), pips)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        fits = list(pool.map(lambda seed: identity_fit(TREE, X, Y, ENV, seed=seed), [0, 0]))
    same_fit(*fits)
    same_fit(pickle.loads(pickle.dumps(first)), first)
    assert set(store.keys()) == names


@pytest.mark.slow
def test_o27_fitting_twice():
    """A fit starts afresh and leaves its model alone; a failed one leaves the first result."""
    model = tbr.TreeModel(TREE, 2, encoder="linear")
    first = tbr.fit(model, X, Y, ENV, progress=False, options=QUICK)
    before = first.pips()
    wide, y, env = toy(LEAVES, n=20, d=4, seed=5)
    tbr.fit(model, wide, y, env, progress=False, options=QUICK)
    with pytest.raises(DataError, match="NaN"):
        tbr.fit(model, np.full_like(X, np.nan), Y, ENV, progress=False, options=QUICK)
    same_fit(tbr.fit(model, X, Y, ENV, progress=False, options=QUICK), first)
    pd.testing.assert_frame_equal(first.pips(), before)


def test_o27_going_on():
    """``start=`` is the named way: few rounds and more are as good as all of them at once."""
    fits = []
    for number in (2, 60):
        with sweeps(number):
            fits.append(identity_fit(TREE, X, Y, ENV, dtype="float64"))
    model = tbr.TreeModel(TREE, 2, encoder="identity")
    options = tbr.FitOptions(mixture_components=8, dtype="float64")
    again = tbr.fit(model, X, Y, ENV, start=fits[0], progress=False, options=options)
    np.testing.assert_allclose(again.pips(), fits[1].pips(), atol=1e-3)
    learnt = linear_fit(TREE, X, Y, ENV)
    model = tbr.TreeModel(TREE, 2, encoder="linear")
    with pytest.raises(DataError, match="NaN"):
        tbr.fit(model, X * np.nan, Y, ENV, start=learnt, progress=False, options=QUICK)
    assert np.isfinite(learnt.predict(X, ENV).mean).all()


def test_o28_everything_moves_with_the_model():
    """No single-precision tensor is left after ``double``; answers stay."""
    posterior = linear_fit(TREE, X, Y, ENV)
    model = copy.deepcopy(posterior.model).double()
    left = [
        name
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if value.is_floating_point() and value.dtype != torch.float64
    ]
    assert not left
    features = torch.from_numpy(X)
    found = model.encoder(features)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.detach(), posterior.encode(X), atol=1e-5)


def test_o29_names_in_files(tmp_path):
    """Names keep their types or are refused, naming the node; the file holds no classes."""
    nodes = [0, np.int64(1), ("a", 1), "CD4+ T/NK", "a.b", "µ-☃", " lead", "10", 10]
    tree = tbr.Tree.from_networkx(nx.DiGraph([("root", node) for node in nodes]))
    x, y, env = toy(["10", "CD4+ T/NK"], n=20, d=2)
    posterior = identity_fit(tree, x, y, env)
    path = tmp_path / "fit.pt"
    posterior.save(path)
    torch.load(path, weights_only=True)
    loaded = tbr.load(path)
    assert loaded.tree == tree
    assert [type(node) for node in loaded.tree.nodes if node in (10, "10")] == [str, int]
    same_fit(loaded, posterior)
    strange = tbr.Tree.from_parents({frozenset("ab"): "r", "b": "r"})
    with pytest.raises(DataError, match="frozenset"):
        identity_fit(strange, x, y, "b").save(path)
    same_fit(tbr.load(path), posterior)  # the file of before is still there


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_o30_all_parameters_exist_once_built(encoder):
    """Nothing is lazy: what an optimiser or DDP is given is all there is."""
    model = tbr.TreeModel(TREE, 2, encoder=encoder, num_features=2, num_outcomes=1)
    names = {name for name, _ in model.named_parameters()}
    assert names
    posterior = tbr.fit(model, X, Y, ENV, progress=False, options=QUICK)
    assert {name for name, _ in posterior.model.named_parameters()} == names


BLOCKED = ["scipy", "sklearn", "matplotlib", "anndata", "arviz", "arviz_base", "treedata", "xarray"]


def test_o31_import_needs_declared_packages_only():
    """Optional packages are neither needed nor loaded by the import."""
    code = (
        "import sys\n"
        f"blocked = {BLOCKED}\n"
        "for name in blocked: sys.modules[name] = None\n"
        "import pyro_tbr as tbr\n"
        "tree = tbr.Tree.from_parents({'a': 'r', 'b': 'r'})\n"
        "tree.to_frame(), tree.to_newick(), tree.to_networkx()\n"
        "tbr.Tree.from_linkage([[0, 1, 1.0, 2]], ['a', 'b'])\n"
        "assert not [n for n in blocked if sys.modules[n] is not None]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
