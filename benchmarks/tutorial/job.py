"""Shortlist's own job on the tutorial's training rows: the lists that it makes for the users of the test rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from benchmarks.tutorial import published
from benchmarks.tutorial.ratings import Ratings
from pipelines.cli.config import parse_command
from pipelines.job import runner
from pipelines.job.prepare import Job
from schemas.parquet_files import read_parquet_blocks
from transforms.search.id_map import list_lengths, places_in_lists

K = max(published.ACCURACY)


def write_training_rows(ratings: Ratings, folder: Path) -> Path:
    """Writes the training rows to a file that the job can read.

    Without their times: the test rows are drawn by chance, and with times the job would prepare for what comes after.
    """
    path = folder / "train.parquet"
    pq.write_table(ratings.table.slice(0, ratings.num_train).drop_columns("timestamp"), path)
    return path


class Served(NamedTuple):
    """What the job made.

    Attributes:
      lists: [num_users, 100] int64 codes, best first, -1 where there is none, as for a user without training rows.
      train_metrics: of the stage that trained.
    """

    lists: np.ndarray
    train_metrics: Mapping[str, Any]


def run_job(ratings: Ratings, train: Path, output: str, *flags: str) -> Served:
    """Runs the job, default settings but for `flags`, and reads its table.

    Args:
      ratings: whose codes to use.
      train: the file of training rows.
      output: the job's; what is done there already is not done again.
      flags: of the job.
    """
    command = [f"--ratings={train}", f"--output={output}", "--split=none", f"--k={K}", *flags]
    settings, options = parse_command(command, "")
    done = runner.run(Job(settings), options).published
    lists = np.full((len(ratings.user_ids), K), -1, np.int64)
    for path in done["recommend"].paths(output, "topk"):
        for block in read_parquet_blocks(path, ["user_id", "recommendations"]):
            users = np.searchsorted(ratings.user_ids, block["user_id"].to_numpy(zero_copy_only=False))
            column = block["recommendations"]
            items = np.searchsorted(ratings.item_ids, column.flatten().field("item_id").to_numpy(zero_copy_only=False))
            lengths = list_lengths(column)
            lists[np.repeat(users, lengths), places_in_lists(lengths)] = items
    return Served(lists, done["train"].metrics)
