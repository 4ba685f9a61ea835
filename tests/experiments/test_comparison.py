"""Methods side by side: what is drawn is what the table says."""

import numpy as np
import pandas as pd
import pytest

from parts.comparison import plot_methods
from parts.runs import summarise_runs
from pyro_tbr.errors import DataError

RUNS = pd.DataFrame(
    {
        "setting": ["a"] * 4 + ["b"] * 4,
        "method": ["ours", "other"] * 4,
        "seed": [0, 0, 1, 1] * 2,
        "mcc": [1.0, 0.5, 0.8, np.nan, 0.9, np.nan, 0.7, np.nan],
        "mse": np.arange(8.0),
    }
)


def test_means_and_errors_are_drawn():
    axes = plot_methods(summarise_runs(RUNS), {"mcc": "MCC", "mse": "error"})
    assert [ax.get_ylabel() for ax in axes] == ["MCC", "error"]
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["a", "b"]
    ours, other = axes[0].containers
    np.testing.assert_allclose(ours.lines[0].get_ydata(), [0.9, 0.8])
    np.testing.assert_allclose(other.lines[0].get_ydata(), [0.5])  # it has none in b
    bar = ours.lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(bar, [0.8, 1.0])
    assert (ours.lines[0].get_xdata() < np.array([0, 1])).all()
    key = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert key == ["ours", "other"]


def test_a_metric_that_is_not_there():
    with pytest.raises(DataError, match="crps"):
        plot_methods(summarise_runs(RUNS), {"crps": "CRPS"})
