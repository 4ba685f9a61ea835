"""Posteriors, autoencoder and robust predictors on cases with a known answer."""

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.evaluation.baselines import (
    IRM,
    AutoencoderLeafRegression,
    DenseTree,
    GroupDRO,
    LeafRegression,
    MOReTreeS,
    Pooled,
    SparseTree,
)

STAR = tbr.Tree.from_parents({f"leaf{i}": "r" for i in range(8)})


def scores(data, held_out, methods, rows=100):
    """Log score of each method at the held-out leaves and at the others."""
    x, y, env = data.without(held_out)
    found = {}
    for method in methods:
        fitted = method.fit(data.tree, x, y, env)
        at = [
            [
                fitted.predict(new_x, leaf).log_score(new_y)
                for leaf in leaves
                for new_x, new_y, _ in [data.rows(leaf, rows)]
            ]
            for leaves in (held_out, [leaf for leaf in data.tree.leaves if leaf not in held_out])
        ]
        found[type(method).__name__] = np.mean(at[0]), np.mean(at[1])
    return found


def test_dense_tree_is_best_on_random_slopes():
    data = tbr.simulate(
        num_leaves=24, latent_dim=3, num_features=3, rows_per_leaf=8, changes="bernoulli",
        change_prob=1.0, delta_min=0.0, delta_scale=0.5, noise_scale=0.5,
    )  # fmt: skip
    found = scores(data, ["leaf2", "leaf9", "leaf17"], [DenseTree(), Pooled(), LeafRegression()])
    for other in ("Pooled", "LeafRegression"):
        assert found["DenseTree"][0] > found[other][0] + 0.05
        assert found["DenseTree"][1] > found[other][1] + 0.05


def test_spike_and_slab_finds_the_change_on_given_latents():
    generator = np.random.default_rng(0)
    tree = tbr.Tree.from_parents({"a": "u", "b": "u", "u": "r", "c": "r", "d": "r"})
    env = np.repeat(list("abcd"), 60)
    z = generator.normal(size=(240, 2))
    y = z[:, 0] + np.where(env == "a", 2.0, 0.0) * z[:, 1] + 0.3 * generator.normal(size=240)
    fitted = MOReTreeS().fit(tree, z, y, env)
    slopes = [np.diff(fitted.predict([[0.0, 0], [0, 1]], leaf).mean)[0] for leaf in "abcd"]
    np.testing.assert_allclose(slopes, [2, 0, 0, 0], atol=0.15)
    # Mean field may spread the change over the arcs around; the largest part is where it is.
    table = fitted.deltas().set_index(["child", "latent"])["mean"]
    assert table.abs().idxmax() == ("a", "z1")
    assert fitted.predict(z, env).sd.mean() == pytest.approx(0.3, rel=0.1)


def test_the_fit_itself_predicts_as_it_does_alone():
    data = tbr.simulate(num_leaves=12, latent_dim=2, num_features=4, rows_per_leaf=40)
    x, y, env = data.without("leaf3")
    options = tbr.FitOptions(restarts=4, rotation_steps=60, sparse_steps=30, mixture_components=8)
    fitted = SparseTree(options=options).fit(data.tree, x, y, env, latent_dim=2)
    model = tbr.TreeModel(data.tree, 2, "linear")
    alone = tbr.fit(model, (x - x.mean(0)) / x.std(0), y, env, progress=False, options=options)
    new_x, new_y, _ = data.rows("leaf3", 50)
    standard = (new_x - x.mean(0)) / x.std(0)
    assert tbr.mcc(alone.encode(standard), fitted.encode(new_x)) > 0.9999
    for leaf in ("leaf3", "leaf4"):
        ours, theirs = fitted.predict(new_x, leaf), alone.predict(standard, leaf, num_draws=2000)
        spread = 4.5 * theirs.sd.max() / np.sqrt(200)
        np.testing.assert_allclose(ours.mean, theirs.mean, atol=1.3 * spread)
        np.testing.assert_allclose(ours.sd, theirs.sd, rtol=0.4)
    assert np.isfinite(fitted.predict(new_x, "leaf3").log_score(new_y))


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_autoencoder_latents_span_the_true_ones(encoder):
    data = tbr.simulate(num_leaves=6, latent_dim=2, num_features=5, rows_per_leaf=100)
    method = AutoencoderLeafRegression(sparsities=(0.01,), steps=500)
    fitted = method.fit(data.tree, data.x, data.y, data.env, latent_dim=2, encoder=encoder)
    assert tbr.linear_r2(data.z, fitted.encode(data.x)) > (0.999 if encoder == "linear" else 0.95)
    if encoder == "linear":
        leaf = LeafRegression().fit(data.tree, data.z, data.y, data.env)
        new_x, new_y, new_z = data.rows("leaf1", 50)
        ours, known = fitted.predict(new_x, "leaf1"), leaf.predict(new_z, "leaf1")
        assert ours.log_score(new_y) == pytest.approx(known.log_score(new_y), abs=0.05)


def test_sparse_features_are_told_apart_by_the_autoencoder():
    """Latents that are mostly near 0: the rotation of least mean absolute value is theirs."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(2000, 3)) * (generator.random((2000, 3)) < 0.2)
    x = z / z.std(0) @ generator.normal(size=(3, 3))
    env = np.array([f"leaf{i}" for i in np.arange(2000) % 8])
    method = AutoencoderLeafRegression(sparsities=(1.0,), steps=600)
    fitted = method.fit(STAR, x, z[:, 0], env, latent_dim=3)
    assert tbr.mcc(z, fitted.encode(x)) > 0.99


def test_group_dro_is_the_midpoint_of_extremes():
    """Slopes 0, 0, 0 and 4 with the same features: the mean is 1, the best worst case 2."""
    x = np.tile([-1.0, 1.0], 40)[:, None]
    env = np.repeat(["leaf0", "leaf1", "leaf2", "leaf3"], 20)
    y = np.where(env == "leaf3", 4.0, 0.0) * x[:, 0]
    slope = {}
    for method in (GroupDRO(), Pooled()):
        at = method.fit(STAR, x, y, env).predict([[0.0], [1.0]], "leaf7").mean
        slope[type(method)] = at[1] - at[0]
    assert slope[GroupDRO] == pytest.approx(2, abs=0.1)
    assert slope[Pooled] == pytest.approx(1, abs=0.1)


def test_irm_leaves_the_spurious_feature():
    """x1 causes y; x2 follows y by an amount that differs between environments."""
    generator = np.random.default_rng(0)
    env = np.repeat([f"leaf{i}" for i in range(7)], 300)
    x1 = generator.normal(size=2100)
    y = x1 + generator.normal(size=2100)
    follow = np.repeat([2.0, 1.5, 1.0, 0.6, 0.3, 1.8, 0.8], 300)
    x2 = follow * y + generator.normal(size=2100)
    x = np.stack([x1, x2], axis=1)
    slopes = {}
    for method in (IRM(penalties=(0.0, 10.0, 1000.0)), IRM(penalties=(1000.0,)), Pooled()):
        at = method.fit(STAR, x, y, env).predict([[0.0, 0.0], [0.0, 1.0]], "leaf7").mean
        slopes[str(method)] = at[1] - at[0]
    chosen, strong, pooled = slopes.values()
    assert pooled > 0.2
    assert abs(strong) < 0.4 * pooled
    assert chosen <= pooled + 1e-6
