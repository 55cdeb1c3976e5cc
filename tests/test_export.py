"""The SavedModel as its users meet it: made by the job, loaded where nothing of ours is, with the table's answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import export, run
from pipelines.cli.command import MISTAKE, OK, run_command
from schemas.storage import read_json
from schemas.workspace import Workspace
from tests import only_tensorflow
from tests.made_data import write_csv, write_ratings
from tests.test_run import topk_of

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

FLAGS = ["--dim=8", "--l2=0.1", "--epochs=2", "--batch_size=64", "--k=10", "--num_shards=2", "--num_buckets=2", "--seed=7"]


@pytest.fixture(scope="module", params=[["--user_tower=id"], ["--user_tower=history", "--leaves=4", "--target_recall=0.8"]])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An output with a model, and the flags that made it."""
    folder = tmp_path_factory.mktemp("export")
    newcomers = write_csv(folder / "users.csv", ["user_id"], [("newcomer",)])
    blocked = write_csv(folder / "block.csv", ["item_id"], [("7",), ("i3",)])
    sources = [f"--ratings={write_ratings(folder)}", f"--users={newcomers}", f"--block_items={blocked}"]
    flags = [*FLAGS, *request.param, *sources, f"--output={folder / 'out'}", "--min_lift=0", "--export_saved_model"]
    assert run_command(run.main, flags) == OK
    return folder / "out", flags


def model_of(output: Path) -> Path:
    (manifest,) = Workspace(str(output)).finished("export")
    return output / manifest.folder / "saved_model" / "1"


def ask(model: Path, folder: Path, requests: list[dict]) -> dict[str, Any]:
    """Asks a process that has TensorFlow and ScaNN only."""
    (folder / "requests.json").write_text(json.dumps(requests))
    command = [sys.executable, "-I", only_tensorflow.__file__, str(model), str(folder / "requests.json")]
    plain = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    return json.loads(subprocess.run(command, cwd=folder, env=plain, check=True, capture_output=True, text=True).stdout)


def test_a_process_with_tensorflow_and_scann_gives_the_tables_answers(job: tuple[Path, list[str]], tmp_path: Path) -> None:
    output, _ = job
    rows = topk_of(output)
    shutil.copytree(model_of(output), tmp_path / "moved")  # Nothing in it names a path.
    users = [row["user_id"] for row in rows]
    told = ask(
        tmp_path / "moved",
        tmp_path,
        [
            {"signature": "serving_default", "inputs": {"user_id": [*users, "stranger"]}},
            {"signature": "with_history", "inputs": {"user_id": ["stranger"], "history": [["i1", "i2"]]}},
        ],
    )
    everyone, given = told["answers"]
    assert everyone["item_id"][:-1] == [[each["item_id"] for each in row["recommendations"]] for row in rows]
    assert everyone["score"][:-1] == [[each["score"] for each in row["recommendations"]] for row in rows]
    assert everyone["source"][:-1] == [row["source"] for row in rows]
    assert everyone["source"][users.index("newcomer")] == everyone["source"][-1] == "popular"
    assert not {"7", "i3"} & {item for row in everyone["item_id"] for item in row}
    assert not {"i1", "i2"} & set(given["item_id"][0])
    outputs = {"item_id": ["string", [None, 10]], "score": ["float32", [None, 10]], "source": ["string", [None]]}
    user_id = {"user_id": ["string", [None]]}
    assert told["signatures"] == {
        "serving_default": {"inputs": user_id, "outputs": outputs},
        "with_history": {"inputs": {**user_id, "history": ["string", [None, None]]}, "outputs": outputs},
    }


def test_the_same_job_makes_the_same_files(job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    output, flags = job
    (first,) = Workspace(str(output)).finished("export")
    shutil.rmtree(output / first.folder.rpartition("/")[0])
    assert run_command(export.main, flags) == OK
    (second,) = Workspace(str(output)).finished("export")
    assert second.digest == first.digest
    assert capsys.readouterr().out.strip() == str(model_of(output).parent)


def test_the_release_names_the_model(job: tuple[Path, list[str]]) -> None:
    output, _ = job
    release = read_json(f"{output}/{read_json(f'{output}/LATEST')['manifest']}")
    assert release["stages"]["export"]["metrics"]["k"] == 10
    (manifest,) = Workspace(str(output)).finished("export")
    assert release["stages"]["export"]["fingerprint"] == manifest.fingerprint
    assert release["stages"]["export"]["digest"] == manifest.digest


def test_other_lists_of_items_than_those_of_the_table_are_a_mistake(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output, _ = job
    other = write_csv(tmp_path / "other.csv", ["item_id"], [("i4",)])
    assert run_command(export.main, [f"--output={output}", f"--block_items={other}"]) == MISTAKE
    assert "the table was made with other lists than --users, --exclude, --block_items and" in capsys.readouterr().err
    assert run_command(export.main, [f"--output={output}"]) == OK  # Where none is named, those of the table are meant.
    assert len(Workspace(str(output)).finished("export")) == 1


def test_a_tree_with_soar_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FLAGS, f"--ratings={write_ratings(tmp_path)}", "--leaves=4", f"--output={tmp_path / 'out'}"]
    assert run_command(run.main, [*flags, "--min_lift=0"]) == OK
    capsys.readouterr()
    assert run_command(export.main, [f"--output={tmp_path / 'out'}"]) == MISTAKE
    said = capsys.readouterr().err
    assert "has a tree with SOAR, which ScaNN's TensorFlow ops cannot hold: build the index with --no_soar" in said
    assert "Traceback" not in said
    assert not Workspace(str(tmp_path / "out")).finished("export")


def test_export_needs_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(export.main, [f"--output={tmp_path}"]) == MISTAKE
    assert "export needs recommend, which is not done below" in capsys.readouterr().err
