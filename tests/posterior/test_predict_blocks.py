"""Predictions block by block are those of all rows."""

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.data import FeatureStream

SIM = tbr.simulate(num_leaves=4, latent_dim=2, num_features=2, rows_per_leaf=20, seed=3)
LABELS = [f"r{i}" for i in range(len(SIM.y))]


@pytest.fixture(scope="module")
def posterior():
    model = tbr.TreeModel(SIM.tree, 2, "identity")
    options = tbr.FitOptions(mixture_components=4)
    return tbr.fit(model, SIM.x, SIM.y, SIM.env, progress=False, options=options)


FEATURES = {
    "array": SIM.x,
    "table": pd.DataFrame(SIM.x, index=LABELS),
    "stream": FeatureStream(SIM.x, index=LABELS),
}


@pytest.mark.parametrize("x", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize("env", [SIM.env, SIM.env[0], None, tbr.NewLeaf("new", "root")])
@pytest.mark.parametrize("size", [7, 80, 1000])
def test_blocks_are_the_whole_in_parts(posterior, x, env, size):
    whole = posterior.predict(x, env)
    found = list(posterior.predict_blocks(x, env, block_rows=size))
    assert [rows.start for rows, _ in found] == list(range(0, len(SIM.y), size))
    assert found[-1][0].stop == len(SIM.y)
    for name in ("mean", "sd", "lower", "upper"):
        parts = [getattr(part, name) for _, part in found]
        if isinstance(parts[0], pd.Series):
            pd.testing.assert_series_equal(pd.concat(parts), getattr(whole, name))
        else:
            np.testing.assert_allclose(np.concatenate(parts), getattr(whole, name), atol=1e-10)
    y = SIM.y if isinstance(x, np.ndarray) else pd.Series(SIM.y, index=LABELS)
    scores = np.concatenate([part.log_scores(y[rows]) for rows, part in found])
    np.testing.assert_allclose(scores, whole.log_scores(y), rtol=1e-10)


def test_what_is_wrong_is_said_before_the_first_block(posterior):
    with pytest.raises(tbr.TreeError, match="nowhere"):
        posterior.predict_blocks(SIM.x, "nowhere")
    with pytest.raises(tbr.DataError, match="block_rows"):
        posterior.predict_blocks(SIM.x, SIM.env, block_rows=0)
    with pytest.raises(tbr.ShapeError, match="1 columns"):
        posterior.predict_blocks(SIM.x[:, :1], SIM.env)
    assert list(posterior.predict_blocks(SIM.x[:0], [])) == []
