"""The example for Airflow: a chain of all stages, each with a command that exists, and no second try where none would help.

Airflow pins other versions than this project, so it cannot be installed beside it. Its part is played by the few names that the
example takes from it; where SHORTLIST_AIRFLOW_PYTHON names a Python that has Airflow 3, that one imports the example too.
"""

import ast
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.cli.config import parse_command
from pipelines.job import chains

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "airflow_dag.py"


class Task:
    """An operator that remembers what it was given, and what comes after it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.after: list[Task] = []
        Dag.tasks.append(self)

    def __rshift__(self, other: "Task") -> "Task":
        self.after.append(other)
        return other


class Dag:
    """A DAG that remembers its tasks."""

    tasks: list[Task] = []  # noqa: RUF012

    def __init__(self, name: str, **settings: Any) -> None:
        self.settings = settings
        Dag.tasks = []

    def __enter__(self) -> "Dag":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Failed(Exception):
    """Stands for AirflowException: tried again."""


class FailedForGood(Failed):
    """Stands for AirflowFailException: not tried again."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, imported with the names that it takes from Airflow."""
    parts: dict[str, dict[str, Any]] = {
        "airflow": {},
        "airflow.sdk.exceptions": {"AirflowException": Failed, "AirflowFailException": FailedForGood},
        "airflow.providers": {},
        "airflow.providers.standard": {},
        "airflow.providers.standard.operators": {},
        "airflow.providers.standard.operators.python": {"PythonOperator": Task},
        "airflow.sdk": {"DAG": Dag},
    }
    for name, names in parts.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("airflow_dag", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_there_is_a_task_a_stage_one_after_the_other(example: ModuleType) -> None:
    assert [task.settings["task_id"] for task in Dag.tasks] == list(chains.COMMANDS)
    for task, following in zip(Dag.tasks, [*Dag.tasks[1:], None], strict=True):
        assert task.after == ([following] if following else [])
    assert example.dag.settings["max_active_runs"] == 1
    assert example.dag.settings["default_args"]["retries"] > 0


def test_every_command_is_one_that_we_have(example: ModuleType) -> None:
    for task in Dag.tasks:
        ((python, dash_m, module, *flags),) = task.settings["op_args"]
        assert (python, dash_m) == (example.PYTHON, "-m")
        assert importlib.util.find_spec(module)
        settings, _ = parse_command(flags, "")
        assert settings.refit
        assert "{{ ds }}" in str(settings.ingest.ratings)


@pytest.mark.parametrize(("code", "error"), [(0, None), (1, Failed), (2, FailedForGood), (3, FailedForGood), (130, Failed)])
def test_what_would_be_the_same_again_is_not_tried_again(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception] | None
) -> None:
    monkeypatch.setattr(example, "PROJECT", str(ROOT))
    command = [sys.executable, "-c", f"raise SystemExit({code})"]
    if error is None:
        example.run_stage(command)
        return
    with pytest.raises(Failed, match=f"exit code {code}") as raised:
        example.run_stage(command)
    assert raised.type is error


def test_airflow_itself_takes_the_example() -> None:
    python = os.environ.get("SHORTLIST_AIRFLOW_PYTHON")
    if not python:
        pytest.skip("needs a Python with Airflow 3, named by SHORTLIST_AIRFLOW_PYTHON")
    code = (
        "import importlib.util as u; s = u.spec_from_file_location('d', 'examples/airflow_dag.py');"
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(*(t.task_id for t in m.dag.topological_sort()))"
    )
    made = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1].split() == list(chains.COMMANDS)


def test_the_documented_cron_line_names_a_command_that_we_have() -> None:
    text = (ROOT / "docs" / "guides" / "operations.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("0 3 * * * ")]
    words = shlex.split(line.partition("python -m ")[2].partition(" >>")[0])
    assert words[0] == "pipelines.run"
    (config,) = [word for word in words if word.endswith(".yaml")]
    assert "--config" in words
    assert "--json" in words
    assert config == "job.yaml"


def test_the_example_takes_no_more_from_airflow_than_these_tests_know() -> None:
    taken = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(EXAMPLE.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("airflow")
        for alias in node.names
    }
    assert taken == {
        ("airflow.sdk.exceptions", "AirflowException"),
        ("airflow.sdk.exceptions", "AirflowFailException"),
        ("airflow.providers.standard.operators.python", "PythonOperator"),
        ("airflow.sdk", "DAG"),
    }
