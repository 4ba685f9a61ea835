"""Numbers behind the fits of ``conftest.py``, and fits to toy data with everything known."""

import numpy as np

import pyro_tbr as tbr

FAST = tbr.FitOptions(restarts=4, sparse_steps=50)
RATE, SLAB_SCALE, NOISE_SCALE = 0.3, 2.0, 0.5  # fixed in the fit with a leaf held out

CHAIN = tbr.Tree.from_parents({"u": "r", "v": "u", "a": "v", "b": "r"})
CHERRY = tbr.Tree.from_parents({"a": "r", "b": "r"})
BALANCED = tbr.Tree.from_parents({"u": "r", "v": "r", "a": "u", "b": "u", "c": "v", "d": "v"})


def toy(leaves, num_rows=100, noise=0.5, shift=None, num_outcomes=1, seed=0):
    """One standard normal feature; weight 0 at every leaf but those of ``shift``."""
    rng = np.random.default_rng(seed)
    env = np.repeat(np.array(list(leaves), dtype=object), num_rows)
    x = rng.standard_normal((len(env), 1))
    weight = np.array([(shift or {}).get(leaf, 0.0) for leaf in env])
    y = weight[:, None] * x + noise * rng.standard_normal((len(env), num_outcomes))
    return x, y[:, 0] if num_outcomes == 1 else y, env


def known_fit(tree, x, y, env, noise=0.5, rate=0.2, slab=1.0, root=1.0, guide="tree", **kwargs):
    """Fit with known latents, noise and hyperparameters, no intercept."""
    prior = tbr.SpikeSlabPrior(inclusion_prob=rate, slab_scale=slab, root_scale=root)
    model = tbr.TreeModel(
        tree,
        x.shape[1],
        encoder="identity",
        prior=kwargs.pop("prior", prior),
        likelihood=kwargs.pop("likelihood", tbr.GaussianLikelihood(scale=noise)),
        intercept=kwargs.pop("intercept", False),
    )
    options = tbr.FitOptions(**{"dtype": "float64"} | kwargs)
    return tbr.fit(model, x, y, env, guide=guide, progress=False, options=options)
