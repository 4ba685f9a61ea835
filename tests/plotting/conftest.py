"""One small fit that the files of this folder share, and posteriors of large trees without data."""

import warnings

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import ConvergenceWarning
from tests.brief import sweeps
from tests.posterior.small_fits import known_fit

AWKWARD = ("p__A; c__B (class) with a very long taxonomic name", "it's_me $x^2$ $", "_under", "d")


@pytest.fixture(scope="session")
def awkward():
    """x, y, env and the fit: two outcomes, labels with signs of their own, no rows at ``d``."""
    tree = tbr.Tree.from_parents(
        {AWKWARD[0]: "100.0:g__C", AWKWARD[1]: "100.0:g__C", AWKWARD[2]: "r", "d": "r",
         "100.0:g__C": "r"}
    )  # fmt: skip
    rng = np.random.default_rng(0)
    env = np.repeat(np.array(AWKWARD[:3], dtype=object), 40)
    x = rng.standard_normal((len(env), 2))
    shift = np.where(np.isin(env, AWKWARD[:2]), 3.0, 0.0)
    y = np.stack([shift * x[:, 0], x[:, 1]], axis=1) + 0.3 * rng.standard_normal((len(env), 2))
    return x, y, env, known_fit(tree, x, y, env)


def large(num_leaves, rows=2):
    """Known latents, some leaves without data; fast at any size."""
    sim = tbr.simulate(
        num_leaves=num_leaves,
        shape="random",
        latent_dim=2,
        num_features=2,
        rows_per_leaf=rows,
        seed=1,
    )
    x, y, env = sim.without(sim.tree.leaves[::9])
    with sweeps(2), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # plots need no optimum
        return x, y, env, known_fit(sim.tree, x, y, env, mixture_components=3)
