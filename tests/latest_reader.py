"""A consumer of the table that never rests: it follows LATEST and reads all that LATEST names, while runs come and go."""

import hashlib
import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.parquet as pq

_PAUSE_SECONDS = 0.02


def digest_of_table(output: Path, latest: dict[str, Any]) -> tuple[str, int]:
    """Reads every row of the table that a pointer names; returns a hash of the rows' values, and how many there are."""
    rows = [row for path in latest["topk"] for row in pq.read_table(output / path).to_pylist()]
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest(), len(rows)


class LatestReader:
    """Reads the served table over and over in a thread of its own, inside `with`.

    Attributes:
      digests: of the rows of each release that was served, by the release's name.
      readings: how often a whole table was read.
      problem: what was wrong with what LATEST named, if anything ever was.
    """

    def __init__(self, output: Path, num_users: int) -> None:
        self._output = output
        self._num_users = num_users
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)
        self.digests: dict[str, str] = {}
        self.readings = 0
        self.problem: str | None = None

    def __enter__(self) -> "LatestReader":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._try_to_read()  # What is served in the end was read too.
            assert self.problem is None, self.problem

    def _read_on(self) -> None:
        while self.problem is None and not self._stop.wait(_PAUSE_SECONDS):
            self._try_to_read()

    def _try_to_read(self) -> None:
        try:
            if (self._output / "LATEST").exists():
                self._read()
        except Exception as error:
            self.problem = repr(error)

    def _read(self) -> None:
        latest = json.loads((self._output / "LATEST").read_text())
        release = json.loads((self._output / latest["manifest"]).read_text())
        digest, rows = digest_of_table(self._output, latest)
        assert release["release"] == latest["release"]
        assert release["status"] == "passed"
        assert [file["path"] for file in release["topk"]] == latest["topk"]
        assert rows == release["rows"] == self._num_users
        assert self.digests.setdefault(latest["release"], digest) == digest, "a release has changed"
        self.readings += 1
