"""Turns what happens in a command into what its caller sees: an exit code, and one line for a mistake."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from rich.console import Console

from schemas.errors import InputError

OK, FAULT, MISTAKE = 0, 1, 2
"""Exit codes: done; a fault of the program or the machine; a mistake in the input or the flags."""

# Beam adds the step to a worker's message, and most runners bring back nothing but the text of the failure.
_STEP = re.compile(r" \[while running '.*", re.DOTALL)
_IN_WORKER = re.compile(r"schemas\.errors\.InputError: (?P<message>[^\n]*)")
_OS_ERROR = re.compile(r"^(?:OSError|PermissionError|FileNotFoundError): (?P<message>\[Errno \d+\][^\n]*)", re.MULTILINE)


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit code; what went wrong goes to standard error.

    Args:
      command: takes the flags; raises InputError for a mistake of the user.
      argv: the flags; those of the process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command(argv)
    except KeyboardInterrupt:
        _say("stopped; what was finished is kept, run the same command again to go on")
        return 130
    except BrokenPipeError:
        # Whoever reads standard output, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        mistake = mistake_in(error)
        if "--verbose" in argv or mistake is None:
            traceback.print_exc()
        if mistake is not None:
            _say(mistake)
            return MISTAKE
        fault = machine_fault_in(error)
        _say(fault or "this is a fault of the program; what was published before is untouched")
        return FAULT
    return OK


def mistake_in(error: BaseException) -> str | None:
    """Returns the message of the InputError behind `error`, on this machine or on a worker, or None."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, InputError):
            return _STEP.sub("", str(found))
        match = _IN_WORKER.search(str(found))
        if match:
            return _STEP.sub("", match["message"])
        found = found.__cause__ or found.__context__
    return None


def machine_fault_in(error: BaseException) -> str | None:
    """Returns what the operating system refused, such as a full disk, or None."""
    matches = list(_OS_ERROR.finditer("".join(traceback.format_exception(error))))
    return (
        f"the machine refused: {_STEP.sub('', matches[-1]['message'])}; what was published before is untouched"
        if matches
        else None
    )


def _say(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]error:[/]", end=" ")
    print(message, file=sys.stderr, flush=True)
