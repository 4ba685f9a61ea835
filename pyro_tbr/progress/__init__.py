"""Long work shows itself: what is being done, how far it is, how long the stage still takes.

Work is a tree of stages. Whoever does it says what begins (:func:`working`, :func:`stage`) and,
from inside the loops that take long, what was done (:func:`step`) or that it goes on
(:func:`beat`). What becomes of that is decided once, by :func:`working`:

- on a terminal, and in a notebook, one line with a bar, drawn five times a second at most and gone
  at the end, also after an exception;
- where the output is no terminal a line a stage;
- nothing without ``progress``.

In any case the logger ``pyro_tbr`` has a record of level INFO where the work or a stage of it
begins and ends, and of level DEBUG for what is inside a stage. It prints nothing unless a handler
is added.

The share of the whole that is done comes from the shares that stages took of fits we measured,
which differ from fit to fit; the time left is that of the stage alone, by its own speed so far.

The work in progress is a context variable, not an argument: the loops are in guides, whose
``update`` is a contract that users' own guides keep, and in messages along trees, at the end of
some forty functions that have nothing else to do with it. Each thread has a context of its own, so
the fits of several threads do not meet.
"""

from pyro_tbr.progress.telling import (
    aside,
    beat,
    detail,
    querying,
    stage,
    step,
    working,
)

__all__ = [
    "aside",
    "beat",
    "detail",
    "querying",
    "stage",
    "step",
    "working",
]
