"""Known latents count from where the intercept is constant, as far as rows tell where that is."""

import functools

import numpy as np
import pytest
import torch

import pyro_tbr as tbr

LEAVES, K = 16, 2


@functools.cache
def fitted(seed, zero=0.0, rows=40):
    """Latents whose means shift along the tree, given as they are but for their ``zero``."""
    data = tbr.simulate(
        num_leaves=LEAVES, shape="random", latent_dim=K, rows_per_leaf=rows, changes="bernoulli",
        change_prob=0.2, latent_shift=1.0, noise_scale=0.3, intercept_scale=1.0, seed=seed,
    )  # fmt: skip
    model = tbr.TreeModel(data.tree, K, "identity")
    posterior = tbr.fit(model, data.z + zero, data.y, data.env, progress=False)
    nodes = [data.tree.index(leaf) for leaf in data.tree.leaves]
    true = data.node_intercepts[nodes] - zero * data.node_weights[nodes].sum(1)
    table = posterior.node_weights()
    table = table[table["latent"] == "intercept"].set_index("node").loc[list(data.tree.leaves)]
    return posterior, (table["mean"].to_numpy() - true[:, 0]) / table["sd"].to_numpy()


@pytest.mark.parametrize("zero", [0.0, 0.5])
def test_intervals_hold_intercepts_wherever_zero_is(zero):
    """Six of ten were in their intervals of 90 % while these knew nothing of the point's error."""
    fits = [fitted(seed, zero=zero) for seed in range(312, 320)]
    assert np.mean([np.abs(z) < 1.645 for _, z in fits]) > 0.75


def test_a_file_keeps_the_error_of_the_reference_point(tmp_path):
    posterior, _ = fitted(312, zero=0.5)
    cov = posterior.report.reference_cov
    assert (torch.linalg.eigvalsh(cov) > 0).all()
    path = tmp_path / "fit.tbr"
    posterior.save(path)
    again = tbr.load(path)
    assert (again.report.reference_cov == cov).all()
    assert again.node_weights().equals(posterior.node_weights())


def test_the_error_of_the_reference_point_is_that_of_intercepts_where_slopes_differ():
    posterior, _ = fitted(312, zero=0.5)
    cov = posterior.report.reference_cov.clone()
    shown = posterior.node_weights().pivot(index="node", columns="latent", values=["mean", "sd"])
    posterior.report.reference_cov.zero_()
    narrow = posterior.node_weights().pivot(index="node", columns="latent", values=["mean", "sd"])
    posterior.report.reference_cov.copy_(cov)
    more = shown["sd"]["intercept"] ** 2 - narrow["sd"]["intercept"] ** 2
    slopes = shown["mean"][["z0", "z1"]].to_numpy()
    at = [list(shown.index).index(leaf) for leaf in posterior.tree.leaves]
    off = slopes - slopes[at].mean(0)
    expected = np.einsum("vk,kl,vl->v", off, cov.numpy(), off)
    np.testing.assert_allclose(more.to_numpy(), expected, atol=1e-8)
    assert (shown["sd"]["z0"] == narrow["sd"]["z0"]).all()


def test_units_of_latents_do_not_matter():
    unit = 1e4
    data = tbr.simulate(num_leaves=8, latent_dim=1, rows_per_leaf=40, seed=3)
    model = tbr.TreeModel(data.tree, 1, "identity")
    posterior = tbr.fit(model, unit * (data.z + 0.3), data.y, data.env, progress=False)
    plain = tbr.fit(model, data.z + 0.3, data.y, data.env, progress=False)
    np.testing.assert_allclose(
        posterior.report.reference_cov / unit**2, plain.report.reference_cov, rtol=1e-4, atol=1e-12
    )
