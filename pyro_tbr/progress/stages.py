"""A stage of work: its name, its parts, how much of it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Stage:
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


def new_stage(
    name: str,
    weight: float,
    plan: Mapping[str, float] | None,
    total: float | None,
    about: float,
    unit: str,
    now: float,
) -> Stage:
    """A stage that begins now; its total is that of its plan where it has one."""
    plan = {} if plan is None else dict(plan)
    return Stage(name, weight, plan, sum(plan.values()) if plan else total, about, unit, now)


def share_of(stages: list[Stage]) -> float:
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
