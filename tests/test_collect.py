"""What nobody needs is deleted, and nothing else, whatever runs at the same time."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import releases
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.engine import lease
from pipelines.engine.lease import LeaseHolder, time_in
from pipelines.lifecycle import collect
from pipelines.lifecycle.collect import find_garbage, used_by_others
from schemas.lease import Lease, living, read_leases, write_lease
from schemas.storage import delete, exists, join, list_files, read_bytes, read_json, write_file
from schemas.workspace import Workspace
from tests.made_releases import signed, write_release
from tests.test_releases import TABLE, ask, overwrite

NOW = "--min_age_hours=0"


def stages_of(release: dict[str, Any]) -> set[str]:
    return {stage["folder"].rpartition("/")[0] for stage in release["stages"].values()}


def folders(root: str, of: str) -> set[str]:
    """Returns the folders below one of the output's that have a file."""
    start = len(join(root, of)) - len(of)
    return {"/".join(file.path[start:].split("/")[:2]) for file in list_files(join(root, of, "**"))}


def deleted(found: dict[str, Any]) -> set[str]:
    return {each["folder"] for each in found["deleted"]}


def test_releases_beyond_those_to_keep_go_with_the_stages_that_only_they_need(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [write_release(root, day, TABLE) for day in (1, 2, 3, 4)]
    failed = write_release(root, 5, TABLE, status="failed")
    dry = ask(capsys, "gc", f"--output={root}", "--keep=2", NOW, "--dry_run")
    expected = {f"releases/{each['release']}" for each in made[:2]} | stages_of(made[0]) | stages_of(made[1])
    assert deleted(dry) == expected
    assert folders(root, "releases") >= {f"releases/{each['release']}" for each in made}
    sizes = {file.path: file.size_in_bytes for file in list_files(join(root, "**"))}
    found = ask(capsys, "gc", f"--output={root}", "--keep=2", NOW)
    assert found["deleted"] == dry["deleted"]
    left = {file.path: file.size_in_bytes for file in list_files(join(root, "**"))}
    assert found["bytes"] == sum(sizes.values()) - sum(left.values())
    assert folders(root, "releases") == {f"releases/{each['release']}" for each in (*made[2:], failed)}
    assert folders(root, "stages") == stages_of(made[2]) | stages_of(made[3]) | stages_of(failed)
    for each in (*made[2:], failed):
        assert ask(capsys, "verify", each["release"], f"--output={root}")["problems"] == []
    assert deleted(ask(capsys, "gc", f"--output={root}", "--keep=2", NOW)) == set()


def test_what_is_served_is_kept_however_old_it_is(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, middle, new = (write_release(root, day, TABLE) for day in (1, 2, 3))
    ask(capsys, "rollback", old["release"], f"--output={root}")
    found = ask(capsys, "gc", f"--output={root}", "--keep=1", NOW)
    assert deleted(found) == {f"releases/{middle['release']}"} | stages_of(middle)
    assert ask(capsys, "verify", f"--output={root}")["release"] == old["release"]
    # What was withdrawn is known to be so even when its files are gone.
    again = write_release(root, 4, TABLE)
    write_release(root, 5, TABLE, status="failed")
    assert f"releases/{new['release']}" in deleted(ask(capsys, "gc", f"--output={root}", "--keep=1", NOW))
    assert exists(join(root, Workspace.withdrawal(new["release"])))
    assert ask(capsys, "verify", f"--output={root}")["release"] == again["release"]


def test_attempts_that_died_go_and_young_ones_stay(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(root, 1, TABLE)
    (stage, *_) = sorted(stages_of(release))
    write_file(root, f"{stage}/attempt-000000000000/users/part-000000.parquet", b"half")
    write_file(root, f"{stage}/checkpoints/1", b"kept with its stage")
    write_file(root, "stages/train-0123456789abcdef/attempt-000000000000/towers/weights", b"never finished")
    assert deleted(ask(capsys, "gc", f"--output={root}")) == set()
    found = ask(capsys, "gc", f"--output={root}", NOW)
    assert {each["folder"]: each["kind"] for each in found["deleted"]} == {
        f"{stage}/attempt-000000000000": "attempt",
        "stages/train-0123456789abcdef": "stage",
    }
    assert exists(join(root, f"{stage}/checkpoints/1"))
    assert ask(capsys, "verify", f"--output={root}")["problems"] == []


def test_two_releases_that_share_a_stage_keep_it(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_release(root, day, TABLE) for day in (1, 2))
    path = join(root, Workspace(root).release_manifest(second["release"]))
    second["stages"]["ingest"] = first["stages"]["ingest"]
    overwrite(path, json.dumps(signed(second)).encode())
    ask(capsys, "gc", f"--output={root}", "--keep=1", NOW)
    assert folders(root, "stages") == stages_of(second)


def test_nothing_is_deleted_where_nobody_knows_what_is_needed(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (write_release(root, day, TABLE) for day in (1, 2))
    before = {file.path for file in list_files(join(root, "**"))}
    gc = ("gc", f"--output={root}", "--keep=1", NOW)
    write_file(root, "releases/newer/manifest.json", b'{"schema_version": 99}')
    assert "nobody knows which stages release newer needs" in ask(capsys, *gc, code=MISTAKE)["error"]
    delete(join(root, "releases/newer/manifest.json"))
    latest = read_bytes(join(root, "LATEST"))
    overwrite(join(root, "LATEST"), b"{")
    assert "LATEST is not a pointer" in ask(capsys, *gc, code=MISTAKE)["error"]
    overwrite(join(root, "LATEST"), latest.replace(new["release"].encode(), b"gone"))
    assert "rollback RELEASE" in ask(capsys, *gc, code=MISTAKE)["error"]
    overwrite(join(root, "LATEST"), latest)
    write_file(root, "leases/x.json", b"{")
    assert "does not say which folders are in use" in ask(capsys, *gc, code=MISTAKE)["error"]
    delete(join(root, "leases/x.json"))
    for flag, words in {
        "--keep=0": "keep must be at least 1, got 0",
        "--min_age_hours=-1": "min_age_hours must be 0 or",
    }.items():
        assert words in ask(capsys, *gc, flag, code=MISTAKE)["error"]
    assert {file.path for file in list_files(join(root, "**"))} == before
    assert f"releases/{old['release']}" in deleted(ask(capsys, *gc))


def test_what_a_running_command_uses_stays_until_it_ends_or_expires(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace(root)
    old, _ = (write_release(root, day, TABLE) for day in (1, 2))
    (stage, *rest) = sorted(stages_of(old))
    gc = ("gc", f"--output={root}", "--keep=1", NOW)
    with LeaseHolder(workspace, "run") as held:
        held.use([stage])
        assert used_by_others(workspace) == {stage}
        assert deleted(ask(capsys, *gc)) == {f"releases/{old['release']}", *rest}
        assert exists(join(root, stage, "manifest.json"))
    assert read_leases(workspace) == []
    # One that was killed counts until it expires; whoever deletes clears it away then.
    killed = Lease("killed", "run", "host", time_in(-100), time_in(60), uses=(stage,))
    write_lease(workspace, killed)
    assert deleted(ask(capsys, *gc)) == set()
    write_lease(workspace, replace(killed, expires_at=time_in(-1)))
    assert deleted(ask(capsys, *gc)) == {stage}
    assert read_leases(workspace) == []


def broken(workspace: Workspace) -> float:
    with LeaseHolder(workspace, "train", left_secs=3600) as held:
        held.use(["stages/a"])
        return 1 / 0


def test_a_single_stage_leaves_its_lease_for_the_next_and_a_failed_one_does_not(root: str) -> None:
    workspace = Workspace(root)
    with LeaseHolder(workspace, "nothing"):
        pass
    assert read_leases(workspace) == []
    with pytest.raises(ZeroDivisionError):
        _ = broken(workspace)
    assert read_leases(workspace) == []
    with LeaseHolder(workspace, "train", left_secs=3600) as held:
        held.use(["stages/a"])
        held.use(["stages/a", "stages/b"])
    (left,) = read_leases(workspace)
    assert left.uses == ("stages/a", "stages/b")
    assert time_in(3500) < left.expires_at < time_in(3700)
    assert living([left], time_in(3700)) == []


def test_a_lease_is_written_again_while_its_holder_works(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECS", 0.01)
    workspace = Workspace(root)
    with LeaseHolder(workspace, "run") as held:
        held.use(["stages/a"])
        (first,) = read_leases(workspace)
        deadline = time.monotonic() + 30
        while read_leases(workspace)[0].expires_at <= first.expires_at:
            assert time.monotonic() < deadline, "the lease was never renewed"
            time.sleep(0.01)
    assert read_leases(workspace) == []


class Unavailable(Exception):
    """What the client of a storage raises: none of Python's own errors, nor of Beam's."""


def test_a_lease_outlives_whatever_a_storage_says_for_a_while(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECS", 0.01)
    workspace = Workspace(root)
    refused, write = threading.Event(), lease.write_lease

    def refuse(*arguments: Any) -> None:
        refused.set()
        raise Unavailable("503")

    with LeaseHolder(workspace, "run") as held:
        held.use(["stages/a"])
        monkeypatch.setattr(lease, "write_lease", refuse)
        assert refused.wait(30)
        (before,) = read_leases(workspace)
        monkeypatch.setattr(lease, "write_lease", write)
        deadline = time.monotonic() + 30
        while read_leases(workspace)[0].expires_at <= before.expires_at:
            assert time.monotonic() < deadline, "the lease was never renewed"
            time.sleep(0.01)
    assert read_leases(workspace) == []


def test_a_lease_that_cannot_be_ended_makes_no_failure_of_what_was_done(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise Unavailable("503")

    with LeaseHolder(Workspace(root), "run") as held:
        held.use(["stages/a"])
        monkeypatch.setattr(lease, "delete", refuse)
    assert len(read_leases(Workspace(root))) == 1


def test_whoever_starts_to_use_what_is_just_being_deleted_waits_and_finds_it_gone(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader comes after the announcement: it must not see half a stage."""
    monkeypatch.setattr(lease, "_LOOK_SECS", 0.01)
    workspace = Workspace(root)
    old, _ = (write_release(root, day, TABLE) for day in (1, 2))
    stage = sorted(stages_of(old))[0]
    seen: list[bool] = []
    announced, started = threading.Event(), threading.Event()

    def read() -> None:
        announced.wait(30)
        with LeaseHolder(workspace, "run") as held:
            started.set()
            held.use([stage])
            seen.append(exists(join(root, stage, "manifest.json")))

    reader = threading.Thread(target=read)
    reader.start()
    twice = collect.find_garbage

    def find(*arguments: Any) -> Any:
        found = twice(*arguments)
        if read_leases(workspace):  # The second time: it has been announced.
            announced.set()
            assert started.wait(30)
            time.sleep(0.05)
        return found

    monkeypatch.setattr(collect, "find_garbage", find)
    assert stage in deleted(ask(capsys, "gc", f"--output={root}", "--keep=1", NOW))
    reader.join(30)
    assert seen == [False]


def test_whoever_used_it_before_the_announcement_was_seen_keeps_it(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader comes between the first look and the announcement."""
    workspace = Workspace(root)
    old, _ = (write_release(root, day, TABLE) for day in (1, 2))
    stage = sorted(stages_of(old))[0]
    held = LeaseHolder(workspace, "run")
    once = collect.find_garbage

    def find(*arguments: Any) -> Any:
        found = once(*arguments)
        held.use([stage])
        return found

    monkeypatch.setattr(collect, "find_garbage", find)
    found = deleted(ask(capsys, "gc", f"--output={root}", "--keep=1", NOW))
    assert stage not in found
    assert f"releases/{old['release']}" in found
    assert exists(join(root, stage, "manifest.json"))
    held.__exit__(None, None, None)


def test_what_is_published_between_the_two_looks_stays(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (write_release(root, day, TABLE) for day in (1, 2))
    once, calls = collect.find_garbage, []

    def find(*arguments: Any) -> Any:
        found = once(*arguments)
        calls.append(found)
        if len(calls) == 1:
            ask(capsys, "rollback", first["release"], f"--output={root}")
        return found

    monkeypatch.setattr(collect, "find_garbage", find)
    assert deleted(ask(capsys, "gc", f"--output={root}", "--keep=1", NOW)) == set()
    assert len(calls) == 2
    for release in (first, second):
        assert ask(capsys, "verify", release["release"], f"--output={root}")["problems"] == []


def test_a_half_deleted_release_is_no_release_and_the_same_command_ends_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path)
    old, new = (write_release(root, day, TABLE) for day in (1, 2))
    write_file(root, f"releases/{old['release']}/report.html", b"<p>")
    gc = ["gc", f"--output={root}", "--keep=1", NOW]
    for step in range(1, 9):
        count = iter(range(1_000))
        real = collect.delete_folder

        def dies(path: str, count: Any = count, step: int = step, real: Any = real) -> None:
            if next(count) == step % 4:
                raise OSError(28, "the storage is away")
            real(path)

        with monkeypatch.context() as patch:
            patch.setattr(collect, "delete_folder", dies)
            run_command(releases.main, gc)
        assert ask(capsys, "verify", f"--output={root}")["problems"] == []
    assert run_command(releases.main, gc) == OK
    assert folders(root, "stages") == stages_of(new)
    assert folders(root, "releases") == {f"releases/{new['release']}"}
    assert read_json(join(root, "LATEST"))["release"] == new["release"]
    assert find_garbage(Workspace(root), 1, 0, set()) == []


class LateLock:
    """A lock that one thread, once, comes to but does not take before it is told to."""

    def __init__(self, lock: Any, late: str) -> None:
        self._lock = lock
        self._late = late
        self.arrived, self.let_go = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread().name == self._late and not self.arrived.is_set():
            self.arrived.set()
            assert self.let_go.wait(30)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("late", ["lease", "announcer"])
def test_what_is_taken_into_use_while_another_thread_is_about_to_write_stays(
    root: str, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECS", 0.01 if late == "lease" else 60)
    workspace = Workspace(root)
    with LeaseHolder(workspace, "run") as held:
        lock = LateLock(held._lock, late)
        monkeypatch.setattr(held, "_lock", lock)
        held.use(["stages/a"])
        announcer = threading.Thread(target=held.announce, args=(["stages/c"],), name="announcer")
        announcer.start()
        assert lock.arrived.wait(30)
        held.use(["stages/b"])
        lock.let_go.set()
        announcer.join(30)
        for _ in range(3):  # Whatever is written after that.
            held.announce(["stages/c"])
        (found,) = read_leases(workspace)
    assert found.uses == ("stages/a", "stages/b")
    assert found.deletes == ("stages/c",)
