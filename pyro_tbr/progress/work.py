"""Work in progress: what it shows, and what it logs."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

from pyro_tbr.progress.stages import Stage, duration, share_of

LOGGER = logging.getLogger("pyro_tbr")
LOGGER.addHandler(logging.NullHandler())

_REDRAWN = 0.2  # seconds between two drawings of the line, at least,
_TICK = 1.0  # and at most
_LEAST_SHARE, _LEAST_TIME = 0.03, 1.0  # of a stage, before its time left is worth saying
_NEVER = math.inf


class Bar(tqdm):
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
        patience: Seconds before there is anything to see.
        level: Of the records of its outer stages.
    """

    stages: list[Stage]
    clock: Callable[[], float] = time.monotonic
    stream: TextIO | None = None
    bar: Bar | None = None
    patience: float = 0.0
    level: int = logging.INFO
    drawn: float = field(default=-_NEVER, init=False)

    @property
    def shown(self) -> bool:
        """Whether the line has been drawn yet."""
        return self.drawn > -_NEVER

    @property
    def name(self) -> str:
        """Of the call."""
        return self.stages[0].name

    def left(self, stages: list[Stage]) -> float | None:
        """Seconds that the stage still takes if it goes on as it did; ``None``: hard to say."""
        if len(stages) < 2 or any(one.total is None for one in stages[1:3]):
            return None
        share, took = share_of(stages[1:]), self.clock() - stages[1].started
        if share < _LEAST_SHARE or took < _LEAST_TIME:
            return None
        return took * (1 - share) / share

    def text(self, stages: list[Stage]) -> str:
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
        if at - self.stages[0].started < self.patience:
            return
        if now or at - self.drawn >= _REDRAWN:
            self.drawn = at
            stages = list(self.stages)  # as they are now, whichever thread draws
            # It never goes back, though stages that turn out shorter than planned jump ahead.
            self.bar.n = max(self.bar.n, share_of(stages))
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
        if self.bar is not None and self.shown:
            self.bar.clear()
        LOGGER.log(level, text, *values)
        self.show(now=True)

    def announce(self) -> None:
        """Says that the innermost stage begins."""
        depth, one, whole = len(self.stages) - 1, self.stages[-1], self.stages[0]
        level = self.level if depth < 2 else logging.DEBUG
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

    def ended(self, one: Stage, depth: int) -> None:
        """Says that a stage has ended, as it should."""
        took = self.clock() - one.started
        level = self.level if depth < 2 else logging.DEBUG
        if not depth:
            self.say(level, "%s took %.2f s", one.name, took)
            if self.stream is not None:
                print(f"{one.name}: done in {duration(took)}", file=self.stream, flush=True)
        elif one.name:
            self.say(level, "%s: %s took %.2f s", self.name, one.name, took)
