"""Our own fits in the face of the baselines, on cases with a known answer."""

import numpy as np
import pytest

import pyro_tbr as tbr
from pyro_tbr.evaluation.baselines import DenseTree, LeafRegression, Pooled, SparseTree


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


@pytest.mark.slow
def test_the_fit_itself_predicts_as_it_does_alone():
    data = tbr.simulate(num_leaves=12, latent_dim=2, num_features=4, rows_per_leaf=40)
    x, y, env = data.without("leaf3")
    options = tbr.FitOptions(
        restarts=2, max_steps=5, sparse_steps=5, cross_fit=0, mixture_components=8
    )
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
