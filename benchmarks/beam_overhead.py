"""What Beam costs: the recommend stage against a bare loop that does the same with the same tower and index.

    python -m benchmarks.beam_overhead [--output DIR]

Without --output, makes ratings of 200,000 users and 50,000 items and runs the job on them first (one epoch: only the time of
`recommend` is of interest). Prints one line of JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.made_ratings import make_ratings
from pipelines import run
from pipelines.cli.command import run_command
from pipelines.cli.config import parse_command
from pipelines.engine.stage import Chain, run_pipeline
from pipelines.job import finished
from pipelines.job.prepare import Job
from pipelines.stages import recommend
from pipelines.stages.outputs import IndexOutputs
from schemas.parquet_files import parquet_writer, read_parquet_blocks
from schemas.storage import WrittenFile, join
from schemas.topk import TOPK
from transforms.index.embed import UserTower, embed_users
from transforms.index.load import load_index
from transforms.index.popular import RANKINGS
from transforms.io.write import part_path
from transforms.lists import recall_segments
from transforms.lists.canaries import NUM_CANARIES, MergeMeasured, canary_users, join_canaries, report
from transforms.lists.canaries import measure as measure_block
from transforms.lists.fused import recommend_block
from transforms.lists.table import dated, row_groups
from transforms.search.list_settings import ListSettings
from transforms.search.ranking_metrics import JudgeRankings, MeanOfRows

NUM_USERS, NUM_ITEMS, RATINGS_A_USER = 200_000, 50_000, 20


def bare_loop(job: recommend.RecommendJob, attempt: str, lists: ListSettings) -> float:
    """Does what the stage does, without Beam; returns seconds, loading included."""
    started = time.perf_counter()
    tower = UserTower(job.tower)
    index = load_index(job.index)
    judge, mean = JudgeRankings(lists.cutoffs, job.num_items), MeanOfRows()
    sums, recalls = judge.create_accumulator(), mean.create_accumulator()
    popular = {by: judge.create_accumulator() for by in RANKINGS}
    written: list[WrittenFile] = []
    fraction = lists.checked_fraction * NUM_CANARIES / recommend.CHECKED_USERS
    users, served, exact = [], [], []
    for part, path in job.users.items():
        with parquet_writer(attempt, part_path("topk", part), TOPK, written) as writer:
            for block in read_parquet_blocks(path):
                known = embed_users(block, tower)
                made = recommend_block(known, index, lists)
                for group in row_groups(dated(made.topk, None), lists.k):
                    writer.write_batch(group.cast(TOPK))
                sums = judge.add_input(sums, (made.lists, made.holdout))
                popular = {by: judge.add_input(popular[by], (made.popular[by], made.holdout)) for by in RANKINGS}
                recalls = mean.add_input(recalls, made.recalls)
                users.append(canary_users(known, lists, fraction))
                exact.append(made.exact)
                served.append(recall_segments.served_lists(made.topk, lists.checked_fraction))
    for each in (sums, *popular.values()):
        judge.extract_output(each)
    mean.extract_output(recalls)
    canaries = join_canaries(users, served, exact, job.dim)
    items = recall_segments.compare(served, exact)
    merge, verdict = MergeMeasured(lists.k), None
    for path in job.embeddings:
        for block in read_parquet_blocks(path):
            verdict = merge.add_input(verdict, measure_block(block, canaries, lists.k))
    indexed = (block for path in job.items for block in read_parquet_blocks(path))
    found = [recall_segments.sums_by_popularity(block, items) for block in indexed]
    report(verdict, canaries)
    recall_segments.report(np.sum(found, axis=0), items)
    return time.perf_counter() - started


def measure(output: str, repeats: int) -> dict:
    """Alternates both, and returns medians and their ratio."""
    settings, options = parse_command([f"--output={output}"], "")
    done = finished.finished_before("judge", Job(settings)).published
    stage = recommend.plan(Chain(settings, done))
    job, lists = stage.job, stage.job.lists
    seconds: dict[str, list[float]] = {"beam": [], "bare": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as attempt:
            started = time.perf_counter()
            run_pipeline(stage, attempt, options)
            seconds["beam"].append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as attempt:
            seconds["bare"].append(bare_loop(job, attempt, lists))
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return {
        "users": done["ingest"].rows("users"),
        "items": done["embed"].rows("embeddings"),
        "shards": IndexOutputs.of(done["index"]).num_shards,
        "k": lists.k,
        "seconds": medians,
        "ratio": round(medians["beam"] / medians["bare"], 3),
        "repeats": repeats,
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", help="the output of a run; without it, one is made")
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        output = flags.output
        if not output:
            output = join(folder, "output")
            ratings = make_ratings(Path(folder, "ratings.parquet"), NUM_USERS, NUM_ITEMS, RATINGS_A_USER)
            run.main([f"--ratings={ratings}", f"--output={output}", "--epochs=1", "--num_shards=4", "--num_buckets=8"])
        print(json.dumps(measure(output, flags.repeats)))


if __name__ == "__main__":
    sys.exit(run_command(main))
