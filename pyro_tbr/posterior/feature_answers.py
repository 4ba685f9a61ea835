"""What is asked of the features: which make a latent, what they do to outcomes, and where."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd

from pyro_tbr.posterior.curves import curve_table
from pyro_tbr.posterior.effects import effect_change_table, effect_table, loading_table
from pyro_tbr.posterior.view import PosteriorView


class FeatureAnswers(PosteriorView):
    """The methods of a :class:`Posterior` that speak of features.

    None of them depends on the basis of the latents but the loadings, so effects can be read where
    latents are not determined. The encoder counts as known: intervals are for the weights alone,
    so they are too narrow where an encoder of many features is learnt from few rows.
    """

    def loadings(self, x: Any = None, *, per: str = "unit") -> pd.DataFrame:
        """Which features make each latent: by how much it moves with a feature.

        Args:
            x: Rows over which slopes are averaged where latents are not linear in the features
                (``"mlp"``, a module of your own); others need none.
            per: ``"unit"`` of the feature, or ``"sd"``: its standard deviation over the rows of the
                fit, which makes features comparable.

        Returns:
            Features by latents, in the latents' unit. Exact for linear encoders.

        Raises:
            DataError: Slopes differ from row to row and ``x`` is not given; no such ``per``.
        """
        return loading_table(self, x, per)

    def curves(
        self,
        latent: Hashable = None,
        nodes: Any = None,
        at: Any = None,
        *,
        num_points: int = 25,
        level: float = 0.9,
    ) -> pd.DataFrame:
        """What a latent adds to each outcome along its values, of a model with a ``basis``.

        To the outcome itself where that is a number, to the logit of a probability, to the
        logarithm of a rate. Zero on average over the rows of the fit; beside it stand the other
        latents and the intercept.

        Args:
            latent: Name of one; ``None``: all.
            nodes: Labels, or one; ``None``: all.
            at: Values of the latent in its own unit, (P,); ``None``: even steps over the middle
                95 % of the rows of the fit.
            num_points: How many steps.
            level: Probability of the interval.

        Returns:
            Columns node, latent, outcome, value, mean, sd (in closed form), lower, upper (of 400
            draws, their seed their own).

        Raises:
            DataError: The model has no basis, or there is no such latent.
            TreeError: No such node.
        """
        return curve_table(self, latent, nodes, at, num_points, level)

    def effects(
        self,
        features: Any = None,
        nodes: Any = None,
        x: Any = None,
        *,
        per: str = "unit",
        level: float = 0.9,
    ) -> pd.DataFrame:
        """What each feature does to each outcome at each node, through all latents.

        It is the slope of the linear predictor: of the outcome itself where that is a number, of
        the logit of a probability, of the logarithm of a rate. Features that go together share
        an effect as the encoder shares it among them, as in any regression. With a basis it is
        that of the lines through the curves, their slope over the rows of the fit.

        Args:
            features: Names, or one; ``None``: all. Without names they are x0, x1, ...
            nodes: Labels, or one; ``None``: all.
            x: As in :meth:`loadings`.
            per: As in :meth:`loadings`.
            level: Probability of the interval.

        Returns:
            Columns node, feature, outcome, mean, sd (in closed form), lower, upper (of 400 draws,
            their seed their own), in outcome per unit (or sd) of the feature. Nodes without data
            have what the prior lets change on the way to them.

        Raises:
            DataError: No such feature, a table of more than 5 million rows, or as :meth:`loadings`.
            TreeError: No such node.
        """
        return effect_table(self, features, nodes, x, per, level)

    def effect_changes(
        self, features: Any = None, x: Any = None, *, per: str = "unit", level: float = 0.9
    ) -> pd.DataFrame:
        """How the effect of each feature changes along each arc; arguments as :meth:`effects`.

        Returns:
            Columns parent, child, feature, outcome, pip (where the prior has gates: probability
            that some latent's effect on the outcome changed here, the same for all features),
            mean, sd, lower, upper.

        Raises:
            DataError: As :meth:`effects`.
        """
        return effect_change_table(self, features, x, per, level)
