"""The rooms of `pipelines` and `transforms`: each may only look at those named before it here, and no modules go round."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "transforms", "pipelines")
ROOMS = {
    "transforms": ("io", "charts", "search", "ingest", "train", "index", "lists", "serving", "evaluate", "report"),
    "pipelines": ("cli", "engine", "stages", "job", "lifecycle"),
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for each in PACKAGES for path in (ROOT / each).rglob("*.py")
}
COMMANDS = {name for name in MODULES if name.startswith("pipelines.") and name.count(".") == 1}


def imports_of(path: Path) -> set[str]:
    """Returns the names, with dots, that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room_of(name: str) -> tuple[int, int]:
    """Returns how high a module lies: its package, and its room there; commands lie above all rooms."""
    package, *rest = name.split(".")
    rooms = ROOMS.get(package, ())
    return PACKAGES.index(package), rooms.index(rest[0]) if rest and rest[0] in rooms else len(rooms)


def test_every_module_is_in_a_room() -> None:
    for package, rooms in ROOMS.items():
        assert {path.parent.name for path in (ROOT / package).glob("*/*.py")} == set(rooms)
    assert [path.name for path in (ROOT / "transforms").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_room_looks_only_at_those_below_it(name: str) -> None:
    for imported in imports_of(MODULES[name]) & MODULES.keys():
        assert imported == "pipelines.__init__" or room_of(imported) <= room_of(name), imported
        assert name in COMMANDS or imported not in COMMANDS - {"pipelines.__init__"}, imported
    assert not any(imported.split(".")[0] in ("tests", "benchmarks") for imported in imports_of(MODULES[name]))


def test_no_modules_import_each_other_in_a_circle() -> None:
    waiting = {name: imports_of(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these import each other: {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
