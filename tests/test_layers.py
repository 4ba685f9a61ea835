"""A room imports only from rooms above it, so the package can be read from top to bottom."""

import ast
from pathlib import Path

import pytest

import pyro_tbr

PACKAGE = Path(pyro_tbr.__file__).parent
ROOMS = [  # io and plotting stand side by side
    {"errors"}, {"tree"}, {"data"}, {"heads"}, {"models"}, {"posterior"},
    {"inference"}, {"evaluation"}, {"io", "plotting"},
]  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}


def room_of(path: Path, package: Path = PACKAGE) -> str:
    first = path.relative_to(package).parts[0]
    return first.removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """Rooms of pyro_tbr that a file imports from anywhere in it; relative imports are refused."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("pyro_tbr.")}
    return rooms


def upward_imports(room: str, source: str) -> set[str]:
    """Rooms below (or beside) ``room`` that the source of one of its files imports from."""
    imported = imported_rooms(source) - {room, "__version__"}
    return {other for other in imported if RANK.get(other, len(ROOMS)) >= RANK[room]}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_only_from_rooms_above(path):
    if path == PACKAGE / "__init__.py":
        return
    room = room_of(path)
    assert room in RANK, f"{path} is in no room of the list"
    assert not upward_imports(room, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", [
    "from pyro_tbr.heads import Guide", "import pyro_tbr.heads.guide", "from pyro_tbr import fit",
    "def f():\n    from pyro_tbr.heads.guide import Guide",
])  # fmt: skip
def test_an_upward_import_is_found(source):
    assert upward_imports("heads", source)
    assert not upward_imports("heads", "from pyro_tbr.tree import Tree\nimport torch")
