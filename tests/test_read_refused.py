"""A storage that does not answer is an error, never "there is nothing": only "not found" means that."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.filesystem import BeamIOError

from pipelines import releases
from pipelines.cli.command import FAULT, run_command, verdict_on
from schemas import parquet_files, storage
from schemas.errors import InputError, ReadRefused, WriteRefused
from schemas.forgotten import Forgotten, read_forgotten
from schemas.lease import read_leases
from schemas.manifest import read_manifest
from schemas.release import find_releases, find_withdrawals, read_latest
from schemas.storage import join, list_files, write_file
from schemas.workspace import Workspace
from tests.made_releases import write_release
from tests.memory_filesystem import FILES, MemoryFileSystem
from tests.test_releases import TABLE, ask
from transforms.ingest.sources import resolve_ratings


class HttpError(Exception):
    """As the clients of object stores raise it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"HTTP {code}")
        self.code = code


class JavaError(Exception):
    """As the client of WebHDFS raises it."""

    def __init__(self, exception: str) -> None:
        super().__init__(exception)
        self.exception = exception


REFUSED = [
    HttpError(503),
    HttpError(403),
    JavaError("StandbyException"),
    BeamIOError("List operation failed", {"a": HttpError(404), "b": HttpError(503)}),
    BeamIOError("List operation failed", {"a": BeamIOError("again", {"a": HttpError(503)})}),
    BeamIOError("nobody knows why"),
    OSError(OSError(errno.EIO, "Input/output error")),
    TimeoutError("no answer"),
    PermissionError(errno.EACCES, "Permission denied"),
]
ABSENT = [
    HttpError(404),
    JavaError("FileNotFoundException"),
    BeamIOError("List operation failed", {"a": HttpError(404)}),
    BeamIOError("List operation failed", {"a": BeamIOError("again", {"a": OSError(errno.ENOENT, "Not found")})}),
    FileNotFoundError(errno.ENOENT, "No such file"),
    OSError(FileNotFoundError(errno.ENOENT, "No such file")),
]

Fail = Callable[..., None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Lets the second file system fail at paths that hold some text."""

    def start(error: Exception, where: str = "", calls: tuple[str, ...] = ("exists", "_list", "open")) -> None:
        for name in calls:
            original = getattr(MemoryFileSystem, name)

            def call(self: Any, path: str, *rest: Any, original: Any = original) -> Any:
                if where in path:
                    raise error
                return original(self, path, *rest)

            monkeypatch.setattr(MemoryFileSystem, name, call)

    return start


READERS: dict[str, Callable[[str], Any]] = {
    "exists": storage.exists,
    "list_files": storage.list_files,
    "glob": lambda path: list_files(f"{path}*"),
    "read_bytes": storage.read_bytes,
    "read_json": storage.read_json,
    "sha256_of": storage.sha256_of,
    "open_file": storage.open_file,
    "read_parquet_schema": parquet_files.read_parquet_schema,
    "delete": storage.delete,
    "delete_folder": storage.delete_folder,
}


@pytest.mark.parametrize("error", REFUSED, ids=repr)
@pytest.mark.parametrize("name", READERS)
def test_no_answer_is_an_error_that_names_the_path(memory_root: str, fail: Fail, error: Exception, name: str) -> None:
    write_file(memory_root, "a", b"{}")
    fail(error)
    with pytest.raises(ReadRefused) as raised:
        READERS[name](join(memory_root, "a"))
    said = str(raised.value)
    assert said.startswith(f"cannot read {memory_root}/a")
    assert "then run the same command again" in said
    assert verdict_on(raised.value) == (FAULT, [said])
    in_worker = RuntimeError(f"schemas.errors.ReadRefused: {said} [while running 'ReadFile']")
    assert verdict_on(in_worker) == (FAULT, [said])


@pytest.mark.parametrize("call", ["exists", "_list", "open", "checksum", "metadata"])
@pytest.mark.parametrize("error", REFUSED, ids=repr)
def test_a_source_that_its_storage_does_not_describe_is_an_error_that_names_it(
    memory_root: str, fail: Fail, error: Exception, call: str
) -> None:
    write_file(memory_root, "r.csv", b"user_id,item_id\na,b\n")
    path = join(memory_root, "r.csv")
    assert resolve_ratings(path).files
    fail(error, calls=(call,))
    with pytest.raises(ReadRefused, match=f"cannot read {path}"):
        resolve_ratings(path)


@pytest.mark.parametrize("error", ABSENT, ids=repr)
def test_not_found_is_nothing(memory_root: str, fail: Fail, error: Exception) -> None:
    fail(error)
    path = join(memory_root, "a")
    assert not storage.exists(path)
    assert list_files(path) == list_files(join(memory_root, "*")) == list_files(join(memory_root, "**")) == []
    with pytest.raises(FileNotFoundError, match=path):
        storage.read_bytes(path)
    with pytest.raises(InputError, match="is gone or damaged"):
        parquet_files.read_parquet_schema(path)
    storage.delete(path)


def test_an_answer_that_breaks_off_is_an_error_that_names_the_path(memory_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemas.parquet_files import parquet_writer, read_parquet_blocks
    from tests.test_storage import TABLE as ROWS

    with parquet_writer(memory_root, "t.parquet", ROWS.schema, []) as writer:
        for _ in range(50):
            writer.write_batch(ROWS.to_batches()[0])
    path = join(memory_root, "t.parquet")
    original = MemoryFileSystem.open

    def breaking(self: Any, path: str, *rest: Any) -> Any:
        file = original(self, path, *rest)
        read, reads = file.read, iter(range(4))

        def some(size: int = -1) -> bytes:
            if next(reads, None) is None:
                raise HttpError(503)
            return read(size)

        file.read = some
        return file

    monkeypatch.setattr(MemoryFileSystem, "open", breaking)
    for read in (storage.read_bytes, lambda path: list(read_parquet_blocks(path))):
        monkeypatch.setattr(storage, "_COPY_BYTES", 16)
        with pytest.raises(ReadRefused, match=r"cannot read memory://.*t.parquet \(HttpError: HTTP 503\)"):
            read(path)


def test_what_a_disk_does_not_give_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("{}")
    path = str(tmp_path / "folder" / "file")
    assert [each.path for each in list_files(f"{tmp_path}/**")] == [path]
    assert [each.path for each in list_files(f"{tmp_path}/folder/")] == [path]
    assert list_files(f"{path}/below/*") == list_files(f"{tmp_path}/none/**") == list_files(f"{path}/below") == []
    assert not storage.exists(f"{path}/below")

    def refuse(*_: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("stat", "scandir"):
        monkeypatch.setattr(os, name, refuse)
    for read in (storage.exists, list_files, lambda path: list_files(f"{path}/*"), lambda path: list_files(f"{path}/**")):
        with pytest.raises(ReadRefused, match=r"cannot read .*folder.*\[Errno 5\] Input/output error\): wait until"):
            read(str(tmp_path / "folder"))


def test_nobody_is_withdrawn_forgotten_or_at_work_only_where_the_storage_says_so(memory_root: str, fail: Fail) -> None:
    workspace = Workspace(memory_root)
    ask_for: list[Callable[[], Any]] = [
        lambda: find_withdrawals(workspace),
        lambda: read_leases(workspace),
        lambda: find_releases(workspace),
        lambda: read_latest(workspace),
        lambda: read_forgotten(workspace),
        lambda: read_manifest(workspace.manifest("train", "0" * 16)),
        lambda: workspace.finished("train"),
    ]
    for each in ask_for:
        assert each() in (None, [], Forgotten())
    fail(HttpError(503))
    for each in ask_for:
        with pytest.raises(ReadRefused):
            each()


@pytest.mark.parametrize("where", ["/leases/", "/withdrawn/", "/releases/", "LATEST"])
def test_nothing_is_deleted_while_the_storage_does_not_say_what_is_needed(
    memory_root: str, fail: Fail, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (1, 2, 3):
        write_release(memory_root, day, TABLE)
    capsys.readouterr()
    ask(capsys, "rollback", "LATEST", f"--output={memory_root}", code=2)
    before = set(FILES)
    fail(HttpError(503), where)
    command = ["gc", f"--output={memory_root}", "--keep=1", "--min_age_hours=0"]
    assert run_command(releases.main, command) == FAULT
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "HTTP 503" in said
    assert "run the same command again" in said
    assert {path for path in FILES if "/leases/" not in path} == {path for path in before if "/leases/" not in path}


def test_a_file_that_the_storage_does_not_give_is_not_taken_for_an_altered_one(
    memory_root: str, fail: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    old, _ = (write_release(memory_root, day, TABLE) for day in (1, 2))
    before = dict(FILES)
    fail(HttpError(503), "/topk/", calls=("open",))
    for command in (["verify", old["release"]], ["rollback"]):
        assert run_command(releases.main, [*command, f"--output={memory_root}"]) == FAULT
        said = capsys.readouterr().err
        assert "/topk/part-000000.parquet (HttpError: HTTP 503): wait until the storage answers" in said
        assert "damaged" not in said
    assert FILES["memory://bucket/output/LATEST"] == before["memory://bucket/output/LATEST"]


def test_a_lease_that_cannot_be_read_is_not_taken_for_ended(memory_root: str, fail: Fail) -> None:
    workspace = Workspace(memory_root)
    write_file(memory_root, workspace.lease("a"), b"{}")
    fail(HttpError(404), calls=("open",))
    with pytest.raises(ReadRefused):  # It is listed, and there, but not given.
        read_leases(workspace)


def test_what_cannot_be_deleted_is_named(memory_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(memory_root, "a", b"")

    def refuse(_: object, paths: list[str]) -> None:
        raise BeamIOError("Delete operation failed", {path: HttpError(503) for path in paths})

    monkeypatch.setattr(MemoryFileSystem, "delete", refuse)
    with pytest.raises(WriteRefused, match=r"cannot delete memory://.*/a \(HTTP 503\): .*run the same command again"):
        storage.delete(join(memory_root, "a"))


def test_forgetting_does_not_report_that_nobody_is_left(
    memory_root: str, fail: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(memory_root, 1, TABLE)
    fail(HttpError(503), "/stages/", calls=("_list", "open"))
    capsys.readouterr()
    assert run_command(releases.main, ["forget", "--user=nobody", f"--output={memory_root}", "--json"]) == FAULT
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["exit_status"] == FAULT


@pytest.mark.parametrize("relative", [False, True])
def test_only_what_can_match_needs_to_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """A locked folder beside the files, such as a disk's `lost+found`, is no matter; one that may hold some is, by its name."""
    (tmp_path / "day").mkdir()
    for path in ("a.csv", "b.txt", "day/c.csv"):
        (tmp_path / path).write_text("x")
    scandir = os.scandir

    def locked(path: str) -> Any:
        if os.path.basename(path) == "day":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    monkeypatch.chdir(tmp_path)
    before = "" if relative else f"{tmp_path}/"
    assert [each.path for each in list_files(f"{before}*.csv")] == [f"{before}a.csv"]
    with pytest.raises(ReadRefused, match=r"day\b.*Permission denied|Permission denied.*day\b"):
        list_files(f"{before}**.csv")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert [each.path for each in list_files(f"{before}*/*.csv")] == [f"{before}day/c.csv"]
    assert [each.path for each in list_files(f"{before}**.csv")] == [f"{before}a.csv", f"{before}day/c.csv"]
