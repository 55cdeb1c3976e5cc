"""--reuse_model_from: the table of a kept model is that of a search for everyone, and every way to misuse it is one line."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import export, publish, run, sweep
from pipelines.cli.command import GATE_FAILED, MISTAKE, OK, run_command
from pipelines.engine.stage import Kept
from pipelines.job import chains, runner, single_stage
from pipelines.lifecycle.collect import collect
from pipelines.stages import calibrate, index, recommend
from schemas.release import PASSED, Withdrawal, write_withdrawal
from schemas.storage import exists, join, read_json
from schemas.workspace import Workspace
from tests.made_data import ratings, write_csv, write_items
from tests.made_releases import signed
from tests.test_run import topk_of

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

QUICK = [
    "--dim=8",
    "--l2=0.1",
    "--epochs=2",
    "--batch_size=64",
    "--k=6",
    "--num_shards=2",
    "--num_buckets=2",
    "--min_lift=0",
    "--user_tower=id+history",
    "--split=temporal",
    "--refit",
    "--max_rejected_fraction=0.5",
]
HEADER = ["user_id", "item_id", "rating", "timestamp"]


def run_job(*flags: str) -> int:
    return run_command(run.main, [*QUICK, *flags])


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the sources and the output of a night, and the flags of the job."""
    folder = tmp_path_factory.mktemp("reuse")
    flags = [f"--ratings={folder / 'ratings.csv'}", f"--items={write_items(folder)}", f"--block_items={folder / 'block.csv'}"]
    write_csv(folder / "ratings.csv", HEADER, ratings())
    write_csv(folder / "block.csv", ["item_id"], [("i1",)])
    assert run_job(*flags, f"--output={folder / 'out'}") == OK
    return folder, flags


@pytest.fixture
def today(yesterday: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the same on the next day: some ratings more, of an old user and of a new one, and another item blocked."""
    folder, flags = yesterday
    shutil.copytree(folder / "out", tmp_path / "out")
    for name in ("ratings.csv", "items.csv", "block.csv"):
        shutil.copy2(folder / name, tmp_path / name)
    write_csv(
        tmp_path / "ratings.csv", HEADER, [*ratings(), ("u3", "i2", 5.0, 1_600_000_100), ("new", "i3", 4.0, 1_600_000_200)]
    )
    write_csv(tmp_path / "block.csv", ["item_id"], [("i1",), (some_listed_item(tmp_path / "out"),)])
    return tmp_path, [flag.replace(str(folder), str(tmp_path)) for flag in flags] + [f"--output={tmp_path / 'out'}"]


def some_listed_item(output: Path) -> str:
    """Returns the item that is in the fewest lists."""
    times = Counter(each["item_id"] for row in topk_of(output) for each in row["recommendations"])
    return min(times, key=lambda item: (times[item], item))


def latest_of(output: Path) -> dict[str, Any]:
    return read_json(str(output / read_json(str(output / "LATEST"))["manifest"]))


def without_dates(output: Path) -> dict[str, dict]:
    return {row["user_id"]: {name: row[name] for name in row if name != "scored_at"} for row in topk_of(output)}


def test_the_table_is_that_of_a_search_for_everyone_with_the_same_model(
    today: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, flags = today
    shutil.copytree(folder / "out", folder / "full")
    before = {row["user_id"]: row for row in topk_of(folder / "out")}
    base = latest_of(folder / "out")
    assert run_job(*flags, "--reuse_model_from=LATEST", "--json") == OK
    printed = json.loads(capsys.readouterr().out)
    made = latest_of(folder / "out")

    found = made["base"]
    assert printed["base"] == found
    assert found["release"] == base["release"]
    # The new user has a history that the tower knows; u3 has another history; others had what is blocked now.
    item = some_listed_item(folder / "full")
    lost = [user for user, row in before.items() if any(each["item_id"] == item for each in row["recommendations"])]
    assert lost
    assert found["new_lists"] == {
        "new_user": 1,
        "popular": 0,
        "new_items": 0,
        "history": 1,
        "unwanted": 0,
        "lost_item": len(set(lost) - {"u3"}),
    }
    assert 0 < found["carried"] == 60 - len({*lost, "u3"})
    for row in topk_of(folder / "out"):
        old = before.get(row["user_id"])
        if row["user_id"] in {*lost, "u3", "new"}:
            assert row["scored_at"].timestamp() == 1_600_000_200
        else:
            assert row == old
    # The model is the very same, the index too, and nothing of yesterday's evaluation is named but its figures.
    for stage in ("train", "index"):
        assert made["stages"][stage] == base["stages"][stage]
    assert made["stages"]["embed"] != base["stages"]["embed"]
    assert made["evaluated"]["stages"] == {}
    assert made["evaluated"]["metrics"] == base["evaluated"]["metrics"]
    assert made["evaluated"]["model"] == f"that of release {base['release']}"

    # The oracle: the same command that carries nothing over and builds its index anew.
    anew = replace(index.STAGE, plan=lambda chain: replace(index.plan(chain), sources=[{"another": "index"}]))
    monkeypatch.setitem(chains.STAGES, "index", anew)
    monkeypatch.setattr(calibrate, "kept_search", lambda *_: None)
    monkeypatch.setattr(recommend, "base_lists", lambda *_: "everyone is searched for")
    full = [flag.replace(f"--output={folder / 'out'}", f"--output={folder / 'full'}") for flag in flags]
    assert run_job(*full, "--reuse_model_from=LATEST") == OK
    assert latest_of(folder / "full")["base"]["carried"] == 0
    assert without_dates(folder / "out") == without_dates(folder / "full")


def test_the_same_command_again_finds_all_done_and_the_next_day_builds_on_it(
    today: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flags = today
    first = latest_of(folder / "out")["release"]
    assert run_job(*flags, "--reuse_model_from=LATEST") == OK
    second = latest_of(folder / "out")
    assert second["base"]["release"] == first
    files = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(runner, "run_stage", _must_be_done(runner.run_stage))
    assert run_job(*flags, "--reuse_model_from=LATEST") == OK
    assert files == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}
    monkeypatch.undo()

    with (folder / "ratings.csv").open("a") as file:
        file.write("u5,i6,5.0,1600000300\n")
    assert run_job(*flags, "--reuse_model_from=LATEST") == OK
    third = latest_of(folder / "out")
    assert third["base"]["release"] == second["release"]
    assert third["base"]["new_lists"]["history"] == 1
    assert third["evaluated"]["metrics"] == second["evaluated"]["metrics"]
    assert {row["scored_at"].timestamp() for row in topk_of(folder / "out") if row["user_id"] == "u5"} == {1_600_000_300}


def _must_be_done(run_stage: Callable) -> Callable:
    def checked(stage: Any, workspace: Any, *more: Any) -> Any:
        assert isinstance(stage, Kept) or workspace.read(stage.name, stage.fingerprint), stage
        return run_stage(stage, workspace, *more)

    return checked


def test_the_same_table_is_not_published_twice_whatever_became_of_its_base(today: tuple[Path, list[str]]) -> None:
    folder, flags = today
    workspace = Workspace(str(folder / "out"))
    first = latest_of(folder / "out")["release"]
    assert run_job(*flags, "--reuse_model_from=LATEST") == OK
    second = latest_of(folder / "out")["release"]
    write_withdrawal(workspace, Withdrawal(first, None, second, "2026-11-24T00:00:00.000Z", ""))
    assert run_job(*flags, "--reuse_model_from=LATEST") == OK
    collect(workspace, keep=1, min_age_hours=0)
    assert not exists(join(workspace.root, workspace.release_manifest(first)))
    assert run_job(*flags, "--reuse_model_from=LATEST") == OK
    assert latest_of(folder / "out")["release"] == second
    assert [each.name for each in (folder / "out" / "releases").iterdir() if any(each.iterdir())] == [second]


def test_other_lists_are_all_made_anew_and_the_manifest_says_why(
    today: tuple[Path, list[str]], capsys: pytest.CaptureFixture
) -> None:
    folder, flags = today
    base = latest_of(folder / "out")["release"]
    assert run_job(*flags, "--reuse_model_from", base, "--k=5") == OK
    assert latest_of(folder / "out")["base"]["why_nobody"] == f"k was 6 in release {base}"
    assert "all lists are new: k was 6" in capsys.readouterr().out


def test_stages_can_run_one_by_one(today: tuple[Path, list[str]], capsys: pytest.CaptureFixture) -> None:
    folder, flags = today
    base = latest_of(folder / "out")["release"]
    given = [*QUICK, *flags, f"--reuse_model_from={base}"]
    for name in ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge"):
        assert run_command(single_stage.stage_command(name), given) == OK, name
    assert run_command(publish.main, given) == OK
    made = latest_of(folder / "out")
    assert made["base"]["release"] == base
    assert made["base"]["carried"] > 0
    capsys.readouterr()
    output = f"--output={folder / 'out'}"
    assert run_command(publish.main, [output, "--refit", f"--reuse_model_from={base}"]) == MISTAKE
    assert "give --ratings and all other flags again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--reuse_model_from=nothing"], "there is no release 'nothing'"),
        (["--reuse_model_from=LATEST", "--dim=9"], "was trained with dim 8, these flags ask for 9: give the same as then"),
        (
            ["--reuse_model_from=LATEST", "--user_tower=id"],
            "user_tower 'id+history', these flags ask for 'id'",
        ),
    ],
)
def test_a_model_that_is_not_as_asked_is_refused(
    today: tuple[Path, list[str]], flags: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    folder, given = today
    latest = (folder / "out" / "LATEST").read_text()
    assert run_job(*given, *flags) == MISTAKE
    assert expected in capsys.readouterr().err
    assert (folder / "out" / "LATEST").read_text() == latest


def test_a_release_that_cannot_be_built_on_is_refused(today: tuple[Path, list[str]], capsys: pytest.CaptureFixture) -> None:
    folder, flags = today
    command = [*QUICK, *flags, "--reuse_model_from=LATEST"]

    assert run_command(run.main, [flag for flag in command if flag != "--refit"]) == MISTAKE
    assert "was made with --refit, and its model can only be kept in the same way: give --refit too" in capsys.readouterr().err

    manifest = latest_of(folder / "out")
    model = folder / "out" / manifest["stages"]["train"]["folder"] / "user_tower" / "saved_model.pb"
    hidden = model.rename(model.with_name("hidden"))
    assert run_command(run.main, command) == MISTAKE
    said = capsys.readouterr().err
    assert f"cannot be built on, {model} is gone: name another release with --reuse_model_from" in said
    hidden.rename(model)

    for name, dataset in (("ingest", "users"), ("embed", "embeddings"), ("recommend", "topk")):
        file = next(Path(folder, "out", manifest["stages"][name]["folder"], dataset).glob("*.parquet"))
        whole = file.read_bytes()
        file.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
        assert run_command(run.main, command) == MISTAKE
        assert f"{file} has other contents than were written" in capsys.readouterr().err
        file.write_bytes(whole)

    path = folder / "out" / "releases" / manifest["release"] / "manifest.json"
    path.write_text(json.dumps(signed(manifest | {"status": "failed"})))
    assert run_command(run.main, [*command[:-1], f"--reuse_model_from={manifest['release']}"]) == MISTAKE
    assert "did not pass its gates" in capsys.readouterr().err

    (folder / "out" / "LATEST").unlink()
    assert run_command(run.main, command) == MISTAKE
    assert "there is no release below" in capsys.readouterr().err


def test_other_commands_know_of_the_kept_model(today: tuple[Path, list[str]], capsys: pytest.CaptureFixture) -> None:
    _, flags = today
    command = [*QUICK, *flags, "--reuse_model_from=LATEST"]
    assert run_command(sweep.main, command) == MISTAKE
    assert "leave --reuse_model_from out" in capsys.readouterr().err
    assert run_command(run.main, command) == OK
    capsys.readouterr()
    assert run_command(export.main, command) == OK
    assert list(Path(capsys.readouterr().out.splitlines()[-1]).rglob("saved_model.pb"))


def test_a_failed_gate_keeps_the_last_release_and_forcing_it_computes_nothing(
    today: tuple[Path, list[str]], capsys: pytest.CaptureFixture
) -> None:
    folder, flags = today
    base = latest_of(folder / "out")["release"]
    assert run_job(*flags, "--reuse_model_from=LATEST", "--min_overlap=1") == GATE_FAILED
    assert latest_of(folder / "out")["release"] == base
    assert run_job(*flags, "--reuse_model_from=LATEST", "--min_overlap=1", "--force=overlap=new items are blocked") == OK
    assert latest_of(folder / "out")["gates"]["overlap"]["status"] == "forced"


def test_without_refit_the_kept_model_is_evaluated_by_what_is_held_out_today(tmp_path: Path) -> None:
    write_csv(tmp_path / "ratings.csv", HEADER, ratings())
    quick = [flag for flag in QUICK if flag not in ("--refit", "--split=temporal")]
    command = [*quick, f"--ratings={tmp_path / 'ratings.csv'}", f"--output={tmp_path / 'out'}", "--user_tower=id"]
    assert run_command(run.main, command) == OK
    before = latest_of(tmp_path / "out")
    write_csv(tmp_path / "ratings.csv", HEADER, [*ratings(), *((f"u{at}", "i9", 5.0, 1_600_000_100) for at in range(9))])
    assert run_command(run.main, [*command, "--reuse_model_from=LATEST"]) == OK
    made = latest_of(tmp_path / "out")
    assert made["evaluated"]["model"] == "the published one"
    assert made["metrics"]["quality"]["users"] >= before["metrics"]["quality"]["users"] > 0
    # A tower by id: another history matters only where it holds what the list holds.
    assert made["base"]["new_lists"]["history"] == 0
    assert made["base"]["carried"] > 50
    assert made["status"] == PASSED
