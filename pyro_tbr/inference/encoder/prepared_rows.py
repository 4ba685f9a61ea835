"""Features as an encoder's trained part sees them: all at once, or a block at a time.

Prepared features of a sparse matrix are dense. Where they are few (leading components) they are
made once, else for each minibatch anew, so the dense matrix is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_tbr.data import SparseFeatures
from pyro_tbr.models.encoders import Encoder

_MOST_ELEMENTS = 25_000_000  # of prepared features made once, 100 MB


@dataclass(frozen=True)
class PreparedRows:
    """Sparse rows that are prepared when they are asked for.

    Attributes:
        encoder: Says how.
        x: The rows, (N, D).
    """

    encoder: Encoder
    x: SparseFeatures

    def __getitem__(self, rows: Tensor) -> Tensor:
        """These rows, prepared, (n, R)."""
        return self.encoder.prepare(self.x[rows])

    def blocks(self) -> Iterator[Tensor]:
        """All rows in order, prepared, (n, R) each."""
        return (self.encoder.prepare(run) for run in self.x.runs())


@torch.no_grad()
def prepared(encoder: Encoder, x: Tensor | SparseFeatures) -> Tensor | PreparedRows:
    """Rows as the encoder's trained part takes them, (N, R)."""
    if not isinstance(x, SparseFeatures):
        return encoder.prepare(x)
    rows = PreparedRows(encoder, x)
    return rows if len(x) * encoder.width > _MOST_ELEMENTS else torch.cat(list(rows.blocks()))


def blocks_of(rows: Tensor | PreparedRows) -> Iterator[tuple[slice, Tensor]]:
    """Runs of prepared rows, and where they stand; one run where all are there."""
    start = 0
    for block in [rows] if isinstance(rows, Tensor) else rows.blocks():
        yield slice(start, start + len(block)), block
        start += len(block)
