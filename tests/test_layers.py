"""The rooms of `transforms`, each of which may only look at those named before it here, and none of whose modules go round."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("io", "charts", "search", "ingest", "train", "index", "lists", "serving", "evaluate", "report")
MODULES = sorted((ROOT / "transforms").glob("*/*.py"))


def imports_of(path: Path) -> set[str]:
    """Returns the names, with dots, that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_every_module_is_in_a_room() -> None:
    assert {path.parent.name for path in MODULES} == set(ROOMS)
    assert [path.name for path in (ROOT / "transforms").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_room_looks_only_at_those_below_it(path: Path) -> None:
    allowed = ROOMS[: ROOMS.index(path.parent.name) + 1]
    for name in imports_of(path):
        package, *rest = name.split(".")
        assert package not in ("pipelines", "tests", "benchmarks"), name
        assert package != "transforms" or not rest or rest[0] in allowed, name


@pytest.mark.parametrize("package", ["transforms", "schemas"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / package).rglob("*.py")}
    waiting = {name: imports_of(path) & named.keys() - {name} for name, path in named.items()}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these import each other: {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
