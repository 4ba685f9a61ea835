"""Trees from hierarchical clustering: scipy's linkage matrices and scanpy's dendrograms."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_tbr.errors import TreeError
from pyro_tbr.tree.readers.arrange import TreeParts, level_order, with_lengths
from pyro_tbr.tree.readers.naming import (
    MAX_SHOWN,
    free_name,
    is_blank,
    listed,
    listed_texts,
    refuse_repeated,
    refuse_rounded,
)
from pyro_tbr.tree.readers.other_tables import as_pandas

_LEAST_COLUMNS = 3  # two clusters and the height at which they merge; scipy adds a count


def read_linkage(Z: Any, labels: Iterable[Hashable] | None = None) -> TreeParts:
    """A tree from a linkage matrix or a dendrogram: see ``Tree.from_linkage``."""
    named = None
    if isinstance(Z, Mapping):
        Z, named = _from_scanpy(Z)
    merges, height = _merges(Z)
    num_leaves = len(merges) + 1
    names = _leaf_names(named if labels is None else labels, num_leaves)
    if named is not None and names != named:
        raise TreeError(
            f"labels: leaf i of this dendrogram is named by its own categories, {listed(named)}, "
            f"received {listed(names)}; leave labels out, or rename in the order of obs[groupby]"
            ".cat.categories (that of the plot differs)"
        )
    made = num_leaves + np.arange(len(merges))
    rows, columns = np.nonzero((merges < 0) | (merges >= made[:, None]))
    if len(rows):
        row, cluster = rows[0], merges[rows[0], columns[0]]
        raise TreeError(
            f"Z: {len(rows)} clusters do not exist where they merge, the first in row {row}: "
            f"cluster {cluster}, while clusters 0 to {made[row] - 1} do; with {num_leaves - 1} "
            f"rows the leaves are 0 to {num_leaves - 1}"
        )
    arcs = [(num_leaves + row, part) for row, pair in enumerate(merges.tolist()) for part in pair]
    order, parents = level_order(num_leaves + len(merges) - 1, arcs)
    used = set(names)
    nodes = [
        names[cluster]
        if cluster < num_leaves
        else free_name([f"cluster{cluster}" if place else "root"], used)
        for place, cluster in enumerate(order)
    ]
    heights = np.concatenate([np.zeros(num_leaves), height])
    above = heights[[order[parent] for parent in parents]] - heights[order[1:]]
    return with_lengths("Z", TreeParts(nodes, parents, above.tolist()))


def _from_scanpy(dendrogram: Mapping[str, Any]) -> tuple[Any, list[Hashable]]:
    """The linkage matrix, and the categories in its order."""
    keys = ("linkage", "categories_ordered", "categories_idx_ordered")
    absent = [key for key in keys if key not in dendrogram]
    if absent:
        raise TreeError(
            f"Z: a mapping without {listed(absent)}, keys of scanpy's tl.dendrogram; give "
            "adata.uns['dendrogram_...'], or a linkage matrix and labels"
        )
    in_plot, places = (_as_list(dendrogram[key]) for key in keys[1:])
    if len(in_plot) != len(places) or sorted(places) != list(range(len(places))):
        raise TreeError(
            f"Z: categories_ordered has {len(in_plot)} entries, categories_idx_ordered "
            f"{listed(places)}; run scanpy's tl.dendrogram again"
        )
    by_place = dict(zip(places, in_plot, strict=True))
    return dendrogram["linkage"], [by_place[place] for place in range(len(places))]


def _merges(Z: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Clusters that merge, (L - 1, 2), and the heights, (L - 1,)."""
    try:
        matrix = np.asarray(Z, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TreeError(
            f"Z: expected a linkage matrix of numbers, received {type(Z).__name__} ({error})"
        ) from error
    if matrix.ndim != 2 or not len(matrix) or matrix.shape[1] < _LEAST_COLUMNS:
        raise TreeError(
            f"Z: expected a linkage matrix (leaves - 1, 4) with at least one row, received shape "
            f"{matrix.shape}; give what scipy.cluster.hierarchy.linkage returns"
        )
    numbers = matrix[:, :_LEAST_COLUMNS]
    bad = np.flatnonzero(~np.isfinite(numbers).all(1) | (numbers[:, :2] % 1 != 0).any(1))
    if len(bad):
        raise TreeError(
            f"Z: {len(bad)} of {len(matrix)} rows hold a cluster that is no whole number or a "
            f"height that is not finite, the first row {bad[0]}: {matrix[bad[0]].tolist()}"
        )
    merges = numbers[:, :2].astype(np.int64)
    used, counts = np.unique(merges, return_counts=True)
    twice = used[counts > 1]
    if len(twice):
        where = [np.flatnonzero((merges == cluster).any(1)) for cluster in twice[:MAX_SHOWN]]
        texts = [f"{c} (rows {listed(r.tolist(), 4)})" for c, r in zip(twice, where, strict=False)]
        raise TreeError(
            f"Z: {len(twice)} clusters merge more than once: {listed_texts(texts)}; every cluster "
            "but the last merges once"
        )
    return merges, numbers[:, 2]


def _leaf_names(labels: Any, num_leaves: int) -> list[Hashable]:
    if labels is None:
        raise TreeError(f"labels: none given; give a name for each of the {num_leaves} leaves")
    if isinstance(labels, str | bytes | Set | Mapping) or not isinstance(labels, Iterable):
        raise TreeError(
            f"labels: expected a list of {num_leaves} names, received {type(labels).__name__}"
        )
    names = _as_list(as_pandas(labels, "labels", TreeError))
    refuse_rounded("labels", names, "place")
    if len(names) != num_leaves:
        raise TreeError(
            f"labels: {len(names)} given for {num_leaves} leaves, as Z has {num_leaves - 1} rows; "
            "give one a leaf, in the order of the clustered rows"
        )
    missing = [place for place, name in enumerate(names) if is_blank(name)]
    if missing:
        raise TreeError(f"labels: {len(missing)} are missing, at places {listed(missing)}")
    refuse_repeated("labels", "", names, "give every leaf its own name")
    return names


def _as_list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
