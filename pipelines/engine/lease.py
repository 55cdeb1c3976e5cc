"""Holds a lease while a command runs: it is renewed regularly, and expires soon after the command was killed."""

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType

from pipelines.cli.logs import LOGGER
from schemas.lease import Lease, living, read_leases, write_lease
from schemas.storage import delete, join
from schemas.workspace import Workspace

EXPIRES_SECS = 900.0
"""How long a lease counts after it was last written."""

BEAT_SECS = 60.0
"""How often it is written: a storage that fails for some minutes does not end it."""

LEFT_SECS = 24 * 3600.0
"""How long the lease of a single stage counts after its end: a scheduler's next task builds on it."""

_LOOK_SECS = 1.0


def time_in(seconds: float) -> str:
    """Returns the time so many seconds from now: UTC, ISO 8601, to the millisecond."""
    return as_time(datetime.now(UTC) + timedelta(seconds=seconds))


def as_time(moment: datetime) -> str:
    """Returns a moment, in UTC, as times are written: ISO 8601, to the millisecond."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LeaseHolder:
    """A lease on some folders of an output, for as long as the `with` block runs.

    Nothing is written before the first folder is asked for.
    """

    def __init__(self, workspace: Workspace, command: str, left_secs: float = 0.0) -> None:
        """Prepares a lease.

        Args:
          workspace: the output.
          command: who holds it, for people.
          left_secs: how long it still counts after the block has ended.
        """
        self._workspace = workspace
        self._left_secs = left_secs
        self._lease = Lease(uuid.uuid4().hex[:12], command, socket.gethostname(), time_in(0), time_in(EXPIRES_SECS))
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "LeaseHolder":
        return self

    def use(self, folders: Iterable[str]) -> None:
        """Takes folders into use, relative to the output root; where one is just being deleted, waits until that is done."""
        new = [folder for folder in folders if folder not in self._lease.uses]
        if not new:
            return
        self._write(lambda lease: replace(lease, uses=tuple(dict.fromkeys([*lease.uses, *new]))))
        told = False
        while others := [each for each in self._others() if set(each.deletes) & set(new)]:
            if not told:
                LOGGER.info("waiting for %s on %s, which deletes what nobody used", others[0].command, others[0].host)
                told = True
            time.sleep(_LOOK_SECS)

    def announce(self, folders: Iterable[str]) -> set[str]:
        """Says which folders are about to be deleted, and returns those of all folders that others use."""
        deletes = tuple(folders)
        self._write(lambda lease: replace(lease, deletes=deletes))
        return {folder for each in self._others() for folder in each.uses}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._beat.ident:
            return
        self._ended.set()
        self._beat.join()
        try:
            if self._left_secs and kind is None:
                self._write(lambda lease: lease, self._left_secs)
            else:
                delete(join(self._workspace.root, self._workspace.lease(self._lease.lease)))
        except Exception as refused:  # It expires by itself.
            LOGGER.warning("the lease %s could not be ended (%s)", self._lease.lease, refused)

    def _others(self) -> list[Lease]:
        return [each for each in living(read_leases(self._workspace), time_in(0)) if each.lease != self._lease.lease]

    def _write(self, change: Callable[[Lease], Lease], expires_secs: float | None = None) -> None:
        """Changes the lease and writes it, one change after the other: none is lost, whichever thread makes it."""
        with self._lock:
            until = time_in(EXPIRES_SECS if expires_secs is None else expires_secs)
            self._lease = replace(change(self._lease), expires_at=until)
            write_lease(self._workspace, self._lease)
            if not self._beat.ident:
                self._beat.start()

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECS):
            try:
                self._write(lambda lease: lease)
            except Exception as refused:  # Whatever it is: a lease that is not renewed any more loses what it is on.
                LOGGER.warning("the lease %s could not be renewed (%s); it is tried again", self._lease.lease, refused)
