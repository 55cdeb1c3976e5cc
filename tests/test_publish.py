"""What is published has passed its gates; what has not stays beside it; what is wrong is said, with the repair."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import lookup, publish, releases, run
from pipelines.cli.command import GATE_FAILED, MISTAKE, OK, run_command
from pipelines.cli.config import parse_command
from pipelines.job import chains, finished, single_stage
from pipelines.job.prepare import Job
from schemas.manifest import fingerprint_of
from schemas.workspace import Workspace
from tests.made_data import ratings, with_flags, write_csv, write_items, write_ratings
from tests.made_releases import signed
from transforms.evaluate.verdicts import GATES
from transforms.report.curves import draw_curves
from transforms.train.recency import Blend

QUICK = [
    "--dim=8",
    "--l2=0.1",
    "--epochs=12",
    "--learning_rate=0.03",
    "--batch_size=64",
    "--k=10",
    "--num_shards=2",
    "--num_buckets=2",
    "--seed=7",
]

Row = dict[str, Any]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder that holds sources and the output of a run on them, and the flags of that run but for --output."""
    folder = tmp_path_factory.mktemp("publish")
    flags = [*QUICK, f"--ratings={write_ratings(folder)}", f"--items={write_items(folder)}"]
    assert run_command(run.main, [*flags, f"--output={folder / 'out'}"]) == OK
    return folder, flags


@pytest.fixture
def job(first: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the output, and all flags of the run that made it."""
    folder, flags = first
    shutil.copytree(folder / "out", tmp_path / "out")
    return tmp_path / "out", [*flags, f"--output={tmp_path / 'out'}"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def release_of(output: Path) -> dict[str, Any]:
    """Returns the manifest of the release that is served."""
    return read(output / read(output / "LATEST")["manifest"])


def failed_releases(output: Path) -> list[dict[str, Any]]:
    found = [read(path) for path in output.glob("releases/*/manifest.json")]
    return [each for each in found if each["status"] == "failed"]


def test_the_manifest_of_a_release_reaches_every_file_and_says_what_it_was_made_of(job: tuple[Path, list[str]]) -> None:
    output, _ = job
    release = release_of(output)
    assert release["status"] == "passed"
    assert release["schema_version"] == 3
    assert set(release["gates"]) == set(GATES)
    assert {name for name, gate in release["gates"].items() if gate["status"] == "skipped"} >= {"quality", "overlap", "users"}
    assert release["gate_settings"]["max_shrink"] == 0.1
    assert release["versions"]["python"].startswith("3.11")
    assert [source["dataset"] for source in release["sources"]] == ["ratings", "items"]
    for source in release["sources"]:
        (file,) = source["files"]
        assert (file["size"], file["mtime"]) == (
            Path(file["path"]).stat().st_size,
            pytest.approx(Path(file["path"]).stat().st_mtime),
        )
    assert list(release["stages"]) == ["ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge"]
    reached = set()
    for stage in release["stages"].values():
        assert read(output / stage["manifest"])["fingerprint"] == stage["fingerprint"]
        assert stage["started_at"] <= stage["finished_at"]
        for file in stage["files"]:
            data = (output / file["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
            reached.add(file["path"])
    on_disk = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    # TensorBoard's events hold a clock; they are there to look at, and no stage reads them.
    rest = {path for path in on_disk - reached if "/tensorboard/" not in path}
    assert {path.rpartition("/")[2] for path in rest} == {
        "manifest.json",
        "summary.json",
        "LATEST",
        "report.html",
        "curves.svg",
    }
    curves = read(output / release["stages"]["train"]["folder"] / "curves.json")
    drawn = draw_curves(curves["epochs"])
    assert (output / "releases" / release["release"] / "curves.svg").read_text(encoding="utf-8") == drawn
    page = (output / release["report"]["path"]).read_bytes()
    assert release["report"]["path"] == f"releases/{release['release']}/report.html"
    assert (len(page), hashlib.sha256(page).hexdigest()) == (release["report"]["bytes"], release["report"]["sha256"])
    assert release["fingerprint"] == fingerprint_of([[each["fingerprint"] for each in release["stages"].values()], []])
    assert release["evaluated"]["model"] == "the published one"
    assert run_command(releases.main, ["verify", f"--output={output}"]) == OK


def test_the_table_is_judged_like_the_recommend_stage_judges_its_lists(job: tuple[Path, list[str]]) -> None:
    """Two ways to the same numbers: lists of popular items on one side, ranks without lists on the other."""
    stages = release_of(job[0])["stages"]
    metrics, table = stages["recommend"]["metrics"], stages["judge"]["metrics"]["table"]
    assert metrics["users_personalised"] == metrics["users"] == table["users"] == 60
    for name, found in table["against_popularity"].items():
        assert found["users"] == metrics["quality"]["users"]
        assert found["mean"] == pytest.approx(metrics["quality"]["means"][name])
        assert found["popularity"] == pytest.approx(metrics["popularity"]["means"][name])
    assert table["items_listed"] / table["items"] == pytest.approx(metrics["quality"]["means"]["coverage@10"])
    assert table["items_eligible"] == metrics["items_allowed"]
    assert table["pairs"] == metrics["pairs"]


@pytest.mark.slow
def test_a_release_that_fails_a_gate_is_kept_beside_the_one_that_is_served(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    served = (output / "LATEST").read_bytes()
    other = [*flags, "--seed=8"]
    assert run_command(run.main, [*other, "--min_overlap=1"]) == GATE_FAILED
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "error:" in line]
    assert "gate overlap failed: lists of 60 users share 0." in line
    assert "if that is meant, run the same command again with --min_overlap 0." in line
    assert line.endswith("or --force overlap=REASON")
    assert "failed gates, not published" in captured.out
    assert (output / "LATEST").read_bytes() == served
    (failed,) = failed_releases(output)
    assert failed["gates"]["overlap"]["status"] == "failed"
    assert failed["compared_with"]["release"] == failed["last"]["release"] == release_of(output)["release"]
    assert ">failed its gates<" in (output / failed["report"]["path"]).read_text()
    # Only the gates are asked again; with a reason they let it pass, and the reason stays.
    capsys.readouterr()
    assert run_command(run.main, [*other, "--min_overlap=1", "--force", "overlap=a new seed"]) == OK
    captured = capsys.readouterr()
    assert captured.err.count("done before") == 8
    assert "1 forced (overlap)" in captured.out
    release = release_of(output)
    assert release["release"] == failed["release"]
    assert (release["status"], release["gates"]["overlap"]["forced"]) == ("passed", "a new seed")
    assert failed_releases(output) == []
    # Published once, it is not judged again.
    assert run_command(run.main, [*other, "--min_overlap=1"]) == OK
    assert "already published" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_comes_to_a_table_that_was_rolled_back_leaves_what_is_served(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    good = release_of(output)["release"]
    night = [*flags, "--seed=8", "--min_overlap=0"]
    assert run_command(run.main, night) == OK
    bad = release_of(output)
    roll_back = ["rollback", f"--output={output}", "--reason=all thrillers"]
    assert run_command(releases.main, roll_back) == OK
    served = (output / "LATEST").read_bytes()
    capsys.readouterr()
    assert run_command(run.main, [*night, "--json"]) == GATE_FAILED
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "error:" in line]
    assert f"gate withdrawn failed: this very table was served as release {bad['release']} and rolled back to {good}" in line
    assert "(all thrillers)" in line
    assert json.loads(captured.out)["gates"]["withdrawn"]["status"] == "failed"
    assert (output / "LATEST").read_bytes() == served
    # It is the same table, so it is known though another run made it; and what was once served stays as it was.
    shutil.rmtree(output / release_path(bad, "recommend"))
    assert run_command(run.main, night) == GATE_FAILED
    assert (output / "LATEST").read_bytes() == served
    assert read(output / f"releases/{bad['release']}/manifest.json") == bad
    # The command that made what is served again goes on as ever, and so does another night.
    assert run_command(run.main, flags) == OK
    assert (output / "LATEST").read_bytes() == served
    assert run_command(run.main, [*night, "--force", "withdrawn=they like thrillers"]) == OK
    release = release_of(output)
    assert release["gates"]["withdrawn"]["forced"] == "they like thrillers"
    assert release["stages"]["recommend"]["digest"] == bad["stages"]["recommend"]["digest"]
    assert list(output.glob("withdrawn/*")) == []


def release_path(release: dict[str, Any], stage: str) -> str:
    """Returns the folder of a stage of a release."""
    return str(release["stages"][stage]["manifest"].rpartition("/")[0])


def test_an_ordinary_next_night_passes_and_is_compared_with_the_last(job: tuple[Path, list[str]], tmp_path: Path) -> None:
    output, flags = job
    before = release_of(output)
    rows = [*ratings(), ("u3", "i30", 4.0, 1_600_000_001), ("newcomer", "i5", 4.0, 1_600_000_002)]
    path = write_csv(tmp_path / "tomorrow.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    assert run_command(run.main, with_flags(flags, f"--ratings={path}", "--num_buckets=3")) == OK
    release = release_of(output)
    assert release["compared_with"]["release"] == before["release"]
    assert {gate["status"] for gate in release["gates"].values()} == {"passed"}
    assert release["stages"]["judge"]["metrics"]["table"]["overlap"]["users_in_both"] == 60


def test_a_source_of_which_half_is_missing_is_not_published(
    job: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    served = (output / "LATEST").read_bytes()
    rows = ratings()
    path = write_csv(tmp_path / "half.csv", ["user_id", "item_id", "rating", "timestamp"], rows[: len(rows) // 2])
    assert run_command(run.main, with_flags(flags, f"--ratings={path}")) == GATE_FAILED
    assert "gate users failed: there are 30 users, in release" in capsys.readouterr().err.replace("31 users", "30 users")
    assert (output / "LATEST").read_bytes() == served


def damage(output: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    """Changes rows of the served table behind the back of everyone, as a defect of the recommend stage would."""
    shutil.rmtree(output / "releases")
    (output / "LATEST").unlink()
    for path in output.glob("stages/judge-*/manifest.json"):
        shutil.rmtree(path.parent)
    (path,) = output.glob("stages/recommend-*/manifest.json")
    manifest = read(path)
    file = manifest["files"][0]
    table = output / manifest["folder"] / file["path"]
    rows = change(pq.read_table(table).to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(table)), table)
    data = table.read_bytes()
    file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": len(rows)}
    manifest["digest"] = fingerprint_of(sorted([each["path"], each["sha256"]] for each in manifest["files"]))
    path.write_text(json.dumps(manifest))


def with_item(row: Row, rank: int, **fields: Any) -> Row:
    pairs = row["recommendations"]
    return row | {"recommendations": [*pairs[:rank], pairs[rank] | fields, *pairs[rank + 1 :]]}


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (lambda rows: rows[1:], "users_once"),
        (lambda rows: [with_item(rows[0], 3, item_id="none such"), *rows[1:]], "catalogue"),
        (lambda rows: [with_item(rows[0], 3, score=float("nan")), *rows[1:]], "values"),
        (lambda rows: [rows[0] | {"recommendations": rows[0]["recommendations"][:-1]}, *rows[1:]], "list_length"),
        (lambda rows: [rows[0] | {"recommendations": rows[0]["recommendations"][::-1]}, *rows[1:]], "order"),
        (lambda rows: rows[::-1], "layout"),
    ],
)
def test_a_damaged_table_never_becomes_the_first_release(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], change: Callable[[list[Row]], list[Row]], gate: str
) -> None:
    output, flags = job
    damage(output, change)
    assert run_command(run.main, flags) == GATE_FAILED
    err = capsys.readouterr().err
    assert f"gate {gate} failed: " in err
    assert "such as user" in err
    assert not (output / "LATEST").exists()
    (failed,) = failed_releases(output)
    assert [name for name, each in failed["gates"].items() if each["status"] == "failed"] == [gate]


def test_json_is_one_line_whatever_happens_and_people_read_standard_error(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    capsys.readouterr()
    assert run_command(run.main, [*flags, "--json"]) == OK
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    release = release_of(output)
    assert (result["exit_status"], result["release"], result["status"]) == (0, release["release"], "passed")
    assert not result["is_new"]
    assert len(pa.concat_tables([pq.read_table(path) for path in result["table"]])) == result["counts"]["users"] == 60
    assert result["metrics"]["recall@10"] == release["metrics"]["quality"]["means"]["recall@10"]
    assert result["gates"] == release["gates"]
    assert (result["came_in"]["now"]["ratings"], result["came_in"]["last"]) == (len(ratings()), None)
    assert read(Path(result["manifest"])) == release
    assert "held-out quality" in captured.err

    assert run_command(run.main, [*flags, "--json", "--seed=8", "--min_overlap=1"]) == GATE_FAILED
    result = json.loads(capsys.readouterr().out)
    assert (result["exit_status"], result["status"], result["gates"]["overlap"]["status"]) == (3, "failed", "failed")

    assert run_command(run.main, with_flags(flags, "--json", f"--items={output}/none.csv")) == MISTAKE
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["exit_status"] == 2
    assert captured.err.splitlines()[-1] == f"error: {result['error']}"


@pytest.mark.slow
def test_a_reader_that_has_had_enough_does_not_hide_a_failed_gate(job: tuple[Path, list[str]]) -> None:
    _, flags = job
    command = [sys.executable, "-m", "pipelines.run", *flags, "--k=9", "--min_lift=99"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        made.stdout.close()
        assert made.stderr is not None
        err = made.stderr.read()
    assert made.returncode == GATE_FAILED
    assert "gate popularity failed" in err


def test_forcing_needs_the_name_of_a_gate_and_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--ratings={tmp_path}/r.csv", f"--output={tmp_path}/out"]
    for force, words in {
        "overlop=x": "there is no gate 'overlop' to force, there are users_once,",
        "overlap": "--force takes the name of a gate and a reason, got 'overlap': write it as --force overlap=REASON",
        "overlap= ": "--force takes the name of a gate and a reason",
    }.items():
        assert run_command(run.main, [*flags, "--force", force]) == MISTAKE
        assert words in capsys.readouterr().err
    assert run_command(run.main, [*flags, "--force", "overlap=a", "--force", "overlap=b"]) == MISTAKE
    assert "--force names the gate overlap twice: keep one" in capsys.readouterr().err
    config = tmp_path / "job.yaml"
    config.write_text("force: {overlap: 'a = b, c', users: left}")
    settings, _ = parse_command([*flags, f"--config={config}"], "")
    assert settings.gates.forced == {"overlap": "a = b, c", "users": "left"}


@pytest.mark.slow
def test_a_refit_publishes_the_table_of_everything_and_the_metrics_of_the_evaluation(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output, flags = job
    plain = release_of(output)
    assert run_command(run.main, [*flags, "--refit"]) == OK
    captured = capsys.readouterr()
    # The evaluation is the plain run, done before but for its verdict, which belongs to the plain release.
    assert captured.err.count("done before") >= 6
    assert "before the refit" in captured.out
    release = release_of(output)
    evaluated = release["evaluated"]
    assert evaluated["model"] == "another, without the holdout"
    assert evaluated["metrics"]["quality"] == plain["metrics"]["quality"]
    assert evaluated["stages"]["train"]["fingerprint"] == plain["stages"]["train"]["fingerprint"]
    assert release["metrics"]["quality"]["users"] == 0
    assert release["gates"]["popularity"]["status"] == "passed"
    assert release["gates"]["quality"]["status"] == "passed"
    # It is the table of a run that holds nothing out and trains for as many epochs.
    epochs = plain["stages"]["train"]["metrics"]["epochs"]
    alone = [*flags, f"--output={tmp_path}/alone", "--split=none", "--validation_fraction=0", f"--epochs={epochs}"]
    assert run_command(run.main, alone) == OK
    assert [file["sha256"] for file in release["topk"]] == [file["sha256"] for file in release_of(tmp_path / "alone")["topk"]]
    rated = {(user, item) for user, item, *_ in ratings()}
    for file in release["topk"]:
        for row in pq.read_table(output / file["path"]).to_pylist():
            mine = {item for user, item in rated if user == row["user_id"]}
            assert row["history_length"] == len(mine)
            assert not mine & {each["item_id"] for each in row["recommendations"]}
    capsys.readouterr()
    assert run_command(lookup.main, [f"--output={output}", "--user=u3"]) == OK
    assert f"{len([1 for user, _ in rated if user == 'u3'])} in the history" in capsys.readouterr().out
    # Stage by stage, as a scheduler runs it, it is the same release; a second run finds all done.
    assert run_command(run.main, [*flags, "--refit"]) == OK
    assert capsys.readouterr().err.count("done before") == 16
    for name in ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge"):
        assert run_command(single_stage.stage_command(name), [*flags, "--refit"]) == OK, name
    assert run_command(publish.main, [*flags, "--refit"]) == OK
    assert run_command(publish.main, [f"--output={output}"]) == OK
    assert release_of(output) == release


def test_a_refit_keeps_the_blend_that_was_chosen(job: tuple[Path, list[str]]) -> None:
    output, _ = job
    settings, _ = parse_command([f"--output={output}"], "")
    train = finished.finished_before("publish", Job(settings)).published["train"]
    chosen = {"affinity_weight": 0.5, "recency": 1.0, "half_life_days": 3.5, "why": "it is better"}
    evaluated = {"train": replace(train, outputs={**train.outputs, "recency": chosen, "epochs": 3})}
    training = chains.settings_of_refit(settings, evaluated).training
    assert (training.blend, training.epochs, training.validation_fraction) == (Blend(0.5, 1.0, 3.5), 3, 0)


def test_a_refit_needs_a_holdout_and_sources_that_stay(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, flags = job
    assert run_command(run.main, [*flags, "--refit", "--split=none"]) == MISTAKE
    assert "--refit trains on what was held out, and --split none holds nothing out" in capsys.readouterr().err
    assert run_command(single_stage.stage_command("train"), [*QUICK, "--refit", f"--output={output}"]) == MISTAKE
    assert "to train with --refit, all stages must be known: give --ratings" in capsys.readouterr().err
    path = write_ratings(tmp_path)
    original = chains.settings_of_refit

    def meanwhile(*arguments: Any) -> Any:
        write_ratings(tmp_path, seed=1)
        return original(*arguments)

    monkeypatch.setattr(chains, "settings_of_refit", meanwhile)
    assert run_command(run.main, with_flags(flags, f"--ratings={path}", "--refit")) == MISTAKE
    assert "the sources have changed while the job ran" in capsys.readouterr().err


def newer(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(read(path) | {"schema_version": 99} | changes))


def manifest_of(output: Path) -> Path:
    return output / read(output / "LATEST")["manifest"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda output: newer(output / "LATEST"), "LATEST has schema version 99, this program knows versions up to 3"),
        (lambda output: newer(manifest_of(output)), "manifest.json has schema version 99"),
        (lambda output: (output / "LATEST").write_text("{"), "LATEST is not a pointer to a release"),
        (lambda output: (output / "LATEST").write_text("[]"), "LATEST is not a pointer to a release"),
        (lambda output: (output / "LATEST").write_bytes(b"\xff\xfe"), "LATEST is not a pointer to a release"),
        (lambda output: manifest_of(output).write_text("not JSON"), "is not the manifest of a release"),
        (lambda output: manifest_of(output).write_text("[1]"), "is not the manifest of a release"),
        (
            lambda output: manifest_of(output).write_text(json.dumps(release_of(output) | {"rows": 1})),
            "it has other contents than were written",
        ),
        (
            lambda output: manifest_of(output).unlink(),
            "which does not exist: serve a release again with python -m pipelines.releases rollback",
        ),
        (
            lambda output: manifest_of(output).write_text(json.dumps(signed(release_of(output) | {"status": "failed"}))),
            "are not of the same table, or it failed its gates",
        ),
        (
            lambda output: manifest_of(output).write_text(json.dumps(signed(release_of(output) | {"topk": []}))),
            "are not of the same table",
        ),
    ],
)
def test_an_output_that_cannot_be_understood_is_neither_read_nor_written_over(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Any], words: str
) -> None:
    output, flags = job
    spoil(output)
    spoiled = (output / "LATEST").read_bytes()
    for command, arguments in ((run.main, flags), (lookup.main, [f"--output={output}", "--user=u3"])):
        capsys.readouterr()
        assert run_command(command, arguments) == MISTAKE
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert words in line
        assert any(repair in line for repair in ("delete", "use the program that made it"))
        assert (output / "LATEST").read_bytes() == spoiled


def test_after_the_named_repair_the_same_command_publishes_again(job: tuple[Path, list[str]]) -> None:
    output, flags = job
    before = release_of(output)
    manifest_of(output).write_text("not JSON")
    (output / "LATEST").unlink()
    assert run_command(run.main, flags) == OK
    assert release_of(output)["topk"] == before["topk"]


@pytest.mark.slow
def test_a_release_of_the_first_schema_version_is_read_and_replaced(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    release = release_of(output)
    for name in ("status", "gates", "compared_with", "evaluated", "gate_settings", "checksum"):
        del release[name]
    manifest_of(output).write_text(json.dumps(release | {"schema_version": 1}))
    (output / "LATEST").write_text(
        json.dumps({name: value for name, value in read(output / "LATEST").items() if name != "schema_version"})
    )
    assert run_command(lookup.main, [f"--output={output}", "--user=u3"]) == OK
    assert run_command(run.main, [*flags, "--seed=8"]) == OK
    gates = release_of(output)["gates"]
    assert gates["quality"]["status"] == "skipped"
    assert gates["overlap"]["status"] == "passed"


@pytest.mark.parametrize("dataset", ["recommend", "ingest", "train"])
def test_a_half_deleted_stage_is_named_with_what_to_delete(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], dataset: str
) -> None:
    output, flags = job
    served = (output / "LATEST").read_bytes()
    release = release_of(output)
    Path(output / release["stages"][dataset]["files"][-1]["path"]).unlink()
    assert run_command(run.main, flags) == MISTAKE
    err = capsys.readouterr().err
    assert f"is gone: delete {output}/stages/{dataset}-" in err
    assert (output / "LATEST").read_bytes() == served
    shutil.rmtree(output / Path(release["stages"][dataset]["manifest"]).parent)
    assert run_command(run.main, flags) == OK
    assert [file["sha256"] for file in release_of(output)["topk"]] == [file["sha256"] for file in release["topk"]]


@pytest.mark.slow
def test_a_table_judged_beside_another_release_is_judged_again(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    other = [*flags, "--seed=8"]
    for name in ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge"):
        assert run_command(single_stage.stage_command(name), other) == OK
    (output / "LATEST").unlink()  # As if something else had been published, or withdrawn.
    capsys.readouterr()
    assert run_command(publish.main, [f"--output={output}"]) == MISTAKE
    assert (
        "another release has been published since the table was judged: run python -m pipelines.judge"
        in capsys.readouterr().err
    )
    assert run_command(publish.main, other) == MISTAKE
    assert "publish needs judge, which is not done for these settings" in capsys.readouterr().err
    assert run_command(run.main, other) == OK


@pytest.mark.slow
def test_lists_of_items_must_be_those_that_the_table_was_made_with(
    job: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output, flags = job
    block = write_csv(tmp_path / "block.csv", ["item_id"], [("i1",)])
    assert run_command(run.main, [*flags, f"--block_items={block}"]) == OK
    capsys.readouterr()
    other = write_csv(tmp_path / "other.csv", ["item_id"], [("i2",)])
    assert run_command(single_stage.stage_command("judge"), [f"--output={output}", f"--block_items={other}"]) == MISTAKE
    assert "the table was made with other lists than --users, --exclude, --block_items and" in capsys.readouterr().err
    write_csv(block, ["item_id"], [("i1",), ("i2",)])
    assert run_command(single_stage.stage_command("judge"), [f"--output={output}", f"--allow_items={block}"]) == MISTAKE
    # Where none is named, those of the table are meant.
    assert run_command(single_stage.stage_command("judge"), [f"--output={output}"]) == OK
    judged = Workspace(str(output)).finished("judge")[-1]
    assert judged.inputs["lists"]["fingerprint"] == Workspace(str(output)).finished("lists")[-1].fingerprint
