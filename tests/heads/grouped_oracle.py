"""Slow and plain: gates of several outcomes at two levels, by all patterns of all outcomes."""

import itertools
import math
from typing import NamedTuple

import torch

from tests.oracles import all_gates, dense_paths, enumerate_posterior


class EnumeratedGates(NamedTuple):
    """Exact posterior of one latent's gates."""

    log_evidence: torch.Tensor
    pips: torch.Tensor  # (A, Q)
    some: torch.Tensor  # (A,): some outcome changes
    node_mean: torch.Tensor  # (V, Q)


def enumerate_gates(tree, eta, lam, active, within, slab_scale, root_scale):
    """Potentials exp(eta u - lam u^2 / 2) of each outcome, (Q, V), and the two probabilities."""
    patterns = all_gates(tree.num_arcs)
    fits, means = [], []  # of each outcome and pattern, gates given
    for one_eta, one_lam in zip(eta, lam, strict=True):
        given = [
            enumerate_posterior(
                dense_paths(tree), one_eta, one_lam, 0.5, slab_scale, root_scale, gates=gates[None]
            )
            for gates in patterns
        ]
        fits.append([one.log_evidence - tree.num_arcs * math.log(0.5) for one in given])
        means.append([one.node_mean for one in given])
    joint, gates, nodes = [], [], []
    for picks in itertools.product(range(len(patterns)), repeat=len(eta)):
        on = torch.stack([patterns[p] for p in picks], -1)  # (A, Q)
        log_prob = sum(fits[q][p] for q, p in enumerate(picks))
        for arc in on:
            follow = active * math.prod(within if g else 1 - within for g in arc.tolist())
            prob = follow + (1 - active) * float(arc.sum() == 0)
            log_prob = log_prob + (math.log(prob) if prob > 0 else -math.inf)
        joint.append(log_prob)
        gates.append(on)
        nodes.append(torch.stack([means[q][p] for q, p in enumerate(picks)], -1))
    joint, gates, nodes = torch.stack(joint), torch.stack(gates), torch.stack(nodes)
    weight = joint.softmax(0)
    return EnumeratedGates(
        joint.logsumexp(0),
        torch.einsum("g,gaq->aq", weight, gates),
        weight @ (gates.sum(-1) > 0).double(),
        torch.einsum("g,gvq->vq", weight, nodes),
    )
