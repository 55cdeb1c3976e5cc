"""A full disk and a folder that is read-only, in every stage: one line that names the path, LATEST as it was, then onward.

The disk is a small tmpfs. Root is not bound by the rights of folders, so what is read-only is a bind mount.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import publish, run
from pipelines.cli.command import FAULT, MISTAKE, OK, run_command
from pipelines.job import chains, single_stage
from schemas.errors import WriteRefused
from schemas.storage import write_json
from tests.latest_reader import LatestReader
from tests.made_data import write_items, write_ratings

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

QUICK = ["--dim=8", "--l2=0.1", "--epochs=1", "--batch_size=64", "--num_shards=2", "--num_buckets=2", "--min_lift=0", "--k=10"]
PAGE_BYTES = 4096
NUM_USERS = 60


def command_of(name: str) -> Callable[[Sequence[str]], None]:
    return publish.main if name == "publish" else single_stage.stage_command(name)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=32m", "shortlist-test", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine does not let a small disk be mounted: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path, pages: int = 0) -> Iterator[None]:
    """Fills a disk, but for some pages, and makes room again."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(bytes(free.f_bavail * free.f_frsize - pages * PAGE_BYTES))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder read-only, for root too."""
    folder.mkdir(exist_ok=True)
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that says what was wrong; there is no traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    return line


def test_every_stage_names_what_is_refused_and_goes_on_when_it_is_mended(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = disk / "out"
    flags = [*QUICK, f"--ratings={write_ratings(tmp_path)}", f"--items={write_items(tmp_path)}", f"--output={output}"]
    assert run_command(run.main, [*flags, "--seed=1"]) == OK
    served = (output / "LATEST").read_bytes()
    flags.append("--seed=2")
    for name in chains.COMMANDS:
        folder = output / ("releases" if name == "publish" else "stages")
        capsys.readouterr()
        with full(disk):
            assert run_command(command_of(name), flags) == FAULT, name
        line = error_line(capsys)
        assert any(f"cannot write {place}/" in line for place in (output / "leases", folder)), name
        assert "No space left on device): make room, then run the same command again" in line, name
        with read_only(folder):
            assert run_command(command_of(name), flags) == FAULT, name
        line = error_line(capsys)
        assert f"cannot write {folder}/" in line, name
        assert "Read-only file system): make it writable, then run the same command again" in line, name
        assert (output / "LATEST").read_bytes() == served, name
        assert not list(output.rglob("*.tmp")), name
        if name != "publish":
            assert run_command(command_of(name), flags) == OK, name
    with read_only(output):
        assert run_command(run.main, flags) == MISTAKE
    assert f"the output {output} cannot be written" in error_line(capsys)

    # Page by page more room: for the manifest, then for LATEST too. What is served is one of both, whole.
    codes = []
    with LatestReader(output, NUM_USERS) as reader:
        for pages in range(64):
            with full(disk, pages):
                codes.append(run_command(run.main, flags))
            if codes[-1] == OK:
                break
            assert (output / "LATEST").read_bytes() == served
    assert codes == [FAULT] * (len(codes) - 1) + [OK]
    assert len(codes) >= 3
    assert (output / "LATEST").read_bytes() != served
    assert len(reader.digests) <= 2


def test_an_error_that_is_none_of_writing_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteRefused, match=r"cannot write .*file/below.json \(.*(Not a directory|File exists)"):
        write_json(str(tmp_path / "file" / "below.json"), {})
