"""Is a genome of a genus without data resistant to erythromycin, and how sure can one be?

607 genomes of Firmicutes with 186 counts of resistance-related gene classes, resistant or not
(PATRIC); the environments are species on the NCBI taxonomy. All real, nothing simulated. Each genus
in turn is left out and predicted from the others, by the tree model and by pooled logistic
regression on the same splits. Random splits show nothing on this table (pooled regression has an
AUROC of 0.98 there, since near-identical genomes land on both sides), so none are reported.

Prints a table by genus, a reliability table, and in words who wins, and why.

    python examples/antibiotic_resistance.py --data ../shared/data/erythromycin_firmicutes
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import pyro_tbr as tbr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "erythromycin_firmicutes"
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the logistic regression, by inner folds
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
LEAST_ROWS = 20  # a species with fewer genomes is no environment of its own


class Genomes(NamedTuple):
    """The table: log counts, resistance, environment and genus of each genome."""

    counts: pd.DataFrame
    resistant: pd.Series
    env: pd.Series
    genus: pd.Series
    tree: tbr.Tree


def read(folder: Path) -> Genomes:
    """Reads features, phenotype and taxonomy.

    Genomes are leaves of the source's tree, one row each. The environments are the species, and
    genomes of a species with few of them are labelled by the next node above, an inner node of the
    tree. Ranks in which nothing branches are left out, since arcs in series say the same.
    """
    as_text = {"genome_id": str}  # as a number 1280.10 would become 1280.1
    counts = pd.read_csv(folder / "features.csv.gz", dtype=as_text, index_col="genome_id")
    phenotype = pd.read_csv(folder / "phenotype.csv", dtype=as_text, index_col="genome_id")
    taxonomy = pd.read_csv(folder / "tree.csv", dtype=str, keep_default_na=False)
    parent = dict(zip(taxonomy["child"], taxonomy["parent"], strict=True))
    rank = dict(zip(taxonomy["child"], taxonomy["level"], strict=True))

    def above(node: str, level: str) -> str:
        while rank[node] != level:
            node = parent[node]
        return node

    species = pd.Series([above(g, "species") for g in counts.index], counts.index)
    genus = pd.Series([above(g, "genus") for g in counts.index], counts.index)
    arcs = _without_single_children({s: parent[s] for s in _with_ancestors(species, parent)})
    env, numbers = species.copy(), species.value_counts()
    for name in numbers.index[numbers < LEAST_ROWS]:
        env[species == name] = arcs[name]
    return Genomes(
        np.log1p(counts), phenotype["resistant"].loc[counts.index].astype(float), env, genus,
        tbr.Tree.from_parents(arcs),
    )


def _with_ancestors(nodes: pd.Series, parent: dict[str, str]) -> list[str]:
    """The nodes and all above them but the root."""
    found: dict[str, None] = {}
    for node in nodes.unique():
        while parent[node]:
            found[node] = None
            node = parent[node]
    return list(found)


def _without_single_children(parent: dict[str, str]) -> dict[str, str]:
    """Parents of a tree in which every inner node branches."""
    while True:
        children = pd.Series(list(parent.values())).value_counts()
        single = [c for c, p in parent.items() if children[p] == 1]
        if not single:
            return parent
        # The child takes its parent's place, or the parent is the root and the child is dropped.
        child, node = single[0], parent[single[0]]
        if node in parent:
            parent[child] = parent[node]
            del parent[node]
        else:
            del parent[child]


def standardised(train: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both, by mean and standard deviation of the training rows."""
    loc, scale = train.mean(), train.std().replace(0.0, 1.0)
    return (train - loc) / scale, (test - loc) / scale


def pooled_regression(x: pd.DataFrame, y: pd.Series, x_new: pd.DataFrame) -> np.ndarray:
    """Probabilities by L2 logistic regression blind to species, C by inner 5-fold AUROC."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    search = GridSearchCV(
        LogisticRegression(max_iter=5000),
        {"C": STRENGTHS},
        scoring="roc_auc",
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    )
    return search.fit(x.to_numpy(), y.to_numpy()).predict_proba(x_new.to_numpy())[:, 1]


def scores(y: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Discrimination, accuracy and calibration of probabilities."""
    from sklearn.metrics import roc_auc_score

    p = probability.clip(1e-6, 1 - 1e-6)
    both = 0 < y.mean() < 1
    return {
        "AUROC": float(roc_auc_score(y, p)) if both else float("nan"),
        "accuracy": float(((p > 0.5) == (y > 0.5)).mean()),
        "log score": float((y * np.log(p) + (1 - y) * np.log1p(-p)).mean()),
        "Brier": float(((p - y) ** 2).mean()),
        "mean p": float(p.mean()),
    }


def reliability(y: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
    """Share that is resistant among genomes with like probabilities."""
    bins = pd.cut(probability, BINS, include_lowest=True)
    frame = pd.DataFrame({"p": probability, "y": y})
    grouped = frame.groupby(bins, observed=False)
    return pd.DataFrame(
        {"genomes": grouped.size(), "mean p": grouped["p"].mean(), "resistant": grouped["y"].mean()}
    )


def calibration_error(y: np.ndarray, probability: np.ndarray) -> float:
    """Mean gap between probability and share, over the bins of ``reliability``."""
    table = reliability(y, probability).dropna()
    gap = (table["mean p"] - table["resistant"]).abs()
    return float((gap * table["genomes"]).sum() / table["genomes"].sum())
