"""The page of a posterior: complete, self-contained, safe against names that look like markup."""

import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from tests.posterior.small_fits import FAST

pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """Headings, images and tables of a page; tags that are not closed are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.images, self.tables, self.links = [], [], [], 0, []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [value for name, value in attrs.items() if name in ("src", "href")]
        if tag == "img":
            self.images.append(attrs["src"])
        elif tag != "meta":
            self.open.append(tag)
            self.tables += tag == "table"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def rows():
    sim = tbr.simulate(num_leaves=6, latent_dim=2, num_features=4, num_outcomes=2,
                       rows_per_leaf=40, seed=1)  # fmt: skip
    x = pd.DataFrame(sim.x, columns=["age", "<size>", "x & y", "depth"])
    y = pd.DataFrame(sim.y, columns=["mass", "<wing>"])
    return sim.tree, x, y, sim.env


@pytest.fixture(scope="module")
def posterior(rows):
    tree, *data = rows
    with warnings.catch_warnings(action="ignore"):
        return tbr.fit(tbr.TreeModel(tree, 2, "linear"), *data, progress=False, options=FAST)


def test_page_without_rows(posterior, tmp_path):
    posterior.to_html(tmp_path / "page.html", title="Cells <of> mice")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.headings[0] == "Cells <of> mice"
    assert page.headings[1:] == [
        "Where something changed", "Latents, and the features that make them",
        "Effects of features", "How it was fitted",
    ]  # fmt: skip
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.images) >= 4  # tree, loadings, effects by outcome
    assert page.tables >= 3
    assert "&lt;size&gt;" in text
    assert "<size>" not in text
    assert re.search(posterior.identification().verdict[:20], text)


def test_page_with_rows_says_how_predictions_fit(posterior, rows, tmp_path):
    _, x, y, env = rows
    posterior.to_html(tmp_path / "page.html", x, y, env)
    page = Page((tmp_path / "page.html").read_text())
    assert "Predictions against outcomes" in page.headings
    with pytest.raises(DataError, match="x, y and env go together"):
        posterior.to_html(tmp_path / "page.html", x, y)
    with pytest.raises(FileNotFoundError, match="no folder"):
        posterior.to_html(tmp_path / "nowhere" / "page.html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_page_of_a_prior_without_gates_and_of_an_encoder_that_is_not_linear(rows, tmp_path):
    tree, x, y, env = rows
    options = tbr.FitOptions(restarts=1, max_steps=20, sparse_steps=0, cross_fit=0)
    model = tbr.TreeModel(tree, 2, encoder="mlp", prior=tbr.GaussianPrior())
    with warnings.catch_warnings(action="ignore"):
        posterior = tbr.fit(model, x, y, env, progress=False, options=options)
    posterior.to_html(tmp_path / "bare.html")
    bare = (tmp_path / "bare.html").read_text()
    assert "there are no PIPs" in bare
    assert "averages slopes over rows" in bare
    posterior.to_html(tmp_path / "more.html", x.iloc[:30])
    more = Page((tmp_path / "more.html").read_text())
    assert "Effects of features" in more.headings


def test_page_of_known_latents(rows, tmp_path):
    tree, x, y, env = rows
    model = tbr.TreeModel(tree, 4, encoder="identity")
    with warnings.catch_warnings(action="ignore"):
        posterior = tbr.fit(model, x, y.iloc[:, 0], env, progress=False, options=FAST)
    posterior.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    Page(text)
    assert "Latents are known." in text
    assert np.all(["nan" not in cell for cell in re.findall(r"<td[^>]*>(.*?)</td>", text)])
