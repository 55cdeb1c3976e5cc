"""The code and the package versions that made a stage."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

from schemas.errors import InputError

VERSIONED = ("apache-beam", "numpy", "pyarrow", "scann", "tensorflow", "tensorflow-recommenders", "tf-keras")
"""Packages whose versions a manifest names."""

DECIDING = {
    "numpy": ("numpy",),
    "pyarrow": ("pyarrow",),
    "scann": ("scann",),
    "tensorflow": ("tensorflow", "tf-keras"),  # Which it finds as tf.keras.
    "tensorflow_recommenders": ("tensorflow-recommenders",),
}
"""Packages that compute what a stage writes, by the names that they are imported by. Beam only says where the work is done."""


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide the results."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONED}


@cache
def code_version(module: str) -> str:
    """Returns a hash of a module's code and of every module of `transforms` and `schemas` that it imports, however deep.

    Comments, docstrings, the help of flags and layout do not count. A change of code makes a stage run again; nobody has to
    remember a number.
    """
    digest = hashlib.sha256()
    for name in sorted(_imported(module)):
        digest.update(f"{name}\n{_read_code(name).digest}\n".encode())
    return digest.hexdigest()[:16]


@cache
def package_versions(module: str) -> dict[str, str]:
    """Returns the versions of the `DECIDING` packages that a module imports, however deep: another makes a stage run again."""
    used = {package for name in _imported(module) for package in _read_code(name).packages}
    return {package: importlib.metadata.version(package) for package in sorted(used)}


def _imported(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _read_code(name).imports
    return found


class _Code(NamedTuple):
    """A module's code: its digest without comments, docstrings, help and layout, and what it imports, of ours and of others."""

    digest: str
    imports: tuple[str, ...]
    packages: tuple[str, ...]


@cache
def _read_code(module: str) -> _Code:
    """Reads a module once for all the stages that build on it: a run with nothing to do does little else."""
    tree = ast.parse(_source(module))
    named: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from transforms import sources` names a module too, `from transforms.ingest.sources import resolve` names none.
            named |= dict.fromkeys([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Import):
            named |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "flag":
            node.keywords = [each for each in node.keywords if each.arg != "help"]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            ]
    imports = tuple(each for each in named if each.split(".")[0] in ("transforms", "schemas") and _is_module(each))
    packages = tuple({package for each in named for package in DECIDING.get(each.split(".")[0], ())})
    return _Code(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports, packages)


def _is_module(name: str) -> bool:
    return _path_of(name) is not None


def _path_of(module: str) -> Path | None:
    """Returns where a module's source lies, or None where there is no such module.

    Python's own `find_spec` imports all that is above the last dot: to ask it for `transforms.train.towers.TwoTowers` would
    import TensorFlow, in a run that has nothing to do.
    """
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, *rest)
        for candidate in (path / "__init__.py", path.parent / f"{path.name}.py"):
            if candidate.is_file():
                return candidate
    return None


def _source(module: str) -> str:
    path = _path_of(module)
    if path is None:
        raise InputError(f"the module {module} cannot be found: install the package anew")
    return path.read_text(encoding="utf-8")
