"""A room imports only from rooms above it, and no files import each other in a circle.

So the package can be read from top to bottom, and each room from file to file.
"""

import ast
import re
from pathlib import Path

import networkx as nx
import pytest

import pyro_tbr
from tests.brief import LEFT_OUT

PACKAGE = Path(pyro_tbr.__file__).parent
ROOMS = [  # io and plotting stand side by side
    {"errors"}, {"markup", "jit"}, {"progress"}, {"tree"}, {"data"}, {"heads"}, {"models"},
    {"posterior"}, {"inference"}, {"evaluation"}, {"io", "plotting"}, {"page"},
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
    assert upward_imports("data", source)
    assert not upward_imports("data", "from pyro_tbr.tree import Tree\nimport torch")


def module_of(path: Path) -> str:
    """The module's name; that of the package for its ``__init__.py``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, known: set[str]) -> set[str]:
    """Modules of the package that a file names in imports, in functions and for types too.

    ``from package import name`` is an import of the package's ``__init__.py``, and of the module
    ``package.name`` where there is one.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known


def circles(sources: dict[str, str]) -> list[list[str]]:
    """Modules that import each other in a circle, from the source of each."""
    known = set(sources)
    graph = nx.DiGraph(
        (module, other) for module in known for other in imported_modules(sources[module], known)
    )
    found = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    return sorted(found + [[module] for module in nx.nodes_with_selfloops(graph)])


SOURCES = {
    module_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}


@pytest.mark.parametrize("room", sorted(RANK))
def test_inside_a_room_there_is_no_circle_either(room):
    inside = {module: text for module, text in SOURCES.items() if module.split(".")[1:2] == [room]}
    assert inside
    assert not circles(inside)


@pytest.mark.parametrize("back", [
    "from p.a import one", "import p.a", "def f():\n    import p.a",
    "if TYPE_CHECKING:\n    from p.a import One", "from p import a",
])  # fmt: skip
def test_a_circle_is_found(back):
    sources = {"p": "", "p.a": "from p.b import two", "p.b": back}
    assert circles(sources) == [["p.a", "p.b"]]
    assert not circles(sources | {"p.b": "import torch"})


def test_a_package_that_its_own_file_imports_from_is_a_circle():
    assert circles({"p": "from p.a import one", "p.a": "from p import two"}) == [["p", "p.a"]]


def test_what_the_default_suite_leaves_out_is_there():
    tests = Path(__file__).parent
    for part in LEFT_OUT:
        file, _, name = part.partition("::")
        source = (tests / file).read_text(encoding="utf-8")
        assert re.search(rf"def {re.escape(name.partition('[')[0])}", source), part
