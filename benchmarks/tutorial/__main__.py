"""Starts the benchmark: `python -m benchmarks.tutorial`; see `benchmarks.tutorial.benchmark`."""

import sys
from collections.abc import Sequence

from pipelines import logs
from pipelines.command import run_command


def start(argv: Sequence[str]) -> None:
    # Logging comes before TensorFlow is imported.
    logs.configure(verbose=False)
    from benchmarks.tutorial.benchmark import main

    main(argv)


if __name__ == "__main__":
    sys.exit(run_command(start))
