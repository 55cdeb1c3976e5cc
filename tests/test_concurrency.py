"""Runs at the same time on one output never mix: each ends well, and LATEST names one whole table of one of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import run
from pipelines.cli.command import OK, run_command
from pipelines.job.publishing import JobStages
from schemas import storage
from tests.latest_reader import LatestReader, digest_of_table
from tests.made_data import write_items, write_ratings

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

ROOT = Path(__file__).parent.parent
NUM_USERS = 60


def flags_of(folder: Path) -> list[str]:
    return [
        f"--ratings={write_ratings(folder)}",
        f"--items={write_items(folder)}",
        "--dim=8",
        "--l2=0.1",
        "--epochs=3",
        "--checkpoint_secs=0",
        "--batch_size=64",
        "--num_shards=2",
        "--num_buckets=2",
        "--min_lift=0",
    ]


def latest_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "LATEST").read_text())


def test_three_runs_at_once_end_well_and_never_mix(tmp_path: Path) -> None:
    """Two of them with the same flags: they share every stage, and the training's checkpoint; the third all but the last."""
    flags, output = flags_of(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.run", *flags, f"--output={output}"]
    with LatestReader(output, NUM_USERS) as reader:
        processes = [
            subprocess.Popen([*command, f"--k={k}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for k in (10, 10, 8)
        ]
        try:
            said = [process.communicate(timeout=600)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [OK] * 3, "\n".join(said)
    assert reader.readings

    undisturbed = set()
    for k in (10, 8):
        alone = tmp_path / f"alone-{k}"
        assert run_command(run.main, [*flags, f"--output={alone}", f"--k={k}"]) == OK
        undisturbed.add(digest_of_table(alone, latest_of(alone))[0])
    assert set(reader.digests.values()) <= undisturbed
    for path in output.glob("releases/*/manifest.json"):
        table = [file["path"] for file in json.loads(path.read_text())["topk"]]
        assert digest_of_table(output, {"topk": table})[0] in undisturbed
    assert not list(output.rglob("*.tmp"))
    assert not list(output.glob("stages/train-*/checkpoints/*"))
    assert not list(output.glob("leases/*"))


def test_a_table_is_compared_with_what_another_run_published_in_the_meantime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, output = [*flags_of(tmp_path), f"--output={tmp_path / 'out'}"], tmp_path / "out"
    assert run_command(run.main, [*flags, "--k=8"]) == OK
    first = latest_of(output)
    assert run_command(run.main, [*flags, "--k=9"]) == OK
    original = run.run

    def overtaken(*arguments: Any) -> JobStages:
        made = original(*arguments)
        (output / "LATEST").write_text(json.dumps(first))
        return made

    monkeypatch.setattr(run, "run", overtaken)
    assert run_command(run.main, [*flags, "--k=10"]) == OK
    release = json.loads((output / latest_of(output)["manifest"]).read_text())
    assert release["compared_with"]["release"] == first["release"]
    assert release["compared_with"]["k"] == 8


@pytest.mark.parametrize("delete", [storage.delete, storage.delete_folder])
def test_what_two_delete_at_once_is_gone_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delete: Any) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("once")
    original = storage.FileSystems.delete

    def overtaken(paths: list[str]) -> None:
        original(paths)
        original(paths)

    monkeypatch.setattr(storage.FileSystems, "delete", overtaken)
    delete(str(path if delete is storage.delete else path.parent))
    assert not path.exists()
