"""Forgetting: whoever was asked for is in nothing that is served or made later, and everybody else has what they should."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import releases, run
from pipelines.cli.command import GATE_FAILED, MISTAKE, OK, run_command
from pipelines.cli.config import parse_command
from pipelines.job import finished
from pipelines.job.prepare import Job
from pipelines.job.publishing import publish
from pipelines.lifecycle import forget
from pipelines.lifecycle.find_forgotten import Named, find_forgotten
from schemas.blocks import one_block
from schemas.errors import InputError
from schemas.forgotten import Forgotten, read_forgotten
from schemas.parquet_files import read_parquet_blocks
from schemas.release_manifest import release_in
from schemas.stage_files import USER_TOWER
from schemas.storage import read_json
from schemas.users import USERS
from schemas.workspace import Workspace
from tests import test_run
from tests.made_data import ratings, write_csv, write_items
from tests.made_releases import signed, write_release
from tests.made_stored import stored_folder
from tests.test_releases import TABLE, ask
from transforms.index.embed import UserTower

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

HEADER = ["user_id", "item_id", "rating", "timestamp"]
QUICK = [*test_run.QUICK, "--seed=42", "--k=6", "--user_tower=id+history", "--max_rejected_fraction=0.5"]
GONE, EXTRA, BAD = "user-to-go", "served-to-go", "rejected-to-go"
ITEM, UNRATED = "item-to-go", "unrated-to-go"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources of a job, and its output, in which two items and three users are known by their names."""
    folder = tmp_path_factory.mktemp("forget")
    name = {"u4": GONE, "i31": ITEM}
    rows = [(name.get(user, user), name.get(item, item), *more) for user, item, *more in ratings()]
    write_csv(folder / "ratings.csv", HEADER, [*rows, (BAD, "i1", "x", 1), ("u1", ITEM, "x", 1)])
    with (folder / "ratings.csv").open("a", encoding="utf-8") as file:
        file.write(f"{GONE},i1\n")
    items = write_items(folder)
    items.write_text(items.read_text(encoding="utf-8").replace("i31,", f"{ITEM},").replace("unrated,", f"{UNRATED},"))
    write_csv(folder / "users.csv", ["user_id"], [(EXTRA,), ("new",), (GONE,)])
    write_csv(folder / "exclude.csv", ["user_id", "item_id"], [(GONE, "i2"), ("u3", ITEM), ("u3", "i9")])
    write_csv(folder / "block.csv", ["item_id"], [("i1",), (UNRATED,)])
    sources = [
        f"--{flag}={folder}/{flag.split('_')[0]}.csv" for flag in ("ratings", "items", "users", "exclude", "block_items")
    ]
    assert run_command(run.main, [*QUICK, *sources, f"--output={folder}/out"]) == OK
    return folder


@pytest.fixture(scope="module")
def forgotten(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the output, in which they were forgotten."""
    output = tmp_path_factory.mktemp("forgotten") / "out"
    shutil.copytree(served / "out", output)
    (output.parent / "items.txt").write_text(f"{UNRATED}\r\n\n{ITEM}\n")
    flags = [f"--user={GONE}", f"--user={EXTRA}", f"--user={BAD}", "--user=typo", f"--items_file={output.parent}/items.txt"]
    assert run_command(releases.main, ["forget", *flags, f"--output={output}"]) == OK
    return output


@pytest.fixture
def copy(served: Path, tmp_path: Path) -> Path:
    """A copy of the output, to do as one likes."""
    shutil.copytree(served / "out", tmp_path / "out")
    return tmp_path / "out"


def latest_of(output: Path) -> dict[str, Any]:
    return read_json(str(output / read_json(str(output / "LATEST"))["manifest"]))


def lists_of(output: Path) -> dict[str, list[str]]:
    return {row["user_id"]: [each["item_id"] for each in row["recommendations"]] for row in test_run.topk_of(output)}


def nightly(output: Path) -> list[str]:
    """Returns the flags of the job that made what is served."""
    return [f"--{name}={value}" for name, value in latest_of(output)["job"].items()] + [f"--output={output}"]


def files_of(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def content_of(path: Path) -> bytes:
    """Returns what is in a file, where it is compressed as JSON."""
    if path.suffix == ".parquet":
        return json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False).encode()
    if path.suffix == ".arrow":
        return json.dumps(pa.ipc.open_file(str(path)).read_all().to_pylist(), default=str).encode()
    return path.read_bytes()


def test_no_file_that_the_new_release_names_has_them_but_the_model(served: Path, forgotten: Path) -> None:
    words = [each.encode() for each in (GONE, EXTRA, BAD, ITEM, UNRATED)]
    release = latest_of(forgotten)
    kept = release["stages"].pop("train")
    paths = [forgotten / file["path"] for stage in release["stages"].values() for file in stage["files"]]
    paths += [forgotten / stage["manifest"] for stage in release["stages"].values()]
    paths += [forgotten / release["report"]["path"], forgotten / read_json(str(forgotten / "LATEST"))["manifest"]]
    assert len(paths) > 20
    found = {path: word for path in paths for word in words if word in content_of(path)}
    assert found == {}
    # The same look sees them where they were, and in the model that is kept.
    before = latest_of(served / "out")
    in_model = base64.urlsafe_b64encode(GONE.encode()).rstrip(b"=")  # As the tower's vocabulary writes it.
    seen = {"ingest": GONE, "lists": GONE, "recommend": EXTRA, "embed": ITEM, "index": ITEM}
    for name, word in {**{name: each.encode() for name, each in seen.items()}, "train": in_model}.items():
        assert any(word in content_of(served / "out" / file["path"]) for file in before["stages"][name]["files"]), name
    assert not any(in_model in content_of(path) for path in paths)
    assert kept == before["stages"]["train"]
    assert release["evaluated"]["stages"] == {}
    assert release["base"]["release"] == before["release"]


def test_every_list_is_full_and_as_exact_search_has_it_or_as_it_was(served: Path, forgotten: Path) -> None:
    release, before, after = latest_of(forgotten), lists_of(served / "out"), lists_of(forgotten)
    assert before.keys() - after.keys() == {GONE, EXTRA}
    assert after.keys() < before.keys()
    stages = release["stages"]
    folders = {name: forgotten / stage["folder"] for name, stage in stages.items()}
    embeddings = [row for path in folders["embed"].glob("embeddings/*") for row in pq.read_table(path).to_pylist()]
    vectors = np.array([row["embedding"] for row in embeddings], np.float32)
    item_ids = [row["item_id"] for row in embeddings]
    users = one_block([block for path in folders["lists"].glob("users/*") for block in read_parquet_blocks(str(path))], USERS)
    queries, known = UserTower(stored_folder(str(folders["train"] / USER_TOWER))).embed(users)
    personalised = 0
    for row, query, is_known in zip(users.to_pylist(), queries, known, strict=True):
        user = row["user_id"]
        unwanted = {"i1", *row["history"], *row["below_min_rating"], *row["excluded"]}
        eligible = [at for at, item in enumerate(item_ids) if item not in unwanted]
        assert len(after[user]) == len(set(after[user])) == min(6, len(eligible))
        if is_known:
            personalised += 1
            best = np.argsort(-(vectors[eligible] @ query), kind="stable")[:6]
            assert after[user] == [item_ids[eligible[at]] for at in best]
    assert personalised == 59
    was = latest_of(served / "out")["stages"]["lists"]["folder"]
    known_before = [row for path in (served / "out" / was).glob("users/*") for row in pq.read_table(path).to_pylist()]
    had = {row["user_id"] for row in known_before if ITEM in [*row["history"], *row["excluded"]]} | {"new"}  # Has no history.
    held = {user for user, items in before.items() if ITEM in items}
    assert held
    for user in after.keys() - had - held:
        assert after[user] == before[user]
    assert release["base"]["carried"] == len(after.keys() - had - held)


def test_what_remains_is_named_and_gc_deletes_what_it_may(
    forgotten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(forgotten, output)
    files = files_of(output)
    (old,) = {path.name for path in (output / "releases").iterdir()} - {latest_of(output)["release"]}
    towers = latest_of(output)["stages"]["train"]["folder"]
    again = ("forget", f"--user={GONE}", f"--item={ITEM}", f"--output={output}")
    found = ask(capsys, *again)
    assert found["latest"] == found["before"] == latest_of(output)["release"]
    assert found["remains"] == {"towers": [towers], "releases": [old]}
    assert found["unknown"] == {"users": [], "items": []}
    assert files_of(output) == files
    assert run_command(releases.main, [*again]) == OK
    out = capsys.readouterr().out
    assert "no row and no list with them: nothing to do" in out
    assert f"{towers} has learned from them, until the next training" in out
    assert f"release {old} has rows or lists of them" in out
    error = ask(capsys, "rollback", f"--output={output}", code=MISTAKE)["error"]
    assert f"release {old} still has 3 users and 2 items that were forgotten since, so it may not be served" in error
    assert ask(capsys, "verify", f"--output={output}")["problems"] == []
    ask(capsys, "gc", "--keep=1", "--min_age_hours=0", f"--output={output}")
    assert ask(capsys, *again)["remains"] == {"towers": [towers], "releases": []}
    assert ask(capsys, "verify", f"--output={output}")["problems"] == []


def test_they_stay_out_until_they_are_remembered(
    served: Path, forgotten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(forgotten, output)
    back = ask(capsys, "forget", "--remember", f"--user={GONE}", "--user=never", f"--output={output}")
    assert back["remembered"] == {"users": [GONE], "items": []}
    assert run_command(releases.main, ["forget", "--remember", "--user=never", f"--output={output}"]) == OK
    assert "user 'never' is not on the list" in capsys.readouterr().out
    assert run_command(run.main, [*nightly(output), "--reuse_model_from=LATEST"]) == OK
    assert GONE in lists_of(output)
    assert EXTRA not in lists_of(output)
    assert ITEM not in {item for items in lists_of(output).values() for item in items}


def test_an_id_that_is_nowhere_is_remembered_and_nothing_is_made(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(copy)
    found = ask(capsys, "forget", "--user=typo", f"--output={copy}")
    assert found["unknown"] == {"users": ["typo"], "items": []}
    assert found["latest"] == found["before"]
    made = {path: time for path, time in files_of(copy).items() if path not in before}
    assert [path.name for path in made] == ["forgotten.json"]
    assert list(read_forgotten(Workspace(str(copy))).users) == ["typo"]
    assert run_command(releases.main, ["forget", "--user=typo", "--user=another", f"--output={copy}"]) == OK
    out = capsys.readouterr().out
    assert "'typo'" not in out
    assert "user 'another' is in nothing that was served: check the id" in out


def test_the_same_table_without_them_takes_the_place_of_the_release(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget.leave_out_from_now_on(Workspace(str(copy)), Named(frozenset({BAD}), frozenset()))
    pointer, before = (copy / "LATEST").read_text(), latest_of(copy)
    assert run_command(run.main, [*nightly(copy), "--min_coverage=1"]) == GATE_FAILED
    assert (pointer, before) == ((copy / "LATEST").read_text(), latest_of(copy))
    assert run_command(run.main, nightly(copy)) == OK
    after = latest_of(copy)
    assert (copy / "LATEST").read_text() == pointer
    assert after["stages"]["recommend"] == before["stages"]["recommend"]
    names = [find_forgotten(Workspace(str(copy)), release_in(each), Forgotten({BAD: ""})) for each in (before, after)]
    assert [each.users for each in names] == [{BAD}, set()]
    assert ask(capsys, "verify", f"--output={copy}")["problems"] == []


def test_a_job_that_cannot_run_or_fails_its_gates_keeps_what_is_served_and_the_list(
    served: Path, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = copy.parent / "sources"
    sources.mkdir()
    for path in served.glob("*.csv"):
        shutil.copy2(path, sources / path.name)
    latest = (copy / "LATEST").read_text()
    manifest = copy / read_json(str(copy / "LATEST"))["manifest"]
    manifest.write_text(json.dumps(signed(json.loads(manifest.read_text().replace(f'"{served}/', '"')))))
    users = [f"u{number}" for number in range(10, 20)]
    command = ["forget", *(f"--user={user}" for user in users), f"--output={copy}"]
    still = "is still served, with those to be forgotten; the list of them is kept for every later run"
    error = ask(capsys, *command, code=MISTAKE)["error"]
    assert "ratings.csv" in error
    assert "there is no such file" in error
    assert "relative paths are looked up from where this runs" in error
    assert still in error
    monkeypatch.chdir(sources)
    with (sources / "ratings.csv").open("a", encoding="utf-8") as file:
        file.write("\nu30,i2,5,1600000000\n")
    assert run_command(releases.main, command) == GATE_FAILED
    error = capsys.readouterr().err
    assert "gate users failed" in error
    assert "--force users=REASON" in error
    assert still in error
    assert (copy / "LATEST").read_text() == latest
    assert read_forgotten(Workspace(str(copy))).users.keys() == set(users)
    assert run_command(releases.main, [*command, "--force=users=they asked"]) == OK
    assert "the sources have changed since the release before was made" in capsys.readouterr().out
    assert not lists_of(copy).keys() & set(users)
    assert latest_of(copy)["gates"]["users"]["forced"] == "they asked"


def test_a_release_that_does_not_say_how_it_was_made_names_the_repair(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = copy / read_json(str(copy / "LATEST"))["manifest"]
    manifest.write_text(json.dumps(signed({**json.loads(manifest.read_text()), "job": None})))
    error = ask(capsys, "forget", "--user=u7", f"--output={copy}", code=MISTAKE)["error"]
    assert "does not say which flags made it" in error
    assert "run the command that made it again with --reuse_model_from LATEST" in error
    assert "u7" in read_forgotten(Workspace(str(copy))).users


def test_a_run_that_began_before_publishes_nothing(copy: Path) -> None:
    settings, _ = parse_command(nightly(copy), "")
    made = finished.finished_before("publish", Job(settings))
    (copy / "LATEST").unlink()
    forget.leave_out_from_now_on(Workspace(str(copy)), Named(frozenset({GONE}), frozenset()))
    with pytest.raises(InputError, match="the sources were read before it was asked to forget a user or an item"):
        publish(Workspace(str(copy)), made, settings.gates)
    assert not (copy / "LATEST").exists()


def test_the_list_has_everyone_whoever_else_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(str(tmp_path))
    write, others = forget.write_forgotten, iter(["a", "b"])

    def lose(workspace: Workspace, wanted: Forgotten) -> None:
        other = next(others, None)
        write(workspace, Forgotten({other: "2026-01-01T00:00:00.000Z"}, {}, "00") if other else wanted)

    monkeypatch.setattr(forget, "write_forgotten", lose)
    known = forget.leave_out_from_now_on(workspace, Named(frozenset({"me"}), frozenset({"it"})))
    assert (set(known.users), set(known.items)) == ({"b", "me"}, {"it"})
    assert read_forgotten(workspace) == known


def test_mistakes_are_one_line_and_nobody_is_written_down(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ask(capsys, "forget", "--user=u", f"--output={root}", code=MISTAKE)["error"]
    assert f"nothing was ever made below {root}: check --output" in error
    write_release(root, 1, TABLE)
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    for flags, words in {
        (): "nobody is named: give --user ID or --item ID",
        ("--user=",): "an id must not be empty or white space, got ''",
        ("--item= ",): "an id must not be empty or white space, got ' ': check --item",
        ("--user=\udce9",): "is no UTF-8 text: check --user",
        (f"--users_file={tmp_path}/none",): "none does not exist: check --users_file",
        (f"--items_file={tmp_path}/latin.txt",): "--items_file takes UTF-8 text, one id a line",
        ("--usr=u",): "unknown flag --usr: did you mean --user?",
    }.items():
        assert words in ask(capsys, "forget", *flags, f"--output={root}", code=MISTAKE)["error"]
    assert run_command(releases.main, ["gc", "--usr=u", f"--output={root}"]) == MISTAKE
    assert "unrecognized arguments: --usr=u: see --help" in capsys.readouterr().err
    assert read_forgotten(Workspace(root)) == Forgotten()
