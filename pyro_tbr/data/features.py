"""Features that are not in memory as a dense tensor: what all kinds of them can be asked.

They are gone through in runs of rows, each small enough to be made dense. Where several processes
hold the rows of one data set the runs are those of this process, and sums, values of rows and
summaries are brought together from all (``ranks``).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part")


class ColumnSummary(NamedTuple):
    """What some rows say of each column, (D,) each, double precision; additive.

    Attributes:
        number: Rows.
        low: Least value.
        high: Largest value.
        loc: Mean.
        square: Sum of squared deviations from it.
        whole: Whether all values are whole numbers, bool.
    """

    number: int
    low: Tensor
    high: Tensor
    loc: Tensor
    square: Tensor
    whole: Tensor

    @classmethod
    def of(cls, block: Tensor) -> ColumnSummary:
        """Of dense rows, (n, D) double; without rows of nothing."""
        if not len(block):
            zero, inf = block.new_zeros(block.shape[1]), block.new_full(block.shape[1:], torch.inf)
            return cls(0, inf, -inf, zero, zero, torch.ones_like(zero, dtype=torch.bool))
        loc = block.mean(0)
        square = (block - loc).square().sum(0)
        whole = (block == block.round()).all(0)
        return cls(len(block), block.amin(0), block.amax(0), loc, square, whole)

    def __add__(self, other: object) -> ColumnSummary:
        """Of both together; squares about the common mean, as a difference would lose digits."""
        assert isinstance(other, ColumnSummary)
        number = self.number + other.number
        share, apart = other.number / max(1, number), other.loc - self.loc
        return ColumnSummary(
            number,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.loc + share * apart,
            self.square + other.square + self.number * share * apart.square(),
            self.whole & other.whole,
        )


class Holding:
    """Which rows of a data set this process holds, and what is brought together from all.

    As it is: this process holds all of them.
    """

    @property
    def places(self) -> Tensor | None:
        """Places of the rows that this process holds, in the order of its runs; ``None``: all."""
        return None

    def here(self, rows: Tensor) -> Tensor:
        """Those of some rows that this process holds."""
        return rows

    def local(self, rows: Tensor) -> Tensor:
        """Where rows that this process holds are in its runs."""
        return rows

    def every(self, own: Tensor) -> Tensor:
        """Values of all rows in order, from those of the rows of this process."""
        return own

    def own(self, values: Tensor) -> Tensor:
        """Those of the rows of this process, from values of all rows in order."""
        return values if self.places is None else values[self.places]

    def summed(self, part: Tensor) -> Tensor:
        """The sum over processes."""
        return part

    def merged(self, part: Part) -> Part:
        """The sum over processes of what can be added."""
        return part

    def share_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sums gradients over processes, in place."""

    def agree(self, module: nn.Module) -> None:
        """Gives a module the first process' state, as machines may differ in their last digits."""


ALL_HERE = Holding()


class Features(Holding, ABC):
    """Finite features (N, D), float64 where dense; abstract.

    Attributes:
        shape: (N, D).
        device: Where what comes out of them lies.
    """

    shape: tuple[int, int]
    device: torch.device

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: Tensor) -> Features:
        """These rows: places, or a bool each."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Features:
        """The same, what comes out of them on this device."""

    @abstractmethod
    def runs(self) -> Iterator[Any]:
        """All rows in order, in runs small enough to be made dense; at least one.

        A run is a dense tensor, or features of a kind that an encoder takes without making them so.
        """

    def blocks(self) -> Iterator[Tensor]:
        """The same runs, dense float64."""
        return (run if isinstance(run, Tensor) else run.dense() for run in self.runs())

    def dense(self) -> Tensor:
        """All of them as a dense tensor, (N, D)."""
        return torch.cat(list(self.blocks()))

    def each(self, function: Callable[[Any], Tensor]) -> Tensor:
        """What a function makes of each row, (N, ...), from what it makes of runs."""
        if torch.is_grad_enabled():
            return torch.cat([function(run) for run in self.runs()])
        whole, start = None, 0
        for run in self.runs():
            part = function(run)
            if whole is None:  # parts and the whole are not there at the same time
                whole = part.new_empty(len(self), *part.shape[1:])
            whole[start : start + len(part)] = part
            start += len(part)
        assert whole is not None  # there is a run at least
        return whole

    def total(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum over all rows of what a function makes of dense blocks."""
        blocks = self.blocks()
        whole = function(next(blocks))
        for block in blocks:
            whole += function(block)
        return whole

    @functools.cached_property
    def summary(self) -> ColumnSummary:
        """Of each column; made once."""
        blocks = self.blocks()
        whole = ColumnSummary.of(next(blocks))
        for block in blocks:
            whole += ColumnSummary.of(block)
        return whole

    def column_range(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of each column, each (D,)."""
        return self.summary.low.to(self.device), self.summary.high.to(self.device)

    def column_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each column, each (D,)."""
        scale = (self.summary.square / self.summary.number).sqrt()
        return self.summary.loc.to(self.device), scale.to(self.device)

    @property
    def num_own(self) -> int:
        """Rows that this process holds."""
        return len(self) if self.places is None else len(self.places)

    def held(self, rows: Tensor) -> Features:
        """Rows that this process holds; other processes need not ask for theirs."""
        return self[rows]


def dense(x: Tensor | Features) -> Tensor:
    """Features (N, D) as a tensor."""
    return x.dense() if isinstance(x, Features) else x
