"""How labels are shown in messages, which labels are no labels, and which node was meant."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain, count
from typing import Any

import numpy as np
import pandas as pd

from pyro_tbr.errors import TreeError, warn_user

MAX_SHOWN = 10
_LAST_EXACT = 2.0**53  # from here on, neighbouring whole numbers are one float
_MISSING_AS_TEXT = ("nan", "NaN", "None", "<NA>", "NaT")
_FLOAT = re.compile(r"[+-]?[0-9]+\.0+")  # a whole number that was a float before it was text
_MAX_COMPARED = 3000  # difflib takes some 10 us a pair: more would make an error take seconds


def listed(items: Iterable[object], num_shown: int = MAX_SHOWN) -> str:
    """Items by ``repr``, comma between; long lists are cut: ``'a', 'b', ... (2 of 30)``."""
    items = list(items)
    text = ", ".join(repr(item) for item in items[:num_shown])
    return text if len(items) <= num_shown else f"{text}, ... ({num_shown} of {len(items)})"


def listed_texts(texts: Sequence[str], separator: str = ", ") -> str:
    """As :func:`listed`, for texts that are ready to be shown."""
    shown = separator.join(texts[:MAX_SHOWN])
    cut = len(texts) > MAX_SHOWN
    return f"{shown}{separator}... ({MAX_SHOWN} of {len(texts)})" if cut else shown


def arc_text(parent: object, child: object) -> str:
    """An arc as messages show it: ``'blood' -> 'B'``."""
    return f"{parent!r} -> {child!r}"


def repeated(items: Iterable[Hashable]) -> dict[Hashable, int]:
    """Items that occur more than once, in order of first appearance, with their counts."""
    return {item: times for item, times in Counter(items).items() if times > 1}


def refuse_repeated(argument: str, kind: str, names: Iterable[Hashable], way_out: str) -> None:
    """Refuses names that occur more than once, with their counts, by a ``TreeError``."""
    if twice := repeated(names):
        texts = [f"{name!r} ({times} times)" for name, times in twice.items()]
        raise TreeError(
            f"{argument}: {len(twice)} {kind}occur more than once: {listed_texts(texts)}; {way_out}"
        )


def free_name(candidates: Sequence[str], used: set[Hashable]) -> str:
    """The first candidate that is not used, else it with a number; used from now on."""
    names = chain(candidates, (f"{candidates[0]}#{number}" for number in count(2)))
    free = next(name for name in names if name not in used)
    used.add(free)
    return free


def written_names(nodes: Sequence[Hashable]) -> list[str]:
    """Nodes as text; a ``TreeError`` where two would be written alike, as ``10`` and ``"10"``."""
    texts = [str(node) for node in nodes]
    if double := repeated(texts):
        clash = [node for node in nodes if str(node) in double]
        raise TreeError(
            f"tree: {len(clash)} nodes would be written alike: {listed(clash)}; rename them"
        )
    return texts


def is_missing(label: Any) -> bool:
    """None, NaN, NaT or ``pd.NA``: the absence of a label. Text such as ``"nan"`` is a label."""
    if label is None or isinstance(label, str | bytes | int | float | tuple):
        return label is None or label != label  # NaN alone differs from itself
    missing: Any = pd.isna(label)
    return missing if isinstance(missing, bool) else False


def is_blank(label: Any) -> bool:
    """Missing, or text without a letter."""
    return is_missing(label) or (isinstance(label, str) and not label)


def is_rounded(label: object) -> bool:
    """Whether a label is a float so large that floats no longer tell whole numbers apart."""
    return isinstance(label, float | np.floating) and abs(float(label)) >= _LAST_EXACT


def refuse_rounded(argument: str, labels: Iterable[object], place: str = "row") -> None:
    """Refuses labels that may have been other whole numbers before a column became floats."""
    bad: list[Any] = [pair for pair in enumerate(labels) if is_rounded(pair[1])]
    if bad:
        number, label = bad[0]
        raise TreeError(
            f"{argument}: {len(bad)} labels are floats of 2**53 or more, where floats no longer "
            f"tell whole numbers apart, first {float(label)!r} at {place} {number} counted from 0; "
            'read ids as dtype="Int64", which may be missing, or as text'
        )


def warn_of_missing_as_text(argument: str, labels: Iterable[object]) -> None:
    """Warns of text that a missing label becomes when a column is turned into text."""
    found = [label for label in labels if isinstance(label, str) and label in _MISSING_AS_TEXT]
    if found:
        warn_user(
            f"{argument}: {listed(dict.fromkeys(found))} is taken as the name of a node; if it "
            "stands for a missing one, give None there"
        )


def same_kind(label: object, node: object) -> bool:
    """Whether two labels that compare equal are meant to be equal: ``True == 1`` are not."""
    return isinstance(label, bool | np.bool_) == isinstance(node, bool | np.bool_)


def as_text(label: Any) -> str:
    """A label as one would write it: bytes decoded, integral floats without the point."""
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def folded(label: object) -> str:
    """What is left of a label when case, underscores and kinds of blanks don't count."""
    text = unicodedata.normalize("NFKC", as_text(label)).casefold()
    text = re.sub(r"[\s_]+", " ", text).strip()
    return re.sub(r"([0-9])\.0+", r"\1", text) if _FLOAT.fullmatch(text) else text


def seen_alike(text: str, other: str) -> bool:
    """Whether two different texts may look the same in print, for letters beyond ASCII alone."""
    one, two = (unicodedata.normalize("NFKC", part) for part in (text, other))
    return len(one) == len(two) and all(
        a == b or not (a + b).isascii() for a, b in zip(one, two, strict=True)
    )


class NearestNode:
    """Finds the node that a label which is not in the tree was probably meant to be."""

    def __init__(self, nodes: Sequence[Hashable]):
        self._folded: dict[str, Hashable] = {}
        for node in nodes:
            self._folded.setdefault(folded(node), node)

    def __call__(self, label: object) -> Hashable | None:
        """The node of the same folded text, else the most similar one, else None."""
        text = folded(label)
        if text in self._folded:
            return self._folded[text]
        texts: Iterable[str] = self._folded
        if len(self._folded) > _MAX_COMPARED:
            texts = sorted(texts, key=lambda other: abs(len(other) - len(text)))[:_MAX_COMPARED]
        close = difflib.get_close_matches(text, texts, n=1)
        return self._folded[close[0]] if close else None


def unknown_label(label: object, known: Sequence[Hashable], kind: str) -> str:
    """Says that a label is none of those known, with its type, and which is nearest or what is."""
    nearest = NearestNode(known)(label)
    if nearest is not None:
        hint = f"; nearest: {nearest!r} ({type(nearest).__name__})"
    else:
        hint = f", which are {listed(known, 5)}" if known else ""
    return f"{label!r} ({type(label).__name__}) is none of the {len(known)} {kind}{hint}"
