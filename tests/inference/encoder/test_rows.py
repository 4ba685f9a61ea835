"""Sparse features through every stage: the dense fit's answers, without the dense matrix."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.data import sparse
from pyro_tbr.evaluation import match_latents
from pyro_tbr.inference.encoder import rows
from tests.brief import mostly_slow
from tests.cases.toy import QUICK, star, toy

LEAVES = list("abcdef")
TREE = star(LEAVES)
X, Y, ENV = toy(LEAVES, n=40, d=8, shift=[("a", 0, 2.0), ("b", 1, -2.0), ("c", 0, -1.5)])
X = np.where(np.abs(X) < 0.5, 0, X)


def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(8, 2)


def fit(x, encoder, binary=False):
    model = tbr.TreeModel(
        TREE, 2, encoder=encoder, likelihood="bernoulli" if binary else "gaussian"
    )
    if not binary:
        return tbr.fit(model, x, Y, ENV, progress=False, options=QUICK)
    # With noise few rounds settle; the number of components is chosen in the case before.
    y = Y + 2 * np.random.default_rng(0).normal(size=len(Y)) > 0
    options = dataclasses.replace(QUICK, num_components=(4,))
    return tbr.fit(model, x, y, ENV, progress=False, options=options)


ENCODERS = {
    "linear": ("linear", False),
    "mlp": ("mlp", False),
    "module": ("module", False),
    "linear, binary": ("linear", True),
}


@pytest.mark.parametrize(("encoder", "binary"), mostly_slow(ENCODERS, "linear", "mlp"))
def test_blocks_give_the_dense_fit(encoder, binary, monkeypatch):
    """Prepared batch by batch, and made dense three rows at a time."""
    encoder = module() if encoder == "module" else encoder
    dense = fit(X, encoder, binary)
    monkeypatch.setattr(rows, "_MOST_ELEMENTS", 0)
    monkeypatch.setattr(sparse, "_BLOCK_ELEMENTS", 24)
    found = fit(sp.csc_matrix(X), encoder, binary)
    # The search for a basis makes more of a difference in rounding; predictions hardly see it.
    matched = match_latents(dense.encode(X), found.encode(X))  # of equals either may come first
    latents = found.encode(X)[:, list(matched.permutation)] * np.array(matched.sign)
    np.testing.assert_allclose(latents, dense.encode(X), atol=0.05)
    np.testing.assert_allclose(found.predict(X, ENV).mean, dense.predict(X, ENV).mean, atol=0.02)


MEMORY = """
import resource
import numpy as np
import scipy.sparse as sp
import torch
import pyro_tbr as tbr
from tests.cases.toy import QUICK

torch.set_num_threads(1)
rng = np.random.default_rng(0)
N, D, M = 5000, 20_000, 100_000
x = sp.csr_matrix((np.ones(M), (rng.integers(0, N, M), rng.integers(0, D, M))), shape=(N, D))
env = np.resize(list("abcd"), N)
y = np.asarray(x[:, : D // 2].sum(1)).ravel() + 0.1 * rng.normal(size=N)
tree = tbr.Tree.from_parents(dict.fromkeys("abcd", "r"))
options = tbr.FitOptions(**{**vars(QUICK), "num_components": (5,)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for encoder in ("linear", "mlp"):
    tbr.fit(tbr.TreeModel(tree, 2, encoder=encoder), x, y, env, progress=False, options=options)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_wide_fit_needs_a_few_blocks():
    """5,000 rows of 20,000 features are 800 MB dense; fits add a fraction of that."""
    run = [sys.executable, "-W", "ignore", "-c", MEMORY]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 250  # MB, 100 of them libraries that training loads
