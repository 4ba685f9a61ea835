"""The compiled passes against those of tensors, whose answers they have to give."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.jit import COMPILES
from pyro_tbr.tree import Tree, path_sum
from pyro_tbr.tree.messages import (
    ArcLaw,
    inside_pass,
    log_evidence,
    outside_pass,
    smooth,
    smoothing,
)
from pyro_tbr.tree.messages.compiled import calls, merging
from pyro_tbr.tree.messages.folding import fold
from tests.tree.small_trees import SMALL_TREES

pytestmark = pytest.mark.skipif(not COMPILES, reason="numba is not installed")

FIELDS = ("log_evidence", "pips", "node_mean", "node_var", "delta_mean", "delta_second",
          "class_prob", "class_mean", "class_second")  # fmt: skip
LAWS = {
    "point and slab": ArcLaw.spike_slab(0.2, 1.0),
    "spike and slab": ArcLaw.spike_slab(0.2, 1.0, spike_scale=0.05),
    "halves": ArcLaw.spike_slab(0.3, 0.3, 1.0, 0.05),
    "four classes": ArcLaw.of(torch.full((4,), 0.25), 0.0, torch.logspace(-4, 1, 4)),
    "one class cannot be": ArcLaw.of(torch.tensor([0.75, 0.25, 0]), 0.0, torch.tensor([0, 1.0, 2])),
}


def potentials_on(tree, batch, seed=0, silent=0.2):
    """Potentials at the leaves, and at some inner nodes, of weights that change on some arcs."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    changes = normal(batch, tree.num_arcs) * (uniform(batch, tree.num_arcs) < 0.3)
    weights = path_sum(tree, normal(batch), changes, event_dim=0)
    lam = 50 * uniform(batch, tree.num_nodes)
    leaves = torch.tensor([tree.index(name) for name in tree.leaves])
    leaf = torch.zeros(tree.num_nodes, dtype=torch.bool)
    leaf[leaves] = True
    some = torch.where(leaf, uniform(batch, tree.num_nodes) > silent, uniform(tree.num_nodes) < 0.2)
    lam = torch.where(some, lam, 0.0)
    error = normal(batch, tree.num_nodes) / lam.clamp(min=1e-9).sqrt()
    return lam * (weights + error), lam


def assert_same(one, other, tolerance=1e-9):
    for name in FIELDS:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is None:
            assert theirs is None
            continue
        assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("tree", [t for t in SMALL_TREES.values() if t.num_arcs < 7])
def test_without_merging_they_are_exact(tree, law):
    eta, lam = potentials_on(tree, batch=4)
    given = tree, eta, lam, law, 0.3, 2.0
    exact = outside_pass(tree, inside_pass(*given, None))
    assert_same(smooth(*given, 16_000), exact)


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("cap", [2, 4, 32])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("leaves", [9, 25])
def test_merging_is_that_of_tensors(leaves, law, cap, sweeps):
    """Both merge the same components, but for distances that float32 cannot tell apart."""
    tree = tbr.simulate(num_leaves=leaves, latent_dim=1, rows_per_leaf=1, seed=leaves).tree
    eta, lam = potentials_on(tree, batch=6, seed=cap, silent=0)
    given = tree, eta, lam, law, 0.0, 2.0, cap, sweeps
    mine, theirs = smooth(*given), outside_pass(tree, inside_pass(*given))
    off = (mine.class_prob - theirs.class_prob).abs().amax((-1, -2))
    assert (off < 2e-3).double().mean() >= 0.8
    assert (mine.log_evidence - theirs.log_evidence).abs().median() < 1e-4


@pytest.mark.parametrize("cap", [2, 3, 5])
def test_an_only_child_with_more_classes_than_the_cap(cap):
    """A leaf's message is not merged, so its parent, with rows of its own, merges it.

    All it was merged from has to be told apart again: memory that nothing was written to came
    through, so that answers differed from run to run or were not finite.
    """
    tree = Tree.from_parents({"a": "u", "u": "r", "b": "r", "c": "v", "v": "r"})
    law = ArcLaw.of(torch.full((8,), 0.125), 0.0, torch.logspace(-3, 1, 8))
    eta, lam = potentials_on(tree, batch=50, silent=0)
    lam = lam.clamp(min=0.5)
    given = tree, eta, lam, law, 0.0, 2.0
    merged, exact = smooth(*given, cap), smooth(*given, 16_000)
    tensors = outside_pass(tree, inside_pass(*given, cap))
    for name in ("node_mean", "delta_mean", "class_prob"):
        mine, right, theirs = (getattr(found, name) for found in (merged, exact, tensors))
        assert torch.isfinite(mine).all()
        assert (mine - right).abs().max() < 3 * (theirs - right).abs().max() + 1e-6
    torch.testing.assert_close(merged.class_prob.sum(-1), torch.ones(50, 5).double())


def test_a_tighter_cap_is_no_worse_than_with_tensors():
    """Against many components, errors of both are the same on average.

    Where leaves have no rows arcs are in series, and of equals either may be kept.
    """
    errors = {"mine": [], "theirs": []}
    for seed in range(4):
        tree = tbr.simulate(num_leaves=16, latent_dim=1, rows_per_leaf=1, seed=seed).tree
        given = tree, *potentials_on(tree, batch=20, seed=seed), LAWS["halves"], 0.0, 2.0
        right = smooth(*given, 300, 2).pips
        errors["mine"].append((smooth(*given, 8).pips - right).abs())
        errors["theirs"].append((outside_pass(tree, inside_pass(*given, 8)).pips - right).abs())
    mine, theirs = (torch.stack([e.mean() for e in each]).mean() for each in errors.values())
    assert mine < 1.1 * theirs


def test_a_law_of_each_arc_and_element():
    tree = SMALL_TREES["mixed"]
    eta, lam = potentials_on(tree, batch=5)
    rate = torch.rand(5, tree.num_arcs, generator=torch.Generator().manual_seed(0))
    for rates in (rate, rate[:, :1], rate[0]):
        law = ArcLaw.spike_slab(rates.double(), torch.tensor(0.7, dtype=torch.float64), None, 0.1)
        given = tree, eta, lam, law, torch.arange(5.0), 1.5
        assert_same(smooth(*given, 3000), outside_pass(tree, inside_pass(*given, None)))


def test_the_log_evidence_alone_is_the_same():
    tree = tbr.simulate(num_leaves=20, latent_dim=1, rows_per_leaf=1, seed=1).tree
    given = tree, *potentials_on(tree, batch=3), LAWS["halves"], 0.0, 2.0, 8, 2
    assert torch.equal(log_evidence(*given), smooth(*given).log_evidence)


@pytest.mark.parametrize("by_arc", [False, True])
def test_the_gradient_is_that_of_automatic_differentiation(by_arc):
    tree = SMALL_TREES["mixed"]
    eta, lam = potentials_on(tree, batch=3)
    rate = 0.1 + 0.3 * torch.rand(3, tree.num_arcs, generator=torch.Generator().manual_seed(0))
    numbers = [eta, lam, rate if by_arc else rate[0, :1], torch.tensor([0.7]), torch.tensor([0.1])]
    numbers += [torch.tensor(0.4), torch.arange(3) / 2 + 1, torch.tensor(0.2)]

    def gradient(evidence):
        own = [number.double().clone().requires_grad_() for number in numbers]
        eta, lam, rate, slab, spike, loc, root_scale, root_loc = own
        law = ArcLaw.spike_slab(rate, slab, loc, spike)
        found = evidence(tree, eta, lam, law, root_loc, root_scale)
        weights = torch.arange(1.0, 4).double()
        return torch.autograd.grad((weights * found).sum(), own)

    by_hand = gradient(lambda *given: log_evidence(*given, 3000))
    by_rules = gradient(lambda *given: inside_pass(*given, None).log_evidence)
    for one, other in zip(by_hand, by_rules, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-8)


def test_gradients_of_moments_are_those_of_tensors():
    tree = SMALL_TREES["cherry"]
    eta, lam = potentials_on(tree, batch=2)
    eta.requires_grad_()
    smooth(tree, eta, lam, LAWS["spike and slab"], 0.0, 1.0).node_mean.sum().backward()
    assert torch.isfinite(eta.grad).all()


@pytest.mark.parametrize("what", ["eta", "rate"])
def test_what_is_not_finite_is_not_hidden(what):
    """One element's numbers do not touch the others."""
    tree = SMALL_TREES["mixed"]
    eta, lam = potentials_on(tree, batch=3, silent=0)
    rate = torch.full((3, 1), 0.2, dtype=torch.float64)
    right = smooth(tree, eta, lam, ArcLaw.spike_slab(rate, 1.0, 0.5), 0.0, 1.0, 4)
    bad = eta if what == "eta" else rate
    bad[1, -1] = torch.nan
    found = smooth(tree, eta, lam, ArcLaw.spike_slab(rate, 1.0, 0.5), 0.0, 1.0, 4)
    assert torch.isnan(found.node_mean[1]).all()
    assert torch.isnan(found.log_evidence[1])
    assert torch.equal(found.pips[::2], right.pips[::2])


def test_batches_go_in_runs(monkeypatch):
    tree = SMALL_TREES["mixed"]
    rate = torch.linspace(0.1, 0.5, 7, dtype=torch.float64).unsqueeze(-1)
    law = ArcLaw.spike_slab(rate, 1.0, None, 0.1)
    given = tree, *potentials_on(tree, batch=7), law, 0.0, 1.0, 4
    whole = smooth(*given)
    monkeypatch.setattr(calls, "_AT_ONCE", 2 * tree.num_nodes)
    assert_same(smooth(*given), whole, tolerance=0)


def test_a_chain_of_ten_thousand_nodes():
    parents = {i: i - 1 for i in range(1, 10_000)}
    tree = Tree.from_parents(parents)
    lam = torch.zeros(1, tree.num_nodes, dtype=torch.float64)
    lam[0, ::100] = 4.0
    eta = lam * torch.where(torch.arange(tree.num_nodes) < 5000, 1.0, 3.0)
    found = smooth(tree, eta, lam, ArcLaw.spike_slab(1e-4, 1.0), 0.0, 3.0, 8)
    assert abs(found.node_mean[0, 100] - 1) < 0.2
    assert abs(found.node_mean[0, -1] - 3) < 0.2
    assert abs(found.pips.sum() - 1) < 0.5


def test_dense_changes_of_a_deep_tree(monkeypatch):
    """One component each, in closed form or in compiled loops."""
    parents = {f"s{i}": f"s{i - 1}" for i in range(1, 150)}
    tree = Tree.from_parents(parents | {f"l{i}": f"s{i}" for i in range(150)})
    var = 0.1 + torch.rand(3, tree.num_arcs, 1, generator=torch.Generator().manual_seed(0)).double()
    given = tree, *potentials_on(tree, batch=3), ArcLaw.of(torch.ones(1), 0.1, var), 0.3, 2.0, None
    mine = smooth(*given)
    monkeypatch.setattr(smoothing, "_DEEP", 10_000)
    assert_same(mine, smooth(*given))


def test_room_is_what_patterns_need():
    tree = SMALL_TREES["star"]
    folded = fold(tree, torch.ones(tree.num_nodes, dtype=torch.bool))
    flat = calls.flat_tree(folded)
    assert sorted(flat.node[flat.node < tree.num_nodes]) == list(range(tree.num_nodes))
    space = calls.room(folded, flat, 4, 2)
    leaves = flat.first < 0
    assert set(np.diff(space.node)[leaves]) == {1}
    assert set(np.diff(space.arc)[leaves]) == {2}
    assert np.diff(space.arc)[1:].max() == 4


@pytest.mark.parametrize(("n", "num"), [(1, 1), (5, 5), (40, 1), (40, 7), (300, 32)])
def test_the_heaviest_come_in_order(n, num):
    rng = np.random.default_rng(n + num)
    for values in (rng.normal(size=n), np.round(rng.normal(size=n)), np.zeros(n)):
        places, spare = np.empty(n, np.int64), np.empty(n, np.int64)
        merging.heaviest(values, n, num, places, spare)
        assert len(set(places[:num])) == num
        assert (values[places[:num]] == np.sort(values)[::-1][:num]).all()


def test_no_loop_leaves_its_arrays(tmp_path):
    """Run by the interpreter, which checks every index that the compiler does not."""
    script = tmp_path / "run.py"
    script.write_text(
        "import torch\n"
        "import tests.tree.messages.test_compiled as here\n"
        "from pyro_tbr.tree.messages import smooth\n"
        "for name in ('mixed', 'star', 'unary chain', 'one arc'):\n"
        "    tree = here.SMALL_TREES[name]\n"
        "    for law in here.LAWS.values():\n"
        "        for cap, sweeps in ((2, 2), (3, 1), (20, 2)):\n"
        "            eta, lam = here.potentials_on(tree, batch=2, seed=cap)\n"
        "            found = smooth(tree, eta, lam, law, 0.0, 1.0, cap, sweeps)\n"
        "            assert torch.isfinite(found.node_mean).all()\n"
        "print('done')\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr[-2000:]
