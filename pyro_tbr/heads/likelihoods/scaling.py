"""Units: predictors and outcomes as the user gave them, and as the model sees them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.heads.hyper import Hyperparameter

_CONSTANT = 1e-12  # spread over the largest value below which an outcome is constant


class Scaling(NamedTuple):
    """Predictors in the user's units are ``loc + scale * (predictors of the model)``.

    Attributes:
        loc: (Q,), double precision.
        scale: (Q,), likewise.
        of_outcome: (Q,) bool, outcomes are around the predictor, so their units go with it;
            ``None``: all. Others, behind a link function, stay as they are.
    """

    loc: Tensor
    scale: Tensor
    of_outcome: Tensor | None = None

    def to_model(self, y: Tensor) -> Tensor:
        """Outcomes (..., Q) of the user's as the model sees them."""
        moved = (y - self.loc.to(y)) / self.scale.to(y)
        return self._where(moved, y)

    def to_user(self, y: Tensor) -> Tensor:
        """Outcomes (..., Q) of the model's in the user's units."""
        return self._where(self.loc.to(y) + self.scale.to(y) * y, y)

    def outcome_scale(self) -> Tensor:
        """The user's units in one unit of the outcomes that the model sees, (Q,)."""
        return self._where(self.scale, torch.ones_like(self.scale))

    def of(self, columns: Tensor) -> Scaling:
        """That of some outcomes (q,)."""
        own = None if self.of_outcome is None else self.of_outcome[columns]
        return Scaling(self.loc[columns], self.scale[columns], own)

    def _where(self, moved: Tensor, other: Tensor) -> Tensor:
        if self.of_outcome is None:
            return moved
        return torch.where(self.of_outcome.to(moved.device), moved, other)

    def rescale(
        self, draws: dict[str, Tensor], hypers: Iterable[Hyperparameter]
    ) -> dict[str, Tensor]:
        """The draws, with hyperparameters that are in units of the outcome in the user's.

        Args:
            draws: By site name, the outcome last: (*B, Q), or (*B, 1) where outcomes share it.
            hypers: Hyperparameters, some of which may not be among the draws.
        """
        names = {hyper.name for hyper in hypers if hyper.unit == "outcome"} & draws.keys()
        scale = self.outcome_scale()
        return draws | {name: draws[name] * scale.to(draws[name]) for name in names}


def unscaled(y: Tensor) -> Scaling:
    """Outcomes (N, Q) as they are."""
    loc = torch.zeros(y.shape[1], dtype=torch.float64, device=y.device)
    return Scaling(loc, torch.ones_like(loc))


def standardised(y: Tensor, *, intercept: bool) -> Scaling:
    """Outcomes (N, Q), NaN where not observed, of mean 0 and standard deviation 1.

    A constant outcome keeps its unit. Without an intercept nothing takes up a shift, so there the
    outcomes stay where they are and only their spread becomes 1.
    """
    y = y.double()
    loc = y.nanmean(0)
    scale = (y - loc).square().nanmean(0).sqrt()
    constant = scale <= _CONSTANT * y.abs().nan_to_num().amax(0)
    return Scaling(loc if intercept else torch.zeros_like(loc), torch.where(constant, 1.0, scale))
