"""Rows in the units of training: before an encoder, and as its trained part sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_tbr.data import ALL_HERE, Features, Holding
from pyro_tbr.heads import DesignRows, RowTerms
from pyro_tbr.heads.groups import RowGroups
from pyro_tbr.heads.rows import BLOCK_ROWS
from pyro_tbr.models import Encoder, TreeModel

_MOST_ELEMENTS = 25_000_000  # of prepared features made once, 100 MB


@dataclass(frozen=True)
class StandardRows:
    """Rows before any encoder.

    Attributes:
        x: Features, (N, D), float64; those that are no tensor are made dense block by block.
        y: Standardised outcomes, NaN where not observed, (N, Q), in the dtype of training.
        env_index: Node of each row, (N,).
        groups: Rows that are alike, if that was said.
        terms: What else is known of them, in the model's units.
    """

    x: Tensor | Features
    y: Tensor
    env_index: Tensor
    groups: RowGroups | None = None
    terms: RowTerms = field(default_factory=RowTerms)

    def select(self, rows: Tensor) -> StandardRows:
        """These rows."""
        groups = None if self.groups is None else self.groups.select(rows)
        picked = self.x[rows], self.y[rows], self.env_index[rows]
        return StandardRows(*picked, groups, self.terms.select(rows))

    def with_design(self, design: Tensor) -> DesignRows:
        """The rows with a design (N, W) in place of their features."""
        return DesignRows(design, self.y, self.env_index, self.groups, self.terms)

    def prepared(self, encoder: Encoder) -> PreparedRows:
        """The rows as this encoder's trained part takes them.

        Prepared features are dense. Where the features are no tensor and the prepared ones are few
        (leading components) these are made once, else for each block anew, so they are never there
        as a whole.
        """
        x, features = self.x, None
        with torch.no_grad():
            if isinstance(x, Tensor):
                features = encoder.prepare(x)
            elif x.num_own * encoder.width <= _MOST_ELEMENTS:
                features = torch.cat([encoder.prepare(run) for run in x.runs()])
        return PreparedRows(encoder, self, features)

    @property
    def holding(self) -> Holding:
        """Which of the rows this process holds; a tensor is of all there are."""
        return ALL_HERE if isinstance(self.x, Tensor) else self.x

    def nodes(self, num_nodes: int) -> Tensor:
        """Nodes with rows, (V,) bool."""
        nodes = torch.zeros(num_nodes, dtype=torch.bool)
        nodes[self.env_index.cpu()] = True
        return nodes

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class PreparedRows:
    """Rows whose features the encoder prepares: ``features`` (N, R), or, if ``None``, by blocks.

    With ``intercept`` a column of ones goes behind the features where they are a design. Where
    several processes hold rows of one data set the features are of this one's rows; labels and
    places of rows are those among all.
    """

    encoder: Encoder
    rows: StandardRows
    features: Tensor | None
    intercept: bool = False

    @property
    def groups(self) -> RowGroups | None:
        """Rows that are alike."""
        return self.rows.groups

    @property
    def holding(self) -> Holding:
        """Which of the rows this process holds."""
        return self.rows.holding

    def blocks(self) -> Iterator[DesignRows]:
        """All rows of this process in order, their features as a design, in blocks."""
        x, start = self.rows.x, 0
        runs: Iterable[Tensor]
        if self.features is not None:
            runs = self.features.split(BLOCK_ROWS)
        else:
            assert not isinstance(x, Tensor)  # of which there are features
            runs = (self.encoder.prepare(run) for run in x.runs())
        places = self.holding.places
        for block in runs:
            at: Tensor | slice = slice(start, start + len(block))
            start += len(block)
            if self.intercept:
                block = torch.cat([block, block.new_ones(len(block), 1)], -1)
            yield self.with_design(block, at if places is None else places[at])

    def encoded(self, model: TreeModel, rows: Tensor) -> DesignRows:
        """Some rows of this process with the model's design, differentiable in its encoder."""
        x, features = self.rows.x, self.features
        if features is not None:
            block = features[self.holding.local(rows)]
        else:
            assert not isinstance(x, Tensor)  # of which there are features
            block = self.encoder.prepare(x.held(rows))
        design = model.design(model.encoder.encode(block))
        return self.with_design(design, rows)

    def encoded_blocks(self, model: TreeModel) -> Iterator[DesignRows]:
        """All rows of this process in order, with the model's design."""
        for block in replace(self, intercept=False).blocks():
            yield replace(block, design=model.design(model.encoder.encode(block.design)))

    def with_design(self, design: Tensor, at: Tensor | slice) -> DesignRows:
        """Some rows with a design, each by itself."""
        rows = self.rows
        return DesignRows(design, rows.y[at], rows.env_index[at], terms=rows.terms.select(at))

    def weights(self) -> Tensor | None:
        """By how much of a row each outcome counts as rows are alike, (N, Q); ``None``: 1."""
        return None if self.groups is None else self.groups.weights(self.rows.y)

    def __len__(self) -> int:
        return len(self.rows)
