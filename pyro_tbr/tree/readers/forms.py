"""What a tree can be made from and turned into; the work is done in the files named here."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from pyro_tbr.tree.tree import Tree


class TreeForms:
    """The ways into a :class:`Tree`, and out of it."""

    @classmethod
    def from_parents(
        cls, parents: Any, *, lengths: Mapping[Any, float] | pd.Series | None = None
    ) -> Tree:
        """Builds the tree from each node's parent; see :func:`~pyro_tbr.tree.read_parents`."""
        from pyro_tbr.tree.readers.tables import read_parents

        return read_parents(parents, lengths=lengths)

    @classmethod
    def from_networkx(cls, graph: nx.DiGraph) -> Tree:
        """Builds the tree from a directed graph; see :func:`~pyro_tbr.tree.read_networkx`."""
        from pyro_tbr.tree.readers.tables import read_networkx

        return read_networkx(graph)

    @classmethod
    def from_newick(cls, text_or_path: str | os.PathLike[str]) -> Tree:
        """Builds the tree from Newick text or file; see :func:`~pyro_tbr.tree.read_newick`."""
        from pyro_tbr.tree.readers.newick import read_newick

        return read_newick(text_or_path)

    @classmethod
    def from_taxonomy(
        cls,
        frame: pd.DataFrame,
        ranks: Sequence[Hashable],
        leaves: str | None = None,
        *,
        gaps: Iterable[str] | None = None,
    ) -> Tree:
        """Builds the tree from columns of ranks; see :func:`~pyro_tbr.tree.read_taxonomy`."""
        from pyro_tbr.tree.readers.taxonomy import GAPS, read_taxonomy

        return read_taxonomy(frame, ranks, leaves, gaps=GAPS if gaps is None else gaps)

    @classmethod
    def from_linkage(cls, Z: Any, labels: Iterable[Hashable] | None = None) -> Tree:
        """Builds the tree from a scipy or scanpy dendrogram; :func:`~pyro_tbr.tree.read_linkage`.

        Args:
            Z: Linkage matrix, (leaves - 1, 4), or scanpy's ``uns["dendrogram_..."]``.
            labels: Names of the leaves in the order of the clustered rows; scanpy's dendrogram
                brings its own.
        """
        from pyro_tbr.tree.readers.linkage import read_linkage

        return read_linkage(Z, labels)

    @classmethod
    def from_treedata(cls, tdata: Any, key: str | None = None) -> Tree:
        """Builds the tree from a TreeData object; see :func:`~pyro_tbr.tree.read_treedata`.

        Args:
            tdata: The object.
            key: Which tree of ``obst``; None: the only one.
        """
        from pyro_tbr.tree.readers.tables import read_treedata

        return read_treedata(tdata, key)

    def to_networkx(self) -> nx.DiGraph:
        """A graph with an arc per arc, attribute ``length`` where the arc has one."""
        from pyro_tbr.tree.readers.tables import write_networkx

        return write_networkx(cast("Tree", self))

    def to_frame(self) -> pd.DataFrame:
        """A row an arc, which :meth:`from_parents` reads; :func:`~pyro_tbr.tree.write_frame`."""
        from pyro_tbr.tree.readers.tables import write_frame

        return write_frame(cast("Tree", self))

    def to_newick(self, comments: Any = None, *, style: str = "nhx") -> str:
        """Newick text that reads back as this tree; see :func:`~pyro_tbr.tree.write_newick`.

        Args:
            comments: What to write beside nodes: such as ``posterior.pips()``.
            style: ``"nhx"`` or ``"beast"``.
        """
        from pyro_tbr.tree.readers.newick import write_newick

        return write_newick(cast("Tree", self), comments, style=style)
