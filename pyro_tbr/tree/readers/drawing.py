"""A tree as lines of text."""

from pyro_tbr.tree.readers.arrange import TreeParts


def draw_tree(parts: TreeParts, most: int) -> list[str]:
    r"""A line a node, from the root down, each below its parent; of large trees the first few.

    Args:
        parts: The tree.
        most: Lines at most; one more says how many nodes are left out.

    Example:
        >>> from pyro_tbr import Tree
        >>> print(*draw_tree(Tree.from_newick("((A,B)u,C)r;")._parts, 9), sep="\n")
        r
        ├─ u
        │  ├─ A
        │  └─ B
        └─ C
    """
    lines, open_nodes = list[str](), [(0, "", "")]
    while open_nodes and len(lines) < most:
        place, before, branch = open_nodes.pop()
        lines.append(before + branch + parts.text(place))
        below = parts.below(place, place + 1)
        inside = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for child in reversed(below):
            open_nodes.append((child, inside, "└─ " if child == below[-1] else "├─ "))
    left = len(parts.nodes) - len(lines)
    return [*lines, f"... and {left} more nodes"] if left else lines
