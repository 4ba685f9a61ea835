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

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

LOGGER = logging.getLogger("pyro_tbr")
LOGGER.addHandler(logging.NullHandler())

_REDRAWN = 0.2  # seconds between two drawings of the line, at least,
_TICK = 1.0  # and at most
_LEAST_SHARE, _LEAST_TIME = 0.03, 1.0  # of a stage, before its time left is worth saying
_NEVER = math.inf


@dataclass
class _Stage:
    """A part of the work, as long as it goes on.

    Attributes:
        name: What is done.
        weight: Of how many units of the stage that it is part of it stands.
        plan: Its own parts by name with their weights, where they are known before.
        total: How many units there are to do, or the weights of the plan; ``None``: nobody knows.
        about: How many steps it mostly takes, where nobody knows.
        unit: What a step is called.
        started: By the clock of the work.
        done: Units that are done.
        place: Of the part of the plan that goes on, from 1; 0 before the first one.
    """

    name: str
    weight: float
    plan: Mapping[str, float]
    total: float | None
    about: float
    unit: str
    started: float
    done: float = 0.0
    place: int = 0
    note: str = ""

    def share(self, inside: float) -> float:
        """Share done, given how many units the part that goes on has done."""
        if self.total is None:
            return 1 - math.exp(-(self.done + inside) / self.about)
        return min(1.0, (self.done + inside) / max(self.total, 1e-12))

    def begins(self, name: str, units: float) -> float:
        """Takes note of a part that begins; returns its weight, without a plan that many units."""
        if name not in self.plan:
            return 0.0 if self.plan or self.total is None else units
        names = list(self.plan)
        self.place = names.index(name) + 1
        # Parts that were left out are done.
        self.done = sum(self.plan[one] for one in names[: self.place - 1])
        return self.plan[name]

    def count(self) -> str:
        """How many steps of how many, in words; empty where nothing is counted."""
        if self.plan or self.total == 1 or not (self.total or self.done):
            return self.note
        now = f"{self.unit} {self.done:.0f}" + (f" of {self.total:.0f}" if self.total else "")
        return f"{now}, {self.note}" if self.note else now


class _Bar(tqdm):
    """A line of tqdm's whose text is ours."""

    monitor_interval = 0  # no thread: whoever works says when something moves
    where = ""

    @property
    def format_dict(self) -> dict[str, Any]:
        """Tqdm's, with what is going on."""
        return {**super().format_dict, "where": self.where}


@dataclass
class Work:
    """Work in progress, from the call that a user made to the loop that runs.

    Attributes:
        stages: The work itself, and what goes on inside it, outermost first.
        clock: Seconds since some time.
        stream: Where lines go where the output is no terminal; ``None``: nowhere.
        bar: Where it is one.
    """

    stages: list[_Stage]
    clock: Callable[[], float] = time.monotonic
    stream: TextIO | None = None
    bar: _Bar | None = None
    drawn: float = field(default=-_NEVER, init=False)

    @property
    def name(self) -> str:
        """Of the call."""
        return self.stages[0].name

    def left(self, stages: list[_Stage]) -> float | None:
        """Seconds that the stage still takes if it goes on as it did; ``None``: hard to say."""
        if len(stages) < 2 or any(one.total is None for one in stages[1:3]):
            return None
        share, took = _share(stages[1:]), self.clock() - stages[1].started
        if share < _LEAST_SHARE or took < _LEAST_TIME:
            return None
        return took * (1 - share) / share

    def text(self, stages: list[_Stage]) -> str:
        """Where the work is, in words."""
        whole, took = stages[0], self.clock() - stages[0].started
        text = duration(took)
        if len(stages) > 1:
            first, left = stages[1], self.left(stages)
            place = f"{whole.place} of {len(whole.plan)} " if whole.plan else ""
            text += f", {place}{first.name}"
            text += "" if left is None or left < 1 else f" (about {duration(left)} left)"
        names = [one.name for one in stages[2:] if one.name][-2:]  # the line is short
        count = stages[-1].count()
        tail = ", ".join([*names, count] if count else names)
        return f"{text}: {tail}" if tail else text

    def show(self, *, now: bool = False) -> None:
        """Draws the line anew if the last time is long enough ago, or ``now``."""
        if self.bar is None:
            return
        at = self.clock()
        if now or at - self.drawn >= _REDRAWN:
            self.drawn = at
            stages = list(self.stages)  # as they are now, whichever thread draws
            # It never goes back, though stages that turn out shorter than planned jump ahead.
            self.bar.n = max(self.bar.n, _share(stages))
            self.bar.where = self.text(stages)
            self.bar.refresh()

    def tick(self, stop: threading.Event) -> None:
        """Draws the line where the work has not come to it for a second, until it is to stop."""
        while not stop.wait(_TICK):
            if self.clock() - self.drawn >= _TICK:
                self.show()

    def say(self, level: int, text: str, *values: object) -> None:
        """A record for the log, not in the middle of the line."""
        if not LOGGER.isEnabledFor(level):
            return
        if self.bar is not None:
            self.bar.clear()
        LOGGER.log(level, text, *values)
        self.show(now=True)

    def announce(self) -> None:
        """Says that the innermost stage begins."""
        depth, one, whole = len(self.stages) - 1, self.stages[-1], self.stages[0]
        level = logging.INFO if depth < 2 else logging.DEBUG
        if not depth:
            self.say(level, "%s begins", one.name)
        elif one.name:
            place = f" ({whole.place} of {len(whole.plan)})" if depth == 1 and whole.plan else ""
            self.say(level, "%s: %s begins%s", self.name, one.name, place)
        if depth == 1 and self.stream is not None:
            place = f"{whole.place} of {len(whole.plan)}, " if whole.plan else ""
            took = duration(self.clock() - whole.started)
            print(f"{self.name}: {place}{one.name} ({took} so far)", file=self.stream, flush=True)
        self.show(now=True)

    def ended(self, one: _Stage, depth: int) -> None:
        """Says that a stage has ended, as it should."""
        took = self.clock() - one.started
        level = logging.INFO if depth < 2 else logging.DEBUG
        if not depth:
            self.say(level, "%s took %.2f s", one.name, took)
            if self.stream is not None:
                print(f"{one.name}: done in {duration(took)}", file=self.stream, flush=True)
        elif one.name:
            self.say(level, "%s: %s took %.2f s", self.name, one.name, took)


_WORK: ContextVar[Work | None] = ContextVar("pyro_tbr_work", default=None)


@contextmanager
def working(
    name: str,
    *,
    show: bool,
    plan: Mapping[str, float] | None = None,
    total: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Work that a user has asked for, or a stage without a name where other work has asked for it.

    Args:
        name: The function that the user called.
        show: Draw a bar, or print a line a stage.
        plan: Its stages in order, each with the share of the time that it takes, in any unit.
        total: Units to do where there are no stages, or stages that are alike.
        clock: Seconds since some time.
    """
    if _WORK.get() is not None:  # a fit of a comparison, say
        with stage("", plan=plan, total=total):
            yield
        return
    stream = sys.stderr if show else None
    work = Work([_new(name, 1.0, plan, total, 1.0, "step", clock())], clock)
    stop, ticking = threading.Event(), None
    if stream is not None and _draws(stream):
        work.bar = _Bar(
            total=1.0, desc=name, file=stream, leave=False, dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {where}",
        )  # fmt: skip
        # A single long call to torch, or its import of a part of itself, cannot say that it lives.
        if clock is time.monotonic:
            ticking = threading.Thread(target=work.tick, args=(stop,), daemon=True)
    else:
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
    one = _new(name, outer.begins(name, units), plan, total, about, unit, work.clock())
    work.stages.append(one)
    work.announce()
    try:
        yield
    finally:
        del work.stages[depth:]  # what an exception has left inside too
    outer.done += one.weight
    work.ended(one, depth)
    work.show()


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
    bar = None if work is None else work.bar
    if bar is not None:
        bar.clear()
    yield
    if bar is not None:
        bar.refresh()


def _share(stages: list[_Stage]) -> float:
    """Share of the first stage that is done, given those inside it."""
    inside = 0.0
    for one in reversed(stages[1:]):
        inside = one.weight * one.share(inside)
    return stages[0].share(inside)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours before them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _new(
    name: str,
    weight: float,
    plan: Mapping[str, float] | None,
    total: float | None,
    about: float,
    unit: str,
    now: float,
) -> _Stage:
    plan = {} if plan is None else dict(plan)
    return _Stage(name, weight, plan, sum(plan.values()) if plan else total, about, unit, now)


def _draws(stream: TextIO) -> bool:
    """Whether a line can be drawn over and over: on a terminal, and in a notebook."""
    notebook = type(stream).__module__.partition(".")[0] == "ipykernel"
    return notebook or bool(getattr(stream, "isatty", lambda: False)())
