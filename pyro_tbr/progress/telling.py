"""What work says while it goes on; see the package's docstring."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TextIO

from pyro_tbr.progress.stages import new_stage
from pyro_tbr.progress.work import LOGGER, Bar, Work

_PATIENCE = 2.0  # seconds that an answer may take before there is a line

_WORK: ContextVar[Work | None] = ContextVar("pyro_tbr_work", default=None)


@contextmanager
def working(
    name: str,
    *,
    show: bool,
    plan: Mapping[str, float] | None = None,
    total: float | None = None,
    patience: float = 0.0,
    level: int = logging.INFO,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Work that a user has asked for, or a stage without a name where other work has asked for it.

    Args:
        name: The function that the user called.
        show: Draw a bar, or print a line a stage.
        plan: Its stages in order, each with the share of the time that it takes, in any unit.
        total: Units to do where there are no stages, or stages that are alike.
        patience: Seconds before there is anything to see: on a terminal a line, elsewhere nothing.
        level: Of the log's records of it and its stages.
        clock: Seconds since some time.
    """
    if _WORK.get() is not None:  # a fit of a comparison, say
        with stage("", plan=plan, total=total, units=0 if patience else 1):
            yield
        return
    stream = sys.stderr if show else None
    work = Work([new_stage(name, 1.0, plan, total, 1.0, "step", clock())], clock)
    work.patience, work.level = patience, level
    stop, ticking = threading.Event(), None
    if stream is not None and _draws(stream):
        work.bar = Bar(
            total=1.0, desc=name, file=stream, leave=False, dynamic_ncols=True, delay=1e-9,
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {where}",
        )  # fmt: skip
        # A single long call to torch, or its import of a part of itself, cannot say that it lives.
        if clock is time.monotonic:
            ticking = threading.Thread(target=work.tick, args=(stop,), daemon=True)
    elif not patience:
        work.stream = stream
    token = _WORK.set(work)
    try:
        if ticking is not None:
            ticking.start()
        work.announce()
        yield
        work.ended(work.stages[0], 0)
    finally:
        _WORK.reset(token)
        stop.set()
        if ticking is not None:
            ticking.join()
        if work.bar is not None:
            work.bar.disable = not work.shown  # then there is nothing to take away
            work.bar.close()


@contextmanager
def stage(
    name: str,
    *,
    plan: Mapping[str, float] | None = None,
    total: float | None = None,
    about: float = 1.0,
    unit: str = "step",
    units: float = 1.0,
) -> Iterator[None]:
    """A part of the work in progress, if there is any.

    Args:
        name: What is done.
        plan: Its own parts in order, each with its share of the time.
        total: Units to do where there is no plan.
        about: Steps that it mostly takes where nobody knows how many there will be.
        unit: What a step is called.
        units: For how many steps it stands of what it is part of, where that has no plan.
    """
    work = _WORK.get()
    if work is None:
        yield
        return
    outer, depth = work.stages[-1], len(work.stages)
    one = new_stage(name, outer.begins(name, units), plan, total, about, unit, work.clock())
    work.stages.append(one)
    work.announce()
    try:
        yield
    finally:
        del work.stages[depth:]  # what an exception has left inside too
    outer.done += one.weight
    work.ended(one, depth)
    work.show()


def querying(name: str) -> AbstractContextManager[None]:
    """Work that is mostly done at once, a question to a posterior: nothing to see for 2 seconds."""
    return working(name, show=True, total=1, patience=_PATIENCE, level=logging.DEBUG)


def step(number: float = 1, note: str | None = None, *, unit: str = "step") -> None:
    """So many units of the innermost stage are done; ``note`` says how it stands.

    Where that stage counts something else the work goes on, but nothing is counted.
    """
    work = _WORK.get()
    if work is not None:
        one = work.stages[-1]
        one.done += number if one.unit == unit else 0
        one.note = one.note if note is None else note
        work.show()


def beat() -> None:
    """Something goes on, though no unit of the stage is done yet: for loops inside of steps."""
    work = _WORK.get()
    if work is not None:
        work.show()


def detail(text: str, *values: object) -> None:
    """A record of level DEBUG, as ``logging`` formats it."""
    work = _WORK.get()
    if work is not None:
        work.say(logging.DEBUG, f"%s: {text}", work.name, *values)
    else:
        LOGGER.debug(text, *values)


@contextmanager
def aside() -> Iterator[None]:
    """Where a warning may be printed: the line is out of its way meanwhile."""
    work = _WORK.get()
    bar = None if work is None or not work.shown else work.bar
    if bar is not None:
        bar.clear()
    yield
    if bar is not None:
        bar.refresh()


def _draws(stream: TextIO) -> bool:
    """Whether a line can be drawn over and over: on a terminal, and in a notebook."""
    notebook = type(stream).__module__.partition(".")[0] == "ipykernel"
    return notebook or bool(getattr(stream, "isatty", lambda: False)())
