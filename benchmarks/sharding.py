"""What shards, exclusions and the certificate cost, at equal recall, on the catalogue of TFRS's tutorial.

    python -m benchmarks.sharding --output DIR [--copies 1000] [--shards 1,4,16]

Takes the item and user vectors of a run on MovieLens-100K (DIR), copies the items, each copy a little perturbed (1,000 times,
as the tutorial does: about 1.65 million vectors), and searches for the top 100 of 8,192 users, whose histories are as long as
those of the run. Each index is calibrated to the same recall. Prints a line of JSON for each number of shards, and after the
first of them one for what the parts of a search cost.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.timing import seconds_of
from pipelines import run
from pipelines.command import run_command
from pipelines.settings import parse_command
from schemas.storage import join, read_parquet_blocks
from transforms.build_indexes import vectors_of
from transforms.calibrate import CalibrationSettings, UserSample, calibrate
from transforms.embed import UserTower
from transforms.partition import shard_of
from transforms.ranking_metrics import recall_against
from transforms.scann_index import build, plan_shard
from transforms.search import SearchSettings, Shard, top_k_of_block
from transforms.top_k import Lists
from transforms.training import USER_TOWER

K, NUM_USERS, NOISE = 100, 8_192, 0.1
HEAVY_HISTORY = 20_000


def read_vectors(output: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the items' and the users' vectors of a run, and how long the users' histories are."""
    settings, _ = parse_command([f"--output={output}"], "")
    done = run.finished_before("judge", settings).published
    items = [
        vectors_of(block["embedding"])
        for path in done["embed"].paths(output, "embeddings")
        for block in read_parquet_blocks(path)
    ]
    tower = UserTower(join(output, done["train"].folder, USER_TOWER))
    users, lengths = [], []
    for path in done["ingest"].paths(output, "users"):
        for block in read_parquet_blocks(path):
            vectors, known = tower.embed(block)
            users.append(vectors[known])
            lengths.append(np.array([len(each) for each in block["history"].to_pylist()])[known])
    return np.concatenate(items), np.concatenate(users), np.concatenate(lengths)


def shards_of(vectors: np.ndarray, num_shards: int) -> tuple[list[Shard], float]:
    """Builds an index of `num_shards`, by the hash of the items' ids; returns it and the seconds that took."""
    of_item = shard_of(pa.array([str(code) for code in range(len(vectors))]), num_shards)
    started = time.perf_counter()
    shards = []
    for shard in range(num_shards):
        codes = np.flatnonzero(of_item == shard)
        shards.append(Shard(build(vectors[codes], plan_shard(len(codes), vectors.shape[1])), codes))
    return shards, time.perf_counter() - started


def histories(shards: list[Shard], queries: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> Lists:
    """Returns what users have seen: some of what is nearest to them, as much as their histories are long."""
    best, _ = top_k_of_block(shards, queries, Lists.none(len(queries)), 2 * K, SearchSettings(leaves_to_search=100))
    seen = [codes[rng.permutation(2 * K)[:length]] for codes, length in zip(best.codes, lengths, strict=True)]
    return Lists(np.concatenate(seen), np.concatenate([[0], np.cumsum([len(each) for each in seen])]))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="the output of a run on MovieLens-100K")
    parser.add_argument("--copies", type=int, default=1_000)
    parser.add_argument("--shards", default="1,4,16")
    parser.add_argument("--target_recall", type=float, default=0.95)
    parser.add_argument("--save", type=Path, help="a file for the lines of JSON")
    flags = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    items, users, lengths = read_vectors(flags.output)

    def perturbed(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal((len(rows), vectors.shape[1]), np.float32)
        return vectors[rows] + NOISE * vectors.std() * noise

    catalogue = perturbed(items, np.tile(np.arange(len(items)), flags.copies))
    drawn = np.arange(NUM_USERS) % len(users)
    queries = perturbed(users, drawn)
    excluded: Lists | None = None
    lines: list[dict[str, Any]] = []
    first = 0.0
    for num_shards in (int(each) for each in flags.shards.split(",")):
        shards, build_seconds = shards_of(catalogue, num_shards)
        if excluded is None:
            excluded = histories(shards, queries, lengths[drawn], rng)
        sampled = rng.choice(NUM_USERS, 1_000, replace=False)
        sample = UserSample(queries[sampled], excluded.take(sampled))
        found = calibrate(shards, sample, CalibrationSettings(k=K, target_recall=flags.target_recall))
        top, counters = top_k_of_block(shards, queries, excluded, K, found.search)
        exact, _ = top_k_of_block(shards, sample.queries, sample.excluded, K, found.search, exact=True)
        recall = recall_against(top.codes[sampled], exact.codes)
        seconds = seconds_of(partial(top_k_of_block, shards, queries, excluded, K, found.search))
        first = first or seconds
        line = {
            "items": len(catalogue),
            "shards": num_shards,
            "build_seconds": round(build_seconds, 1),
            "leaves_to_search": found.search.leaves_to_search,
            "reorder_per_neighbor": found.search.reorder_per_neighbor,
            "recall": round(recall.mean, 4),
            "users_per_second": round(NUM_USERS / seconds),
            "time_against_first": round(seconds / first, 3),
            "rows_widened": counters.rows_widened,
            "rows_exact": counters.rows_exact,
        }
        lines.append(line)
        print(json.dumps(line), flush=True)
        if num_shards == 1:
            lines.append(cost_of_parts(shards, queries, excluded, found.search))
            print(json.dumps(lines[-1]), flush=True)
    if flags.save:
        flags.save.write_text("".join(json.dumps(line) + "\n" for line in lines))


def cost_of_parts(shards: list[Shard], queries: np.ndarray, excluded: Lists, settings: SearchSettings) -> dict[str, float]:
    """Compares a search with one that excludes and certifies nothing, and with one that has one heavy user among the others."""
    index = shards[0].index
    # What the lists of each length would be searched with: the same widths, and nothing after.
    widths = K + 2 ** np.ceil(np.log2(np.maximum(excluded.counts, 8))).astype(int)

    def bare() -> None:
        for width in np.unique(widths):
            members = queries[widths == width]
            index.search(members, int(width), settings.leaves_to_search, round(width * settings.reorder_per_neighbor))

    heavy = Lists(
        np.concatenate([np.arange(HEAVY_HISTORY), excluded.values[excluded.offsets[1] :]]),
        np.concatenate([[0], excluded.offsets[1:] - excluded.offsets[1] + HEAVY_HISTORY]),
    )
    full = seconds_of(lambda: top_k_of_block(shards, queries, excluded, K, settings))
    plain = seconds_of(bare)
    with_heavy = seconds_of(lambda: top_k_of_block(shards, queries, heavy, K, settings))
    return {
        "mean_history": round(float(excluded.counts.mean()), 1),
        "exclude_and_certify_against_bare": round(full / plain, 3),
        "one_heavy_user_against_none": round(with_heavy / full, 3),
        "heavy_history": HEAVY_HISTORY,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
