"""Newick text: reading it into a tree with unique names, and writing what reads back the same."""

import os
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from pyro_tbr.errors import TreeError
from pyro_tbr.tree.parts import TreeParts
from pyro_tbr.tree.readers.arrange import level_order, usable_lengths
from pyro_tbr.tree.readers.naming import listed_texts, repeated, written_names
from pyro_tbr.tree.readers.newick_comments import node_comments
from pyro_tbr.tree.readers.newick_parser import NUMBER, Draft

_NEEDS_QUOTES = re.compile(r"[\s()\[\]',:;]")


def read_newick(text_or_path: str | os.PathLike[str]) -> TreeParts:
    """A tree from Newick text, or from the file of that name: see ``Tree.from_newick``."""
    draft = Draft(_load(text_or_path))
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(draft.parents[1:], start=1):
        children.setdefault(parent, []).append(node)
    order, parents = level_order(0, children)
    written = [draft.names[i] for i in order]
    is_leaf = [i not in children for i in order]
    leaves = [name for name, leaf in zip(written, is_leaf, strict=True) if leaf]
    if twice := repeated(leaves):
        counts = [f"{name!r} ({count} times)" for name, count in twice.items()]
        raise TreeError(
            f"newick: {len(twice)} leaf names occur more than once: {listed_texts(counts)}; give "
            "every leaf its own name, as rows labelled so could belong to either"
        )
    support = [
        not leaf and not draft.quoted[i] and bool(NUMBER.fullmatch(name))
        for i, name, leaf in zip(order, written, is_leaf, strict=True)
    ]
    nodes = _unique_names(written, is_leaf, support)
    lengths = usable_lengths(
        "newick",
        [(nodes[parent], child) for parent, child in zip(parents, nodes[1:], strict=True)],
        [draft.lengths[i] for i in order[1:]],
        stacklevel=4,
    )
    texts = zip(nodes, written, support, strict=True)
    return TreeParts(
        nodes,
        parents,
        lengths,
        labels={node: name for node, name in zip(nodes, written, strict=True) if node != name},
        support={node: float(name) for node, name, is_number in texts if is_number},
    )


def write_newick(tree: TreeParts, comments: Any = None, *, style: str = "nhx") -> str:
    """Newick text of a tree: see ``Tree.to_newick``."""
    beside = node_comments(tree, comments, style)
    after_length = style == "nhx"
    written_names(tree.nodes)
    lengths = tree.arc_lengths
    pieces: list[str] = []
    after: list[tuple[int, str]] = [(0, ";")]  # nodes still to write, and what follows each
    first = {0: False}  # whether a node's children are written already
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents, start=1):
        children.setdefault(parent, []).append(node)
    while after:
        node, follows = after[-1]
        below = children.get(node)
        if below and not first.get(node):
            first[node] = True
            pieces.append("(")
            after += [(child, "," if child != below[-1] else ")") for child in reversed(below)]
            continue
        after.pop()
        length = lengths[node - 1] if node else None
        written = "" if length is None else f":{length!r}"
        parts = (written, beside[node]) if after_length else (beside[node], written)
        pieces += [_written_name(tree, node, not below), *parts, follows]
    return "".join(pieces)


def _written_name(tree: TreeParts, place: int, is_leaf: bool) -> str:
    node = tree.nodes[place]
    name = tree.labels.get(node, str(node))
    number = not is_leaf and NUMBER.fullmatch(name) and node not in tree.support
    return "'" + name.replace("'", "''") + "'" if number or _NEEDS_QUOTES.search(name) else name


def _unique_names(
    written: Sequence[str], is_leaf: Sequence[bool], is_support: Sequence[bool]
) -> list[Hashable]:
    """A name of its own for every node: leaves keep theirs, inner nodes if it is still free."""
    leaves = {name for name, leaf in zip(written, is_leaf, strict=True) if leaf}
    never = leaves.union(written)
    used = set(leaves)
    counts: Counter[str] = Counter()
    names: list[Hashable] = []
    for place, (name, leaf, number) in enumerate(zip(written, is_leaf, is_support, strict=True)):
        if not leaf:
            generated = not name or number
            if not generated and name not in used:
                used.add(name)
                names.append(name)
                continue
            stem = "inner" if generated else f"{name}#"
            counts[stem] += 0 if generated else not counts[stem]  # the second G is G#2
            chosen = "root" if generated and not place else ""
            while not chosen or chosen in never or chosen in used:
                counts[stem] += 1
                chosen = f"{stem}{counts[stem]}"
            used.add(chosen)
            name = chosen
        names.append(name)
    return names


def _load(text_or_path: str | os.PathLike[str]) -> str:
    if not isinstance(text_or_path, str | os.PathLike):
        raise TreeError(
            f"newick: expected text or a path, received {type(text_or_path).__name__}; for "
            "tables use Tree.from_parents, for graphs Tree.from_networkx"
        )
    text = os.fspath(text_or_path)
    if not isinstance(text_or_path, str) or _is_file(text):
        text = _read_text(Path(text))
    elif text and not re.search(r"[(;]", text):
        raise TreeError(
            f"newick: {text[:60]!r} is no file and no Newick text, which has brackets and ends "
            "with ';'; check the path (relative to the working directory)"
        )
    if text.lstrip()[:6].upper() == "#NEXUS":
        raise TreeError(
            "newick: a NEXUS file, which holds more than a tree; give the Newick text after "
            "'tree ... =' in it"
        )
    return text.removeprefix("\ufeff")  # the byte order mark of some editors


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TreeError(
            f"newick: the file {str(path)!r} is no text in UTF-8, as byte {error.start + 1} shows; "
            "unpack it if it is compressed, or save it anew in UTF-8"
        ) from error


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a null character: no path, surely
        return False
