"""Makes an index ready to be searched: what the catalogue of today says of its items, and the settings of the search.

An index is vectors and ids, and is found again as long as these are the same. Codes and counts change with every day's
ratings; the settings that a release was searched with stay good for the very same index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam

from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.index import built_index
from pipelines.stages.lists import items_of
from pipelines.stages.outputs import CalibrateOutputs, EmbedOutputs
from schemas.embeddings import SHARD_ITEMS
from schemas.manifest import StageManifest, as_json
from schemas.stage_files import ITEMS_OF_SHARDS, USER_TOWER
from schemas.storage import WrittenFile, join
from schemas.stored import StoredFolder
from transforms.index.calibrate import CalibrateSearch, DrawSample
from transforms.index.calibration import (
    EXACT_SHARDS,
    Calibration,
    CalibrationSettings,
    calibration_report,
    nothing_to_calibrate,
)
from transforms.index.embed import EmbedUsers
from transforms.index.load import BuiltIndex, IndexFiles
from transforms.index.shard_items import WriteShardItems
from transforms.io.progress import CountBlocks
from transforms.io.read import ReadParquet
from transforms.search.scann_index import EXACT_BELOW, BuildSettings
from transforms.search.search import SearchSettings

USERS_TO_DRAW_FROM = 16
"""So many times the users of a sample, at least, are embedded to find enough who have a vector."""


def plan(chain: Chain) -> "Stage[CalibrateJob]":
    """Returns the stage, which reads the catalogue and the index, and users too where search settings are to be found."""
    settings, done = chain.settings, chain.done
    ingested, trained, embedded = (done[name] for name in ("ingest", "train", "embed"))
    num_candidates = embedded.rows("embeddings")
    ask = CalibrationSettings(
        k=min(settings.recommend.k, num_candidates),
        recommend_seen=settings.recommend.recommend_seen,
        target_recall=settings.index.target_recall,
    )
    given = settings.index.search
    asked = as_json({"calibration": asdict(ask), "search": asdict(given) if given else None})
    known = known_search(num_candidates, settings.index.build, given)
    report = calibration_report(known, ask) if known else kept_search(chain, asked)
    users = [] if report else some_users(ingested.dataset("users"), ask.num_users)
    inputs, reads = ["ingest", "embed", "index"], {"ingest": ["items"], "embed": ["embeddings"], "index": ["shards"]}
    if report is None:
        inputs, reads = [*inputs, "train"], reads | {"ingest": ["items", "users"], "train": [USER_TOWER]}
    return Stage(
        STAGE,
        settings={"asked": asked, "report": report},
        inputs={name: done[name] for name in inputs},
        reads=reads,
        job=CalibrateJob(
            items=ingested.paths(settings.output, "items"),
            index=built_index(settings.output, done),
            report=report,
            users=[join(settings.output, ingested.folder, file.path) for file in users],
            tower=trained.stored(settings.output, USER_TOWER),
            dim=EmbedOutputs.of(embedded).dim,
            max_worker_bytes=settings.recommend.max_worker_bytes,
            ask=ask,
        ),
    )


@dataclass(frozen=True)
class CalibrateJob:
    """What to search, and how well.

    Attributes:
      items: paths of the catalogue.
      index: what is searched.
      report: of the search settings, where they are known.
      users: paths of users to search for, where they are not.
      tower: that gives these their vectors.
      dim: of the vectors.
      max_worker_bytes: what the shards that a worker holds may take together.
      ask: what must be found.
    """

    items: list[str]
    index: BuiltIndex
    report: Mapping[str, Any] | None
    users: list[str]
    tower: StoredFolder
    dim: int
    max_worker_bytes: int
    ask: CalibrationSettings


def build(root: beam.Pipeline, attempt: str, job: CalibrateJob) -> Reports:
    """Adds the stage's steps: the catalogue is split by shard; each shard is tried on some users, unless all is known."""
    items = root | "ReadItems" >> ReadParquet(job.items, SHARD_ITEMS.names) | "Progress" >> CountBlocks()
    written = items | "WriteShardItems" >> WriteShardItems(attempt, job.index)
    if job.report is not None:
        return [written, root | "ReportSearch" >> beam.Create([dict(job.report)])]
    users = root | "ReadUsers" >> ReadParquet(job.users) | "EmbedUsers" >> EmbedUsers(job.tower)
    sample = (users, items) | "DrawSample" >> DrawSample(job.ask, job.dim)
    search = CalibrateSearch(job.index, attempt, job.ask, job.max_worker_bytes)
    return [written, (written, sample) | "CalibrateSearch" >> search]


def some_users(files: Sequence[WrittenFile], num_users: int) -> list[WrittenFile]:
    """Returns as many files of users as a sample is drawn from: each holds users of one hash bucket, so any of them will do."""
    chosen: list[WrittenFile] = []
    for file in files:
        if sum(each.rows for each in chosen) >= USERS_TO_DRAW_FROM * num_users:
            break
        chosen.append(file)
    return chosen


def known_search(num_candidates: int, shape: BuildSettings, search: SearchSettings | None) -> Calibration | None:
    """Returns search settings that are known without trying any, or None.

    Args:
      num_candidates: in all shards.
      shape: how the shards are indexed.
      search: settings that were given.
    """
    if shape.kind == "exact" or (num_candidates < EXACT_BELOW and shape.kind is None and shape.num_leaves is None):
        return nothing_to_calibrate(EXACT_SHARDS)
    if search:
        return Calibration(search, "given with --reorder_per_neighbor: nothing was calibrated", 0, ())
    return None


def kept_search(chain: Chain, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what the release whose model is kept found for the very same index, where it was asked the same."""
    if chain.base is None or "calibrate" not in chain.base.stages:
        return None
    then, indexed = (chain.base.stages[name] for name in ("calibrate", "index"))
    same = indexed.digest == chain.done["index"].digest and then.settings["asked"] == asked
    return {name: then.metrics[name] for name in ("search", "calibration")} if same else None


def index_files(output: str, done: Mapping[str, StageManifest]) -> IndexFiles:
    """Returns where the index is, what the catalogue says of its items, and which of them may be recommended."""
    calibrated = done["calibrate"]
    return built_index(output, done).with_items(
        join(output, calibrated.folder), calibrated.dataset(ITEMS_OF_SHARDS), items_of(output, done)
    )


STAGE = StageDefinition("calibrate", __name__, plan, build, CalibrateOutputs)
