"""The binary data of ``real_outcomes.py``: resistance of bacteria, a genus left out at a time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import antibiotic_resistance as amr
import numpy as np
import pandas as pd

import pyro_tbr as tbr

COMPONENTS = 20  # of the counts, for the dense tree

Method = Callable[..., np.ndarray]


def ours(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """Sparse changes, one latent: one outcome at three genera determines no more."""
    given = argparse.Namespace(
        latent_dim=1, components=None, restarts=args.restarts, max_steps=None
    )
    return amr.tree_model(x, y, env, x_new, env_new, tree, given)


def dense_tree(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """Gaussian changes of every component's effect on every arc."""
    values = x.to_numpy()
    _, size, axes = np.linalg.svd(values, full_matrices=False)
    number = min(COMPONENTS, len(size))
    turn = axes[:number].T / size[:number] * len(values) ** 0.5
    model = tbr.TreeModel(
        tree, number, "identity", prior=tbr.GaussianPrior(pooled=True), likelihood="bernoulli"
    )
    posterior = tbr.fit(model, values @ turn, y.to_numpy(), env.to_numpy(), progress=False)
    return np.asarray(posterior.predict(x_new.to_numpy() @ turn, env_new.to_numpy()).mean)


def pooled(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """Logistic regression blind to species."""
    return amr.pooled_regression(x, y, x_new)


def arc_intercepts(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """The same with an intercept on every arc, held back as the slopes are."""
    table, new = (_with_path(part, where, tree) for part, where in ((x, env), (x_new, env_new)))
    return amr.pooled_regression(table, y, new)


def per_species(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """A logistic regression for each species with both classes; a new one has their mean."""
    found = []
    for species in env.unique():
        own = (env == species).to_numpy()
        if own.sum() >= 20 and y[own].value_counts().reindex([0, 1], fill_value=0).min() >= 5:
            found.append(amr.pooled_regression(x[own], y[own], x_new))
    return np.mean(found, axis=0)


def share(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """The share that is resistant among the genomes of training."""
    return np.full(len(x_new), y.mean())


METHODS: dict[str, Method] = {
    "ours": ours,
    "dense_tree": dense_tree,
    "pooled": pooled,
    "arc_intercepts": arc_intercepts,
    "per_leaf": per_species,
    "mean": share,
}


def _with_path(x: pd.DataFrame, env: pd.Series, tree: tbr.Tree) -> pd.DataFrame:
    """Features beside an indicator of each node on the way to the species."""
    on_path = np.zeros((len(x), tree.num_nodes))
    for row, node in enumerate(env):
        on_path[row, tree.arc_child[tree.path(node)]] = 1
    columns = [f"node {name}" for name in tree.nodes]
    return pd.concat([x, pd.DataFrame(on_path, x.index, columns)], axis=1)


def runs(folder: Path, args: argparse.Namespace) -> pd.DataFrame:
    """A row a genus left out and method, and one a method for all genomes."""
    genomes = amr.read(folder)
    y = genomes.resistant.to_numpy()
    names = [name for name in METHODS if name in (*args.methods, "mean")]
    found = {name: np.full(len(y), np.nan) for name in names}
    lines = []
    for genus in list(genomes.genus.unique())[: args.max_folds]:
        test = (genomes.genus == genus).to_numpy()
        x, x_new = amr.standardised(genomes.counts[~test], genomes.counts[test])
        rows = genomes.resistant[~test], genomes.env[~test]
        for name in names:
            start = time.perf_counter()
            found[name][test] = METHODS[name](
                x, *rows, x_new, genomes.env[test], genomes.tree, args
            )
            lines.append(
                {"genus": genus, "method": name, "genomes": int(test.sum())}
                | amr.scores(y[test], found[name][test])
                | {"seconds": time.perf_counter() - start}
            )
    for name in names:
        seen = ~np.isnan(found[name])
        all_rows = {"genus": "all", "method": name, "genomes": int(seen.sum())}
        lines.append(all_rows | amr.scores(y[seen], found[name][seen]))
    return pd.DataFrame(lines)
