"""Which outcomes a likelihood takes, what rows may bring along, and in which units all of it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_tbr.data.outcomes import Outcomes
from pyro_tbr.heads.likelihoods.parameters import Parameters
from pyro_tbr.heads.likelihoods.scaling import Scaling, unscaled


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
