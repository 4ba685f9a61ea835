"""From the labels of rows to nodes of the tree, whatever container and type they come in."""

from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError, TreeError
from pyro_tbr.tree.readers.naming import (
    MAX_SHOWN,
    NearestNode,
    folded,
    is_rounded,
    listed,
    listed_texts,
    refuse_rounded,
    seen_alike,
)
from pyro_tbr.tree.tree import Tree


def match_labels(tree: Tree, env: Any, *, argument: str = "env") -> Tensor:
    """Node index of every row's label, ``(N,)`` int64 on the CPU; leaves and inner nodes alike.

    Labels match nodes they equal: ``np.int64(3)``, ``3.0`` and ``3`` are one label, ``"3"`` is
    another. Nothing is matched by likeness. Only labels that occur count, so unused categories
    of a pandas Categorical do nothing.

    Args:
        tree: The environments.
        env: One label a row: list, numpy array of any dtype, pandas Series, Index or array, torch
            tensor. ``(N,)``.
        argument: What the caller names it, for the messages.

    Raises:
        ShapeError: Not one label a row.
        TreeError: Missing labels (None, NaN, NA), with their count and places; or labels that are
            no node, each with the nearest node.

    Example:
        >>> tree = Tree.from_parents({"T": "blood", "B": "blood"})
        >>> match_labels(tree, ["B", "T", "B"])
        tensor([2, 1, 2])
    """
    codes, uniques = factorize_labels(env, argument)
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise TreeError(
            f"{argument}: {len(missing)} of {len(codes)} rows have no label (None, NaN or NA), at "
            f"rows {listed(missing.tolist())} counted from 0; give them a label or drop them"
        )
    places = [tree.find(label) for label in uniques]
    rows = np.array([-1 if place is None else place for place in places], dtype=np.int64)[codes]
    if (rows < 0).any():
        raise TreeError(_unknown_labels(tree, codes, uniques, rows < 0, argument))
    return torch.from_numpy(rows)


def factorize_labels(env: Any, argument: str) -> tuple[np.ndarray, list[Hashable]]:
    """Codes (N,) with -1 where missing, and the labels that occur; errors as ``match_labels``."""
    values = _one_dimensional(env, argument)
    if isinstance(values, pd.Categorical):
        used, codes = np.unique(values.codes, return_inverse=True)
        has_missing = len(used) > 0 and used[0] == -1
        codes, labels = codes - has_missing, list(values.categories[used[int(has_missing) :]])
        if any(map(is_rounded, labels)):
            refuse_rounded(argument, values)
        return codes, labels
    try:
        codes, uniques = pd.factorize(values)
    except TypeError as error:
        raise TreeError(
            f"{argument}: labels must be hashable ({error}); use text, numbers or tuples"
        ) from error
    labels = list(pd.Series(uniques, dtype=uniques.dtype))
    # Among objects a float can equal a whole number that another row has: look at all of them.
    if any(map(is_rounded, values if values.dtype == object else labels)):
        refuse_rounded(argument, values)
    return codes, labels


def _one_dimensional(env: Any, argument: str) -> Any:
    """A one-dimensional array or pandas array. Lists become object arrays: 10 stays no "10"."""
    if isinstance(env, str | bytes) or not isinstance(env, Iterable):
        raise ShapeError(
            f"{argument}: expected one label a row, (N,), received the single label {env!r}; "
            "repeat it for all rows"
        )
    if isinstance(env, Mapping | Set):
        raise ShapeError(
            f"{argument}: expected one label a row, (N,), received a {type(env).__name__}, whose "
            "order means nothing; give a list or a pandas Series"
        )
    if isinstance(env, Tensor):
        env = env.detach().cpu().numpy()
    if isinstance(env, np.ma.MaskedArray):
        env = pd.Series(env)  # NaN where masked
    shape = getattr(env, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ShapeError(
            f"{argument}: expected one label a row, (N,), received {type(env).__name__} of shape "
            f"{tuple(shape)}; select one column"
        )
    if isinstance(env, pd.MultiIndex):
        return env.to_numpy()  # tuples
    if isinstance(env, pd.Series | pd.Index):
        env = env.array
    if isinstance(env, pd.arrays.NumpyExtensionArray):
        return env.to_numpy()  # pandas 2 does not factorise its own wrapper of an array
    if isinstance(env, np.ndarray | pd.api.extensions.ExtensionArray):
        return env
    labels = list(env)
    return np.fromiter(labels, dtype=object, count=len(labels))


def _unknown_labels(
    tree: Tree, codes: np.ndarray, uniques: list[Hashable], is_bad: np.ndarray, argument: str
) -> str:
    places, found = pd.factorize(codes[is_bad])  # in the order of their first rows
    first_rows = np.flatnonzero(is_bad)[np.unique(places, return_index=True)[1]]
    bad = [uniques[code] for code in found]
    nearest = NearestNode(tree.nodes)
    texts = [repr(label) for label in bad]
    shown = zip(bad[:MAX_SHOWN], first_rows, np.bincount(places), strict=False)
    for place, (label, row, count) in enumerate(shown):
        node = nearest(label)
        hint = "no similar node" if node is None else f"nearest node {_shown(node, label)}"
        many = f"{count} rows, first {row}" if count > 1 else f"row {row}"
        texts[place] = f"{_shown(label, node)} ({many}; {hint})"
    way_out = "correct the labels, or add nodes to the tree"
    if all(nearest(label) is None for label in bad[:MAX_SHOWN]):
        way_out = f"nodes are {listed(tree.nodes, 5)}: {way_out}"
    by_text = {folded(node): node for node in tree.nodes}
    for label in bad:  # if types differ, printed lists would look the same
        node = by_text.get(folded(label), label)
        if type(label) is not type(node):
            way_out = (
                f"{argument} labels are {type(label).__name__} ({label!r}), tree nodes are "
                f"{type(node).__name__} ({node!r}): convert one of them"
            )
            break
    if tree.num_leaves == 1 < tree.num_arcs:
        way_out += "; this tree is a chain with one leaf: Tree.from_parents takes child -> parent"
    return (
        f"{argument}: {is_bad.sum()} of {len(codes)} rows carry {len(bad)} labels that are no "
        f"node of the tree: {listed_texts(texts)}; {way_out}"
    )


def _shown(label: object, other: object) -> str:
    """By repr; with the type where two labels differ in it, by codes where they look the same."""
    differ = other is not None and type(label) is not type(other)
    if isinstance(label, str) and isinstance(other, str) and seen_alike(label, other):
        return ascii(label)
    return f"{label!r} ({type(label).__name__})" if differ else repr(label)
