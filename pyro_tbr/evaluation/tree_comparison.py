"""Trees compared on the same rows, as a value."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class TreeComparison:
    """What ``compare_trees`` gives; ``str`` of it reads well.

    Attributes:
        table: A row a tree, indexed by its name, the given one first: arcs; evidence (log evidence
            of a fit to all rows, less that of the given tree); log_score (mean log density of a
            held-out row, all its outcomes together, in the outcomes' unit) and se (its standard
            error); difference (of log_score to the given tree) and difference_se (by pairs of rows;
            where rows of a leaf, or of a group, were held out together these count as one).
        scores: Log score of every held-out row, (N, number of trees), rows in the order of the fit;
            NaN where no outcome was observed or that was never held out.
        hold_out: ``"rows"`` or ``"leaves"``.
        num_folds: Folds.
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    hold_out: str
    num_folds: int

    @property
    def best(self) -> str:
        """The tree of the largest held-out log score."""
        return str(self.table["log_score"].idxmax())

    def __str__(self) -> str:
        table = self.table.to_string(float_format=lambda v: f"{v:.4g}")
        return f"{self!r}\n{table}"

    def __repr__(self) -> str:
        num = int(self.scores.notna().all(axis=1).sum())
        return (
            f"TreeComparison(best={self.best!r} of {len(self.table)} trees, {num} rows held out by "
            f"{self.hold_out} in {self.num_folds} folds)"
        )
