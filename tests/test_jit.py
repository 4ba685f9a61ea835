"""Compiled functions are kept on disk, and never those of other sources."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_tbr import jit

pytestmark = pytest.mark.skipif(not jit.COMPILES, reason="numba is not installed")

INNER = "from pyro_tbr.jit import jit\n\n\n@jit\ndef inner(x):\n    return x + {more}\n"
OUTER = (
    "from pyro_tbr.inner import inner\nfrom pyro_tbr.jit import jit\n\n\n"
    "@jit\ndef outer(x):\n    return 2 * inner(x)\n"
)


def run(folder, code="from pyro_tbr.outer import outer; print(outer(1))", **env):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
        env={"PATH": "", "PYTHONPATH": str(folder), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def package(tmp_path):
    """A package of two functions, one of which calls the other."""
    home = tmp_path / "pyro_tbr"
    home.mkdir()
    (home / "__init__.py").touch()
    shutil.copy(Path(jit.__file__), home / "jit.py")
    (home / "inner.py").write_text(INNER.format(more=1))
    (home / "outer.py").write_text(OUTER)
    return tmp_path


def test_a_change_of_what_is_called_is_seen(package):
    assert run(package) == ["4"]
    assert len(list(package.rglob("outer*.nbi"))) == 1
    assert run(package) == ["4"]
    assert len(list(package.rglob("outer*.nbi"))) == 1
    (package / "pyro_tbr" / "inner.py").write_text(INNER.format(more=10))
    assert run(package) == ["22"]
    assert len(list(package.rglob("outer*.nbi"))) == 2


def test_the_folder_that_the_user_gives_is_kept_to(package, tmp_path):
    assert run(package, NUMBA_CACHE_DIR=str(tmp_path / "mine")) == ["4"]
    assert list((tmp_path / "mine").rglob("outer*.nbi"))
    assert not list((package / "pyro_tbr").rglob("*.nbi"))


def test_nothing_of_the_compilers_own_is_changed(package):
    code = (
        "import numba; before = numba.config.CACHE_DIR\n"
        "import pyro_tbr.outer; print(numba.config.CACHE_DIR == before)"
    )
    assert run(package, code) == ["True"]


def test_without_the_compiler_a_fit_gives_the_same_answers():
    """It is a dependency, but not every Python has it at once."""
    code = (
        "import sys\n{first}\nimport pyro_tbr as tbr, warnings\nwarnings.simplefilter('ignore')\n"
        "d = tbr.simulate(num_leaves=8, latent_dim=2, num_features=2, rows_per_leaf=30, seed=1)\n"
        "p = tbr.fit(tbr.TreeModel(d.tree, 2, 'identity'), d.x, d.y, d.env, progress=False)\n"
        "from pyro_tbr.jit import COMPILES\nprint(COMPILES, *p.deltas()['pip'].round(4))"
    )
    root = Path(jit.__file__).parents[1]
    with_it = run(root, code.format(first=""))
    without = run(root, code.format(first="sys.modules['numba'] = None"))
    assert (with_it[0], without[0]) == ("True", "False")
    gap = [abs(float(a) - float(b)) for a, b in zip(with_it[1:], without[1:], strict=True)]
    assert max(gap) < 0.03
