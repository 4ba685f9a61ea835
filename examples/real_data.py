"""Real tables in one form, for ``real_outcomes.py``: features, outcomes, leaf and group of a row.

Each data set is a folder of plain files (``features.csv.gz``, ``outcomes.csv.gz``, ``rows.csv.gz``,
``tree.csv``); outcomes are brought to mean 0 and variance 1 over all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

# As in `python examples/real_outcomes.py`, which puts this folder on the path.
from cell_types import Components
from cell_types import read as read_neurons

import pyro_tbr as tbr

FOLDS = 5


class Rows(NamedTuple):
    """A table.

    Attributes:
        x: Features, (N, D).
        y: Outcomes of mean 0 and variance 1, (N, Q).
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
        return Components(self.x.iloc[train], self.components)(self.x)


def neurons(folder: Path, max_outcomes: int | None = None, components: int = 30) -> Rows:
    """Mouse neurons: genes to electrophysiology, 23 cell types; groups are mice."""
    table = read_neurons(folder, max_outcomes)
    y = table.outcomes / table.outcomes.std(ddof=0)
    return Rows(table.genes, y, table.leaf, table.mouse, table.tree, components)


def by_subclass(rows: Rows, folder: Path) -> Rows:
    """The neurons on the tree of their 12 subclasses."""
    subclass = pd.read_csv(folder / "rows.csv.gz", index_col=0)["subclass"]
    env = subclass.loc[rows.y.index].to_numpy()
    parent = dict(pd.read_csv(folder / "tree.csv").itertuples(index=False))
    kept, queue = {}, list(dict.fromkeys(env))
    while queue:
        node = queue.pop()
        if node in parent and node not in kept:
            kept[node] = parent[node]
            queue.append(parent[node])
    return rows._replace(env=env, tree=tbr.Tree.from_parents(kept))


def birds(folder: Path, max_outcomes: int | None = None) -> Rows:
    """Birds: niche to log body measures, 63 families; groups are genera."""
    x = pd.read_csv(folder / "features.csv.gz", index_col=0)
    y = pd.read_csv(folder / "outcomes.csv.gz", index_col=0).iloc[:, :max_outcomes]
    rows = pd.read_csv(folder / "rows.csv.gz", index_col=0)
    assert x.index.equals(y.index)
    assert x.index.equals(rows.index)
    tree = tbr.Tree.from_parents(pd.read_csv(folder / "tree.csv"))
    y = (y - y.mean()) / y.std(ddof=0)
    # Centred and scaled, so that no unit decides what an encoder sees first.
    x = (x - x.mean()) / x.std()
    return Rows(x, y, rows["leaf"].to_numpy(), rows["genus"].to_numpy(), tree, None)


def shuffled(rows: Rows, seed: int) -> Rows:
    """The same rows, the leaves' names dealt anew over the tree: a control."""
    leaves = np.array(rows.tree.leaves, dtype=object)
    new = dict(zip(leaves, np.random.default_rng(seed).permutation(leaves), strict=True))
    return rows._replace(env=np.array([new[leaf] for leaf in rows.env], dtype=object))


def whole_groups(rows: Rows, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of five folds: groups are kept whole, leaves spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
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
