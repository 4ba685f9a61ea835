"""Rows as a head takes them: a design, outcomes, nodes; whole or block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_tbr.heads.groups import RowGroups


@dataclass(frozen=True)
class DesignRows:
    """Rows in the units of training.

    Attributes:
        design: Latents and intercept, (N, W).
        y: Outcomes, NaN where not observed, (N, Q).
        env_index: Node of each row, (N,) int64.
        groups: Rows that are alike, if that was said.
    """

    design: Tensor
    y: Tensor
    env_index: Tensor
    groups: RowGroups | None = None

    def blocks(self) -> Iterator[DesignRows]:
        """All rows in order, in blocks; here one."""
        yield self

    def shares(self, weights: Tensor | None = None) -> Tensor:
        """By how much of a row each outcome counts, (N, Q) double; 0 where not observed."""
        observed = (~torch.isnan(self.y)).double()
        return observed if weights is None else observed * weights.double()

    def __len__(self) -> int:
        return len(self.y)


class RowSource(Protocol):
    """Rows that may be more than memory holds at once."""

    @property
    def groups(self) -> RowGroups | None:
        """Rows that are alike, over all blocks in order."""

    def blocks(self) -> Iterator[DesignRows]:
        """All rows in order, in blocks that memory holds."""
