"""The tree of environments and numbers on it: no Pyro, no data.

A :class:`Tree` is a value. Its nodes stand in level order, root first; arc ``a`` leads into node
``a + 1``; every array along the arcs or the nodes, here and in all other rooms, follows that
order. ``Tree.from_parents``, ``from_networkx``, ``from_newick``, ``from_taxonomy``,
``from_linkage`` and ``from_treedata`` accept rooted trees with unique leaves and refuse everything
else by a ``TreeError`` that names the culprit; labels are the user's own objects and stay so.
:func:`match_labels` takes the labels of rows to node indices. :func:`path_sum` carries numbers
from the root down to the nodes, its transpose :func:`descendant_sum` from the nodes up; neither
forms a matrix of paths, and nothing in this room recurses, so stars of 20,000 leaves and chains of
5,000 nodes are ordinary trees.

From the bottom up: ``readers/`` turns text and tables into the parts of a tree, and back;
``forms.py`` names the ways in and out; ``tree.py`` is the tree;
``labels.py`` and ``path_sum.py`` work on one. ``messages/`` holds the posterior of weights along
the tree, and has a face of its own.
"""

from pyro_tbr.tree.labels import match_labels
from pyro_tbr.tree.path_sum import descendant_sum, path_sum
from pyro_tbr.tree.tree import Tree

__all__ = ["Tree", "descendant_sum", "match_labels", "path_sum"]
