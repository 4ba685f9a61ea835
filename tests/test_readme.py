"""The README's code runs as printed and prints what the README says."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
CODE, SHOWN = (
    re.findall(rf"```{kind}\n(.*?)```", README.read_text(), re.DOTALL)[0]
    for kind in ("python", "text")
)


def numbers(text):
    return np.array([float(value) for value in re.findall(r"-?\d+\.\d+", text)])


def test_code_prints_what_the_readme_shows(capsys):
    exec(compile(CODE, str(README), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    # Other versions of torch may round otherwise, so numbers have some room.
    np.testing.assert_allclose(numbers(printed), numbers(SHOWN), atol=0.05)
    assert re.sub(r"[-\d.\s\[\]]+", " ", printed).split() == (
        re.sub(r"[-\d.\s\[\]]+", " ", SHOWN).split()
    )


def test_code_is_short():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("command", ["examples/quickstart.py", "-m pytest"])
def test_set_up_commands_stand_in_the_readme(command):
    commands = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(commands) == 2
    assert sum(command in text for text in commands) == 1
