"""From Newick text to the nodes it speaks of, with the place of whatever is wrong in it.

The ``newick`` package is not used: it takes an absent length for 0, keeps quotes in names, sees a
second tree after a trailing newline, recurses into the tree and knows no positions.
"""

import re
from collections.abc import Iterator
from typing import NoReturn

from pyro_tbr.errors import TreeError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

_TOKEN = re.compile(
    r"(?P<blank>\s+)|(?P<quoted>'[^']*(?:''[^']*)*')|(?P<mark>[(),:;])"
    r"|(?P<word>[^\s()\[\]',:;]+)"
)
_BRACKET = re.compile(r"[\[\]]")
_MISPLACED = (
    "a name or number where none can be; a comma is missing, or single quotes around a name that "
    "holds blanks, brackets or apostrophes"
)
_OUTSIDE = "outside of all brackets; a bracket too many is closed, or one too few opened"


class Draft:
    """What the text says: for every node its parent, name, length, in order of appearance.

    The parent is a place, -1 for node 0, the root; a name is empty and a length None where there is
    none. A semicolon at the end may be missing.

    Raises:
        TreeError: The text is not one tree of at least one arc, or a leaf has no name.
    """

    def __init__(self, text: str):
        self.text = text
        self.parents, self.names, self.quoted = [-1], [""], [False]
        self.lengths: list[float | None] = [None]
        node, last, done, num_open = 0, "start", False, 0
        for kind, token, place in self._tokens():
            if done:
                self._fail(place, "text after the end of the tree; give one tree at a time")
            elif kind in ("word", "quoted") and last == ":":
                is_missing = token.lower() in ("nan", "na")
                if not is_missing and not NUMBER.fullmatch(token):
                    self._fail(place, f"the length {token!r} is no number")
                self.lengths[node], last = None if is_missing else float(token), "length"
            elif kind in ("word", "quoted") and last in ("start", ")"):
                self.quoted[node], last = kind == "quoted", kind
                self.names[node] = token[1:-1].replace("''", "'") if kind == "quoted" else token
            elif kind in ("word", "quoted"):
                self._fail(place, _MISPLACED)
            elif last == ":":
                self._fail(place, "no length after the colon")
            elif token == ":":
                if last == "length":
                    self._fail(place, "a second length")
                last = ":"
            elif token == "(":
                if last != "start":
                    self._fail(place, "an opening bracket right after a node; a comma is missing")
                node, num_open = self._add_child(node), num_open + 1
            elif token == ";":
                if num_open:
                    self._fail(place, f"the tree ends {_still_open(num_open)}")
                done = True
            elif not num_open:
                self._fail(place, f"{token!r} {_OUTSIDE}")
            elif node == len(self.parents) - 1 and not self.names[node]:  # the latest: a leaf
                self._fail(place, "a leaf without a name before this; name it or drop a comma")
            else:
                parent = self.parents[node]
                node, last = (parent, ")") if token == ")" else (self._add_child(parent), "start")
                num_open -= token == ")"
        if num_open or last == ":":
            problem = _still_open(num_open) if num_open else "after a colon"
            self._fail(len(text), f"the text ends {problem}")
        if len(self.parents) == 1:
            what = f"one node, {self.names[0]!r}" if self.names[0] else "no node"
            self._fail(0, f"a tree needs at least one arc, received {what}; write (A,B); or such")

    def _add_child(self, parent: int) -> int:
        self.parents.append(parent)
        self.names.append("")
        self.quoted.append(False)
        self.lengths.append(None)
        return len(self.parents) - 1

    def _tokens(self) -> Iterator[tuple[str, str, int]]:
        """(kind, token, place) of names, numbers and punctuation, without blanks and comments."""
        place, num_open = 0, 0
        while place < len(self.text):
            match = _TOKEN.match(self.text, place)
            if match:
                if match.lastgroup != "blank":
                    yield str(match.lastgroup), match.group(), place
                place = match.end()
                continue
            if self.text[place] != "[":
                what = "quote" if self.text[place] == "'" else "square bracket"
                self._fail(place, f"a {what} that has no partner")
            start = place
            for bracket in _BRACKET.finditer(self.text, start):
                num_open += 1 if bracket.group() == "[" else -1
                place = bracket.end()
                if not num_open:
                    break
            else:
                self._fail(start, "a square bracket that has no partner")

    def _fail(self, place: int, problem: str) -> NoReturn:
        before, after = self.text[max(0, place - 15) : place], self.text[place : place + 15]
        total = len(self.text)
        where = f"character {place + 1} of {total}" if after else f"the end, character {total}"
        raise TreeError(f"newick: {problem} (at {where}: {before!r} <here> {after!r})")


def _still_open(number: int) -> str:
    return f"with {number} bracket{'s' if number > 1 else ''} still open"
