"""Real tables in one form, for ``real_outcomes.py``.

Each data set is a folder of plain files: ``features.csv.gz``, outcomes, what is known of the rows,
and ``tree.csv``; a README in it says where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import pyro_tbr as tbr

FOLDS = 5


class Rows(NamedTuple):
    """A table.

    Attributes:
        x: Features, (N, D).
        y: Outcomes, (N, Q): of mean 0 and variance 1 over all rows, or 0 and 1 where binary.
        env: Leaf of each row, (N,).
        group: What must stay whole in a fold (a mouse, a genus), (N,).
        tree: The environments.
        components: Leading principal components of the training rows that all methods see;
            ``None``: the features as they are.
    """

    x: pd.DataFrame
    y: pd.DataFrame
    env: np.ndarray
    group: np.ndarray
    tree: tbr.Tree
    components: int | None

    def features(self, train: np.ndarray) -> pd.DataFrame:
        """What methods see of all rows, (N, R), learnt from the rows of training."""
        if self.components is None:
            return self.x
        return principal_components(self.x, train, self.components)


def principal_components(x: pd.DataFrame, train: np.ndarray, number: int) -> pd.DataFrame:
    """Scores (N, number) of all rows on axes of the centred, not scaled, rows of training."""
    loc = x.to_numpy()[train].mean(0)
    centred = x.to_numpy() - loc
    axes = np.linalg.eigh(centred[train].T @ centred[train])[1][:, ::-1][:, :number]
    names = [f"component {i}" for i in range(axes.shape[1])]
    return pd.DataFrame(centred @ axes, x.index, names)


def neurons(folder: Path, max_outcomes: int | None = None, components: int = 30) -> Rows:
    """Mouse neurons: genes to electrophysiology, 23 cell types; groups are mice.

    Outcomes are normal scores (rank -> Gaussian over all rows), as several have heavy tails.
    """
    from scipy.stats import norm, rankdata

    x, y, rows = _read(folder, max_outcomes)
    scores = norm.ppf((rankdata(y.to_numpy(), axis=0) - 0.5) / len(y))
    y = pd.DataFrame(scores / scores.std(0), y.index, y.columns)
    tree = tbr.Tree.from_parents(pd.read_csv(folder / "tree.csv"))
    return Rows(x, y, rows["leaf"].to_numpy(), rows["mouse"].to_numpy(), tree, components)


def by_subclass(rows: Rows, folder: Path) -> Rows:
    """The neurons on the tree of their 12 subclasses."""
    subclass = pd.read_csv(folder / "rows.csv.gz", index_col=0)["subclass"]
    env = subclass.loc[rows.y.index].to_numpy()
    parent = dict(pd.read_csv(folder / "tree.csv").itertuples(index=False))
    return rows._replace(env=env, tree=tbr.Tree.from_parents(with_ancestors(env, parent)))


def birds(folder: Path, max_outcomes: int | None = None) -> Rows:
    """Birds: niche to log body measures, 63 families; groups are genera."""
    x, y, rows = _read(folder, max_outcomes)
    tree = tbr.Tree.from_parents(pd.read_csv(folder / "tree.csv"))
    y = (y - y.mean()) / y.std(ddof=0)
    # Centred and scaled, so that no unit decides what an encoder sees first.
    x = (x - x.mean()) / x.std()
    return Rows(x, y, rows["leaf"].to_numpy(), rows["genus"].to_numpy(), tree, None)


def _read(
    folder: Path, max_outcomes: int | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Features, outcomes and what else is known of the same rows."""
    x, y, rows = (
        pd.read_csv(folder / f"{name}.csv.gz", index_col=0)
        for name in ("features", "outcomes", "rows")
    )
    assert x.index.equals(y.index)
    assert x.index.equals(rows.index)
    return x, y.iloc[:, :max_outcomes], rows


def genomes(folder: Path) -> Rows:
    """Bacteria: log counts of gene classes to resistance, 0 or 1; groups are genera.

    Genomes are leaves of the source's tree, one row each; the environments are their species. Five
    species have a single genome. These keep leaves of their own too: a row labelled by an inner
    node counts there, above all its descendants, and one odd genome (Listeria's) at the root of a
    clade would move them all, while on a leaf it costs one change. Ranks in which nothing
    branches are left out, since arcs in series say the same.
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

    species, genus = (
        np.array([above(genome, level) for genome in counts.index], dtype=object)
        for level in ("species", "genus")
    )
    tree = tbr.Tree.from_parents(without_single_children(with_ancestors(species, parent)))
    resistant = phenotype[["resistant"]].loc[counts.index].astype(float)
    return Rows(np.log1p(counts), resistant, species, genus, tree, None)


def with_ancestors(nodes: Iterable[str], parent: dict[str, str]) -> dict[str, str]:
    """Parents of these nodes and of all above them; the root has none, or an empty one."""
    found = {}
    for node in dict.fromkeys(nodes):
        while parent.get(node):
            found[node] = parent[node]
            node = parent[node]
    return found


def without_single_children(parent: dict[str, str]) -> dict[str, str]:
    """Parents of the same tree in which every inner node branches."""
    parent = dict(parent)
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


def shuffled(rows: Rows, seed: int) -> Rows:
    """The same rows, the leaves' names dealt anew over the tree: a control."""
    leaves = np.array(rows.tree.leaves, dtype=object)
    new = dict(zip(leaves, np.random.default_rng(seed).permutation(leaves), strict=True))
    return rows._replace(env=np.array([new[leaf] for leaf in rows.env], dtype=object))


def whole_groups(
    rows: Rows, seed: int, folds: int = FOLDS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold: groups are kept whole, leaves spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return splitter.split(rows.x, rows.env, rows.group)


def few_rows(rows: Rows, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training rows, ``number`` a leaf but at most half of them, and all others."""
    order = np.random.default_rng(seed).permutation(len(rows.env))
    train = []
    for leaf in rows.tree.leaves:
        own = order[rows.env[order] == leaf]
        train.append(own[: min(number, len(own) // 2)])
    chosen = np.sort(np.concatenate(train))
    return chosen, np.setdiff1d(order, chosen)
