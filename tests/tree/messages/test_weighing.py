"""Weights of draws from capped messages: constant without a cap, and right with one."""

import pytest
import torch
from torch.testing import assert_close

from pyro_tbr.tree import path_sum
from pyro_tbr.tree.messages import ArcLaw, inside_pass, log_weights, sample
from tests.tree.messages.cases import TREES, draw_potentials, each_tree, enumerated

RATE, SLAB, ROOT = 0.3, 1.0, 2.0


def weighed(tree, error, cap, num_draws, seed=0):
    """Draws' gates (S, A) and log weights (S,), and the exact PIPs (A,) and log evidence."""
    eta, lam = draw_potentials(tree, error, RATE, SLAB, ROOT, seed, num=1, inner=True)
    law = ArcLaw.spike_slab(RATE, SLAB)
    inside = inside_pass(tree, eta[0], lam[0], law, 0.0, ROOT, cap)
    generator = torch.Generator().manual_seed(seed)
    draws = sample(tree, inside, num_draws, generator)
    nodes = path_sum(tree, draws.root, draws.deltas, event_dim=0)
    # A pass for each draw, as messages of one serve a batch of weights of its own size.
    many = (part[:1].expand(num_draws, -1) for part in (eta, lam))
    batch = inside_pass(tree, *many, law, 0.0, ROOT, cap)
    log_weight = log_weights(tree, batch, nodes) + batch.log_evidence
    exact = enumerated(tree, eta, lam, RATE, SLAB, ROOT)
    return draws.classes, log_weight, exact["pips"][0], exact["log_evidence"][0]


@each_tree
def test_without_a_cap_every_draw_weighs_the_evidence(tree):
    _, log_weight, _, evidence = weighed(tree, 0.3, None, 20)
    assert_close(log_weight, evidence.expand(20))


@pytest.mark.parametrize("name", ["balanced", "mixed", "10 arcs, deep"])
def test_with_a_cap_weights_mend_what_it_left_out(name):
    """Importance sampling from messages of two components: evidence and PIPs are exact."""
    gates, log_weight, pips, evidence = weighed(TREES[name], 0.3, 2, 20_000, seed=1)
    weight = (log_weight - evidence).exp()
    assert weight.std() > 0.02  # the cap did leave something out
    error = weight.std() / len(weight) ** 0.5
    assert abs(weight.mean() - 1) < 4.5 * error
    gap = weight.unsqueeze(1) * (gates - pips)
    assert (gap.mean(0).abs() < 4.5 * gap.std(0) / len(gap) ** 0.5 + 1e-9).all()
