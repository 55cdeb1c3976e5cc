"""Builds the sharded index of the candidates, and calibrates its search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam

from pipelines.cli.logs import LOGGER
from pipelines.cli.settings import IndexSettings
from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.lists import items_of
from pipelines.stages.outputs import EmbedOutputs, IndexOutputs
from schemas.embeddings import ID_MAP
from schemas.errors import InputError
from schemas.manifest import StageManifest, as_json
from schemas.stage_files import USER_TOWER
from schemas.storage import WrittenFile, join
from schemas.stored import StoredFolder
from transforms.index.build import BuildIndexes
from transforms.index.calibrate import CalibrateSearch, DrawSample
from transforms.index.calibration import (
    EXACT_SHARDS,
    Calibration,
    CalibrationSettings,
    calibration_report,
    nothing_to_calibrate,
)
from transforms.index.copy import CopyIndexes
from transforms.index.embed import EmbedUsers
from transforms.index.load import IndexFiles
from transforms.io.progress import CountBlocks
from transforms.io.read import ReadParquet
from transforms.search.scann_index import EXACT_BELOW, BuildSettings, plan_shard
from transforms.search.search import SearchSettings

USERS_TO_DRAW_FROM = 16
"""So many times the users of the sample, at least, are embedded to find enough who have a vector."""


def plan(chain: Chain) -> "Stage[IndexJob] | Stage[CopyJob]":
    """Chooses the number of shards from the number of candidates, and returns the stage."""
    settings, done = chain.settings, chain.done
    ingested, trained, embedded = (done[name] for name in ("ingest", "train", "embed"))
    num_candidates, dim = embedded.rows("embeddings"), EmbedOutputs.of(embedded).dim
    num_shards = choose_shards(num_candidates, dim, settings.index)
    ask = CalibrationSettings(
        k=min(settings.recommend.k, num_candidates),
        recommend_seen=settings.recommend.recommend_seen,
        target_recall=settings.index.target_recall,
    )
    users = some_users(ingested.dataset("users"), ask.num_users)
    given = settings.index.search
    job = IndexJob(
        num_candidates=num_candidates,
        dim=dim,
        num_shards=num_shards,
        seed=settings.index.seed,
        shape=settings.index.build,
        search=given,
        embeddings=embedded.paths(settings.output, "embeddings"),
        users=[join(settings.output, ingested.folder, file.path) for file in users],
        tower=trained.stored(settings.output, USER_TOWER),
        max_worker_bytes=settings.recommend.max_worker_bytes,
        ask=ask,
    )
    described = {
        "num_shards": num_shards,
        "seed": settings.index.seed,
        "build": asdict(settings.index.build),
        "search": asdict(given) if given else None,
        "calibration": asdict(ask),
    }
    kept = kept_index(chain, embedded, described)
    if kept:
        return Stage(
            STAGE,
            settings=described | {"copied": kept.digest},
            inputs={"embed": embedded},
            reads={"embed": ["embeddings"]},
            job=CopyJob(kept, join(settings.output, kept.folder), job.embeddings),
        )
    return Stage(
        STAGE,
        settings=described,
        inputs={name: done[name] for name in ("ingest", "train", "embed")},
        reads={"ingest": ["users"], "train": [USER_TOWER], "embed": ["embeddings"]},
        job=job,
    )


@dataclass(frozen=True)
class IndexJob:
    """What to index, and how to search it."""

    num_candidates: int
    dim: int
    num_shards: int
    seed: int
    shape: BuildSettings
    search: SearchSettings | None
    embeddings: list[str]
    users: list[str]
    tower: StoredFolder
    max_worker_bytes: int
    ask: CalibrationSettings


def build(root: beam.Pipeline, attempt: str, job: "IndexJob | CopyJob") -> Reports:
    """Adds the stage's steps, which build an index, or copy one."""
    return build_index(root, attempt, job) if isinstance(job, IndexJob) else copy_index(root, attempt, job)


def build_index(root: beam.Pipeline, attempt: str, job: IndexJob) -> Reports:
    """Adds the steps that build an index.

    Embeddings are gathered by shard; each shard is built by one worker, and tried on some users.
    """
    vectors = root | "ReadEmbeddings" >> ReadParquet(job.embeddings) | "Progress" >> CountBlocks()
    shards = vectors | "BuildIndexes" >> BuildIndexes(attempt, job.num_shards, job.dim, job.seed, job.shape)
    found = known_search(job.num_candidates, job.shape, job.search)
    if found:
        calibrated = root | "NothingToCalibrate" >> beam.Create([calibration_report(found, job.ask)])
    else:
        known = root | "ReadUsers" >> ReadParquet(job.users) | "EmbedUsers" >> EmbedUsers(job.tower)
        items = root | "ReadItems" >> ReadParquet(job.embeddings, ["item_id", "code"])
        sample = (known, items) | "DrawSample" >> DrawSample(job.ask, job.dim)
        calibrated = (shards, sample) | "CalibrateSearch" >> CalibrateSearch(attempt, job.ask, job.max_worker_bytes)
    return [shards, calibrated, root | "ReportShards" >> beam.Create([{"num_shards": job.num_shards, "dim": job.dim}])]


def kept_index(chain: Chain, embedded: StageManifest, described: Mapping[str, Any]) -> StageManifest | None:
    """Returns the index of the release whose model is kept, where it was built as is asked now, of the very same vectors.

    Args:
      chain: the stages that the index is one of.
      embedded: the candidates now.
      described: how to index them.
    """
    if chain.base is None:
        return None
    kept = chain.base.stages["index"]
    then, now = (EmbedOutputs.of(each).vectors for each in (chain.base.stages["embed"], embedded))
    same = then == now and settings_of_index(kept) == as_json(described)
    return kept if same else None


def settings_of_index(indexed: StageManifest) -> dict[str, Any]:
    """Returns how an index was built, whether it was copied since or not."""
    return {name: value for name, value in indexed.settings.items() if name != "copied"}


@dataclass(frozen=True)
class CopyJob:
    """An index that is copied.

    Attributes:
      kept: the stage that built it.
      source: the folder of its attempt.
      embeddings: paths of what is to be served now: the same vectors.
    """

    kept: StageManifest
    source: str
    embeddings: list[str]


def copy_index(root: beam.Pipeline, attempt: str, job: CopyJob) -> Reports:
    """Adds the steps that copy an index, with its calibration."""
    items = root | "ReadItems" >> ReadParquet(job.embeddings, ID_MAP.names) | "Progress" >> CountBlocks()
    return [
        items | "CopyIndexes" >> CopyIndexes(attempt, job.source, job.kept.files, IndexOutputs.of(job.kept).num_shards),
        root | "ReportKept" >> beam.Create([dict(job.kept.metrics)]),
    ]


def index_files(output: str, done: Mapping[str, StageManifest]) -> IndexFiles:
    """Returns where the index is, and which of its items may be recommended."""
    indexed = done["index"]
    return IndexFiles.of(
        join(output, indexed.folder), indexed.dataset("shards"), IndexOutputs.of(indexed).num_shards, items_of(output, done)
    )


def known_search(num_candidates: int, shape: BuildSettings, search: SearchSettings | None) -> Calibration | None:
    """Returns search settings that are known without trying any, or None.

    Args:
      num_candidates: in all shards.
      shape: how the shards are to be indexed.
      search: settings that were given.
    """
    if shape.kind == "exact" or (num_candidates < EXACT_BELOW and shape.kind is None and shape.num_leaves is None):
        return nothing_to_calibrate(EXACT_SHARDS)
    if search:
        return Calibration(search, "given with --reorder_per_neighbor: nothing was calibrated", 0, ())
    return None


def some_users(files: Sequence[WrittenFile], num_users: int) -> list[WrittenFile]:
    """Returns as many files of users as a sample is drawn from: each holds users of one hash bucket, so any of them will do."""
    chosen: list[WrittenFile] = []
    for file in files:
        if sum(each.rows for each in chosen) >= USERS_TO_DRAW_FROM * num_users:
            break
        chosen.append(file)
    return chosen


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
