"""Latents that outcomes do not need are left out, those that they need are not."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.heads import GaussianPrior, condition
from pyro_tbr.heads.rows import DesignRows
from pyro_tbr.inference import rotating
from pyro_tbr.inference.encoder.directions import dense_guide
from pyro_tbr.inference.rotation.choice import RotationResult
from pyro_tbr.inference.rotation.needed import needed_axes


def asked(sim, spare, seed=0):
    """The true latents and spare directions of noise, turned at random; what is found needed."""
    rng = np.random.default_rng(seed)
    z = np.column_stack([sim.z, rng.standard_normal((len(sim.z), spare))])
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    z = z @ np.linalg.qr(rng.standard_normal((z.shape[1],) * 2))[0]
    y = torch.from_numpy(sim.y.reshape(len(z), -1))
    model = tbr.TreeModel(sim.tree, z.shape[1], "identity", likelihood=sim.likelihood)
    if sim.likelihood == "gaussian":
        y = (y - y.mean(0)) / y.std(0)
    built = model.build(z.shape[1], y.shape[1])
    nodes = torch.zeros(sim.tree.num_nodes, dtype=torch.bool)
    index = torch.tensor([sim.tree.index(one) for one in sim.env])
    nodes[index] = True
    head = built.head.with_prior(GaussianPrior())
    guide = dense_guide(head, nodes)
    design = torch.cat([torch.from_numpy(z), torch.ones(len(z), 1)], 1)
    stats = condition(guide, DesignRows(design, y, index)).flattened()
    axes = needed_axes(head, nodes, stats, guide.node_moments().mean[stats.nodes])
    return z @ axes.numpy(), axes


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("spare", [0, 1, 3])
def test_spare_directions_are_left_out(likelihood, spare):
    sim = tbr.simulate(
        num_leaves=10, latent_dim=2, num_features=2, rows_per_leaf=80, changes="bernoulli",
        likelihood=likelihood, seed=3,
    )  # fmt: skip
    kept, axes = asked(sim, spare)
    assert axes.shape == (2 + spare, 2)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(2, dtype=axes.dtype))
    # The true latents are mixtures of what is kept, up to the error of the axes.
    centred = sim.z - sim.z.mean(0)
    left = centred - kept @ np.linalg.lstsq(kept, centred, rcond=None)[0]
    assert (left.var(0) / centred.var(0)).max() < (0.01 if likelihood == "gaussian" else 0.1)


def test_one_is_kept_where_outcomes_are_noise():
    sim = tbr.simulate(num_leaves=8, latent_dim=2, num_features=2, rows_per_leaf=30, seed=1)
    noise = np.random.default_rng(5).standard_normal(len(sim.y))
    _, axes = asked(replace(sim, y=noise), 1)
    assert axes.shape == (3, 1)


@pytest.mark.parametrize("seed", range(3))
def test_two_latents_fitted_to_one_are_not_its_double(seed):
    """Few environments: a search among both took the true latent twice, and called neither used."""
    sim = tbr.simulate(
        num_leaves=5, latent_dim=1, num_features=3, num_outcomes=3, rows_per_leaf=30,
        nuisance_dim=2, seed=seed,
    )  # fmt: skip
    model = tbr.TreeModel(sim.tree, 2, "linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.ModelWarning)
        posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False)
    z = posterior.encode(sim.x)
    assert posterior.identification().unused == ("z1",)
    assert abs(np.corrcoef(z[:, 0], sim.z[:, 0])[0, 1]) > 0.99
    assert (z[:, 1] == 0).all()
    arcs = posterior.arc_pips()
    np.testing.assert_allclose(arcs["any_slope"], arcs["z0"], atol=1e-9)
    assert set(posterior.select(fdr=0.5)["latent"]) <= {"z0", "intercept"}
    assert not tbr.evaluation.true_changes(sim, posterior).query("latent == 'z1'")["informed"].any()


class OfTwo(tbr.SpikeSlabPrior):
    """Made for two latents, as a prior with a value for each may be."""

    def build(self, *given, num_latents, **more):
        if num_latents != 2:
            raise ValueError("of two latents")
        return super().build(*given, num_latents=num_latents, **more)


def test_a_prior_made_for_as_many_latents_will_do():
    sim = tbr.simulate(
        num_leaves=5, latent_dim=1, num_features=3, num_outcomes=3, rows_per_leaf=30,
        nuisance_dim=2, seed=1,
    )  # fmt: skip
    model = tbr.TreeModel(sim.tree, 2, "linear", OfTwo())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.ModelWarning)
        posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False)
    assert posterior.identification().unused == ("z1",)


@pytest.mark.filterwarnings("ignore::pyro_tbr.IdentificationWarning")
@pytest.mark.filterwarnings("ignore::pyro_tbr.ModelWarning")
@pytest.mark.parametrize(("clear", "searches"), [(0.0, 1), (1e6, 2)])
def test_all_latents_are_rotated_in_doubt_only(clear, searches, monkeypatch):
    """Of four latents two are needed; the answer is the same whether that was clear or searched."""
    sim = tbr.simulate(
        num_leaves=8, latent_dim=2, num_features=6, nuisance_dim=2, feature_noise=0.3,
        num_outcomes=2, rows_per_leaf=60, noise_scale=0.3, changes="half_the_arcs", seed=3,
    )  # fmt: skip
    made, search = [], rotating.rotate_to_sparsity
    monkeypatch.setattr(
        rotating, "rotate_to_sparsity", lambda *some: (made.append(some), search(*some))[1]
    )
    monkeypatch.setattr(rotating, "_CLEAR_GAIN", clear)
    options = tbr.FitOptions(restarts=4, cross_fit=0, mixture_components=4, sparse_steps=0)
    model = tbr.TreeModel(sim.tree, 4, "linear")
    posterior = tbr.fit(model, sim.x, sim.y, sim.env, progress=False, options=options)
    assert len(made) == searches
    assert posterior.identification().unused == ("z2", "z3")
    assert tbr.mcc(sim.z, posterior.encode(sim.x)[:, :2]) > 0.98


def test_directions_that_are_left_out_are_taken_along_as_they_are():
    """Behind those that were rotated, at right angles to them, with weights of zero."""
    draw = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(5, 3, generator=draw, dtype=torch.float64))[0]
    basis, offset = torch.randn(3, 3, generator=draw).double(), torch.arange(3.0).double()
    root, deltas = torch.ones(4, 2).double(), torch.ones(6, 4, 2).double()
    nothing = torch.zeros(0)
    rotation = RotationResult(basis, offset, root, deltas, 0.0, nothing, nothing)
    found = rotating._unturned(rotating._Turned(axes, rotation, 0.0))
    torch.testing.assert_close(found.basis[:, :3], axes @ basis)
    rest = found.basis[:, 3:]
    torch.testing.assert_close(rest.mT @ rest, torch.eye(2).double())
    torch.testing.assert_close(axes.mT @ rest, torch.zeros(3, 2).double())
    assert found.offset.tolist() == [0, 1, 2, 0, 0]
    assert found.root[:, 0].tolist() == [1, 1, 1, 0, 0, 1]
    assert found.deltas[0, :, 0].tolist() == [1, 1, 1, 0, 0, 1]
