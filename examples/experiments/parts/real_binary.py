"""The binary data of ``real_outcomes.py``: resistance of bacteria, a genus left out at a time.

Random splits show nothing on this table (pooled regression has an AUROC of 0.98 there, since
near-identical genomes land on both sides), so none are made. A genus left out is in the tree, but
has no rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch

import pyro_tbr as tbr
from parts.real_data import Rows
from pyro_tbr import evaluation
from pyro_tbr.tree import path_sum

COMPONENTS = 20  # of the counts, for the dense tree
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the logistic regression, by inner folds
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)

# (x, y, env) of training, (x, env) of the genus left out, tree, arguments -> probabilities
Method = Callable[..., np.ndarray]


def ours(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """Sparse changes, one latent: one outcome at three genera determines no more."""
    model = tbr.TreeModel(tree, 1, encoder="linear", likelihood="bernoulli")
    alive = x.columns[x.std() > 0]
    components = (args.components,) if args.components else None
    options = tbr.FitOptions(restarts=args.restarts, num_components=components)
    posterior = tbr.fit(model, x[alive], y, env, options=options, progress=False)
    return posterior.predict(x_new[alive], env_new).mean.to_numpy()


def dense_tree(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """Gaussian changes of every component's effect on every arc."""
    values = x.to_numpy()
    _, size, axes = np.linalg.svd(values, full_matrices=False)
    number = min(COMPONENTS, len(size))
    turn = axes[:number].T / size[:number] * len(values) ** 0.5
    model = tbr.TreeModel(
        tree, number, "identity", prior=tbr.GaussianPrior(pooled=True), likelihood="bernoulli"
    )
    posterior = tbr.fit(model, values @ turn, y.to_numpy(), env, progress=False)
    return np.asarray(posterior.predict(x_new.to_numpy() @ turn, env_new).mean)


def pooled(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """Logistic regression blind to species."""
    return logistic_regression(x, y, x_new)


def arc_intercepts(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """The same with an intercept on every arc, held back as the slopes are."""
    table, new = (_with_path(part, where, tree) for part, where in ((x, env), (x_new, env_new)))
    return logistic_regression(table, y, new)


def per_species(x, y, env, x_new, env_new, tree, args) -> np.ndarray:
    """A logistic regression for each species with both classes; a new one has their mean."""
    found = []
    for species in pd.unique(env):
        own = env == species
        if own.sum() >= 20 and y[own].value_counts().reindex([0, 1], fill_value=0).min() >= 5:
            found.append(logistic_regression(x[own], y[own], x_new))
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


def logistic_regression(x: pd.DataFrame, y: pd.Series, x_new: pd.DataFrame) -> np.ndarray:
    """Probabilities by logistic regression with an L2 penalty, its C by inner 5-fold AUROC."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    search = GridSearchCV(
        LogisticRegression(max_iter=5000),
        {"C": STRENGTHS},
        scoring="roc_auc",
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    )
    return search.fit(x.to_numpy(), y.to_numpy()).predict_proba(x_new.to_numpy())[:, 1]


def _with_path(x: pd.DataFrame, env: np.ndarray, tree: tbr.Tree) -> pd.DataFrame:
    """Features beside an indicator of each arc on the way to the species."""
    unit, nothing = torch.eye(tree.num_arcs), torch.zeros(tree.num_arcs)
    on_path = path_sum(tree, nothing, unit)  # (V, A)
    columns = [f"arc to {child}" for _, child in tree.arcs]
    table = pd.DataFrame(on_path.numpy(), tree.nodes, columns).loc[env].set_index(x.index)
    return pd.concat([x, table], axis=1)


def standardised(train: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both, by mean and standard deviation of the training rows."""
    loc, scale = train.mean(), train.std().replace(0.0, 1.0)
    return (train - loc) / scale, (test - loc) / scale


def predictions(rows: Rows, args: argparse.Namespace) -> pd.DataFrame:
    """A row a method and genome left out: genus, method, resistant, p, seconds of its fit."""
    y = rows.y["resistant"]
    parts = []
    for genus in pd.unique(rows.group)[: args.max_folds]:
        test = rows.group == genus
        x, x_new = standardised(rows.x[~test], rows.x[test])
        for name, method in METHODS.items():
            if name not in (*args.methods, "mean"):
                continue
            start = time.perf_counter()
            p = method(x, y[~test], rows.env[~test], x_new, rows.env[test], rows.tree, args)
            found = {"resistant": y[test], "p": p, "seconds": time.perf_counter() - start}
            parts.append(pd.DataFrame({"genus": genus, "method": name} | found))
    return pd.concat(parts)


def runs(found: pd.DataFrame) -> pd.DataFrame:
    """Scores of ``predictions``: a row a genus left out and method, and one a method for all."""
    lines = [
        {"genus": genus, "method": name} | scores(own) | {"seconds": own["seconds"].iloc[0]}
        for (genus, name), own in found.groupby(["genus", "method"], sort=False)
    ]
    lines += [{"genus": "all", "method": name} | scores(own) for name, own in _by_method(found)]
    return pd.DataFrame(lines)


def scores(found: pd.DataFrame) -> dict[str, float]:
    """Level, discrimination, accuracy and calibration of the probabilities of some genomes."""
    from sklearn.metrics import roc_auc_score

    y, p = found["resistant"], found["p"].clip(1e-6, 1 - 1e-6)
    both = 0 < y.mean() < 1
    return {
        "genomes": len(found),
        "resistant": float(y.mean()),
        "mean p": float(p.mean()),
        "AUROC": float(roc_auc_score(y, p)) if both else float("nan"),
        "accuracy": float(((p > 0.5) == (y > 0.5)).mean()),
        "log score": float((y * np.log(p) + (1 - y) * np.log1p(-p)).mean()),
        "Brier": float(((p - y) ** 2).mean()),
    }


def reliability(found: pd.DataFrame) -> pd.DataFrame:
    """By method: the share that is resistant among genomes with like probabilities."""
    tables = {
        name: evaluation.reliability(own["p"], own["resistant"], BINS)
        for name, own in _by_method(found)
    }
    table = pd.concat(tables, names=["method", "bin"]).query("count > 0")
    between = [f"{low} to {high}" for low, high in zip(table["lower"], table["upper"], strict=True)]
    table = table.assign(probability=between).reset_index("method").set_index("method")
    names = {"count": "genomes", "mean_pip": "mean p", "true_share": "resistant"}
    return table.rename(columns=names)[["probability", "genomes", "mean p", "resistant"]]


def _by_method(found: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    return iter(found.groupby("method", sort=False))
