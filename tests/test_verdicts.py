"""What passed stays passed: another verdict on a table is another release; and no verdict is served that holds no longer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import publish, releases, run
from pipelines.cli.command import GATE_FAILED, MISTAKE, OK, run_command
from pipelines.job import publishing, single_stage
from pipelines.lifecycle import rollback
from pipelines.lifecycle.collect import collect
from schemas.forgotten import Forgotten, write_forgotten
from schemas.release import Withdrawal, find_withdrawals, write_withdrawal
from schemas.storage import join, read_bytes, read_json
from schemas.workspace import Workspace
from tests.made_data import ratings, with_flags, write_csv, write_items, write_ratings
from tests.made_releases import write_release
from tests.test_publish import QUICK
from tests.test_releases import ask, overwrite, table_of

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

A, B = "--k=10", "--k=9"

Job = tuple[Path, list[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Sources, and an output where A was published and then B; the flags of both but for --k and --output."""
    folder = tmp_path_factory.mktemp("verdicts")
    flags = [*QUICK, "--epochs=3", "--min_lift=0", f"--ratings={write_ratings(folder)}", f"--items={write_items(folder)}"]
    for k in (A, B):
        assert run_command(run.main, [*flags, k, f"--output={folder / 'out'}"]) == OK
    return folder, flags


@pytest.fixture
def job(made: Job, tmp_path: Path) -> Job:
    """A copy of the output, and the flags of its runs but for --k."""
    folder, flags = made
    shutil.copytree(folder / "out", tmp_path / "out")
    return tmp_path / "out", [*flags, f"--output={tmp_path / 'out'}"]


def names(output: Path) -> list[str]:
    return sorted(path.parent.name for path in output.glob("releases/*/manifest.json"))


def manifest_of(output: Path, name: str) -> dict[str, Any]:
    return read_json(f"{output}/releases/{name}/manifest.json")


def contents(output: Path, name: str) -> list[bytes]:
    return [(output / "releases" / name / file).read_bytes() for file in ("manifest.json", "report.html")]


def served(output: Path) -> str:
    return str(read_json(f"{output}/LATEST")["release"])


def test_what_passed_once_stays_passed_though_it_fails_beside_another(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    output, flags = job
    first, second = names(output)
    before = [contents(output, name) for name in (first, second)]
    for _ in range(2):  # The same command twice is one more release, not two.
        capsys.readouterr()
        assert run_command(run.main, [*flags, A, "--min_lift=99", "--json"]) == GATE_FAILED
        result = json.loads(capsys.readouterr().out)
        assert served(output) == second
        assert [contents(output, name) for name in (first, second)] == before
        (verdict,) = set(names(output)) - {first, second}
        assert (result["release"], result["status"]) == (verdict, "failed")
        assert verdict > second
        failed = manifest_of(output, verdict)
        assert failed["compared_with"]["release"] == second
        assert failed["topk"] == manifest_of(output, first)["topk"]
        assert ask(capsys, "verify", verdict, f"--output={output}")["problems"] == []
    lines = {line["release"]: line["status"] for line in ask(capsys, "list", f"--output={output}")["releases"]}
    assert lines == {first: "passed", second: "passed", verdict: "failed"}
    assert ask(capsys, "rollback", f"--output={output}")["latest"] == first


def test_a_table_that_passes_again_is_published_again_and_goes_back_to_what_was_served_before(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    first, second = names(output)
    before = contents(output, first)
    assert run_command(run.main, [*flags, A, "--min_lift=99"]) == GATE_FAILED
    assert run_command(run.main, [*flags, A]) == OK
    again = served(output)
    assert again == names(output)[-1]
    assert len(names(output)) == 3, "the verdict that failed has given its place"
    assert contents(output, first) == before
    assert manifest_of(output, again)["compared_with"]["release"] == second
    assert ask(capsys, "verify", f"--output={output}")["problems"] == []
    # It is served: the same command finds nothing to do, whatever the limits.
    latest = (output / "LATEST").read_bytes()
    assert run_command(run.main, [*flags, A, "--min_lift=99"]) == OK
    assert "already published" in capsys.readouterr().out
    assert (output / "LATEST").read_bytes() == latest
    # B again, beside A: forward under a name of its own; and back, step by step.
    assert run_command(run.main, [*flags, B, "--min_overlap=0"]) == OK
    last = served(output)
    assert last > again
    assert ask(capsys, "rollback", f"--output={output}") == {
        "exit_status": 0,
        "latest": again,
        "before": last,
        "withdrawn": last,
    }
    collect(Workspace(str(output)), keep=1, min_age_hours=0)
    assert ask(capsys, "verify", f"--output={output}")["problems"] == []


def test_a_run_that_died_before_it_wrote_the_pointer_is_no_other_verdict(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    output, flags = job
    (output / "LATEST").unlink()
    shutil.rmtree(output / "releases")

    def dies(*_: Any) -> None:
        raise OSError(5, "the storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "write_latest", dies)
        assert run_command(run.main, [*flags, A]) not in (OK, MISTAKE, GATE_FAILED)
    (name,) = names(output)
    before = contents(output, name)
    assert run_command(run.main, [*flags, A]) == OK
    assert (served(output), names(output)) == (name, [name])
    assert contents(output, name) == before


def test_what_a_newer_program_wrote_is_not_written_over(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    output, flags = job
    first, _ = names(output)
    path = output / "releases" / first / "manifest.json"
    path.write_text(json.dumps(read_json(str(path)) | {"schema_version": 99}))
    before = path.read_bytes()
    (output / "LATEST").unlink()
    assert run_command(run.main, [*flags, A]) == MISTAKE
    assert "schema version 99" in capsys.readouterr().err
    assert path.read_bytes() == before


def overwritten(path: Path) -> None:
    """Changes a byte of a file, and not its size."""
    data = bytearray(path.read_bytes())
    data[-9] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("dataset", "change", "damage"),
    [
        ("topk", overwritten, "is not what was written"),
        ("topk", Path.unlink, "is missing or cannot be read"),
        ("users", overwritten, "is not what was written"),
    ],
)
def test_nothing_is_compared_with_files_of_the_last_release_that_are_not_as_written(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, change: Callable[[Path], Any], damage: str
) -> None:
    output, flags = job
    first, second = names(output)
    stage = manifest_of(output, second)["stages"]["ingest" if dataset == "users" else "recommend"]
    (path,) = (output / stage["folder"] / dataset).glob("part-000000.parquet")
    before = path.read_bytes()
    change(path)
    rows = [*ratings(), ("u3", "i30", 4.0, 1_600_000_001)]  # The files of the users are others tomorrow.
    tomorrow = write_csv(tmp_path / "tomorrow.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    flags = with_flags(flags, f"--ratings={tomorrow}", "--k=8", "--min_overlap=0", "--max_quality_drop=1")
    capsys.readouterr()
    assert run_command(run.main, flags) == MISTAKE
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{path} {damage}" in error
    assert f"what is made now is compared with release {second}: restore that file from a copy, serve another release" in error
    assert served(output) == second
    if dataset == "topk":
        assert ask(capsys, "rollback", f"--output={output}")["latest"] == first
    else:
        path.write_bytes(before)
    assert run_command(run.main, flags) == OK


STEPS = ("report_of", "write_json")
"""What `publish` does between its verdict and the pointer: each may take long, and be overtaken."""


def meanwhile(monkeypatch: pytest.MonkeyPatch, module: Any, step: str, happens: Callable[[], Any]) -> None:
    """Lets something happen once, when a step of a module is done."""
    original = getattr(module, step)
    times: list[str] = []

    def overtaken(*arguments: Any, **options: Any) -> Any:
        done = original(*arguments, **options)
        if not times:
            times.append(step)
            happens()
        return done

    monkeypatch.setattr(module, step, overtaken)


@pytest.mark.parametrize("step", STEPS)
def test_a_rollback_while_a_table_is_judged_is_seen_and_judged_against(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    output, flags = job
    first, second = names(output)
    other = [*flags, "--k=8", "--min_overlap=0"]
    meanwhile(monkeypatch, publishing, step, lambda: ask(capsys, "rollback", f"--output={output}"))
    assert run_command(run.main, other) == OK
    release = manifest_of(output, served(output))
    assert release["table"]["k"] == 8
    assert release["compared_with"]["release"] == first
    assert [each.release for each in find_withdrawals(Workspace(str(output)))] == [second]
    assert ask(capsys, "verify", f"--output={output}")["problems"] == []


@pytest.mark.parametrize("step", STEPS)
def test_a_single_publish_that_was_overtaken_says_so_and_leaves_what_is_served(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    output, flags = job
    first, _ = names(output)
    for name in ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge"):
        assert run_command(single_stage.stage_command(name), [*flags, "--k=8"]) == OK
    meanwhile(monkeypatch, publishing, step, lambda: ask(capsys, "rollback", f"--output={output}"))
    capsys.readouterr()
    assert run_command(publish.main, [*flags, "--k=8", "--min_overlap=0"]) == MISTAKE
    assert "another release has been published or rolled back while this one was judged" in capsys.readouterr().err
    assert served(output) == first


@pytest.mark.parametrize("step", STEPS)
def test_a_table_that_is_withdrawn_while_it_is_judged_is_not_served(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    output, flags = job
    workspace, (first, second) = Workspace(str(output)), names(output)
    digest = manifest_of(output, first)["stages"]["recommend"]["digest"]
    withdrawal = Withdrawal(first, digest, second, "2026-01-01T00:00:00.000Z", "all thrillers")
    meanwhile(monkeypatch, publishing, step, lambda: write_withdrawal(workspace, withdrawal))
    assert run_command(run.main, [*flags, A]) == GATE_FAILED
    assert "gate withdrawn failed" in capsys.readouterr().err
    assert served(output) == second
    assert find_withdrawals(workspace) == [withdrawal]


@pytest.mark.parametrize("step", STEPS)
def test_whoever_is_forgotten_while_a_table_is_judged_is_not_published(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    output, flags = job
    workspace, second = Workspace(str(output)), served(output)
    forgotten = Forgotten().with_others(["u3"], [], "2026-01-01T00:00:00.000Z")
    meanwhile(monkeypatch, publishing, step, lambda: write_forgotten(workspace, forgotten))
    assert run_command(run.main, [*flags, A]) == MISTAKE
    assert "the sources were read before it was asked to forget a user or an item" in capsys.readouterr().err
    assert served(output) == second


def test_gc_waits_for_no_release_that_is_about_to_be_served(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed release that is old enough to go, and passes now: gc comes just before the pointer is written."""
    output, flags = job
    workspace = Workspace(str(output))
    assert run_command(run.main, [*flags, "--k=8", "--min_lift=99"]) == GATE_FAILED
    assert run_command(run.main, [*flags, "--k=7", "--min_overlap=0"]) == OK
    deleted: list[str] = []
    meanwhile(
        monkeypatch,
        publishing,
        "report_of",
        lambda: deleted.extend(each.folder for each in collect(workspace, keep=1, min_age_hours=0)),
    )
    assert run_command(run.main, [*flags, "--k=8", "--min_overlap=0"]) == OK
    assert deleted
    assert run_command(releases.main, ["verify", f"--output={output}"]) == OK


def test_a_rollback_that_is_overtaken_after_it_wrote_what_it_withdraws_takes_that_back(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        write_release(root, day, table_of(day))
    meanwhile(monkeypatch, rollback, "write_withdrawal", lambda: write_release(root, 3, table_of(3)))
    error = ask(capsys, "rollback", f"--output={root}", code=MISTAKE)["error"]
    assert "another release has been published or rolled back in the meantime" in error
    assert read_json(join(root, "LATEST"))["release"].startswith("20260103")
    assert find_withdrawals(Workspace(root)) == []


@pytest.mark.parametrize("what", ["withdrawn", "forgotten"])
def test_a_rollback_sees_what_was_withdrawn_or_forgotten_while_it_hashed(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    workspace = Workspace(root)
    first, second = (write_release(root, day, table_of(day))["release"] for day in (1, 2))
    before = read_bytes(workspace.latest)
    happens = {
        "withdrawn": lambda: write_withdrawal(workspace, Withdrawal(first, None, second, "2026-01-01T00:00:00.000Z", "")),
        "forgotten": lambda: write_forgotten(workspace, Forgotten().with_others(["u1"], [], "2026-01-01T00:00:00.000Z")),
    }
    meanwhile(monkeypatch, rollback, "verify_release", happens[what])
    assert "in the meantime" in ask(capsys, "rollback", f"--output={root}", code=MISTAKE)["error"]
    assert read_bytes(workspace.latest) == before
    overwrite(workspace.latest, before)
