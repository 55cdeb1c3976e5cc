"""What C++ libraries log is dropped; what they say otherwise, and what we say, is not."""

import subprocess
import sys

SCRIPT = r"""
import atexit, os, sys
last = b'terminate called without an active exception\n'
atexit.register(lambda: os.write(2, last))
from pipelines.cli import logs
logs.configure({verbose})
logs.LOGGER.info("ours")
os.write(2, b"I0000 00:00:1795500465.839023   11593 partitioner_factory_base.cc:58] Size of sampled dataset: 21\n")
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
print("by python", file=sys.stderr)
"""


def stderr_of(verbose: bool) -> str:
    script = SCRIPT.replace("{verbose}", str(verbose))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr


def test_native_logs_are_dropped_and_nothing_else() -> None:
    shown = stderr_of(verbose=False)
    assert "partitioner_factory" not in shown
    assert "InitializeLog" not in shown
    for words in ("ours", "bad_alloc", "by python", "without an active exception"):
        assert words in shown


def test_verbose_lets_them_speak() -> None:
    shown = stderr_of(verbose=True)
    for words in ("partitioner_factory", "InitializeLog", "ours", "bad_alloc", "by python"):
        assert words in shown
