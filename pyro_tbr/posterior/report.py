"""What a fit did, and the units it worked in: plain values that a posterior carries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor


def _empty_history() -> pd.DataFrame:
    return pd.DataFrame(columns=["stage", "step", "loss", "held_out"])


@dataclass(frozen=True)
class FitReport:
    """What a fit did and found on the way.

    Attributes:
        rank: Latents that exist; the others, last in order, are not used.
        history: Training of the encoder: stage, step, loss (negative ELBO a row) and held-out loss.
        decay: Weight decay of the encoder that was chosen on held-out rows.
        num_components: Leading components of the features that were chosen; ``None``: all.
        folds: Folds of the cross-fit; 0: the encoder's own latents serve all rows.
        optimism: Share by which the loss on held-out rows was above that on rows of training.
        evidence: Log evidence of the basis of the latents, up to a constant of the data.
        basis: Basis of the latents that was chosen, relative to white latents, (rank, rank).
        alternatives: Other bases the search found, best first, (T, rank, rank), relative to white
            latents.
        alternative_evidence: Theirs, (T,).
        group_correlation: Correlation of two rows of a group given their predictors, (Q,); ``None``
            without groups.
        seed: The seed.
        options: The options, as a dict.
    """

    rank: int
    history: pd.DataFrame = field(default_factory=_empty_history)
    decay: float = 0.0
    num_components: int | None = None
    folds: int = 0
    optimism: float = 0.0
    evidence: float = 0.0
    basis: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    alternatives: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    alternative_evidence: Tensor = field(default_factory=lambda: torch.zeros(0))
    group_correlation: Tensor | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def with_run(self, seed: int, options: Any) -> FitReport:
        """The report of a run with this seed and these options."""
        return replace(self, seed=seed, options=dict(vars(options)))
