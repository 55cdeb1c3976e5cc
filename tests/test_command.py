"""What went wrong becomes an exit code and one line, wherever it happened."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from pipelines.cli import command
from pipelines.cli.command import FAULT, MISTAKE, OK, STOPPED, TERMINATED, run_command
from schemas.errors import InputError


def test_success_is_zero() -> None:
    assert run_command(lambda argv: None, []) == OK


def test_a_mistake_is_one_line_and_two(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: object) -> None:
        raise InputError("k must be at least 1, got 0:\n raise --k")

    assert run_command(command, []) == MISTAKE
    assert capsys.readouterr().err == "error: k must be at least 1, got 0: raise --k\n"


def test_a_mistake_found_by_a_worker_is_the_same_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(element: int) -> int:
        raise InputError(f"bad value {element} [in brackets]: mend it")

    def command(argv: object) -> None:
        with TestPipeline("FnApiRunner") as pipeline:
            _ = pipeline | beam.Create([7]) | beam.Map(fail)

    assert run_command(command, []) == MISTAKE
    assert capsys.readouterr().err == "error: bad value 7 [in brackets]: mend it\n"


def test_ctrl_c_in_a_worker_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(element: int) -> int:
        raise KeyboardInterrupt

    def command(argv: object) -> None:
        with TestPipeline("FnApiRunner") as pipeline:
            _ = pipeline | beam.Create([7]) | beam.Map(interrupt)

    assert run_command(command, []) == STOPPED
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: stopped; what was finished is kept")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grace that no machine is too slow for: when it is over, the process that runs the tests would be ended."""
    monkeypatch.setattr(command, "GRACE_SECONDS", 300.0)


@pytest.mark.usefixtures("patience")
def test_sigterm_stops_a_command_as_ctrl_c_does_and_a_second_one_does_not_disturb_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tidied = []

    def wait(element: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return element

    def command(argv: object) -> None:
        try:
            with TestPipeline("FnApiRunner") as pipeline:
                _ = pipeline | beam.Create([7]) | beam.Map(wait)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            tidied.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(command, []) == TERMINATED == 128 + signal.SIGTERM
    assert tidied == [True]
    assert capsys.readouterr().err == "error: stopped; what was finished is kept, run the same command again to go on\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("patience")
def test_sigterm_is_not_lost_where_python_drops_what_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def command(argv: object) -> None:
        for _ in range(2):
            Dying()
            time.sleep(0)
        time.sleep(60)

    started = time.monotonic()
    assert run_command(command, []) == TERMINATED
    assert time.monotonic() - started < 60
    assert capsys.readouterr().err == "error: stopped; what was finished is kept, run the same command again to go on\n"


def test_a_command_that_does_not_stop_is_ended_with_all_that_it_started() -> None:
    code = (
        "import subprocess, sys, threading, time; from pipelines.cli import command; command.GRACE_SECONDS = 0.5\n"
        "def stubborn(argv):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    while True:\n"
        "        try:\n"
        "            print(child.pid, flush=True)\n"
        "            time.sleep(600)\n"
        "        except BaseException:\n"
        "            pass\n"
        "sys.exit(command.run_command(stubborn, []))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    child = int(process.stdout.readline())
    process.terminate()
    _, said = process.communicate(timeout=300)
    assert process.returncode == TERMINATED
    assert said == "error: stopped; what was finished is kept, run the same command again to go on\n"
    deadline = time.monotonic() + 60  # a killed process ends when it is next scheduled
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_in_a_thread_leaves_signals_alone() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_command(lambda argv: None, [])))
    thread.start()
    thread.join()
    assert codes == [OK]


def test_a_fault_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: object) -> None:
        raise ZeroDivisionError("oops")

    assert run_command(command, []) == FAULT
    err = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in err
    assert "fault of the program" in err


def test_a_full_disk_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: object) -> None:
        raise OSError(28, "No space left on device")

    assert run_command(command, []) == FAULT
    assert "[Errno 28] No space left on device; finished stages are kept" in capsys.readouterr().err


def test_output_that_nobody_reads_any_more_changes_no_exit_code() -> None:
    """What is still in a buffer as the command ends included."""
    code = """
import sys
from pipelines.cli.command import run_command
from schemas.errors import InputError

def command(argv):
    print("not read")
    raise InputError("this is wrong")

sys.exit(run_command(command, []))
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=buffered, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as made:
        assert made.stdout is not None
        made.stdout.close()
        assert made.stderr is not None
        assert made.stderr.read() == "error: this is wrong\n"
    assert made.returncode == MISTAKE


@pytest.mark.parametrize("is_told", [True, False])
def test_a_thread_that_fails_because_all_are_told_to_stop_is_no_news(is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail() -> None:
        raise RuntimeError("a worker has gone")

    def fails(_: object) -> None:
        try:
            if is_told:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        finally:
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()

    assert run_command(fails, []) == (TERMINATED if is_told else OK)
    assert len(told) == (not is_told)
