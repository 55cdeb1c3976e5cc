"""Tunes the index for the vectors of a run: which leaves, threshold, SOAR and search settings are worth having.

python -m pipelines.tune --output DIR [--target_recall 0.95]

Prints the Pareto front and where the table, the plot and the chosen settings are: python -m pipelines.index takes these with
--config.
"""

import math
from dataclasses import asdict, dataclass

import apache_beam as beam

from pipelines.cli import logs
from pipelines.cli.settings import Settings
from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.calibrate import some_users
from pipelines.stages.index import choose_shards
from pipelines.stages.outputs import EmbedOutputs
from schemas.stage_files import USER_TOWER
from schemas.storage import join
from schemas.stored import StoredFolder
from transforms.index.calibrate import DrawSample
from transforms.index.calibration import CalibrationSettings
from transforms.index.embed import EmbedUsers
from transforms.index.tune import Sweep, TuneIndex
from transforms.index.tuning_report import write_results
from transforms.io.read import ReadParquet
from transforms.search.scann_index import EXACT_BELOW, BuildSettings, plan_shard


def plan(chain: Chain) -> "Stage[TuneJob]":
    """Chooses what is tried from the number of candidates, and returns the stage."""
    settings, done = chain.settings, chain.done
    ingested, trained, embedded = (done[name] for name in ("ingest", "train", "embed"))
    num_candidates, dim = embedded.rows("embeddings"), EmbedOutputs.of(embedded).dim
    num_shards = choose_shards(num_candidates, dim, settings.index)
    num_tried = shards_to_try(num_candidates, dim, num_shards, settings.recommend.max_worker_bytes)
    k = min(settings.recommend.k, num_candidates)
    ask = CalibrationSettings(
        # So many of a list lie in the shards that are tried.
        k=math.ceil(k * num_tried / num_shards),
        recommend_seen=settings.recommend.recommend_seen,
        target_recall=settings.index.target_recall,
    )
    builds = builds_to_try(math.ceil(num_candidates / num_shards), settings)
    job = TuneJob(
        dim=dim,
        num_shards=num_shards,
        num_tried=num_tried,
        num_vectors=math.ceil(num_candidates * num_tried / num_shards),
        seed=settings.index.seed,
        embeddings=embedded.stored(settings.output, "embeddings"),
        items=ingested.stored(settings.output, "items"),
        users=[
            join(settings.output, ingested.folder, file.path) for file in some_users(ingested.dataset("users"), ask.num_users)
        ],
        tower=trained.stored(settings.output, USER_TOWER),
        builds=builds,
        sweep=settings.tune,
        ask=ask,
    )
    return Stage(
        STAGE,
        settings={
            "num_shards": num_shards,
            "num_tried": num_tried,
            "seed": settings.index.seed,
            "builds": [asdict(each) for each in builds],
            "sweep": asdict(settings.tune),
            "calibration": asdict(ask),
        },
        inputs={name: done[name] for name in ("ingest", "train", "embed")},
        reads={"ingest": ["items", "users"], "train": [USER_TOWER], "embed": ["embeddings"]},
        job=job,
    )


@dataclass(frozen=True)
class TuneJob:
    """What is tried, and on which vectors."""

    dim: int
    num_shards: int
    num_tried: int
    num_vectors: int
    seed: int
    embeddings: StoredFolder
    items: StoredFolder
    users: list[str]
    tower: StoredFolder
    builds: list[BuildSettings]
    sweep: Sweep
    ask: CalibrationSettings


def build(root: beam.Pipeline, attempt: str, job: TuneJob) -> Reports:
    """Adds the stage's steps: some users are searched for in one build after another, or side by side on many workers."""
    known = root | "ReadUsers" >> ReadParquet(job.users) | "EmbedUsers" >> EmbedUsers(job.tower)
    items = root | "ReadItems" >> ReadParquet(job.items.paths, ["item_id", "code"])
    sample = (known, items) | "DrawSample" >> DrawSample(job.ask, job.dim)
    trials = sample | "TuneIndex" >> TuneIndex(
        job.embeddings, job.items, job.num_shards, job.num_tried, job.seed, job.builds, job.ask, job.sweep
    )
    made = (
        trials
        | "GatherTrials" >> beam.combiners.ToList()
        | "WriteResults" >> beam.Map(lambda blocks: write_results(attempt, blocks, job.num_shards, job.num_vectors, job.ask))
    )
    return [made | "Files" >> beam.FlatMap(lambda made: made[0]), made | "Metrics" >> beam.Map(lambda made: made[1])]


def shards_to_try(num_vectors: int, dim: int, num_shards: int, max_bytes: int) -> int:
    """Returns how many shards a trial takes: as many as fit a worker; items are hashed, so any shards are like all others."""
    # The vectors, an index of them, and what an exact search of it adds.
    of_shard = 12 * math.ceil(num_vectors / num_shards) * dim
    return max(1, min(num_shards, max_bytes // of_shard))


def builds_to_try(num_vectors: int, settings: Settings) -> list[BuildSettings]:
    """Returns the ways to build a shard of so many vectors; only the exact one, which is not listed, for a small shard."""
    if num_vectors < EXACT_BELOW and not settings.tune.past_exact:
        logs.LOGGER.warning(
            "a shard of %s vectors is searched exactly, as all below %s are, so there is nothing to tune: "
            "--tune_small tries the other ways all the same",
            f"{num_vectors:,}",
            f"{EXACT_BELOW:,}",
        )
        return []
    # What cannot be built, such as a tree of fewer vectors than hashes need, is exact and need not be tried again.
    asked = settings.tune.builds(num_vectors)
    return [each for each in asked if each.applied_to(plan_shard(num_vectors, 1)).kind != "exact"]


STAGE = StageDefinition("tune", __name__, plan, build)
