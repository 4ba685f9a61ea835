"""One small fit that the files of this folder share, and posteriors of large trees without data."""

import warnings

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import ConvergenceWarning
from tests.brief import search_steps, sweeps
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


@pytest.fixture(scope="session", params=[10, 300])
def sized(request):
    """x, y, env and the fit of :func:`large`."""
    return large(request.param)


@pytest.fixture(scope="session")
def crowded():
    """The fit of :func:`large` to 300 leaves."""
    return large(300)


@pytest.fixture(scope="session")
def learnt():
    """A simulation and the fit of a linear encoder in closed form: two latents, 4 features."""
    sim = tbr.simulate(num_leaves=6, latent_dim=2, num_features=4, rows_per_leaf=30, seed=1)
    options = tbr.FitOptions(restarts=4, sparse_steps=50)
    model = tbr.TreeModel(sim.tree, 2, encoder="linear")
    with search_steps(50):
        return sim, tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)


@pytest.fixture(scope="session")
def trained():
    """A simulation and the fit of a network to it, trained for a few steps."""
    sim = tbr.simulate(num_leaves=5, latent_dim=1, num_features=3, rows_per_leaf=30, seed=1)
    options = tbr.FitOptions(
        restarts=2, max_steps=150, encoder_decays=(0.1,), sparse_steps=20, cross_fit=0
    )
    model = tbr.TreeModel(sim.tree, 1, encoder="mlp")
    with search_steps(50), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few steps do not find the latents
        return sim, tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)


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
