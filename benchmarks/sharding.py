"""What shards, exclusions and the certificate cost, at equal recall, on the catalogue of TFRS's tutorial.

    python -m benchmarks.sharding --output DIR [--copies 1000] [--shards 1,4,16] [--save FILE]

Takes the item and user vectors of a run on MovieLens-100K (DIR), enlarges the catalogue as the tutorial does (1,000 copies,
each number of a copy times one drawn from 0 to 1: about 1.65 million vectors), and searches for the top 100 of 8,192 users,
whose histories are as long as those of the run. Each index is calibrated to the same recall; then all are timed in turns, wall
and CPU. Prints a line of JSON for each number of shards, and one for what the parts of a search cost with the first of them.

`--catalogue near` makes copies that lie near their item instead (plus Gaussian noise of a tenth of the spread), and
`--catalogue gaussian` one of 1 million independent vectors of 64 normal numbers, with users alike: the two ends of how much
neighbors have to do with each other.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.timing import wall_and_cpu
from benchmarks.tutorial.catalogue import enlarged
from pipelines.cli.command import run_command
from pipelines.cli.config import parse_command
from pipelines.job import finished
from pipelines.job.prepare import Job
from schemas.parquet_files import read_parquet_blocks
from schemas.stage_files import USER_TOWER
from transforms.index.build import vectors_of
from transforms.index.calibration import CalibrationSettings, UserSample, calibrate
from transforms.index.embed import UserTower
from transforms.io.partition import shard_of
from transforms.search.ranking_metrics import recall_against
from transforms.search.scann_index import build, plan_shard
from transforms.search.search import SearchSettings, Shard, top_k_of_block
from transforms.search.top_k import Lists, width_per_shard

K, NUM_USERS, NOISE, REPEATS = 100, 8_192, 0.1, 5
GAUSSIAN_SHAPE = 1_000_000, 64
HEAVY_HISTORY = 20_000


def read_vectors(output: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the items' and the users' vectors of a run, and how long the users' histories are."""
    settings, _ = parse_command([f"--output={output}"], "")
    done = finished.finished_before("judge", Job(settings)).published
    items = [
        vectors_of(block["embedding"])
        for path in done["embed"].paths(output, "embeddings")
        for block in read_parquet_blocks(path)
    ]
    tower = UserTower(done["train"].stored(output, USER_TOWER))
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


def perturbed(vectors: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns `vectors[rows]` with a little noise."""
    noise = rng.standard_normal((len(rows), vectors.shape[1]), np.float32)
    return vectors[rows] + NOISE * vectors.std() * noise


@dataclass(frozen=True)
class Question:
    """What is searched, and for whom.

    Attributes:
      items: [num_items, dim] float32.
      queries: [NUM_USERS, dim] float32.
      lengths: [NUM_USERS] int64: of the users' histories.
    """

    items: np.ndarray
    queries: np.ndarray
    lengths: np.ndarray


def question(catalogue: str, output: str, copies: int, rng: np.random.Generator) -> Question:
    """Makes the catalogue that is named, and the users."""
    items, users, lengths = read_vectors(output)
    drawn = np.arange(NUM_USERS) % len(users)
    if catalogue == "gaussian":
        size, dim = GAUSSIAN_SHAPE
        queries = rng.standard_normal((NUM_USERS, dim), np.float32)
        return Question(rng.standard_normal((size, dim), np.float32), queries, lengths[drawn])
    near = catalogue == "near"
    large = perturbed(items, np.tile(np.arange(len(items)), copies), rng) if near else enlarged(items, copies)
    return Question(large, perturbed(users, drawn, rng), lengths[drawn])


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="the output of a run on MovieLens-100K")
    parser.add_argument("--catalogue", choices=("tutorial", "near", "gaussian"), default="tutorial")
    parser.add_argument("--copies", type=int, default=1_000)
    parser.add_argument("--shards", default="1,4,16")
    parser.add_argument("--target_recall", type=float, default=0.95)
    parser.add_argument("--save", type=Path, help="a file for the lines of JSON")
    flags = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    asked = question(flags.catalogue, flags.output, flags.copies, rng)
    sampled = rng.choice(NUM_USERS, 1_000, replace=False)
    excluded: Lists | None = None
    lines: list[dict[str, Any]] = []
    searches: dict[int, Callable[[], object]] = {}
    parts: dict[str, Callable[[], object]] = {}
    for num_shards in (int(each) for each in flags.shards.split(",")):
        shards, build_seconds = shards_of(asked.items, num_shards)
        if excluded is None:
            excluded = histories(shards, asked.queries, asked.lengths, rng)
        sample = UserSample(asked.queries[sampled], excluded.take(sampled))
        found = calibrate(shards, sample, CalibrationSettings(k=K, target_recall=flags.target_recall))
        search = partial(top_k_of_block, shards, asked.queries, excluded, K, found.search)
        top, counters = search()
        exact, _ = top_k_of_block(shards, sample.queries, sample.excluded, K, found.search, exact=True)
        searches[num_shards] = search
        parts = parts or parts_of(shards, asked.queries, excluded, found.search)
        plan = shards[0].index.plan
        lines.append(
            {
                "catalogue": flags.catalogue,
                "items": len(asked.items),
                "shards": num_shards,
                "build_seconds": round(build_seconds, 1),
                "kind": plan.kind,
                "leaves": plan.num_leaves,
                "leaves_to_search": found.search.leaves_to_search,
                "reorder_per_neighbor": found.search.reorder_per_neighbor,
                "recall": round(recall_against(top.codes[sampled], exact.codes).mean, 4),
                "rows_widened": counters.rows_widened,
                "rows_exact": counters.rows_exact,
            }
        )
        print(f"built and calibrated {num_shards}", file=sys.stderr, flush=True)
    first = None
    for line, (wall, cpu) in zip(lines, wall_and_cpu(searches, REPEATS).values(), strict=True):
        first = first or (wall, cpu)
        line |= {
            "users_per_second": round(NUM_USERS / wall),
            "wall_against_first": round(wall / first[0], 3),
            "cpu_against_first": round(cpu / first[1], 3),
        }
        print(json.dumps(line), flush=True)
    bare, full, heavy = wall_and_cpu(parts, REPEATS).values()
    lines.append(
        {
            "mean_history": round(float(asked.lengths.mean()), 1),
            "exclude_and_certify_against_bare": {"wall": round(full[0] / bare[0], 3), "cpu": round(full[1] / bare[1], 3)},
            "one_heavy_user_against_none": {"wall": round(heavy[0] / full[0], 3), "cpu": round(heavy[1] / full[1], 3)},
            "heavy_history": HEAVY_HISTORY,
        }
    )
    print(json.dumps(lines[-1]), flush=True)
    if flags.save:
        flags.save.write_text("".join(json.dumps(line) + "\n" for line in lines))


def parts_of(
    shards: list[Shard], queries: np.ndarray, excluded: Lists, settings: SearchSettings
) -> dict[str, Callable[[], object]]:
    """Returns a search that excludes and certifies nothing, one that does, and one that has one heavy user among the others."""
    # What the lists of each length would be searched with: the same widths, and nothing after.
    widths = K + 2 ** np.ceil(np.log2(np.maximum(excluded.counts, 8))).astype(int)
    members = {int(width): queries[widths == width] for width in np.unique(widths)}

    def bare() -> None:
        for width, block in members.items():
            of_shard = width_per_shard(width, len(shards))
            for shard in shards:
                shard.index.search(block, of_shard, settings.leaves_to_search, round(of_shard * settings.reorder_per_neighbor))

    heavy = Lists(
        np.concatenate([np.arange(HEAVY_HISTORY), excluded.values[excluded.offsets[1] :]]),
        np.concatenate([[0], excluded.offsets[1:] - excluded.offsets[1] + HEAVY_HISTORY]),
    )
    return {
        "bare": bare,
        "full": partial(top_k_of_block, shards, queries, excluded, K, settings),
        "heavy": partial(top_k_of_block, shards, queries, heavy, K, settings),
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
