"""Estimators with scikit-learn's face: ``clone``, pipelines, grids and cross-validation work.

The environment of a row is one column of ``X``, so that splitting rows splits environments with
them::

    model = TreeRegressor(tree, latent_dim=3, env_column="species")
    cross_val_score(model, frame, y, groups=frame["species"], cv=LeaveOneGroupOut())

Install scikit-learn with ``pip install pyro-tbr[sklearn]``.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from pyro_tbr.data.matching import read_table
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.inference import FitOptions, fit
from pyro_tbr.io.label_columns import split_columns
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior import Posterior, Prediction
from pyro_tbr.tree import Tree
from pyro_tbr.tree.readers.naming import listed

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import check_is_fitted, column_or_1d
except ImportError as error:
    raise ImportError(
        "TreeRegressor and TreeClassifier need scikit-learn: pip install pyro-tbr[sklearn]"
    ) from error


class _TreeEstimator(TransformerMixin, BaseEstimator):
    """What regressor and classifier share; abstract."""

    def __init__(
        self,
        tree: Tree | None = None,
        latent_dim: int | None = 2,
        *,
        env_column: Hashable = "env",
        groups_column: Hashable | None = None,
        exposure_column: Hashable | None = None,
        likelihood: Any = None,
        encoder: Any = "linear",
        prior: Any = None,
        basis: Any = None,
        intercept: bool = True,
        guide: Any = "tree",
        seed: int | None = 0,
        progress: bool = False,
        ranks: str | None = None,
        options: FitOptions | None = None,
    ) -> None:
        self.tree = tree
        self.latent_dim = latent_dim
        self.env_column = env_column
        self.groups_column = groups_column
        self.exposure_column = exposure_column
        self.likelihood = likelihood
        self.encoder = encoder
        self.prior = prior
        self.basis = basis
        self.intercept = intercept
        self.guide = guide
        self.seed = seed
        self.progress = progress
        self.ranks = ranks
        self.options = options

    def _fit(self, X: Any, y: Any, likelihood: Any, sample_weight: Any) -> None:
        if not isinstance(self.tree, Tree):
            raise DataError(
                f"tree must be a pyro_tbr.Tree, got {type(self.tree).__name__}: see Tree.from_*"
            )
        _require_outcomes(self, y)
        X, _ = read_table(X, "X")
        features, env, others = self._split(X)
        if not features.shape[1]:
            raise ShapeError(
                f"X has 0 feature(s) (shape={features.shape}) while a minimum of 1 is required, "
                "beside columns of labels"
            )
        y, _ = read_table(y, "y")
        both = isinstance(features, pd.DataFrame) and isinstance(y, pd.Series | pd.DataFrame)
        if both and len(y) == len(features):  # rows by position, scikit-learn's way
            y = y.set_axis(features.index)
        model = TreeModel(
            self.tree,
            self.latent_dim,
            encoder=self.encoder,
            prior=self.prior,
            likelihood=likelihood,
            intercept=self.intercept,
            basis=self.basis,
        )
        self.posterior_: Posterior = fit(
            model,
            features,
            y,
            env,
            **others,
            row_weights=sample_weight,
            guide=self.guide,
            seed=self.seed,
            progress=self.progress,
            ranks=self.ranks,
            options=self.options,
        )
        self.n_features_in_ = features.shape[1] + 1 + len(others)
        if isinstance(X, pd.DataFrame) and all(isinstance(name, str) for name in X.columns):
            self.feature_names_in_ = np.array(X.columns, dtype=object)

    def _split(self, X: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Features, environments, and what other columns there are, by argument of ``fit``."""
        others = {"groups": self.groups_column, "exposure": self.exposure_column}
        others = {name: column for name, column in others.items() if column is not None}
        columns = {f"{name}_column": column for name, column in others.items()}
        features, env, *found = split_columns(X, {"env_column": self.env_column} | columns)
        return features, env, dict(zip(others, found, strict=True))

    def _fitted(self) -> Posterior:
        check_is_fitted(self)
        return self.posterior_

    def _predict(self, X: Any) -> Prediction:
        posterior = self._fitted()
        features, env, others = self._split(self._as_fitted(X))
        others.pop("groups", None)
        return posterior.predict(features, env, **others)

    def _as_fitted(self, X: Any) -> Any:
        """Rows with as many columns as in ``fit``, where they cannot go by their names."""
        X, _ = read_table(X, "X")
        shape: tuple[int, ...] = tuple(getattr(X, "shape", ()))
        known = self.n_features_in_
        if len(shape) == 2 and shape[1] != known and not isinstance(X, pd.DataFrame):
            raise ShapeError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {known} "
                "features as input, columns of labels among them: give those of fit, in their order"
            )
        return X

    @property
    def pip_(self) -> pd.DataFrame:
        """Posterior inclusion probabilities, as :meth:`pyro_tbr.Posterior.pips`."""
        return self._fitted().pips()

    def transform(self, X: Any) -> Any:
        """Latents (N, K) of rows; columns of labels are ignored, but have to be there.

        A DataFrame where ``X`` is one, else an array, unless ``set_output`` says otherwise.
        """
        posterior = self._fitted()
        z = posterior.encode(self._split(self._as_fitted(X))[0])
        return z if isinstance(X, pd.DataFrame) else np.asarray(z)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Names of the latents, (K,); ``input_features`` must be those of ``fit`` where given."""
        posterior = self._fitted()
        if input_features is not None:
            given, number = list(input_features), self.n_features_in_
            if len(given) != number:
                raise DataError(
                    f"input_features should have length equal to the number of features ({number}),"
                    f" got {len(given)}: leave it out"
                )
            if given != list(getattr(self, "feature_names_in_", given)):
                raise DataError(
                    f"input_features is not equal to feature_names_in_: {listed(given)}, where fit "
                    f"had {listed(self.feature_names_in_)}; leave it out"
                )
        return np.array(posterior.latent_names[: posterior.model.latent_dim], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.categorical = True  # the column of labels
        tags.non_deterministic = self.seed is None
        tags.no_validation = True  # rows are checked by fit and predict, who know of labels
        return tags


def _require_outcomes(estimator: _TreeEstimator, y: Any) -> None:
    if y is None:
        name = type(estimator).__name__
        raise DataError(f"{name} requires y to be passed, but the target y is None")


class TreeRegressor(RegressorMixin, _TreeEstimator):
    """Regression whose latents' effects change sparsely along a tree of environments.

    A transformer too: ``transform`` and ``fit_transform`` give the latents of rows, by the names of
    ``get_feature_names_out``, and ``set_output(transform="pandas")`` says in which form.

    Args:
        tree: The environments, a :class:`pyro_tbr.Tree`.
        latent_dim: K; ``None``: chosen by ``fit``.
        env_column: Name (of a DataFrame's column) or position of the column of ``X`` that holds
            each row's environment, a node of the tree.
        groups_column: Likewise of the labels of groups, see :func:`pyro_tbr.fit`; ``None``: there
            is none.
        exposure_column: Likewise of the exposures of counts.
        likelihood: As in :class:`pyro_tbr.TreeModel`; ``None``: ``"gaussian"``.
        encoder, prior, basis, intercept: As in :class:`pyro_tbr.TreeModel`.
        guide, seed, progress, ranks, options: As in :func:`pyro_tbr.fit`.

    Attributes:
        posterior_: The :class:`pyro_tbr.Posterior` of the fit.
        pip_: Its inclusion probabilities.
        n_features_in_: Columns of ``X``, those of labels included.
        feature_names_in_: Their names, where ``X`` was a DataFrame with texts for names. Later
            tables are read by them, in any order, and what they have beside them is ignored.

    Example:
        >>> from pyro_tbr.evaluation import simulate
        >>> sim = simulate(num_leaves=4, latent_dim=1, num_features=1, rows_per_leaf=20)
        >>> frame = pd.DataFrame(sim.z, columns=["z"]).assign(env=sim.env)
        >>> model = TreeRegressor(sim.tree, latent_dim=1, encoder="identity").fit(frame, sim.y)
        >>> bool(model.score(frame, sim.y) > 0.9), model.pip_.shape
        (True, (6, 2))
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TreeRegressor:
        """Fits a posterior, and returns the estimator.

        Args:
            X: Rows, (N, D + 1): features and the column of environments, and that of groups if
                there is one; a DataFrame, or an array of objects or, where labels are numbers, of
                numbers.
            y: Outcomes, (N,) or (N, Q), NaN where not observed.
            sample_weight: By how much of a row each counts, (N,); ``None``: 1.

        Raises:
            DataError: No such column, or values that cannot be used.
            ShapeError: ``X`` is no table.
            TreeError: Labels that are not in the tree.
        """
        likelihood = "gaussian" if self.likelihood is None else self.likelihood
        self._fit(X, y, likelihood, sample_weight)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive means, (N,) or (N, Q) as ``y`` was, of rows as in :meth:`fit`.

        With ``return_std`` a pair, with the standard deviations of new outcomes (noise included).
        Environments without rows in ``fit`` are held-out leaves, predicted through the tree.
        """
        prediction = self._predict(X)
        mean = np.asarray(prediction.mean)
        return (mean, np.asarray(prediction.sd)) if return_std else mean

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R squared of the means, averaged over outcomes; what is missing in ``y`` is left out.

        Raises:
            DataError: An outcome has no observed value.
        """
        from sklearn.metrics import r2_score

        mean = self.predict(X)
        mean, truth = mean.reshape(len(mean), -1), np.asarray(y, dtype=float).reshape(len(mean), -1)
        seen = ~np.isnan(truth)
        if not seen.any(0).all():
            raise DataError("y has an outcome without observed values; there is nothing to score")
        weight = np.ones(len(truth)) if sample_weight is None else np.asarray(sample_weight)
        scores = [
            r2_score(truth[rows, q], mean[rows, q], sample_weight=weight[rows])
            for q, rows in enumerate(seen.T)
        ]
        return float(np.mean(scores))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class TreeClassifier(ClassifierMixin, _TreeEstimator):
    """Binary classification whose latents' effects change sparsely along a tree of environments.

    Arguments and attributes are those of :class:`TreeRegressor`, and ``classes_``: the two classes
    in their sorted order. Two classes of any kind: 0 and 1, texts, booleans. Its likelihood is that
    of classes.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TreeClassifier:
        """Fits a posterior to classes (N,); otherwise as :meth:`TreeRegressor.fit`."""
        if self.likelihood is not None:
            raise DataError(
                f"likelihood={self.likelihood!r}: TreeClassifier has that of two classes; leave it "
                "out, or use TreeRegressor"
            )
        _require_outcomes(self, y)
        labels = np.asarray(y)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = column_or_1d(labels, warn=True)  # scikit-learn's own words
        if labels.ndim != 1:
            raise ShapeError(f"y has shape {labels.shape}: give one class a row, (N,)")
        if pd.isna(labels).any():
            raise DataError(f"y has {pd.isna(labels).sum()} missing class(es): drop their rows")
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) != 2:
            with np.errstate(invalid="ignore"):
                kind = type_of_target(labels)
            raise DataError(
                f"y has {len(classes)} class(es), {listed(classes.tolist(), 4)}: TreeClassifier "
                "needs exactly two. Only binary classification is supported. The type of the "
                f"target is {kind}" + ("; use TreeRegressor" if kind == "continuous" else "")
            )
        self._fit(X, codes.astype(float), "bernoulli", sample_weight)
        self.classes_ = classes
        return self

    def predict_proba(self, X: Any) -> Any:
        """Probabilities (N, 2) of the classes, in the order of ``classes_``.

        Environments without rows in ``fit`` are held-out leaves, predicted through the tree.
        """
        second = np.asarray(self._predict(X).mean)
        return np.stack([1 - second, second], axis=1)

    def predict(self, X: Any) -> Any:
        """The likelier class of each row, (N,)."""
        second = self.predict_proba(X)[:, 1] > 0.5
        return self.classes_[second.astype(int)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
