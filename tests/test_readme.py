"""The README's code runs as printed and prints what the README says."""

import contextlib
import importlib.util
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import pyro_tbr as tbr
import pyro_tbr.io.sklearn as faces
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


def test_code_is_short():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("command", ["examples/quickstart.py", "-m pytest"])
def test_set_up_commands_stand_in_the_readme(command):
    commands = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(commands) == 2
    assert sum(command in text for text in commands) == 1


def run(code, names):
    exec(compile(code, f"{README}: {code.splitlines()[0]}", "exec"), names)


@pytest.fixture(scope="module")
def first():
    """What the first block leaves behind, and what it prints."""
    names, printed = {"__name__": "readme"}, io.StringIO()
    with search_steps(FULL_SEARCH), contextlib.redirect_stdout(printed):
        run(CODE, names)
    return names, printed.getvalue()


def test_code_prints_what_the_readme_shows(first):
    _, printed = first
    # Other versions of torch may round otherwise, so numbers have some room.
    np.testing.assert_allclose(numbers(printed), numbers(SHOWN[0]), atol=0.05)
    assert re.sub(r"[-\d.\s\[\]]+", " ", printed).split() == (
        re.sub(r"[-\d.\s\[\]]+", " ", SHOWN[0]).split()
    )


@pytest.mark.own_random_state  # the loop of one's own draws
def test_blocks_run_in_order(first, monkeypatch, tmp_path, capsys):
    """Those after the first, with fits that are quick; one whose extra is missing is left out."""
    fit, names = tbr.fit, dict(first[0])

    def quick(*rows, **keys):
        return fit(*rows, **keys | {"options": QUICK, "progress": False})

    monkeypatch.setattr(tbr, "fit", quick)
    monkeypatch.setattr(faces, "fit", quick)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="ignore"):  # such fits find little
        for code in BLOCKS[1:]:
            if "import anndata" not in code or importlib.util.find_spec("anndata"):
                run(code, names)
    assert (tmp_path / "answers.html").stat().st_size > 50_000
    assert tbr.load(tmp_path / "answers.tbr").tree == names["tree"]
    assert names["losses"][-1] < names["losses"][0]
    assert names["longer"].report.seed == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("surest changes", "any_slope", "coverage", "tensor(["))


@pytest.mark.slow
@pytest.mark.own_random_state
def test_blocks_run_in_order_as_printed(monkeypatch, tmp_path):
    """All of them, as they stand, with every extra: without a warning."""
    pytest.importorskip("anndata", reason="needs anndata: pip install '.[anndata]'")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    with search_steps(FULL_SEARCH):
        for code in BLOCKS:
            run(code, names)
    assert names["regressor"].score(names["table"], names["y"]) > 0.9


def test_files_that_the_readme_names_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [link for link in links if not link.startswith("http")]
    assert len(local) > 8
    missing = [link for link in local if not (README.parent / link).is_file()]
    assert not missing


def test_it_takes_a_quarter_of_an_hour_to_read():
    words = re.sub(r"```.*?```|\|.*?\n", " ", README.read_text(), flags=re.DOTALL).split()
    assert len(words) < 15 * 200
