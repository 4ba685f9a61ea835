"""Small fits that the files of this folder share; each is made once."""

import pandas as pd
import pytest

import pyro_tbr as tbr
from tests.posterior.small_fits import FAST, NOISE_SCALE, RATE, SLAB_SCALE


@pytest.fixture(scope="session")
def sim():
    return tbr.simulate(num_leaves=6, latent_dim=2, num_features=4, rows_per_leaf=30, seed=1)


@pytest.fixture(scope="session")
def linear(sim):
    """Arrays, one outcome, learnt linear encoder."""
    model = tbr.TreeModel(sim.tree, 2, encoder="linear")
    return tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=FAST)


@pytest.fixture(scope="session")
def frame_sim():
    return tbr.simulate(
        num_leaves=6, latent_dim=2, num_features=2, num_outcomes=3, rows_per_leaf=30, seed=2
    )


@pytest.fixture(scope="session")
def frames(frame_sim):
    """Three outcomes as pandas objects, the true latents as features: x, y, env."""
    index = pd.Index([f"cell{i}" for i in range(len(frame_sim.y))], name="cell")
    x = pd.DataFrame(frame_sim.z, index=index, columns=["size", "depth"])
    y = pd.DataFrame(frame_sim.y, index=index, columns=["a", "b", "c"])
    return x, y, pd.Series(frame_sim.env, index=index)


@pytest.fixture(scope="session")
def several(frame_sim, frames):
    """Fit to ``frames``: pandas, Q = 3, known latents."""
    model = tbr.TreeModel(frame_sim.tree, 2, encoder="identity")
    return tbr.fit(model, *frames, progress=False, options=FAST)


@pytest.fixture(scope="session")
def held_out(sim):
    """Known latents and hyperparameters; no rows at leaf5, whose parent has other leaves."""
    x, y, env = sim.without("leaf5")
    z = sim.z[sim.env != "leaf5"]
    assert len(x) == len(z)
    model = tbr.TreeModel(
        sim.tree,
        2,
        encoder="identity",
        prior=tbr.SpikeSlabPrior(inclusion_prob=RATE, slab_scale=SLAB_SCALE, root_scale=3.0),
        likelihood=tbr.GaussianLikelihood(scale=NOISE_SCALE),
    )
    return tbr.fit(model, z, y, env, progress=False, options=FAST)


@pytest.fixture(scope="session")
def binary_sim():
    return tbr.simulate(
        num_leaves=4,
        latent_dim=2,
        num_features=2,
        rows_per_leaf=200,
        likelihood="bernoulli",
        seed=3,
    )


@pytest.fixture(scope="session")
def binary(binary_sim):
    """Binary outcomes, known latents."""
    sim = binary_sim
    model = tbr.TreeModel(sim.tree, 2, encoder="identity", likelihood="bernoulli")
    return tbr.fit(model, sim.z, sim.y, sim.env, progress=False, options=FAST)
