"""What a tree can be made from and turned into; the work is done by the readers and writers."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Self

import networkx as nx
import numpy as np
import pandas as pd

from pyro_tbr.tree.readers.arrange import TreeParts
from pyro_tbr.tree.readers.clades import clade_text
from pyro_tbr.tree.readers.linkage import read_linkage
from pyro_tbr.tree.readers.newick import read_newick, write_newick
from pyro_tbr.tree.readers.tables import (
    read_children,
    read_networkx,
    read_parents,
    read_treedata,
    write_frame,
    write_networkx,
)
from pyro_tbr.tree.readers.taxonomy import GAPS, read_taxonomy


class TreeForms:
    """The ways into a :class:`~pyro_tbr.tree.Tree`, and out of it."""

    _parts: TreeParts

    @classmethod
    def _of(cls, parts: TreeParts) -> Self:
        raise NotImplementedError

    def index(self, node: Hashable) -> int:
        """Place of a node among the nodes."""
        raise NotImplementedError

    @classmethod
    def from_parents(
        cls,
        parents: Mapping[Any, Any] | pd.DataFrame | pd.Series | Sequence[Any] | np.ndarray,
        *,
        lengths: Mapping[Any, float] | pd.Series | None = None,
    ) -> Self:
        """Builds the tree from the parent of each node, siblings in the order of the rows.

        Labels stay as they were given, but whole floats become ints where all children are whole
        numbers, as a column with a NaN for the root makes floats of them.

        Args:
            parents: A mapping (or Series) child -> parent, or a table of two columns, child and
                parent: DataFrame, ``(n, 2)`` array, list of pairs. A third column holds the length
                of the arc to the parent, in any unit. A DataFrame with columns ``child``,
                ``parent`` and perhaps ``length`` is read by these names, in any order. The root may
                be left out as a child, or have None, NaN, ``""`` or itself as its parent. For lists
                of children see :meth:`from_children`.
            lengths: Lengths by child, instead of a third column; None or absent where not known.

        Raises:
            TreeError: Not a table of two or three columns, or its rows are not one rooted tree:
                a child given twice, two roots, a cycle, no arc, missing labels; or labels that are
                floats too large to tell whole numbers apart.

        Example:
            >>> from pyro_tbr import Tree
            >>> Tree.from_parents([("a", "r", 0.5), ("b", "r", 1.5)]).lengths
            (0.5, 1.5)
        """
        return cls._of(read_parents(parents, lengths=lengths))

    @classmethod
    def from_children(
        cls,
        children: Mapping[Any, Any] | pd.Series,
        *,
        lengths: Mapping[Any, float] | pd.Series | None = None,
    ) -> Self:
        """Builds the tree from the children of each node, siblings in the order given.

        Args:
            children: A mapping (or Series) parent -> list of its children; a single child may
                stand by itself. Leaves may be left out as parents, or have an empty list.
            lengths: Lengths of the arcs by child, in any unit; None or absent where not known.

        Raises:
            TreeError: No such mapping, or no rooted tree, as in :meth:`from_parents`.

        Example:
            >>> from pyro_tbr import Tree
            >>> Tree.from_children({"blood": ["T", "B"], "T": ["CD4", "CD8"]}).leaves
            ('B', 'CD4', 'CD8')
        """
        return cls._of(read_children(children, lengths=lengths))

    @classmethod
    def from_networkx(cls, graph: nx.DiGraph) -> Self:
        """Builds the tree from a directed networkx graph, arcs from parent to child.

        The arc attribute ``length`` holds lengths in any unit; if no arc has it, ``weight`` does.
        A MultiDiGraph without parallel arcs will do. Siblings stand in the order of
        ``graph.successors``.

        Raises:
            TreeError: No directed graph, or not one rooted tree; the message names the culprit.

        Example:
            >>> from pyro_tbr import Tree
            >>> Tree.from_networkx(nx.DiGraph([("r", "a"), ("r", "b")])).leaves
            ('a', 'b')
        """
        return cls._of(read_networkx(graph))

    @classmethod
    def from_newick(cls, text_or_path: str | os.PathLike[str]) -> Self:
        """Builds the tree from Newick text, or from the file (UTF-8) of that name.

        Names are kept letter for letter: underscores, case, and all that stands in quotes, a
        doubled apostrophe being one. Comments in square brackets are dropped, and so is a length at
        the root. Leaves must have names, each its own. An inner node that has no name, or one that
        is taken, gets a name of its own (``root``, ``inner1``, ``G#2``); ``tree.labels`` keeps what
        was written. A number in place of an inner name, not in quotes, is its support and goes to
        ``tree.support``. Lengths are in the unit of the text, None where absent.

        Raises:
            TreeError: Text that is not one tree, with the character (from 1) where reading stopped;
                a leaf without a name or with that of another; a file that is no text.
            FileNotFoundError: A ``Path`` that does not exist.

        Example:
            >>> from pyro_tbr import Tree
            >>> tree = Tree.from_newick("((A:1,'B c':0.5)95:2,D)r;")
            >>> tree.arcs
            (('r', 'inner1'), ('r', 'D'), ('inner1', 'A'), ('inner1', 'B c'))
            >>> tree.lengths, dict(tree.support)
            ((2.0, None, 1.0, 0.5), {'inner1': 95.0})
        """
        return cls._of(read_newick(text_or_path))

    @classmethod
    def from_taxonomy(
        cls,
        frame: pd.DataFrame,
        ranks: Sequence[Hashable],
        leaves: str | None = None,
        *,
        gaps: Iterable[str] | None = None,
    ) -> Self:
        """Builds the tree from a table with one column a rank.

        A node is known by its path from the root, so a genus ``G`` in two phyla is two nodes. A
        name that only one node bears is the node's label; where several bear it, each of them is
        labelled by its path, ``P1/G`` and ``P2/G``, whatever the order of the rows. A leaf always
        keeps its name: an inner node that bears it too is labelled by its path. Ranks that a row
        does not know are left out, so what is below hangs from the nearest rank that is known.
        Nodes with one child are kept.

        Args:
            frame: One row a leaf, or many rows of the same leaf, such as one a sample.
                ``(N, ...)``.
            ranks: Its columns, from the coarsest to the finest. If all rows have the same value in
                the first one, that is the root; else the root is called ``root``.
            leaves: None: the last of ``ranks`` holds the leaves; a row that lacks it adds the ranks
                that it knows, and the lowest of them is a leaf if nothing else is below it.
                ``"index"``: the index does, below the last rank a row knows, one row a leaf.
            gaps: Words that stand for an unknown rank, in any case, beside None, NaN, blank text
                and a bare prefix such as ``g__``; None: ``unclassified``, ``unknown`` and
                ``unassigned``. With ``()`` these are names like others.

        Returns:
            The tree, without lengths. Siblings stand in the order of their first rows. Whole floats
            become ints where a column has nothing else.

        Raises:
            TreeError: No such column; a leaf in two places or, for ``"index"``, in two rows; a leaf
                without a name; no arc; or names that are floats too large to tell whole numbers
                apart.

        Warns:
            DataWarning: Names such as ``"nan"``, which were missing before a column became text.

        Example:
            >>> from pyro_tbr import Tree
            >>> frame = pd.DataFrame({"phylum": ["P1", "P1", "P2"], "genus": ["G", None, "G"],
            ...                       "species": ["s1", "s2", "s3"]})
            >>> Tree.from_taxonomy(frame, ["phylum", "genus", "species"]).arcs[2:]
            (('P1', 'P1/G'), ('P1', 's2'), ('P2', 'P2/G'), ('P1/G', 's1'), ('P2/G', 's3'))
        """
        words = GAPS if gaps is None else gaps
        return cls._of(read_taxonomy(frame, ranks, leaves, gaps=words))

    @classmethod
    def from_linkage(cls, Z: Any, labels: Iterable[Hashable] | None = None) -> Self:
        """Builds the tree from a linkage matrix, as ``scipy.cluster.hierarchy.linkage`` makes it.

        The length of an arc is the height of the parent less that of the child, in the unit of the
        heights, leaves being at 0; it is negative where clusters merge below their parts, as with
        ``"centroid"``. The root is ``root``, cluster c ``cluster{c}`` (``#2`` where taken).

        Args:
            Z: Merges, ``(L - 1, 4)``: row i joins two clusters into cluster ``L + i`` at a height,
                the leaves being clusters 0 to L - 1. Or what scanpy's ``tl.dendrogram`` leaves in
                ``adata.uns["dendrogram_..."]``, which has the matrix under ``"linkage"``.
            labels: Name of leaf i, ``(L,)``. For scanpy they are ``obs[groupby].cat.categories`` in
                their own order, not in that of the plot, and may be left out.

        Raises:
            TreeError: A matrix that is no linkage, with the row and the cluster; labels that are
                too few or too many, missing or doubled, or not in the order of the matrix.

        Example:
            >>> from pyro_tbr import Tree
            >>> Tree.from_linkage([[0, 1, 0.5, 2], [2, 3, 2.0, 3]], ["a", "b", "c"]).arcs
            (('root', 'c'), ('root', 'cluster3'), ('cluster3', 'a'), ('cluster3', 'b'))
        """
        return cls._of(read_linkage(Z, labels))

    @classmethod
    def from_treedata(cls, tdata: Any, key: str | None = None) -> Self:
        """Builds the tree from a TreeData object, or any with a mapping ``obst`` of graphs.

        Lengths are as :meth:`from_networkx` finds them; ``key`` says which tree, None the only one.

        Raises:
            TreeError: No such object or key, or not one rooted tree.
        """
        return cls._of(read_treedata(tdata, key))

    def to_networkx(self) -> nx.DiGraph:
        """A graph with an arc per arc, attribute ``length`` where the arc has one."""
        return write_networkx(self._parts)

    def describe(self, node: Hashable) -> str:
        """The text of a node, with the leaves below it where it has no name of its own.

        Nodes without a name are those that readers had to name (``inner14``, ``cluster7``), those
        whose name is a number or a support value, and those numbered by other programs
        (``Node12``).

        Args:
            node: A node's label.

        Raises:
            TreeError: No such node.

        Example:
            >>> from pyro_tbr import Tree
            >>> tree = Tree.from_newick("(((A,B),(C,D)),E)r;")
            >>> tree.describe("inner1"), tree.describe("inner2"), tree.describe("E")
            ('inner1 (4 leaves: A to D)', 'inner2 (A, B)', 'E')
        """
        return clade_text(self._parts, self.index(node))

    def to_frame(self) -> pd.DataFrame:
        """A row an arc, which :meth:`from_parents` reads back.

        Columns are ``parent``, ``child``, ``length`` (NaN where unknown), ``is_leaf`` (the child).

        Example:
            >>> from pyro_tbr import Tree
            >>> Tree.from_parents([("a", "r", 0.5), ("b", "r", 1.5)]).to_frame()
              parent child  length  is_leaf
            0      r     a     0.5     True
            1      r     b     1.5     True
        """
        return write_frame(self._parts)

    def to_newick(self, comments: Any = None, *, style: str = "nhx") -> str:
        """Newick text, which :meth:`from_newick` reads back as the same tree.

        Names are quoted where they must be, inner names that are numbers too, so that they are not
        read as support. Names are text afterwards: a node ``10`` comes back as ``"10"``.

        Args:
            comments: What to write beside nodes, for other programs: a DataFrame, Series or dict by
                node or by (parent, child), such as ``posterior.pips()``. Numbers have four digits,
                missing ones are left out, marks that Newick or the comment needs become ``_``.
            style: ``"nhx"``: ``A:1[&&NHX:z0=0.98:z1=0]``; ``"beast"``: ``A[&z0=0.98,z1=0]:1``,
                which FigTree and ggtree's ``read.beast`` read.

        Raises:
            TreeError: Nodes that are different but written alike, such as ``10`` and ``"10"``;
                comments on nodes that are not in the tree.

        Example:
            >>> from pyro_tbr import Tree
            >>> Tree.from_newick("(A:1,B:2)r;").to_newick({"A": {"z0": 0.98, "z1": 0.0}})
            '(A:1.0[&&NHX:z0=0.98:z1=0],B:2.0)r;'
        """
        return write_newick(self._parts, comments, style=style)
