"""How many examples a second Shortlist trains on, beside the loop of TFRS's tutorial, and as the catalogue grows.

    python -m benchmarks.training_speed --ratings ml-100k.inter [--items ml-100k.item] [--save FILE]

First, both on the tutorial's training rows, with the same towers (an embedding of each id) of the same dimension: the
tutorial's loop as published (strings looked up in the model, Keras's `fit`, batches of 8,192) and with Shortlist's batch size,
Shortlist's with its own and with the tutorial's. They take turns, an epoch each, after one that traces; medians count. Then
both are trained to their end (Shortlist to its best epoch, and anew on all rows) and judged by the test rows. At last Shortlist
on made ratings of catalogues that grow, with as many rows each.

Prints lines of JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.timing import in_turns, num_threads, timed
from benchmarks.tutorial import published
from benchmarks.tutorial.accuracy import accuracy_of, train_model, unseen_lists
from benchmarks.tutorial.job import run_job, write_training_rows
from benchmarks.tutorial.model import TutorialModel, batches
from benchmarks.tutorial.ratings import Ratings, read_ratings
from pipelines.cli import logs
from pipelines.cli.command import run_command
from schemas.errors import InputError
from transforms.train.rows import TrainingRows, read_rows
from transforms.train.settings import TrainingSettings
from transforms.train.training import train

SETTINGS = TrainingSettings(user_tower="id", dim=published.DIM)
"""Shortlist's defaults, with the tutorial's towers."""
NUM_USERS = 50_000
"""Of the made ratings."""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", required=True, help="a file, a folder or tfds:NAME, as for a run")
    parser.add_argument("--items", help="likewise: the catalogue")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each loop (default 3)")
    parser.add_argument("--catalogues", default="1700,17000,170000,1700000", help="sizes of the made catalogues")
    parser.add_argument("--made_rows", type=int, default=2_000_000, help="ratings of each (default 2000000)")
    parser.add_argument("--save", type=Path, help="a file for the lines of JSON")
    flags = parser.parse_args(argv)
    sizes = [int(each) for each in flags.catalogues.split(",")]
    if max(sizes) > flags.made_rows:
        raise InputError(f"a catalogue of {max(sizes)} items needs as many rows, got {flags.made_rows}: raise --made_rows")
    logs.configure(verbose=False)
    ratings = read_ratings(flags.ratings, flags.items)
    lines: list[dict[str, Any]] = []

    def say(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    with tempfile.TemporaryDirectory(prefix="shortlist-") as scratch:
        interactions = Path(scratch, "interactions.parquet")
        pq.write_table(ratings.table.slice(0, ratings.num_train), interactions)
        say(compare_loops(ratings, read_rows([str(interactions)]), flags.repeats))
        say(compare_quality(ratings, write_training_rows(ratings, Path(scratch)), scratch))
    first = None
    for size in sizes:
        line = measure_catalogue(size, flags.made_rows, flags.repeats)
        first = first or line["examples_per_second"]
        say(line | {"against_first": round(line["examples_per_second"] / first, 3)})
    if flags.save:
        flags.save.write_text("".join(json.dumps(line) + "\n" for line in lines))


def compare_loops(ratings: Ratings, rows: TrainingRows, repeats: int) -> dict[str, Any]:
    """Returns the examples a second of both loops, with both batch sizes."""
    sizes = (published.BATCH_SIZE, SETTINGS.batch_size)
    loops = {f"tutorial, batches of {size:,}": epoch_of_tutorial(ratings, size) for size in sizes}
    loops |= {f"Shortlist, batches of {size:,}": partial(epoch_of_shortlist, rows, size) for size in sizes[::-1]}
    seconds = in_turns(loops, repeats)
    speeds = {name: len(rows.user) / each for name, each in seconds.items()}
    as_published = next(iter(speeds.values()))
    return {
        "rows": len(rows.user),
        "dim": SETTINGS.dim,
        "threads": num_threads(),
        "examples_per_second": {name: round(speed) for name, speed in speeds.items()},
        "against_tutorial": {name: round(speed / as_published, 2) for name, speed in speeds.items()},
    }


def epoch_of_tutorial(ratings: Ratings, batch_size: int) -> Callable[[], float]:
    """Returns what trains the tutorial's model for one more epoch, and says how many seconds that took."""
    model = TutorialModel(ratings)
    rows = batches(ratings, ratings.train, batch_size)
    model.fit(rows, epochs=1, verbose=0)  # Traces.
    return lambda: timed(lambda: model.fit(rows, epochs=1, verbose=0))[1]


def epoch_of_shortlist(rows: TrainingRows, batch_size: int) -> float:
    """Returns the seconds of an epoch of Shortlist's."""
    return epoch_seconds(rows, replace(SETTINGS, batch_size=batch_size, validation_fraction=0, epochs=2))[0]


def epoch_seconds(rows: TrainingRows, settings: TrainingSettings) -> list[float]:
    """Returns what each epoch takes but the first, which traces."""
    ends: list[float] = []
    train(rows, settings, on_epoch=lambda _: ends.append(time.perf_counter()))
    return np.diff(ends).tolist()


def compare_quality(ratings: Ratings, training_rows: Path, output: str) -> dict[str, Any]:
    """Returns how often a test row's item is among the first 100 of its user's list, without what the user has seen."""
    model, seconds = timed(lambda: train_model(ratings))
    served = run_job(ratings, training_rows, output, f"--user_tower={SETTINGS.user_tower}", f"--dim={SETTINGS.dim}")
    user, item = ratings.user[ratings.test], ratings.item[ratings.test]
    lists = {"tutorial": unseen_lists(*model.vectors(ratings), ratings), "Shortlist": served.lists}
    return {
        "top_100_accuracy": {name: round(accuracy_of(each[user], item)[100], 4) for name, each in lists.items()},
        "seconds_to_train": {"tutorial": round(seconds, 1), "Shortlist": round(served.train_metrics["train_seconds"], 1)},
    }


def measure_catalogue(num_items: int, num_rows: int, repeats: int) -> dict[str, Any]:
    """Returns Shortlist's speed on made ratings of a catalogue."""
    rows = made_rows(num_items, num_rows)
    settings = replace(SETTINGS, validation_fraction=0, epochs=repeats + 1)
    seconds = statistics.median(epoch_seconds(rows, settings))
    return {"items": num_items, "rows": num_rows, "examples_per_second": round(num_rows / seconds)}


def made_rows(num_items: int, num_rows: int) -> TrainingRows:
    """Makes rows of random users in which every item has a row, and items follow Zipf's law."""
    rng = np.random.default_rng(0)
    # The inverse of a law of 1 / rank, cut off at the last item.
    ranks = (num_items + 1) ** rng.random(num_rows - num_items) - 1
    item = np.concatenate([np.arange(num_items), ranks.astype(np.int64)]).astype(np.int32)
    user = rng.integers(0, NUM_USERS, num_rows, np.int32)
    order = np.lexsort((item, user))
    users, items = (pa.array(np.char.zfill(np.arange(count).astype(str), 8)) for count in (NUM_USERS, num_items))
    return TrainingRows(users, items, user[order], item[order])


if __name__ == "__main__":
    sys.exit(run_command(main))
