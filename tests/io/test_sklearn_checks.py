"""scikit-learn's own checks of an estimator, on rows that get the column of environments here."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import estimator_checks_generator

import pyro_tbr as tbr
from pyro_tbr.io.sklearn import TreeClassifier, TreeRegressor

TREE = tbr.Tree.from_parents({0: 2, 1: 2})
QUICK = tbr.FitOptions(
    restarts=1, max_steps=1, sparse_steps=1, cross_fit=0, mixture_components=2, dtype="float64"
)
LEFT_OUT = {
    "check_sample_weight_equivalence_on_dense_data": "features and outcomes are standardised by "
    "all rows, whatever their weight, so learnt scales have a slightly other prior",
    "check_sample_weight_equivalence_on_sparse_data": "a sparse X has no column of labels",
    "check_positive_only_tag_during_fit": "of estimators for positive features alone; in "
    "scikit-learn 1.6 it takes a mean from whole numbers in place, which NumPy refuses",
    "check_dataframe_column_names_consistency": "columns go by their names, in any order, and more "
    "of them are ignored with a warning; scikit-learn wants an error",
}
SLOW = [
    "check_regressor_multioutput",
    "check_classifiers_classes",
    "check_classifier_data_not_an_array",
    "check_transformer_data_not_an_array",
    "check_global_output_transform_pandas",
]
# Of scikit-learn's own test suite: they are in no generator.
MORE = [
    "check_dataframe_column_names_consistency",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_global_output_transform_pandas",
]


class InOneEnvironment:
    """Adds the column that no check has, the same leaf for all, and takes features for latents."""

    def _split(self, X):
        if isinstance(X, pd.DataFrame):
            return super()._split(X.assign(env=0))
        if hasattr(X, "tocsr"):
            return super()._split(X)
        X = np.asarray(X)
        return super()._split(X if X.ndim != 2 else np.column_stack([X, np.zeros(len(X), int)]))

    def _fit(self, X, *others):
        kept, shape = self.latent_dim, X.shape if hasattr(X, "tocsr") else np.asarray(X).shape
        self.latent_dim = max([1, *shape[1:2]])
        try:
            super()._fit(X, *others)
        finally:
            self.latent_dim = kept
        self.n_features_in_ -= 1

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.no_validation = False  # checks of what is refused too
        return tags


class Regressor(InOneEnvironment, TreeRegressor):
    """Whose rows are of one leaf."""


class Classifier(InOneEnvironment, TreeClassifier):
    """Likewise."""


def made(kind, name=""):
    fixed = {"prior": tbr.GaussianPrior(1.0, 1.0)}
    if kind is Regressor:
        fixed["likelihood"] = tbr.GaussianLikelihood(scale=1.0)
    if name == "check_estimators_overwrite_params":  # by a hash, in which copies of a tensor differ
        fixed = {}
    return kind(TREE, 1, env_column=-1, encoder="identity", options=QUICK, **fixed)


def cases():
    for kind in (Regressor, Classifier):
        checks = [check for _, check in estimator_checks_generator(made(kind))]
        checks += [partial(getattr(estimator_checks, name), kind.__name__) for name in MORE]
        for check in checks:
            name = check.func.__name__
            # What both share is checked on the regressor.
            own = kind is Regressor or "classifier" in name or "_y_" in name
            quick = own and name not in SLOW and "readonly_memmap" not in check.keywords
            marks = [] if quick else [pytest.mark.slow]
            if name in LEFT_OUT:
                marks = [pytest.mark.skip(reason=LEFT_OUT[name])]
            yield pytest.param(kind, check, id=f"{kind.__name__}-{name}", marks=marks)


@pytest.mark.own_random_state  # some checks seed numpy's
@pytest.mark.filterwarnings("ignore::pyro_tbr.errors.DataWarning")
@pytest.mark.parametrize(("kind", "check"), list(cases()))
def test_scikit_learns_checks(kind, check):
    check(made(kind, check.func.__name__))
