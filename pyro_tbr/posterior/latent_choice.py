"""How many latents there are, as a value: what each number scored and which was taken."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

_SHOWN = ["latent_dim", "log_score", "se", "difference", "difference_se", "evidence"]


@dataclass(frozen=True)
class LatentDimChoice:
    """What ``choose_latent_dim`` gives; ``str`` of it reads well.

    Log scores and evidence are those of dense weights (they may change on every arc), in nats, of
    outcomes in the units of training (standard deviation 1 where they are numeric).

    Attributes:
        table: A row a number of latents: latent_dim; log_score (mean log density of a held-out row,
            all its outcomes together) and se (its standard error); difference (of log_score to
            the number that has the most) and difference_se (by pairs of rows, or of groups where
            rows belong to some); evidence (log evidence of all rows whose latents come from
            encoders that have not seen them, less the largest).
        best: The number that was taken.
        num_rows: Rows with an observed outcome.
        num_folds: Folds of the rows.
    """

    table: pd.DataFrame
    best: int
    num_rows: int
    num_folds: int

    @property
    def tried(self) -> tuple[int, ...]:
        """The numbers of latents that were tried, in order."""
        return tuple(int(number) for number in self.table["latent_dim"])

    def __str__(self) -> str:
        table = self.table[_SHOWN].to_string(index=False, float_format=lambda v: f"{v:.4g}")
        return f"{self!r}\n{table}"

    def __repr__(self) -> str:
        least, most = min(self.tried), max(self.tried)
        return (
            f"LatentDimChoice(best={self.best}, of {least} to {most}, {self.num_rows} rows in "
            f"{self.num_folds} folds)"
        )
