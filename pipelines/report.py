"""Prints where a release's report is: `python -m pipelines.report --output DIR [--release NAME] [--to FILE]`.

Every release is published with its report, and its manifest knows the report's SHA-256. Where the file is gone or altered, it
is made again from the manifest and the files that the manifest names, byte for byte as it was. With --to, a fresh one is
written to FILE instead: for a release of an earlier version of the program, whose own report cannot be made again by this one.
"""

import argparse
import sys
from collections.abc import Sequence

from pipelines.cli.command import run_command
from pipelines.cli.options import OneLineParser
from pipelines.cli.settings import check_root
from pipelines.job.report import _read_served, _write, report_of, restore
from schemas.release import read_named
from schemas.workspace import Workspace


def main(argv: Sequence[str]) -> None:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", required=True, help="the output root")
    parser.add_argument("--release", metavar="NAME", help="of which release; what LATEST names by default")
    parser.add_argument("--to", metavar="FILE", help="write a fresh report there")
    flags: argparse.Namespace = parser.parse_args(list(argv))
    check_root(flags.output)
    workspace = Workspace(flags.output.rstrip("/") or "/")
    manifest = read_named(workspace, flags.release) if flags.release else _read_served(workspace)
    if flags.to:
        _write(flags.to, report_of(workspace, manifest).encode())
    print(flags.to or restore(workspace, manifest))


if __name__ == "__main__":
    sys.exit(run_command(main))
