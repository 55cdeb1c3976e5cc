"""A check reads what a run would read, says what it would do, and leaves everything else alone."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from pipelines import export, publish, run, sweep, tune
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.job import single_stage
from schemas.workspace import Workspace
from tests.made_data import ratings, write_csv, write_items
from tests.test_lists import STAGES, finished
from tests.test_run import QUICK

MADE = STAGES[:-1]
"""All stages but the one that judges."""

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

HEADER = ["user_id", "item_id", "rating", "timestamp"]


def checked(capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    capsys.readouterr()
    assert run_command(run.main, [*QUICK, *flags, "--check", "--json"]) == OK
    line = json.loads(capsys.readouterr().out)
    assert line["exit_status"] == OK
    return line["checked"]


def test_a_check_says_what_came_in_and_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ratings()
    newest = max(time for *_, time in rows)
    source = write_csv(tmp_path / "r.csv", HEADER, [*rows, rows[0], ("u1", "i1", "x", 1)])
    block = write_csv(tmp_path / "b.csv", ["item_id"], [("i1",), ("i2",), ("[red]gone",)])
    flags = [f"--ratings={source}", f"--items={write_items(tmp_path)}", f"--block_items={block}", f"--output={tmp_path}/out"]
    found = checked(capsys, *flags)
    assert found["sources"]["ratings"] == {
        "files": 1,
        "rows": len(rows) + 2,
        "rejected": 1,
        "reasons": {"rating is not a number": 1},
        "forgotten": 0,
    }
    assert datetime.fromisoformat(found["newest_rating"]).timestamp() == newest
    assert (found["ratings_repeated"], found["users"], found["items"], found["items_blocked"]) == (1, 60, 41, 2)
    assert found["ratings_to_train_on"] + found["ratings_held_out"] == len(rows)
    assert {name: (each["ids"], each["known"]) for name, each in found["ids_joined"].items()} == {
        "rated_items": (40, 40),
        "block_items": (3, 2),
    }
    (stages,) = found["stages"].values()
    assert stages == {"ingest": "done", "lists": "done"} | dict.fromkeys(MADE[2:], "would run")
    assert found["compared_with"] is None
    assert finished(tmp_path / "out") == dict.fromkeys(STAGES, 0) | {"ingest": 1, "lists": 1}
    assert not (tmp_path / "out" / "LATEST").exists()

    # The run that follows takes over what the check has read.
    assert run_command(run.main, [*QUICK, *flags]) == OK
    assert finished(tmp_path / "out") == dict.fromkeys(STAGES, 1)
    latest = (tmp_path / "out" / "LATEST").read_text()
    write_csv(block, ["item_id"], [("i3",)])
    found = checked(capsys, *flags)
    (stages,) = found["stages"].values()
    assert stages == dict.fromkeys(MADE[:-1], "done") | {"recommend": "would run"}
    assert found["compared_with"] == json.loads(latest)["release"]
    assert (tmp_path / "out" / "LATEST").read_text() == latest
    assert finished(tmp_path / "out") == dict.fromkeys(STAGES, 1) | {"lists": 2}

    assert run_command(run.main, [*QUICK, *flags, "--check", "--reuse_model_from=LATEST"]) == OK
    said = capsys.readouterr().out
    assert f"train kept from release {json.loads(latest)['release']}" in said
    assert "1 of 1 id is known (100 %)" in said
    assert "rating is not a number: 1" in said
    assert "nothing was trained or published" in said


def test_a_check_fails_as_the_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_csv(tmp_path / "r.csv", HEADER, ratings())
    output = f"--output={tmp_path}/out"
    assert run_command(run.main, [output, "--check"]) == MISTAKE
    assert "no ratings: give --ratings FILE" in capsys.readouterr().err
    flags = [*QUICK, f"--ratings={source}", output, f"--block_items={write_csv(tmp_path / 'b.csv', ['item_id'], [('x',)])}"]
    said = []
    for more in (["--check", "--json"], ["--json"]):
        assert run_command(run.main, [*flags, *more]) == MISTAKE
        captured = capsys.readouterr()
        line = json.loads(captured.out)
        assert line["exit_status"] == MISTAKE
        said.append(line["error"])
    assert said[0] == said[1]
    assert said[0].startswith("the only one of the ids of --block_items, 'x', is not in the catalogue")
    assert not Workspace(f"{tmp_path}/out").finished("train")


@pytest.mark.parametrize("command", [tune.main, sweep.main, export.main, publish.main, single_stage.stage_command("train")])
def test_no_command_that_cannot_check_does_its_work_instead(
    command: Callable[[Sequence[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratings_file = write_csv(tmp_path / "r.csv", HEADER, ratings())
    assert run_command(command, [*QUICK, f"--ratings={ratings_file}", f"--output={tmp_path}/out", "--check"]) == MISTAKE
    error = capsys.readouterr().err
    assert "--check looks at a whole job: give it to python -m pipelines.run, or leave it out" in error
    assert not (tmp_path / "out").exists()


def test_a_check_of_a_job_that_refits_reads_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_csv(tmp_path / "r.csv", HEADER, ratings())
    found = checked(capsys, f"--ratings={source}", f"--output={tmp_path}/out", "--refit")
    first, second = found["stages"].values()
    assert {name for name, what in first.items() if what == "done"} == {"ingest", "lists"}
    assert set(second.values()) == {"would run"}
    assert finished(tmp_path / "out") == dict.fromkeys(STAGES, 0) | {"ingest": 1, "lists": 1}
