"""Runs a command and turns its outcome into an exit code, and an error into one line."""

import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipelines.cli.logs import is_verbose
from schemas.errors import GatesFailed, InputError, ReadRefused, WriteRefused
from schemas.printable import printable

OK, FAULT, MISTAKE, GATE_FAILED, STOPPED, TERMINATED = 0, 1, 2, 3, 130, 143
"""Exit codes: done; a fault of the program or the machine; a mistake in the input or the flags; a table that failed its gates,
and is not published; stopped with Ctrl-C; stopped with SIGTERM, as by a scheduler, or a machine that shuts down."""

CALLED_AS: ContextVar[str | None] = ContextVar("CALLED_AS", default=None)
"""What was typed to call the command that runs, such as `shortlist run`; None where a module was called by its own name."""

# Beam adds the step to a worker's message, and most runners bring back nothing but the text of the failure.
_STEP = re.compile(r" \[while running '.*", re.DOTALL)
_INTERRUPTED = re.compile(r"^KeyboardInterrupt\b", re.MULTILINE)
_IN_WORKER = re.compile(r"schemas\.errors\.InputError: (?P<message>[^\n]*)")
_REFUSED_IN_WORKER = re.compile(r"schemas\.errors\.(?:Read|Write)Refused: (?P<message>[^\n]*)")
_NO_SPACE = re.compile(r"^.*\bNo space left on device\b.*$", re.MULTILINE)
_OS_ERROR = re.compile(r"^(?:OSError|PermissionError|FileNotFoundError): (?P<message>\[Errno \d+\][^\n]*)", re.MULTILINE)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; what would be done at Ctrl-C is done."""


GRACE_SECONDS = 5.0
"""How long a command that was told to stop may take to tidy up, before it is ended as it is: Docker kills after ten."""

_SOON_SECONDS = 0.05

_TOLD_TO_STOP = threading.Event()
"""Whether SIGTERM has come: an exception can be swallowed, or become another, on its way out of a library."""

_STOPPED = "stopped; what was finished is kept, run the same command again to go on"


@contextmanager
def _stopping_when_told_to() -> Iterator[None]:
    """Makes SIGTERM end the block as Ctrl-C does, once: what follows is to tidy up undisturbed, but not for ever.

    Only a process's main thread may say what its signals do; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _TOLD_TO_STOP.clear()
    patience = threading.Timer(GRACE_SECONDS, _end_now)
    patience.daemon = True
    has_ended = threading.Event()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _TOLD_TO_STOP.is_set():
            _TOLD_TO_STOP.set()
            patience.start()
        raise Terminated

    def try_again(unraisable: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised while it deletes an object, as TensorFlow's are all the time."""
        if unraisable.exc_type is not Terminated:
            report(unraisable)
            return
        signal.signal(signal.SIGTERM, stop)
        soon = threading.Timer(_SOON_SECONDS, tell_again)
        soon.daemon = True
        soon.start()

    def tell_again() -> None:
        if not has_ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def unless_told(failed: "threading.ExceptHookArgs") -> None:
        """Beam's threads fail when their workers end, as they do when all are told to stop: that is no news then."""
        if not _TOLD_TO_STOP.is_set():
            report_thread(failed)

    report, sys.unraisablehook = sys.unraisablehook, try_again
    report_thread, threading.excepthook = threading.excepthook, unless_told
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        has_ended.set()
        patience.cancel()
        sys.unraisablehook = report
        threading.excepthook = report_thread
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _end_now() -> None:
    """Ends this process and those that it has started, such as Beam's workers; whatever they were at can be done again."""
    _say(_STOPPED)
    for pid in _descendants(os.getpid()):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(TERMINATED)


def _descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have; none where there is no /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit code; what went wrong goes to standard error.

    Args:
      command: takes the flags; raises InputError for a mistake of the user.
      argv: the flags; those of the process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with _stopping_when_told_to():
            command(argv)
    except BrokenPipeError:
        # Whoever reads standard output, such as `head`, has had enough.
        return OK
    except (Exception, KeyboardInterrupt) as error:
        code, messages = verdict_on(error)
        unknown = code == FAULT and machine_fault_in(error) is None
        if unknown or (code in (FAULT, MISTAKE) and is_verbose()):
            traceback.print_exc()
        for message in messages:
            _say(message)
        return code
    finally:
        _let_go_of_closed_output()
    return OK


def called_as() -> str | None:
    """Returns how the command that runs was called, as its --help should show it, or None where nothing is known."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return CALLED_AS.get() or (f"python -m {spec.name}" if spec else None)


def this_python() -> str:
    """Returns the running Python as a shell would name it from here: `.venv/bin/python` where that is what runs."""
    path = Path(sys.executable)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _let_go_of_closed_output() -> None:
    """Drops what nobody reads any more; or else Python would fail to write it as it ends, and change the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def verdict_on(error: BaseException) -> tuple[int, list[str]]:
    """Returns the exit code that an error leads to, and what there is to say of it, a line each."""
    if _TOLD_TO_STOP.is_set():
        return TERMINATED, [_STOPPED]
    if any(isinstance(each, KeyboardInterrupt) or _INTERRUPTED.search(str(each)) for each in causes_of(error)):
        return STOPPED, [_STOPPED]
    if isinstance(error, GatesFailed):
        return GATE_FAILED, error.messages
    mistake = mistake_in(error)
    if mistake is not None:
        return MISTAKE, [mistake]
    return FAULT, [machine_fault_in(error) or "this is a fault of the program, not of the input; finished stages are kept"]


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, and what it came from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def mistake_in(error: BaseException) -> str | None:
    """Returns the message of the InputError behind `error`, on this machine or on a worker, or None."""
    for found in causes_of(error):
        if isinstance(found, InputError):
            return _STEP.sub("", str(found))
        match = _IN_WORKER.search(str(found))
        if match:
            return _STEP.sub("", match["message"])
    return None


def machine_fault_in(error: BaseException) -> str | None:
    """Returns what the machine refused, such as to write on a full disk, or to read, with the repair, or None."""
    for found in causes_of(error):
        match = _REFUSED_IN_WORKER.search(str(found))
        if isinstance(found, (ReadRefused, WriteRefused)) or match:
            return _STEP.sub("", match["message"] if match else str(found))
    text = "".join(traceback.format_exception(error))
    refused = [match["message"] for match in _OS_ERROR.finditer(text)]
    # TensorFlow has errors of its own for what it writes to the folder for temporary files.
    refused = refused or [match[0].strip() for match in _NO_SPACE.finditer(text)]
    if not refused:
        return None
    message = f"the machine refused: {_STEP.sub('', refused[-1])}; finished stages are kept"
    if _NO_SPACE.search(refused[-1]):
        message += f": make room there (temporary files are in {tempfile.gettempdir()}, or where TMPDIR says), and run it again"
    return message


class Output(Console):
    """Prints on standard output; a reader that has had enough, such as `head`, is no error.

    Whatever is printed, no character of it reaches the terminal that could act on it but Rich's own: see `printable`.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, "\n"), segment.style)

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def _say(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]error:[/]", end=" ")
    print(printable(message), file=sys.stderr, flush=True)
