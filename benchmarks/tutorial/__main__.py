"""Starts the benchmark: `python -m benchmarks.tutorial`; see `benchmarks.tutorial.benchmark`."""

import sys

from benchmarks.tutorial.benchmark import main
from pipelines.cli.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
