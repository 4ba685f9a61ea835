"""An outcome of the environment itself, written on each of its rows: constant within every leaf."""

import numpy as np
import pytest

import pyro_tbr as tbr
from tests.brief import mostly_slow
from tests.cases.toy import QUICK

TREE = tbr.Tree.from_parents({"a": "u", "b": "u", "c": "v", "d": "v", "u": "r", "v": "r"})
ENV = np.repeat(np.array(list("abcd"), dtype=object), 40)
X = np.random.default_rng(0).normal(size=(160, 2))
TRUTHS = {
    "one leaf": {"a": 1.0, "b": 1.0, "c": 1.0, "d": 4.0},
    "one clade": {"a": 1.0, "b": 1.0, "c": 3.0, "d": 3.0},
    "all different": {"a": 1.0, "b": 2.0, "c": 3.0, "d": 5.0},
}
PRIORS = {
    "spike and slab": tbr.SpikeSlabPrior(),
    "horseshoe": tbr.HorseshoePrior(),
    "gaussian": tbr.GaussianPrior(),
}


CASES = {
    f"{truth}-{prior}-{encoder}": (truth, prior, encoder)
    for truth in TRUTHS
    for prior in PRIORS
    for encoder in ("identity", "linear")
}
QUICK_CASES = [name for name in CASES if "identity" in name or "one clade" in name]


@pytest.mark.parametrize(("truth", "prior", "encoder"), mostly_slow(CASES, *QUICK_CASES))
@pytest.mark.filterwarnings("ignore::pyro_tbr.errors.IdentificationWarning")
def test_predictions_are_the_environments_values(truth, prior, encoder):
    y = np.array([TRUTHS[truth][label] for label in ENV])
    model = tbr.TreeModel(TREE, 2, encoder=encoder, prior=PRIORS[prior])
    posterior = tbr.fit(model, X, y, ENV, progress=False, options=QUICK)
    prediction = posterior.predict(X, ENV)
    np.testing.assert_allclose(prediction.mean, y, atol=0.05)
    assert np.isfinite(prediction.sd).all()
    assert np.isfinite(prediction.lower).all()
    numbers = ["pip", "mean", "sd", "lower", "upper"]
    assert np.isfinite(posterior.deltas()[numbers].to_numpy()).all()
    assert np.isfinite(posterior.node_weights()[["mean", "sd"]].to_numpy()).all()


def test_the_one_leaf_that_differs_is_found():
    y = np.array([TRUTHS["one leaf"][label] for label in ENV])
    model = tbr.TreeModel(TREE, 2, encoder="identity")
    pips = tbr.fit(model, X, y, ENV, progress=False, options=QUICK).pips()
    assert pips["intercept"].idxmax() == ("v", "d")
    assert pips.loc[("v", "d"), "intercept"] > 0.9
