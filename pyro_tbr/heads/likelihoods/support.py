"""Which outcomes a likelihood takes, what rows may bring along, and in which units all of it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_tbr.data.known import DEFAULTS, Known
from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.heads.likelihoods.parameters import Parameters
from pyro_tbr.heads.likelihoods.scaling import Scaling, unscaled
from pyro_tbr.heads.rows import RowTerms


class Support(Parameters):
    """Outcomes from the user to the model and back.

    Attributes:
        takes: Names of what it takes of each row beside the outcome.
        placeholder: An outcome it takes, which stands where none was observed.
    """

    takes: tuple[str, ...] = ()
    placeholder: float = 0.0

    def check(self, y: Outcomes) -> None:
        """Refuses outcomes it does not take; missing ones are NaN and pass.

        Raises:
            DataError: Names rows and columns; ``y.refuse`` makes it.
        """

    def check_informative(self, y: Outcomes) -> None:
        """Refuses outcomes there is nothing to learn from, before training only.

        Raises:
            DataError: Names the column.
        """

    def check_with(self, y: Outcomes, values: Mapping[str, np.ndarray]) -> None:
        """Refuses outcomes that do not fit what is known of their rows, (N, Q) by name.

        Raises:
            DataError: Names rows and columns.
        """

    def observed(self, y: Outcomes, known: Known) -> Tensor:
        """Outcomes (N, Q) in the user's units, NaN where not observed or not to count.

        Raises:
            DataError: They do not fit what is known of their rows.
        """
        self.check_with(y, {name: value.numpy() for name, value in known.values.items()})
        return known.observed(torch.from_numpy(y.values))

    def row_terms(self, known: Known, scaling: Scaling, num_rows: int) -> RowTerms:
        """What is known of N rows in the model's units."""
        return RowTerms(self.row_values(known.values, scaling, num_rows), known.weights)

    def standardise(self, y: Tensor, *, intercept: bool) -> Scaling:
        """Units the model is to see outcomes (N, Q) in, NaN where not observed.

        Args:
            y: Outcomes in the user's units.
            intercept: Whether the predictor has an intercept, which takes up a shift.
        """
        del intercept
        return unscaled(y)

    def units(self, y: Tensor, values: Mapping[str, Tensor], *, intercept: bool) -> Scaling:
        """The same where units depend on what is known of rows, (N, Q) by name in the user's."""
        del values
        return self.standardise(y, intercept=intercept)

    def row_values(
        self, values: Mapping[str, Tensor], scaling: Scaling, num_rows: int
    ) -> dict[str, Tensor]:
        """What is known of N rows in the model's units, (N, Q) by name; what is not has a default.

        Args:
            values: In the user's units, (N, Q) by name, those out of ``takes`` that are known.
            scaling: The user's units.
            num_rows: N.
        """
        del scaling, num_rows
        return dict(values)

    def rescale(self, draws: dict[str, Tensor], scaling: Scaling) -> dict[str, Tensor]:
        """The draws (S, ...) by site name, its own parameters among them in the user's units."""
        return scaling.rescale(draws, self.hyperparameters())

    def filled(self, y: Tensor) -> Tensor:
        """Outcomes, with what it takes where none was observed."""
        return torch.where(torch.isnan(y), self.placeholder, y)


def or_default(values: Mapping[str, Tensor], name: str, scaling: Scaling, num_rows: int) -> Tensor:
    """What is known of N rows, (N, Q) double, or what stands for it where it was not said."""
    shape = num_rows, len(scaling.loc)
    return values.get(name, torch.full(shape, DEFAULTS[name], dtype=torch.float64))


def known_value(nuisance: Mapping[str, Any] | nn.ModuleDict, name: str, like: Tensor) -> Tensor:
    """What is known of each row among values or factors of parameters, or its default."""
    value = nuisance[name] if name in nuisance else None
    return value.to(like) if isinstance(value, Tensor) else torch.full_like(like, DEFAULTS[name])
