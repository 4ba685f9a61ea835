"""Data and quick fits that all cases share."""

import networkx as nx
import numpy as np
import pytest

import pyro_tbr as tbr

QUICK = tbr.FitOptions(
    restarts=1, max_steps=10, sparse_steps=2, cross_fit=0,
    mixture_components=2, encoder_decays=(0.0,),
)  # fmt: skip


def toy(leaves, n=60, d=5, shift=(), noise=0.3, seed=0):
    """Rows of leaf l follow y = W[l] . x[:, :2] + noise; ``shift`` is [(leaf, latent, amount)]."""
    rng = np.random.default_rng(seed)
    env = np.repeat(np.asarray(leaves, dtype=object), n)
    x = rng.normal(size=(len(env), d))
    weights = {leaf: np.array([1.0, -1.0]) for leaf in leaves}
    for leaf, latent, amount in shift:
        weights[leaf] = weights[leaf] + amount * np.eye(2)[latent]
    y = (np.stack([weights[leaf] for leaf in env]) * x[:, :2]).sum(1)
    return x, y + noise * rng.normal(size=len(env)), env


def star(leaves, root="root"):
    return tbr.Tree.from_networkx(nx.DiGraph([(root, leaf) for leaf in leaves]))


def identity_fit(tree, x, y, env, likelihood="gaussian", seed=0, **options):
    """Latents are the features: quick, and the same in every run."""
    model = tbr.TreeModel(tree, x.shape[1], encoder="identity", likelihood=likelihood)
    options = tbr.FitOptions(**{"mixture_components": 8} | options)
    return tbr.fit(model, x, y, env, progress=False, seed=seed, options=options)


def linear_fit(tree, x, y, env, seed=0, latent_dim=2, options=QUICK, **model):
    """A learnt encoder, hardly trained."""
    built = tbr.TreeModel(tree, latent_dim, encoder="linear", **model)
    return tbr.fit(built, x, y, env, progress=False, seed=seed, options=options)


def known_fit(tree, x, y, env, noise, **options):
    """Everything known but the changes: what enumeration is exact for."""
    model = tbr.TreeModel(
        tree,
        x.shape[1],
        encoder="identity",
        prior=tbr.SpikeSlabPrior(inclusion_prob=0.2, slab_scale=1.0, root_scale=1.0),
        likelihood=tbr.GaussianLikelihood(scale=noise),
        intercept=False,
    )
    options = tbr.FitOptions(dtype="float64", **options)
    return tbr.fit(model, x, y, env, progress=False, options=options)


def same_fit(first, second):
    """Whether two posteriors agree bit for bit in what they say of the weights."""
    np.testing.assert_array_equal(first.pips().to_numpy(), second.pips().to_numpy())
    columns = ["mean", "sd"]
    np.testing.assert_array_equal(
        first.node_weights()[columns].to_numpy(), second.node_weights()[columns].to_numpy()
    )


def assert_answer(call, error, words):
    """A wrong call is answered by an error of this class that has these words, in this order."""
    with pytest.raises(error) as caught:
        call()
    text, place = str(caught.value), 0
    for word in words.split():
        found = text.find(word, place)
        assert found >= 0, f"{word!r} is not in {text!r} after character {place}"
        place = found + len(word)
    assert len(text) < 400
