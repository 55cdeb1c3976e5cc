"""Writes the top-k of every user, and judges it: `python -m pipelines.recommend --output DIR [--k 100]`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import apache_beam as beam

from pipelines.logs import LOGGER
from pipelines.settings import Settings
from pipelines.stage import Reports, Stage
from schemas.manifest import StageManifest
from schemas.storage import WrittenFile, join
from schemas.topk import TOPK
from transforms.embed import EmbedUsers
from transforms.progress import CountBlocks
from transforms.read import ReadParts
from transforms.recommend import ListSettings, RecommendFused
from transforms.training import USER_TOWER
from transforms.write import WritePlacedBlocks, part_of

CHECKED_USERS = 1_000
"""About how many users' lists are compared with exact search."""


def stage(settings: Settings, done: Mapping[str, StageManifest]) -> Stage:
    """Returns the stage, which reads users, the user tower and the index."""
    job, lists = job_of(settings, done)
    return Stage(
        name="recommend",
        module=__name__,
        settings=asdict(lists),
        inputs={name: done[name] for name in ("ingest", "train", "embed", "index")},
        reads={"ingest": ["users", "items"], "train": [USER_TOWER], "embed": ["embeddings"], "index": ["shards"]},
        build=lambda root, attempt: build(root, attempt, **job, lists=lists),
    )


def job_of(settings: Settings, done: Mapping[str, StageManifest]) -> tuple[dict[str, Any], ListSettings]:
    """Settles k, and returns where everything is that `build` reads, and what a list holds."""
    ingested, trained, embedded, indexed = (done[name] for name in ("ingest", "train", "embed", "index"))
    num_candidates = embedded.rows("embeddings")
    k = settings.recommend.k
    if k > num_candidates:
        LOGGER.warning("k %d is above the number of candidates: using %d", k, num_candidates)
        k = num_candidates
    lists = ListSettings(
        k=k,
        recommend_seen=settings.recommend.recommend_seen,
        search=settings.recommend.search,
        checked_fraction=min(1.0, CHECKED_USERS / max(1, ingested.rows("users"))),
    )
    job = {
        "users": {part_of(path): path for path in ingested.paths(settings.output, "users")},
        "tower": join(settings.output, trained.folder, USER_TOWER),
        "index_root": join(settings.output, indexed.folder),
        "index_files": indexed.dataset("shards"),
        "num_shards": indexed.metrics["num_shards"],
        "num_items": ingested.rows("items"),
    }
    return job, lists


def build(
    root: beam.Pipeline,
    attempt: str,
    users: dict[int, str],
    tower: str,
    index_root: str,
    index_files: Sequence[WrittenFile],
    num_shards: int,
    num_items: int,
    lists: ListSettings,
) -> Reports:
    """Adds the stage's steps: blocks of users get their vectors, then their lists, which are written as they come."""
    blocks = root | "ReadUsers" >> ReadParts(users) | "Progress" >> CountBlocks()
    made = (
        blocks
        | "EmbedUsers" >> EmbedUsers(tower)
        | "Recommend" >> RecommendFused(index_root, index_files, num_shards, num_items, lists)
    )
    return [made.topk | "WriteTable" >> WritePlacedBlocks(attempt, "topk", TOPK), made.reports]


if __name__ == "__main__":
    from pipelines.run import run_alone

    sys.exit(run_alone("recommend"))
