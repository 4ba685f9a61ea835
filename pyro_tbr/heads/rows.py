"""Rows as a head takes them: a design, outcomes, nodes; whole or block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pyro_tbr.data import ALL_HERE, Holding
from pyro_tbr.heads.groups import RowGroups

BLOCK_ROWS = 250_000  # that are looked at together


@dataclass(frozen=True)
class RowTerms:
    """What is known of rows beside features, outcomes and environments.

    Attributes:
        values: What a likelihood takes of each row and outcome, by name, (N, Q) each, in the
            model's units: ``exposure``, ``trials``, ``y_se``.
        weights: By how much of a row each outcome counts, (N, Q); ``None``: 1.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None

    def select(self, rows: Tensor | slice) -> RowTerms:
        """Those of some rows."""
        values = {name: value[rows] for name, value in self.values.items()}
        return RowTerms(values, None if self.weights is None else self.weights[rows])

    def to(self, like: Tensor) -> RowTerms:
        """In the dtype of a tensor and on its device."""
        values = {name: value.to(like) for name, value in self.values.items()}
        return RowTerms(values, None if self.weights is None else self.weights.to(like))


@dataclass(frozen=True)
class DesignRows:
    """Rows in the units of training.

    Attributes:
        design: Latents and intercept, (N, W).
        y: Outcomes, NaN where not observed, (N, Q).
        env_index: Node of each row, (N,) int64.
        groups: Rows that are alike, if that was said.
        terms: What else is known of them.
    """

    design: Tensor
    y: Tensor
    env_index: Tensor
    groups: RowGroups | None = None
    terms: RowTerms = field(default_factory=RowTerms)

    def blocks(self) -> Iterator[DesignRows]:
        """All rows in order, in blocks."""
        if len(self) <= BLOCK_ROWS:
            yield self
            return
        for start in range(0, len(self), BLOCK_ROWS):
            yield self.select(slice(start, start + BLOCK_ROWS))

    @property
    def holding(self) -> Holding:
        """See :class:`RowSource`."""
        return ALL_HERE

    def select(self, rows: Tensor | slice) -> DesignRows:
        """These rows."""
        groups = self.groups
        if groups is not None and not isinstance(rows, slice):
            groups = groups.select(rows)
        picked = self.design[rows], self.y[rows], self.env_index[rows]
        return DesignRows(*picked, groups, self.terms.select(rows))

    def shares(self, weights: Tensor | None = None) -> Tensor:
        """By how much of a row each outcome counts, (N, Q) double; 0 where not observed."""
        shares = (~torch.isnan(self.y)).double()
        for part in (self.terms.weights, weights):
            shares = shares if part is None else shares * part.double()
        return shares

    def __len__(self) -> int:
        return len(self.y)


class RowSource(Protocol):
    """Rows that may be more than memory holds at once, or that several processes hold."""

    @property
    def groups(self) -> RowGroups | None:
        """Rows that are alike, over all blocks in order."""

    def blocks(self) -> Iterator[DesignRows]:
        """All rows that this process holds in order, in blocks."""

    @property
    def holding(self) -> Holding:
        """Which of the rows these are, where several processes hold some."""
