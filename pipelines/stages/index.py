"""Builds the sharded index of the candidates."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import apache_beam as beam

from pipelines.cli.logs import LOGGER
from pipelines.cli.settings import IndexSettings
from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.outputs import EmbedOutputs, IndexOutputs
from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.storage import join
from transforms.index.build import BuildIndexes
from transforms.index.load import BuiltIndex
from transforms.io.progress import CountBlocks
from transforms.io.read import ReadParquet
from transforms.search.scann_index import BuildSettings, plan_shard


def plan(chain: Chain) -> "Stage[IndexJob]":
    """Chooses the number of shards from the number of candidates, and returns the stage, which reads the embeddings."""
    settings, embedded = chain.settings, chain.done["embed"]
    num_candidates, dim = embedded.rows("embeddings"), EmbedOutputs.of(embedded).dim
    num_shards = choose_shards(num_candidates, dim, settings.index)
    return Stage(
        STAGE,
        settings={"num_shards": num_shards, "seed": settings.index.seed, "build": asdict(settings.index.build)},
        inputs={"embed": embedded},
        reads={"embed": ["embeddings"]},
        job=IndexJob(
            dim=dim,
            num_shards=num_shards,
            seed=settings.index.seed,
            shape=settings.index.build,
            embeddings=embedded.paths(settings.output, "embeddings"),
        ),
    )


@dataclass(frozen=True)
class IndexJob:
    """What to index, and how."""

    dim: int
    num_shards: int
    seed: int
    shape: BuildSettings
    embeddings: list[str]


def build(root: beam.Pipeline, attempt: str, job: IndexJob) -> Reports:
    """Adds the stage's steps: embeddings are gathered by shard, and each shard is built by one worker."""
    vectors = root | "ReadEmbeddings" >> ReadParquet(job.embeddings) | "Progress" >> CountBlocks()
    return [
        vectors | "BuildIndexes" >> BuildIndexes(attempt, job.num_shards, job.dim, job.seed, job.shape),
        root | "ReportShards" >> beam.Create([{"num_shards": job.num_shards, "dim": job.dim}]),
    ]


def built_index(output: str, done: Mapping[str, StageManifest]) -> BuiltIndex:
    """Returns where the index is."""
    indexed = done["index"]
    return BuiltIndex.of(join(output, indexed.folder), indexed.dataset("shards"), IndexOutputs.of(indexed).num_shards)


def choose_shards(num_vectors: int, dim: int, ask: IndexSettings) -> int:
    """Returns how many shards to build: as many as asked for, else the fewest that fit.

    Raises:
      InputError: if there are no candidates.
    """
    if not num_vectors:
        raise InputError("there are no candidates to index, no item was trained on: check the ratings and --min_rating")
    if ask.num_shards is None:
        return math.ceil(ask.build.applied_to(plan_shard(num_vectors, dim)).index_bytes / ask.max_shard_bytes)
    if ask.num_shards > num_vectors:
        LOGGER.warning("num_shards %d is above the number of candidates: using %d", ask.num_shards, num_vectors)
    return min(ask.num_shards, num_vectors)


STAGE = StageDefinition("index", __name__, plan, build, IndexOutputs)
