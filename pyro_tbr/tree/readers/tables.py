"""Trees from tables of parents, from networkx graphs and back. Newick has a file of its own."""

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from pyro_tbr.errors import TreeError
from pyro_tbr.tree.readers.arrange import TreeParts, arrange
from pyro_tbr.tree.readers.naming import is_blank, listed, refuse_rounded, unknown_label
from pyro_tbr.tree.readers.other_tables import as_pandas

Row = tuple[Any, Any, Any]  # child, parent, length
_SEVERAL = (list, set, Mapping, np.ndarray, pd.Series, pd.Index)  # what no label is


def read_parents(
    parents: Mapping[Any, Any] | pd.DataFrame | pd.Series | Sequence[Any] | np.ndarray,
    *,
    lengths: Mapping[Any, float] | pd.Series | None = None,
) -> TreeParts:
    """A tree from the parent of each node: see ``Tree.from_parents``."""
    rows, num_columns, names = _as_rows(as_pandas(parents, "parents", TreeError))
    for place, column in enumerate(names):
        refuse_rounded(f"parents, column {column!r}", (row[place] for row in rows))
    if lengths is not None and num_columns == 3:
        raise TreeError("lengths: parents has lengths in a third column already; give one")
    several = [row[:2] for row in rows if isinstance(row[1], _SEVERAL)]
    if several:
        key, value = several[0]
        raise TreeError(
            f"parents: {len(several)} of {len(rows)} nodes have a {type(value).__name__} for their "
            f"parent, the first {key!r}: {value!r}; if these are its children, use "
            "Tree.from_children({parent: [children]}); else name the one parent of each child"
        )
    return _of_rows(
        "parents",
        rows,
        lengths,
        turn_round="give child -> parent, in a table the child's column first",
        only_children="a dict has one value a key, so if its keys are parents, other children of "
        "theirs are lost: give {child: parent}, or {parent: [children]} to Tree.from_children",
    )


def read_children(
    children: Mapping[Any, Any] | pd.Series,
    *,
    lengths: Mapping[Any, float] | pd.Series | None = None,
) -> TreeParts:
    """A tree from the children of each node: see ``Tree.from_children``."""
    if not isinstance(children, Mapping | pd.Series):
        raise TreeError(
            "children: expected a mapping parent -> list of children, received "
            f"{type(children).__name__}; for tables of child and parent use Tree.from_parents"
        )
    rows: list[Row] = []
    for parent, below in children.items():
        if isinstance(below, Mapping):
            raise TreeError(
                f"children: those of {parent!r} are a dict within a dict; give every parent an "
                f"entry of its own: {{{parent!r}: {list(below)!r}, ...}}"
            )
        single = isinstance(below, str | bytes) or not isinstance(below, Iterable)
        rows += [(child, parent, None) for child in ([below] if single else below)]
    return _of_rows("children", rows, lengths, turn_round="give parent -> list of its children")


def _of_rows(
    argument: str,
    rows: list[Row],
    lengths: Mapping[Any, float] | pd.Series | None,
    *,
    turn_round: str,
    only_children: str | None = None,
) -> TreeParts:
    """A tree from rows, lengths by child where there are some; hints are those of ``arrange``."""
    if lengths is not None:
        if not isinstance(lengths, Mapping | pd.Series):
            raise TreeError(
                f"lengths: expected a mapping child -> length, received {type(lengths).__name__}; "
                "a list of pairs may have lengths as a third entry of each row"
            )
        by_child = dict(lengths.items())
        refuse_rounded("lengths", by_child, "entry")
        rows = [(child, parent, by_child.pop(child, None)) for child, parent, _ in rows]
        if by_child:
            raise TreeError(
                f"lengths: {len(by_child)} keys are no child in {argument}: {listed(by_child)}; "
                "lengths go by the child of the arc"
            )
    if all(_is_whole(child) for child, *_ in rows):
        rows = [(_to_int(child), _to_int(parent), length) for child, parent, length in rows]
    missing = [place for place, row in enumerate(rows) if is_blank(row[0])]
    if missing:
        raise TreeError(
            f"{argument}: {len(missing)} of {len(rows)} rows have no child label, at rows "
            f"{listed(missing)}; name the child or drop the row"
        )
    roots = [(child, parent) for child, parent, _ in rows if _marks_root(child, parent)]
    arcs = [row for row in rows if not _marks_root(*row[:2])]
    parts = arrange(
        argument,
        [(parent, child) for child, parent, _ in arcs],
        [length for _, _, length in arcs],
        nodes=[child for child, _ in roots],
        turn_round=turn_round,
        only_children=only_children,
    )
    both = [child for child, _ in roots if child != parts.nodes[0]]
    if both:
        raise TreeError(
            f"{argument}: {len(both)} nodes are marked as the root and have a parent too: "
            f"{listed(both)}; drop one of the rows"
        )
    return parts


def read_networkx(graph: nx.DiGraph) -> TreeParts:
    """A tree from a directed networkx graph: see ``Tree.from_networkx``."""
    if not isinstance(graph, nx.Graph):
        raise TreeError(
            f"graph: expected a networkx DiGraph, received {type(graph).__name__}; for a table "
            "of parents use Tree.from_parents, for text Tree.from_newick"
        )
    if not graph.is_directed():
        raise TreeError(
            f"graph: an undirected graph ({graph.number_of_nodes()} nodes) has no root; direct "
            "its arcs away from it, as nx.bfs_tree(graph, root) does"
        )
    edges = list(graph.edges(data=True))
    name = "length" if any("length" in data for *_, data in edges) else "weight"
    return arrange(
        "graph",
        [(parent, child) for parent, child, _ in edges],
        [data.get(name) for *_, data in edges],
        nodes=graph.nodes,
        turn_round="turn them round with graph.reverse()",
    )


def read_treedata(tdata: Any, key: str | None = None) -> TreeParts:
    """A tree out of a TreeData object: see ``Tree.from_treedata``."""
    trees = getattr(tdata, "obst", None)
    if trees is None:
        raise TreeError(f"tdata: expected a TreeData object, received {type(tdata).__name__}")
    known = list(trees.keys())
    if key is None and len(known) != 1:
        raise TreeError(f"tdata.obst has {len(known)} trees: {listed(known)}; name one by key=")
    if key is not None and key not in known:
        raise TreeError(f"key: {unknown_label(key, known, 'trees of tdata.obst')}")
    return read_networkx(trees[known[0] if key is None else key])


def write_networkx(tree: TreeParts) -> nx.DiGraph:
    """A graph of the tree: see ``Tree.to_networkx``."""
    graph = nx.DiGraph()
    graph.add_nodes_from(tree.nodes)
    for (parent, child), length in zip(tree.arcs, tree.lengths, strict=True):
        graph.add_edge(parent, child, **({} if length is None else {"length": length}))
    return graph


def write_frame(tree: TreeParts) -> pd.DataFrame:
    """A row an arc: see ``Tree.to_frame``."""
    inner = set(tree.parents)
    parents, children = zip(*tree.arcs, strict=True)
    return pd.DataFrame(
        {
            "parent": pd.Series(list(parents), dtype=object),
            "child": pd.Series(list(children), dtype=object),
            "length": np.array(tree.lengths, dtype=np.float64),
            "is_leaf": [node not in inner for node in range(1, len(tree.nodes))],
        }
    )


def _as_rows(parents: Any) -> tuple[list[Row], int, Sequence[Hashable]]:
    """Rows (child, parent, length or None), the number of columns they had, and two's names."""
    names: Sequence[Hashable] = ("child", "parent")
    is_other = isinstance(parents, str | bytes | nx.Graph | Set)
    if is_other or not isinstance(parents, Iterable):
        raise TreeError(
            "parents: expected a mapping child -> parent or a table of two columns, received "
            f"{type(parents).__name__}; for graphs use Tree.from_networkx, for Newick text "
            "Tree.from_newick, for a csv file pd.read_csv first, and a list in place of a set"
        )
    if isinstance(parents, Mapping | pd.Series):
        return [(child, parent, None) for child, parent in parents.items()], 2, names
    if isinstance(parents, pd.DataFrame):
        if {"child", "parent"} <= set(parents.columns):
            by_name = [c for c in ("child", "parent", "length") if c in parents.columns]
            parents = parents[by_name]
        names = list(parents.columns[:2])
        table = list(parents.itertuples(index=False, name=None))
        width = parents.shape[1]
        if width not in (2, 3):
            raise TreeError(
                f"parents: expected columns child, parent and perhaps length, received "
                f"{width}: {listed(parents.columns)}; select them"
                + (", by reset_index() where children are the index" if width == 1 else "")
            )
    else:
        table = parents.tolist() if isinstance(parents, np.ndarray) else list(parents)
    wrong = [
        place
        for place, row in enumerate(table)
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) not in (2, 3)
    ]
    if wrong:
        raise TreeError(
            f"parents: {len(wrong)} of {len(table)} rows are not (child, parent) or (child, "
            f"parent, length), the first at row {wrong[0]}: {table[wrong[0]]!r}"
        )
    rows = [(row[0], row[1], row[2] if len(row) == 3 else None) for row in table]
    return rows, max((len(row) for row in table), default=2), names


def _is_whole(label: object) -> bool:
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    return whole or (isinstance(label, float | np.floating) and float(label).is_integer())


def _to_int(label: Hashable) -> Hashable:
    return int(label) if isinstance(label, float | np.floating) and _is_whole(label) else label


def _marks_root(child: object, parent: object) -> bool:
    return is_blank(parent) or bool(child == parent)
