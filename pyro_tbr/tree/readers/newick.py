"""Newick text: reading it into a tree with unique names, and writing what reads back the same."""

import os
import re
from collections.abc import Hashable, Iterator, Sequence, Set
from itertools import chain, count
from pathlib import Path
from typing import Any

from pyro_tbr.errors import TreeError
from pyro_tbr.tree.parts import TreeParts
from pyro_tbr.tree.readers.arrange import level_order, with_lengths
from pyro_tbr.tree.readers.naming import refuse_repeated, written_names
from pyro_tbr.tree.readers.newick_comments import node_comments
from pyro_tbr.tree.readers.newick_parser import NUMBER, Draft

_NEEDS_QUOTES = re.compile(r"[\s()\[\]',:;]")


def read_newick(text_or_path: str | os.PathLike[str]) -> TreeParts:
    """A tree from Newick text, or from the file of that name: see ``Tree.from_newick``."""
    draft = Draft(_load(text_or_path))
    order, parents = level_order(0, zip(draft.parents[1:], count(1), strict=False))
    written, inner = [draft.names[i] for i in order], set(parents)
    refuse_repeated(
        "newick",
        "leaf names ",
        [name for place, name in enumerate(written) if place not in inner],
        "give every leaf its own name, as rows labelled so could belong to either",
    )
    is_support = [
        place in inner and not draft.quoted[i] and bool(NUMBER.fullmatch(written[place]))
        for place, i in enumerate(order)
    ]
    nodes = _unique_names(written, inner, is_support)
    texts = list(zip(nodes, written, is_support, strict=True))
    labels = {node: name for node, name, _ in texts if node != name}
    support = {node: float(name) for node, name, is_number in texts if is_number}
    tree = TreeParts(nodes, parents, labels=labels, support=support)
    return with_lengths("newick", tree, [draft.lengths[i] for i in order[1:]])


def write_newick(tree: TreeParts, comments: Any = None, *, style: str = "nhx") -> str:
    """Newick text of a tree: see ``Tree.to_newick``."""
    beside = node_comments(tree, comments, style)
    written_names(tree.nodes)
    below: list[list[str]] = [[] for _ in tree.nodes]  # texts of the children, the last one first
    for place, (node, comment) in reversed(list(enumerate(zip(tree.nodes, beside, strict=True)))):
        name = tree.labels.get(node, str(node))
        number = below[place] and NUMBER.fullmatch(name) and node not in tree.support
        if number or _NEEDS_QUOTES.search(name):
            name = "'" + name.replace("'", "''") + "'"
        length = tree.arc_lengths[place - 1] if place else None
        after = ["" if length is None else f":{length!r}", comment]
        inner = f"({','.join(reversed(below[place]))})" if below[place] else ""
        text = inner + name + "".join(after if style == "nhx" else reversed(after))
        below[place] = [text]
        if place:
            below[tree.parents[place - 1]].append(text)
    return f"{below[0][0]};"


def _unique_names(
    written: Sequence[str], inner: Set[int], is_support: Sequence[bool]
) -> list[Hashable]:
    """A name of its own for every node: leaves keep theirs, inner nodes if it is still free."""
    taken, used = set(written), {name for i, name in enumerate(written) if i not in inner}
    numbers: dict[str, Iterator[int]] = {}
    names: list[Hashable] = []
    for place, name in enumerate(written):
        generated = not name or is_support[place]
        if place in inner and (generated or name in used):
            stem, first = ("inner", 1) if generated else (f"{name}#", 2)
            numbered = (f"{stem}{n}" for n in numbers.setdefault(stem, count(first)))
            candidates = chain(["root"] if generated and not place else [], numbered)
            name = next(candidate for candidate in candidates if candidate not in taken)
        used.add(name)
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
        try:
            text = Path(text).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TreeError(
                f"newick: the file {text!r} is no text in UTF-8, as byte {error.start + 1} shows; "
                "unpack it if it is compressed, or save it anew in UTF-8"
            ) from error
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


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a null character: no path, surely
        return False
