"""What keeping a model saves between two trainings: a night, then a day's ratings more with `--reuse_model_from LATEST`.

    python -m benchmarks.daily --ratings FILE.csv --items FILE [--days 1] [any flag of a run]

The ratings (CSV with user_id, item_id, rating, timestamp) are cut before their last `--days`. The job runs on what was before,
and then on everything, from copies of that output, each in a process of its own:

    kept     the model kept, lists carried over
    anew     the same model, every list made anew and the index built anew: the table must be the same but for scored_at
    trained  the whole job again, with its trainings

Prints one line of JSON: how many lists were carried over, why the others were not, and the CPU time of all threads, as shares
of the whole job's.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipelines.cli.options import OneLineParser
from schemas.storage import read_json

FLAGS = ("--user_tower=history", "--split=temporal", "--refit")
"""What a nightly job has; flags that are given win."""

_NOTHING_CARRIED = """
import sys
from dataclasses import replace
from pipelines import run
from pipelines.cli.command import run_command
from pipelines.job import chains
from pipelines.stages import calibrate, index, recommend
anew = lambda chain: replace(index.plan(chain), sources=[{"another": "index"}])
chains.STAGES["index"] = replace(index.STAGE, plan=anew)
calibrate.kept_search = lambda *_: None
recommend.base_lists = lambda *_: "asked for by the benchmark"
sys.exit(run_command(run.main, sys.argv[1:]))
"""
_JOB = ("-m", "pipelines.run")


def cut_ratings(path: str, days: float, folder: Path) -> tuple[Path, Path, int]:
    """Writes the ratings before the last days, and all of them, to CSV files; returns both, and how many there are of late."""
    kinds = {"user_id": "string", "item_id": "string"}
    ratings = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(column_types=kinds))
    late = pc.greater(ratings["timestamp"], pc.max(ratings["timestamp"]).as_py() - int(days * 86_400))
    before, today = folder / "before.csv", folder / "today.csv"
    pacsv.write_csv(ratings.filter(pc.invert(late)), before)
    pacsv.write_csv(ratings, today)
    return before, today, int(pc.sum(late).as_py())


def run_job(command: Sequence[str], flags: Sequence[str]) -> float:
    """Runs a job in a process of its own, and returns its CPU time in seconds.

    Raises:
      RuntimeError: if it did not end well.
    """
    before = _cpu_of_children()
    made = subprocess.run([sys.executable, *command, *flags], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"the job ended with exit code {made.returncode}: {made.stderr}")
    return _cpu_of_children() - before


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def release_of(output: Path) -> dict[str, Any]:
    """Returns the manifest of the release that is served."""
    return read_json(str(output / read_json(str(output / "LATEST"))["manifest"]))


def lists_of(output: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of the table that is served, without their dates, by user."""
    paths = [output / file["path"] for file in release_of(output)["topk"]]
    rows = (row for path in paths for row in pq.read_table(path).drop_columns(["scored_at"]).to_pylist())
    return {row["user_id"]: row for row in rows}


def measure(ratings: str, days: float, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """Runs the job four times.

    Raises:
      RuntimeError: if a job failed, or the table of carried lists is not that of new ones.
    """
    before, today, added = cut_ratings(ratings, days, folder)
    night = folder / "night"
    run_job(_JOB, [*flags, f"--ratings={before}", f"--output={night}"])
    seconds = {}
    for name, command, more in (
        ("kept", _JOB, ["--reuse_model_from=LATEST"]),
        ("anew", ("-c", _NOTHING_CARRIED), ["--reuse_model_from=LATEST"]),
        ("trained", _JOB, []),
    ):
        output = shutil.copytree(night, folder / name)
        seconds[name] = run_job(command, [*flags, f"--ratings={today}", f"--output={output}", *more])
    if lists_of(folder / "kept") != lists_of(folder / "anew"):
        raise RuntimeError("the table of carried lists is not the table of new ones")
    return {
        "ratings_added": added,
        **release_of(folder / "kept")["base"],
        "cpu_share_of_all_lists_anew": round(seconds["kept"] / seconds["anew"], 3),
        "cpu_share_of_the_whole_job": round(seconds["kept"] / seconds["trained"], 3),
        "cpu_seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def main(argv: Sequence[str]) -> None:
    """Measures, and prints the result."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--ratings", required=True)
    parser.add_argument("--days", type=float, default=1.0, help="how many of the last days come later (default 1)")
    flags, rest = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="shortlist-daily-") as folder:
        print(json.dumps(measure(flags.ratings, flags.days, [*FLAGS, *rest], Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
