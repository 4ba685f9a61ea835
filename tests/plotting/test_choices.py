"""Plots of what was compared: the numbers they show are those of the tables."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pyro_tbr.errors import DataError
from pyro_tbr.evaluation import TreeComparison
from pyro_tbr.plotting import plot_latent_dims, plot_trees
from pyro_tbr.posterior import LatentDimChoice

DIMS = pd.DataFrame(
    {
        "latent_dim": [1, 2, 3, 4],
        "log_score": [-3.0, -2.0, -1.0, -1.01],
        "se": 0.1,
        "difference": [-2.0, -1.0, 0.0, -0.01],
        "difference_se": [0.2, 0.1, 0.0, 0.02],
        "evidence": [-900.0, -300.0, 0.0, -12.0],
    }
)
TREES = pd.DataFrame(
    {
        "arcs": [6, 4],
        "evidence": [0.0, -31.2],
        "log_score": [-1.0, -1.2],
        "se": 0.1,
        "difference": [0.0, -0.2],
        "difference_se": [0.0, 0.05],
    },
    index=pd.Index(["given", "a $very$ long name of a tree, with more than 32 letters"]),
)
CHOICE = LatentDimChoice(DIMS, 3, 200, 4)
COMPARED = TreeComparison(TREES, pd.DataFrame(np.zeros((3, 2))), "leaves", 4)


def test_numbers_of_latents():
    ax = plot_latent_dims(CHOICE)
    assert isinstance(ax.figure, Figure)
    ax.figure.draw_without_rendering()
    by_label = dict(zip(ax.get_legend_handles_labels()[1], ax.get_legend_handles_labels()[0],
                        strict=True))  # fmt: skip
    evidence = by_label["evidence"]
    np.testing.assert_allclose(evidence.get_ydata(), [900, 300, 0, 12])
    scores = by_label["held-out log score"].lines[0]
    np.testing.assert_allclose(scores.get_ydata(), [400, 200, 0, 2])
    assert ax.get_ylim()[0] > 900 > 0 > ax.get_ylim()[1]  # best on top
    assert ax.get_xticks().tolist() == [1, 2, 3, 4]


def test_trees():
    figure = Figure(layout="constrained")
    ax = figure.subplots()
    assert plot_trees(COMPARED, ax=ax) is ax
    figure.draw_without_rendering()
    dots = ax.lines[-1]
    np.testing.assert_allclose(dots.get_xdata(), [0, -0.2])
    assert [text.get_text() for text in ax.texts] == ["+0.0", "-31.2", "evidence"]
    assert ax.get_yticklabels()[1].get_text().startswith("a $very$ long")
    assert "leaves held out" in ax.get_xlabel()
    box, page = ax.xaxis.label.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1


def test_wrong_calls():
    with pytest.raises(DataError, match="what choose_latent_dim gives, got DataFrame"):
        plot_latent_dims(DIMS)
    with pytest.raises(DataError, match="what compare_trees gives, got DataFrame"):
        plot_trees(TREES)
