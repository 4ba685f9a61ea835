"""Time and memory of a fit of known or learnt latents, by arcs, latents and outcomes."""

import time
import warnings

import numpy as np
import torch

import pyro_tbr as tbr
from parts.spawned import peak

ROWS = 10  # at each leaf that has some


def measure(arcs, latents, outcomes, share, encoder, seed):
    """CPU seconds of a fit and the memory that it takes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    small = tbr.simulate(num_leaves=4, latent_dim=2, num_features=4, rows_per_leaf=20, seed=0)
    tbr.fit(tbr.TreeModel(small.tree, 2, "identity"), small.z, small.y, small.env, progress=False)
    tree = tbr.Tree.from_parents({i: (i - 1) // 2 for i in range(1, arcs + 1)})
    rng = np.random.default_rng(seed)
    with_rows = rng.choice(np.array(tree.leaves), max(2, int(share * tree.num_leaves)), False)
    env = np.repeat(with_rows, ROWS)
    z = rng.standard_normal((len(env), latents))
    x = z
    if encoder != "identity":
        x = z @ rng.standard_normal((latents, 2 * latents))
        x += 0.1 * rng.standard_normal(x.shape)
    # Weights of the root, and a change of every latent on one arc in ten.
    weights = np.zeros((tree.num_nodes, latents, outcomes))
    weights[0] = rng.standard_normal((latents, outcomes))
    for arc, (parent, child) in enumerate(tree.arcs):
        changed = rng.random((latents, outcomes)) < 0.1
        step = rng.choice([-1.0, 1.0], changed.shape) * rng.uniform(0.5, 1.5, changed.shape)
        weights[arc + 1] = weights[tree.index(parent)] + changed * step
        assert tree.index(child) == arc + 1
    at = np.array([tree.index(leaf) for leaf in with_rows]).repeat(ROWS)
    y = np.einsum("nk,nkq->nq", z, weights[at]) + 0.3 * rng.standard_normal((len(env), outcomes))
    before, start = peak(), time.process_time()
    tbr.fit(tbr.TreeModel(tree, latents, encoder), x, y, env, progress=False)
    return time.process_time() - start, peak() - before
