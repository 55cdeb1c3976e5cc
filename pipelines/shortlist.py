"""Runs any command by its name: `shortlist run …` is `python -m pipelines.run …`, and so on for all of COMMANDS.

A command's module is imported when it is called, and runs as `python -m` would run it. Nothing else is imported here that takes
time, so `--help` and a typing error are answered at once.
"""

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from importlib import resources

from pipelines import __version__
from pipelines.cli.command import CALLED_AS, OK, run_command
from schemas.errors import InputError

PROGRAM = "shortlist"

COMMANDS = (
    "run",
    "ingest",
    "lists",
    "train",
    "embed",
    "index",
    "calibrate",
    "recommend",
    "judge",
    "publish",
    "export",
    "tune",
    "sweep",
    "lookup",
    "releases",
    "report",
)
"""Every command, in the order of --help: a module of this package, whose docstring begins with what the command does."""

_NEAR = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the commands, and returns its exit code.

    Args:
      argv: the command and its flags; those of the process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return _run_module(argv[0], argv[1:])
    return run_command(_answer, argv)


def _run_module(name: str, flags: Sequence[str]) -> int:
    """Runs a module as `python -m` does, and returns the code that it exits with."""
    before, called_as = sys.argv, CALLED_AS.set(f"{PROGRAM} {name}")
    sys.argv = [PROGRAM, *flags]
    try:
        runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        return ended.code or OK
    finally:
        sys.argv = before
        CALLED_AS.reset(called_as)
    return OK


def _answer(argv: Sequence[str]) -> None:
    """Answers a command line that calls none of the commands."""
    first = argv[0] if argv else "no command"
    if first in ("-h", "--help"):
        print(help_text())
    elif first == "--version":
        print(f"{PROGRAM} {__version__}")
    elif not argv:
        raise InputError(f"no command: give one of {', '.join(COMMANDS)}: see --help")
    elif first.startswith("-"):
        raise InputError(f"the command comes first, then its flags, got {first!r}: write it as {PROGRAM} run {first}")
    else:
        near = difflib.get_close_matches(first, COMMANDS, n=_NEAR)
        repair = f"did you mean {' or '.join(near)}?" if near else f"give one of {', '.join(COMMANDS)}"
        raise InputError(f"there is no command {first!r}: {repair}")


def help_text() -> str:
    """Returns what --help prints: each command with what it does."""
    width = max(map(len, COMMANDS))
    lines = [
        f"usage: {PROGRAM} COMMAND [FLAGS]",
        "",
        "Ratings in, the top-k items of every user out, as Parquet.",
        "",
        *(f"  {name:<{width}}  {purpose_of(name)}" for name in COMMANDS),
        "",
        f"{PROGRAM} COMMAND --help lists the flags of a command, {PROGRAM} --version tells the version.",
    ]
    return "\n".join(lines)


def purpose_of(name: str) -> str:
    """Returns what a command does: the first words of its module's docstring, which is read, not imported."""
    source = (resources.files(__package__) / f"{name}.py").read_text(encoding="utf-8")
    first, _, _ = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    return first.partition(": `python -m ")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
