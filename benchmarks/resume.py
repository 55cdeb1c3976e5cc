"""What a run costs when all is done: how long it takes to find that out, and where the time goes.

    python -m benchmarks.resume [--ratings FILE --items FILE] [--repeats 5]

Without --ratings, makes ratings of 2,000 users and 500 items. Runs the job once, and then over and over, each time in a process
of its own; nothing must change on disk, and TensorFlow, ScaNN and TensorFlow Datasets must not even be imported. Prints one
line of JSON: medians, in seconds; CPU time is of all threads.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.made_ratings import make_ratings

NUM_USERS, NUM_ITEMS, RATINGS_A_USER = 2_000, 500, 20
HEAVY = ("tensorflow", "tf_keras", "scann", "tensorflow_datasets")
"""What only work needs, and takes seconds to import."""

_MEASURED = """
import json, sys, time
started = time.perf_counter(), time.process_time()
from pipelines import run
from pipelines.cli.command import run_command
imported = time.perf_counter(), time.process_time()
code = run_command(run.main, sys.argv[1:])
ended = time.perf_counter(), time.process_time()
print(json.dumps({
    "code": code,
    "import_seconds": imported[0] - started[0], "import_cpu_seconds": imported[1] - started[1],
    "job_seconds": ended[0] - imported[0], "job_cpu_seconds": ended[1] - imported[1],
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""
"""What each process runs."""


def files_of(output: Path) -> dict[str, tuple[int, int]]:
    """Returns every file below a folder: its size and time of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in output.rglob("*") if path.is_file()}


def run_once(flags: Sequence[str]) -> dict:
    """Runs the job in a process of its own, and returns what it measured.

    Raises:
      RuntimeError: if it did not end well.
    """
    made = subprocess.run([sys.executable, "-c", _MEASURED, *flags], capture_output=True, text=True, check=False)
    found = json.loads(made.stdout.splitlines()[-1]) if made.stdout else {"code": made.returncode}
    if found["code"]:
        raise RuntimeError(f"the job ended with exit code {found['code']}: {made.stderr}")
    return found


def measure(flags: Sequence[str], output: Path, repeats: int) -> dict:
    """Runs the job, and then again `repeats` times.

    Raises:
      RuntimeError: if a run that had nothing to do changed a file, or imported what only work needs.
    """
    whole = run_once([*flags, f"--output={output}"])
    before = files_of(output)
    runs = []
    for _ in range(repeats):
        runs.append(run_once([*flags, f"--output={output}"]))
        changed = sorted(set(files_of(output).items()) ^ set(before.items()))
        if changed:
            raise RuntimeError(f"a run with nothing to do changed {changed[0][0]}")
        heavy = [name for name in HEAVY if name in runs[-1]["modules"]]
        if heavy:
            raise RuntimeError(f"a run with nothing to do imported {', '.join(heavy)}")
    medians = {
        name: round(statistics.median(each[name] for each in runs), 3)
        for name in ("import_seconds", "import_cpu_seconds", "job_seconds", "job_cpu_seconds")
    }
    cpu = medians["import_cpu_seconds"] + medians["job_cpu_seconds"]
    whole_cpu = whole["import_cpu_seconds"] + whole["job_cpu_seconds"]
    return {
        **medians,
        "whole_run_cpu_seconds": round(whole_cpu, 3),
        "share_of_a_whole_run": round(cpu / whole_cpu, 4),
        "files": len(before),
        "repeats": repeats,
    }


def main(argv: Sequence[str]) -> None:
    """Measures, and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ratings")
    parser.add_argument("--items")
    parser.add_argument("--repeats", type=int, default=5)
    flags, rest = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="shortlist-resume-") as folder:
        ratings = flags.ratings or make_ratings(Path(folder, "ratings.parquet"), NUM_USERS, NUM_ITEMS, RATINGS_A_USER)
        items = [f"--items={flags.items}"] if flags.items else []
        print(json.dumps(measure([f"--ratings={ratings}", *items, *rest], Path(folder, "output"), flags.repeats)))


if __name__ == "__main__":
    main(sys.argv[1:])
