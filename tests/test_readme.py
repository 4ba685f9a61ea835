"""The README's code runs as printed and prints what the README says."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyro_tbr as tbr
from tests.brief import FULL_SEARCH, search_steps
from tests.cases.toy import QUICK

README = Path(__file__).parents[1] / "README.md"
BLOCKS, SHOWN = (
    re.findall(rf"```{kind}\n(.*?)```", README.read_text(), re.DOTALL)
    for kind in ("python", "text")
)
CODE = BLOCKS[0]


def numbers(text):
    return np.array([float(value) for value in re.findall(r"-?\d+\.\d+", text)])


def test_code_prints_what_the_readme_shows(capsys):
    with search_steps(FULL_SEARCH):
        exec(compile(CODE, str(README), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    # Other versions of torch may round otherwise, so numbers have some room.
    np.testing.assert_allclose(numbers(printed), numbers(SHOWN[0]), atol=0.05)
    assert re.sub(r"[-\d.\s\[\]]+", " ", printed).split() == (
        re.sub(r"[-\d.\s\[\]]+", " ", SHOWN[0]).split()
    )


def test_code_is_short():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("command", ["examples/quickstart.py", "-m pytest"])
def test_set_up_commands_stand_in_the_readme(command):
    commands = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(commands) == 2
    assert sum(command in text for text in commands) == 1


TREE = tbr.Tree.from_parents(dict.fromkeys(["T", "B", "NK"], "blood"))


@pytest.fixture
def names(monkeypatch):
    """What the blocks below the first take as given; fits are quick."""
    data = tbr.simulate(TREE, latent_dim=2, num_features=4, num_outcomes=2, rows_per_leaf=20)
    fit = tbr.fit
    monkeypatch.setattr(
        tbr, "fit", lambda *rows, **keys: fit(*rows, **keys, options=QUICK, progress=False)
    )
    model = tbr.TreeModel(TREE, latent_dim=2, encoder="linear")
    return {"tbr": tbr, "tree": TREE, "x": data.x, "y": data.y, "env": data.env, "model": model}


def block(word):
    (found,) = [text for text in BLOCKS[1:] if word in text]
    return compile(found, f"{README}: {word}", "exec")


def test_support_values(names, capsys):
    exec(block("support"), names)
    support, rest = capsys.readouterr().out.splitlines()
    assert support == "{'inner1': 95.0}"
    assert rest == "('s1', 's2', 's3', 's4') ('inner1', '87.0:g__Genus')"


def test_a_fit_again(names):
    exec(block("again.pips"), names)
    assert names["longer"].report.seed == 0


@pytest.mark.own_random_state
def test_a_loop_of_ones_own(names, capsys):
    exec(block("SVI("), names)
    assert names["losses"][-1] < names["losses"][0]
    assert capsys.readouterr().out.startswith("tensor([0.")


def test_anndata(names, tmp_path, monkeypatch):
    anndata = pytest.importorskip("anndata", reason="needs anndata: pip install pyro-tbr[anndata]")
    obs = pd.DataFrame({"cell_type": names["env"], "score": names["y"][:, 0]})
    adata = anndata.AnnData(names["x"], obs=obs.set_axis(obs.index.map(str)))
    adata.obsm["X_pca"] = names["x"][:, :3]
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("cells.h5ad")
    exec(block("anndata"), names)
    assert anndata.read_h5ad("with_latents.h5ad").obsm["X_tbr"].shape == (60, 2)


def test_counts(names, capsys):
    exec(block("negative_binomial"), names)
    assert capsys.readouterr().out.startswith("[[")


def test_every_block_is_run_here():
    assert len(BLOCKS) == 6
