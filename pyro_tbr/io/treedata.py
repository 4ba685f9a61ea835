"""TreeData: the tree of environments with inclusion probabilities on its edges.

TreeData is AnnData with trees; here its observations are the environments, not the rows. Trees come
out of one by ``Tree.from_treedata``. Install it with ``pip install pyro-tbr[treedata]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx
import pandas as pd

from pyro_tbr.data.outcomes import names_as_text
from pyro_tbr.posterior import Posterior
from pyro_tbr.tree.readers.naming import written_names

if TYPE_CHECKING:
    from treedata import TreeData


def to_treedata(posterior: Posterior, *, key: str = "tbr") -> TreeData:
    """The leaves as observations, their tree with what changed on each edge.

    It is what ``pycea`` draws: ``pycea.pl.branches(tdata, color="pip_z0", linewidth="pip_z0")``.

    Returns:
        ``obst[key]``: nodes by their labels as text, with ``depth`` (from the root, by arc lengths
        where all are known, else one an arc); edges with ``pip_z0``, ``mean_z0`` (of the change)
        and so on, for several outcomes ``pip_y0_z0``, and ``length`` where there is one.
        ``obs``: the leaves, with ``rows`` of the fit at each; ``obsm["weights"]``: mean weights.

    Raises:
        ImportError: treedata is not installed.
        TreeError: Nodes whose labels are alike as text.
    """
    try:
        from treedata import TreeData
    except ImportError as error:
        raise ImportError("to_treedata needs treedata: pip install pyro-tbr[treedata]") from error
    tree = posterior.tree
    texts = dict(zip(tree.nodes, written_names(tree.nodes), strict=True))
    leaves = pd.Index([texts[leaf] for leaf in tree.leaves], dtype=object)
    rows = posterior.row_counts[tree.leaf_index].numpy()
    weights = posterior.node_weights().assign(what=lambda t: _names(posterior, t))
    by_node = weights.pivot(index="node", columns="what", values="mean")
    table = by_node.loc[list(tree.leaves), weights["what"].unique()].set_axis(leaves)
    table.columns = pd.Index(list(table.columns))
    return TreeData(
        obs=pd.DataFrame({"rows": rows}, index=leaves),
        obsm={"weights": table},
        obst={key: _graph(posterior, texts)},
        uns={key: {"latents": list(posterior.latent_names)}},
        alignment="leaves",
    )


def _names(posterior: Posterior, table: pd.DataFrame) -> pd.Series:
    """Latent, or outcome and latent, of each row of a long table."""
    if len(posterior.outcome_names) == 1:
        return table["latent"]
    texts = dict(zip(posterior.outcome_names, names_as_text(posterior.outcome_names), strict=True))
    return table["outcome"].map(texts.get) + "_" + table["latent"]


def _graph(posterior: Posterior, texts: dict[Any, str]) -> nx.DiGraph:
    """The tree with attributes on nodes and edges, its nodes as text."""
    tree = posterior.tree
    graph = tree.to_networkx()
    lengths = tree.require_lengths() if tree.has_lengths else (1.0,) * tree.num_arcs
    graph.nodes[tree.root]["depth"] = 0.0
    for (parent, child), length in zip(tree.arcs, lengths, strict=True):
        graph.nodes[child]["depth"] = graph.nodes[parent]["depth"] + length
    changes = posterior.deltas()
    names = _names(posterior, changes)
    columns = (changes[part] for part in ("parent", "child", "pip", "mean"))
    for name, parent, child, pip, mean in zip(names, *columns, strict=True):
        graph.edges[parent, child].update({f"pip_{name}": float(pip), f"mean_{name}": float(mean)})
    return nx.relabel_nodes(graph, texts)
