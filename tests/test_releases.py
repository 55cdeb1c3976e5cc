"""Releases are listed, shown and verified; whatever is wrong with one is named, with the repair."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import releases
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.lifecycle import rollback
from schemas.release import find_withdrawals
from schemas.storage import delete, join, list_files, read_bytes, read_json, write_file
from schemas.topk import LONG
from schemas.workspace import Workspace
from tests.made_releases import write_release
from tests.memory_filesystem import FILES
from tests.test_compare_lists import rbo_by_hand

TABLE = {f"u{user}": [f"i{(user + rank) % 7}" for rank in range(3)] for user in range(20)}


def table_of(day: int) -> dict[str, list[str]]:
    """Returns a table that is another each day."""
    return {user: [*items[:2], f"of day {day}"] for user, items in TABLE.items()}


def ask(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = OK) -> dict[str, Any]:
    """Runs a command with --json, and returns what it printed."""
    capsys.readouterr()
    assert run_command(releases.main, [*arguments, "--json"]) == code
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["exit_status"] == code
    return found


def overwrite(path: str, data: bytes) -> None:
    delete(path)
    root, _, name = path.rpartition("/")
    write_file(root, name, data)


def test_releases_are_listed_newest_first_with_what_is_served_and_what_failed(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write_release(root, day, TABLE)["release"] for day in (1, 2))
    failed = write_release(root, 3, TABLE, status="failed")["release"]
    found = ask(capsys, "list", f"--output={root}")
    assert found["latest"] == second
    lines = found["releases"]
    assert [line["release"] for line in lines] == [failed, second, first]
    assert [line["status"] for line in lines] == ["failed", "passed", "passed"]
    assert [line["served"] for line in lines] == [False, True, False]
    assert (lines[1]["users"], lines[1]["items"], lines[1]["k"]) == (20, 7, 3)
    assert (lines[1]["ratings"], lines[1]["newest_rating"]) == (2_000, "1970-01-03 00:00:00")
    assert lines[1]["metrics"] == {"recall@3": 0.5, "ndcg@3": 0.25, "recall_against_exact": 0.97}
    assert run_command(releases.main, ["list", f"--output={root}"]) == OK
    out = capsys.readouterr().out
    assert "3 releases below" in out
    assert out.count("served") == 1
    assert all(each in out for each in ("2,000", "1970-01-03"))


def test_one_release_is_shown_with_the_gates_it_failed_and_its_stages(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    served = write_release(root, 1, TABLE)
    failed = write_release(root, 2, TABLE, status="failed")
    assert ask(capsys, "show", f"--output={root}")["manifest"] == served
    assert ask(capsys, "show", "LATEST", f"--output={root}")["served"]
    assert ask(capsys, "show", failed["release"], f"--output={root}")["manifest"] == failed
    assert run_command(releases.main, ["show", failed["release"], f"--output={root}"]) == OK
    out = capsys.readouterr().out
    assert "failed overlap: lists share 0.05" in out
    assert "run the same command again with --force overlap=REASON" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert {"ratings 2,000", "newest rating 1970-01-03 00:00:00", "repeated ratings 3 (0.15%)"} <= set(lines)
    for stage in failed["stages"].values():
        assert stage["folder"] in out


def test_what_cannot_be_read_is_listed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    good = write_release(root, 1, TABLE)["release"]
    for name, content in {"newer": {"schema_version": 99}, "other": {"schema_version": 2, "release": "another"}}.items():
        write_file(root, f"releases/{name}/manifest.json", json.dumps(content).encode())
    write_file(root, "releases/text/manifest.json", b"no JSON")
    lines = {line["release"]: line for line in ask(capsys, "list", f"--output={root}")["releases"]}
    assert lines[good]["status"] == "passed"
    assert "schema version 99, this program knows versions up to 3" in lines["newer"]["problem"]
    for name in ("other", "text"):
        assert "is not the manifest of a release" in lines[name]["problem"]
        assert "delete its folder" in ask(capsys, "show", name, f"--output={root}", code=MISTAKE)["error"]
    (tmp_path / "LATEST").write_text("{")
    found = ask(capsys, "list", f"--output={root}")
    assert found["latest"] is None
    assert "LATEST is not a pointer to a release" in found["problem"]


def test_a_pointer_to_a_release_that_is_gone_is_said(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_release(root, day, TABLE)["release"] for day in (1, 2))
    delete(join(root, Workspace(root).release_manifest(second)))
    found = ask(capsys, "list", f"--output={root}")
    assert f"LATEST names release {second}, which is not there" in found["problem"]
    assert f"there is no release '{second}'" in ask(capsys, "verify", f"--output={root}", code=MISTAKE)["error"]
    assert ask(capsys, "verify", first, f"--output={root}")["problems"] == []


def test_a_name_that_is_no_release_brings_near_ones(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = write_release(root, 1, TABLE)["release"]
    for wrong in (name[:-1], "nothing like it", "../x", "*"):
        error = ask(capsys, "show", wrong, f"--output={root}", code=MISTAKE)["error"]
        assert f"there is no release {wrong!r}" in error
        assert f"name one such as {name}" in error


def test_an_output_without_releases_says_so(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "list", f"--output={root}")["releases"] == []
    assert "nothing is served below" in ask(capsys, "show", f"--output={root}", code=MISTAKE)["error"]
    assert "there is no release below" in ask(capsys, "show", "x", f"--output={root}", code=MISTAKE)["error"]


def test_mistakes_in_the_flags_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in {("list",): "--output", ("frobnicate",): "invalid choice: 'frobnicate'", (): "command"}.items():
        assert run_command(releases.main, list(arguments)) == MISTAKE
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert run_command(releases.main, ["list", "--output=nowhere://x"]) == MISTAKE
    assert "is on no file system that is installed" in capsys.readouterr().err


def test_a_whole_release_verifies_whatever_tensorboard_left(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(root, 1, TABLE)
    sizes = [file["bytes"] for stage in release["stages"].values() for file in stage["files"]]
    found = ask(capsys, "verify", f"--output={root}")
    assert (found["files"], found["bytes"], found["problems"]) == (len(sizes), sum(sizes), [])


def test_a_changed_byte_in_any_file_of_a_release_is_named(memory_root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file that the release needs, its manifests among them, one byte at its begin, middle or end."""
    release = write_release(memory_root, 1, TABLE)
    paths = [join(memory_root, file["path"]) for stage in release["stages"].values() for file in stage["files"]]
    paths += [join(memory_root, stage["manifest"]) for stage in release["stages"].values()]
    for path in paths:
        data, time = FILES[path]
        for at in (0, len(data) // 2, len(data) - 2):
            FILES[path] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], time
            problems = ask(capsys, "verify", f"--output={memory_root}", code=MISTAKE)["problems"]
            assert [path in problem for problem in problems] == [True], (path, at)
        FILES[path] = data, time
        del FILES[path]
        assert ask(capsys, "verify", f"--output={memory_root}", code=MISTAKE)["problems"] == [f"{path} is gone"]
        FILES[path] = data, time
    assert ask(capsys, "verify", f"--output={memory_root}")["problems"] == []


def test_a_figure_changed_in_the_manifest_of_a_release_is_seen(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(root, 1, TABLE)
    path = join(root, Workspace(root).release_manifest(release["release"]))
    overwrite(path, read_bytes(path).replace(b'"recall@3": 0.5', b'"recall@3": 0.6'))
    assert ask(capsys, "verify", f"--output={root}", code=MISTAKE)["problems"] == [
        f"{path} has other contents than were written"
    ]


def test_a_file_that_readers_would_take_for_a_part_of_the_table_is_damage(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(root, 1, TABLE)
    folder = join(root, release["stages"]["recommend"]["folder"])
    write_file(folder, "topk/part-000009.parquet", b"x")
    write_file(folder, "topk/part-000001.parquet.0123.tmp", b"left by a worker that died")
    found = ask(capsys, "verify", f"--output={root}", code=MISTAKE)
    assert found["problems"] == [f"{join(folder, 'topk/part-000009.parquet')} was not written by the stage"]
    assert "release " + release["release"] + " is damaged, 1 of its files" in found["error"]
    assert len(list_files(join(folder, "**"))) == 5


def test_a_pointer_to_other_files_than_the_release_has_is_damage(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_release(root, 1, TABLE)
    path = join(root, "LATEST")
    overwrite(path, read_bytes(path).replace(b"part-000001", b"part-000002"))
    (problem,) = ask(capsys, "verify", f"--output={root}", code=MISTAKE)["problems"]
    assert problem.startswith(f"{path} names other files than release")


def test_a_release_of_the_first_schema_version_is_shown_and_verified(
    memory_root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It left its stages' files to their own manifests."""
    release = write_release(memory_root, 1, TABLE)
    old = {name: release[name] for name in ("release", "created_at", "rows", "topk")} | {"schema_version": 1}
    old["metrics"] = release["metrics"] | {"quality": release["evaluated"]["metrics"]["quality"]}
    without = ("files", "inputs", "sources")
    old["stages"] = {
        name: {key: value for key, value in stage.items() if key not in without} for name, stage in release["stages"].items()
    }
    path = join(memory_root, Workspace(memory_root).release_manifest(release["release"]))
    overwrite(path, json.dumps(old).encode())
    assert ask(capsys, "list", f"--output={memory_root}")["releases"][0]["metrics"]["recall@3"] == 0.5
    assert ask(capsys, "show", f"--output={memory_root}")["status"] == "passed"
    assert run_command(releases.main, ["show", f"--output={memory_root}"]) == OK
    found = ask(capsys, "verify", f"--output={memory_root}")
    assert found["files"] == sum(len(stage["files"]) for stage in release["stages"].values())
    file = join(memory_root, release["topk"][0]["path"])
    data, time = FILES[file]
    FILES[file] = data[:-1] + b"x", time
    problems = ask(capsys, "verify", f"--output={memory_root}", code=MISTAKE)["problems"]
    assert problems == [f"{file} has other contents than were written"]
    FILES[file] = data, time
    overwrite(path, json.dumps(old | {"topk": old["topk"][:1]}).encode())
    assert "names other files" in ask(capsys, "verify", f"--output={memory_root}", code=MISTAKE)["problems"][0]
    old["topk"][0]["sha256"] = "0" * 64
    overwrite(path, json.dumps(old).encode())
    problems = ask(capsys, "verify", f"--output={memory_root}", code=MISTAKE)["problems"]
    assert problems == [f"{path} names a table that its recommend stage has not written"]


def test_long_names_are_shown_whole_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names = [
        write_release(str(tmp_path), day, TABLE, status=status)["release"] for day, status in ((1, "passed"), (2, "failed"))
    ]
    assert run_command(releases.main, ["list", f"--output={tmp_path}"]) == OK
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert "failed" in out


def test_two_tables_are_compared_whatever_their_buckets_layout_and_k(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against sets and lists, user by user."""
    before = {f"u{at}": [f"i{(at * 3 + rank) % 11}" for rank in range(5)] for at in range(40)}
    after = {
        f"u{at}": list(before[f"u{at}"][:4]) if f"u{at}" in before and at % 3 else [f"i{(at + rank) % 13}" for rank in range(4)]
        for at in range(2, 44)
    }
    one = write_release(root, 1, before, k=5, num_buckets=6, means={"mrr": 0.5})["release"]
    other = write_release(root, 2, after, k=4, num_buckets=4, means={"mrr": 0.25}, layout=LONG)["release"]
    found = ask(capsys, "diff", one, f"--output={root}")
    assert (found["before"], found["after"], found["k"], found["rbo_p"]) == (one, other, 4, 0.9)
    both = [user for user in before if user in after]
    pairs = [(before[user][:4], after[user]) for user in both]
    assert found["users"] == {"in_both": 38, "changed": sum(a != b for a, b in pairs), "gained": 4, "lost": 2}
    assert found["jaccard"] == pytest.approx(sum(len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs) / 38)
    assert found["rbo"] == pytest.approx(sum(rbo_by_hand(a, b, 0.9) for a, b in pairs) / 38)
    listed = [[item for items in table.values() for item in items[:4]] for table in (before, after)]
    gained = {item: listed[1].count(item) for item in {*listed[1]} - {*listed[0]}}
    assert gained
    assert found["items"]["gained"] == len(gained)
    assert {each["item_id"]: each["lists"] for each in found["items"]["most_gained"]} == gained
    assert found["items"]["lost"] == 0
    assert found["metrics"]["mrr"] == {"before": 0.5, "after": 0.25}
    assert found["metrics"]["recall@5"] == {"before": 0.5, "after": None}
    backwards = ask(capsys, "diff", other, one, f"--output={root}")
    assert (backwards["items"]["lost"], backwards["items"]["most_lost"]) == (len(gained), found["items"]["most_gained"])
    assert backwards["rbo"] == pytest.approx(found["rbo"])
    assert run_command(releases.main, ["diff", one, other, f"--output={root}"]) == OK
    out = capsys.readouterr().out
    assert f"{found['users']['changed']} of them with another list; 4 gained, 2 lost" in out
    assert "-0.2500" in out


def test_the_same_table_differs_in_nothing_and_strangers_share_nobody(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_release(root, 1, TABLE)["release"]
    same = ask(capsys, "diff", one, one, f"--output={root}")
    assert (same["users"]["changed"], same["jaccard"], same["rbo"]) == (0, 1.0, pytest.approx(1.0))
    write_release(root, 2, {"nobody": ["x"]})
    found = ask(capsys, "diff", one, "LATEST", f"--output={root}")
    assert found["users"] == {"in_both": 0, "changed": 0, "gained": 1, "lost": 20}
    assert (found["jaccard"], found["rbo"]) == (None, None)
    error = ask(capsys, "diff", one, f"--output={root}", "--rbo_p=1", code=MISTAKE)["error"]
    assert "rbo_p must be above 0 and below 1, got 1" in error


def test_rollback_serves_the_last_good_release_and_keeps_what_was_withdrawn(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write_release(root, day, table_of(day))["release"] for day in (1, 2))
    write_release(root, 3, TABLE, status="failed")
    bad = write_release(root, 4, table_of(4))["release"]
    done = ask(capsys, "rollback", f"--output={root}", "--reason=all thrillers")
    assert done == {"exit_status": 0, "latest": second, "before": bad, "withdrawn": bad}
    pointer = read_json(join(root, "LATEST"))
    assert (pointer["release"], pointer["rolled_back_from"]) == (second, bad)
    assert ask(capsys, "verify", f"--output={root}")["release"] == second
    lines = {line["release"]: line["status"] for line in ask(capsys, "list", f"--output={root}")["releases"]}
    assert (lines[bad], lines[second]) == ("withdrawn", "passed")
    assert run_command(releases.main, ["show", bad, f"--output={root}"]) == OK
    out = capsys.readouterr().out
    assert f"to {second}" in out
    assert "all thrillers" in out
    # Once more goes one further back, past nothing twice; then there is none left.
    assert ask(capsys, "rollback", f"--output={root}")["latest"] == first
    assert f"no release before {first}" in ask(capsys, "rollback", f"--output={root}", code=MISTAKE)["error"]
    # Forward again: what is served then is withdrawn no longer.
    assert ask(capsys, "rollback", bad, f"--output={root}") == {
        "exit_status": 0,
        "latest": bad,
        "before": first,
        "withdrawn": None,
    }
    lines = {line["release"]: line["status"] for line in ask(capsys, "list", f"--output={root}")["releases"]}
    assert (lines[bad], lines[second]) == ("passed", "withdrawn")
    assert ask(capsys, "rollback", f"--output={root}")["latest"] == first


def test_a_table_that_was_rolled_back_is_not_gone_back_to_under_another_name(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table may have been published twice: what was withdrawn is the table."""
    days = {1: 1, 2: 2, 3: 3, 4: 2}
    first, bad, good, again = (write_release(root, day, table_of(table))["release"] for day, table in days.items())
    done = ask(capsys, "rollback", f"--output={root}")
    assert (done["latest"], done["withdrawn"]) == (good, again)
    assert ask(capsys, "rollback", f"--output={root}")["latest"] == first
    assert ask(capsys, "rollback", bad, f"--output={root}")["latest"] == bad


def test_nothing_is_served_that_failed_or_is_damaged(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    good, failed, served = (
        write_release(root, day, TABLE, status=status) for day, status in ((1, "passed"), (2, "failed"), (3, "passed"))
    )
    before = read_bytes(join(root, "LATEST"))
    for name, words in {
        failed["release"]: "failed its gates (overlap) and may not be served",
        served["release"]: "is the one that is served",
        "none": "there is no release 'none'",
    }.items():
        assert words in ask(capsys, "rollback", name, f"--output={root}", code=MISTAKE)["error"]
    path = join(root, good["topk"][0]["path"])
    data = read_bytes(path)
    overwrite(path, data[:-1] + bytes([data[-1] ^ 1]))
    error = ask(capsys, "rollback", f"--output={root}", code=MISTAKE)["error"]
    assert f"release {good['release']} is damaged and cannot be served: {path} has other contents" in error
    assert read_bytes(join(root, "LATEST")) == before
    assert find_withdrawals(Workspace(root)) == []


def test_rollback_mends_a_pointer_that_names_nothing(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_release(root, day, TABLE)["release"] for day in (1, 2))
    latest = join(root, "LATEST")
    overwrite(latest, b"{")
    assert "or name the release to serve" in ask(capsys, "rollback", f"--output={root}", code=MISTAKE)["error"]
    assert ask(capsys, "rollback", second, f"--output={root}")["withdrawn"] is None
    overwrite(latest, read_bytes(latest).replace(b"part-000001", b"part-000009"))
    assert ask(capsys, "rollback", second, f"--output={root}")["latest"] == second
    assert ask(capsys, "verify", f"--output={root}")["problems"] == []
    delete(join(root, Workspace(root).release_manifest(second)))
    assert ask(capsys, "rollback", f"--output={root}")["latest"] == first
    delete(latest)
    assert ask(capsys, "rollback", first, f"--output={root}")["before"] is None


def test_an_empty_name_rolls_nothing_back(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    for day in (1, 2):
        write_release(root, day, TABLE)
    before = read_bytes(join(root, "LATEST"))
    assert "is an empty text" in ask(capsys, "rollback", "", f"--output={root}", code=MISTAKE)["error"]
    assert read_bytes(join(root, "LATEST")) == before


def test_a_release_that_is_published_meanwhile_is_not_lost(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        write_release(root, day, TABLE)
    verified = rollback.verify_release

    def publish_meanwhile(*arguments: Any, **options: Any) -> Any:
        write_release(root, 3, TABLE)
        return verified(*arguments, **options)

    monkeypatch.setattr(rollback, "verify_release", publish_meanwhile)
    error = ask(capsys, "rollback", f"--output={root}", code=MISTAKE)["error"]
    assert "another release has been published or rolled back in the meantime" in error
    assert read_json(join(root, "LATEST"))["release"].startswith("20260103")
    assert find_withdrawals(Workspace(root)) == []


def test_a_withdrawal_that_cannot_be_read_stops_whoever_needs_it(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_release(root, 1, TABLE)
    write_file(root, "withdrawn/x.json", b"{")
    error = ask(capsys, "list", f"--output={root}", code=MISTAKE)["error"]
    assert "does not say which release was rolled back" in error
    overwrite(join(root, "withdrawn/x.json"), b'{"schema_version": 99}')
    assert "schema version 99" in ask(capsys, "list", f"--output={root}", code=MISTAKE)["error"]
