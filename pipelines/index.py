"""Builds the sharded index of the candidates: `python -m pipelines.index --output DIR [--num_shards N]`."""

import math
import sys
from collections.abc import Mapping

import apache_beam as beam

from pipelines.logs import LOGGER
from pipelines.settings import IndexSettings, Settings
from pipelines.stage import Reports, Stage
from schemas.errors import InputError
from schemas.manifest import StageManifest
from transforms.build_indexes import BuildIndexes
from transforms.progress import CountBlocks
from transforms.read import ReadParquet
from transforms.scann_index import plan_shard


def stage(settings: Settings, done: Mapping[str, StageManifest]) -> Stage:
    """Chooses the number of shards from the number of candidates, and returns the stage."""
    embedded = done["embed"]
    dim = embedded.metrics["dim"]
    num_shards = choose_shards(embedded.rows("embeddings"), dim, settings.index)
    paths = embedded.paths(settings.output, "embeddings")
    return Stage(
        name="index",
        module=__name__,
        settings={"num_shards": num_shards, "seed": settings.index.seed},
        inputs={name: done[name] for name in ("ingest", "train", "embed")},
        build=lambda root, attempt: build(root, attempt, paths, dim, num_shards, settings.index.seed),
    )


def build(root: beam.Pipeline, attempt: str, paths: list[str], dim: int, num_shards: int, seed: int) -> Reports:
    """Adds the stage's steps: embeddings are gathered by shard, and each shard is built by one worker."""
    embeddings = root | "ReadEmbeddings" >> ReadParquet(paths) | "Progress" >> CountBlocks()
    return [
        embeddings | "BuildIndexes" >> BuildIndexes(attempt, num_shards, dim, seed),
        root | "ReportShards" >> beam.Create([{"num_shards": num_shards, "dim": dim}]),
    ]


def choose_shards(num_vectors: int, dim: int, ask: IndexSettings) -> int:
    """Returns how many shards to build: as many as asked for, else the fewest that fit.

    Raises:
      InputError: if there are no candidates.
    """
    if not num_vectors:
        raise InputError("there are no candidates to index, no item was trained on: check the ratings and --min_rating")
    if ask.num_shards is None:
        return math.ceil(plan_shard(num_vectors, dim).index_bytes / ask.max_shard_bytes)
    if ask.num_shards > num_vectors:
        LOGGER.warning("num_shards %d is above the number of candidates: using %d", ask.num_shards, num_vectors)
    return min(ask.num_shards, num_vectors)


if __name__ == "__main__":
    from pipelines.run import run_alone

    sys.exit(run_alone("index"))
