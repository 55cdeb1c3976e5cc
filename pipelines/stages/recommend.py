"""Writes the top-k items of every user, and measures their quality."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam

from pipelines.cli.logs import LOGGER
from pipelines.cli.settings import Settings
from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.calibrate import index_files
from pipelines.stages.lists import items_of, reads_of
from pipelines.stages.outputs import CalibrateOutputs, EmbedOutputs, IngestOutputs
from schemas.errors import InputError
from schemas.manifest import StageManifest, users_of
from schemas.stage_files import BLOCKED, ITEMS_OF_SHARDS, USER_TOWER
from schemas.stored import StoredFolder
from transforms.index.embed import EmbedUsers
from transforms.index.load import IndexFiles
from transforms.index.search_plan import FUSED, ChosenPlan, choose_plan, choose_slices
from transforms.io.progress import CountBlocks
from transforms.io.read import ReadParts
from transforms.io.write import part_of
from transforms.lists.audit import AuditLists, Made
from transforms.lists.by_shard import RecommendByShard
from transforms.lists.canaries import NUM_CANARIES
from transforms.lists.carry_over import BaseFiles, CarryOver, CarryRules, nothing_carried
from transforms.lists.fused import RecommendFused
from transforms.lists.table import FOLDER, DateRows, WriteTable
from transforms.search.list_settings import ListSettings

CHECKED_USERS = 1_000
"""About how many users' lists are compared with exact search."""


def plan(chain: Chain) -> "Stage[RecommendJob]":
    """Returns the stage, which reads users, the user tower, the index, and what must not be recommended."""
    done, job = chain.done, job_of(chain)

    def check(metrics: Mapping[str, Any], folder: str) -> None:
        check_canaries(metrics["canaries"])
        check_items(metrics)

    return Stage(
        STAGE,
        settings=asdict(job.lists)
        | {"layout": job.layout, "scored_at": job.scored_at.isoformat() if job.scored_at else None}
        | ({"base": job.base.described if isinstance(job.base, BaseLists) else {"why_nobody": job.base}} if job.base else {}),
        check=check,
        inputs={name: done[name] for name in ("ingest", "lists", "train", "embed", "index", "calibrate")},
        reads={
            **reads_of(done, "items"),
            "train": [USER_TOWER],
            "embed": ["embeddings"],
            "index": ["shards"],
            "calibrate": [ITEMS_OF_SHARDS],
        },
        job=job,
    )


@dataclass(frozen=True)
class BaseLists:
    """The lists that may be copied.

    Attributes:
      last: where they are.
      rules: what decides whether a list is unchanged.
      described: what they are, for the fingerprint.
    """

    last: BaseFiles
    rules: CarryRules
    described: Mapping[str, Any]


def base_lists(chain: Chain, lists: ListSettings) -> BaseLists | str:
    """Returns the lists of the release whose model is kept, or why nobody's can be carried over; '' where none is kept."""
    base, done = chain.base, chain.done
    if base is None:
        return ""
    ingested, embedded, indexed, recommended = (base.stages[name] for name in ("ingest", "embed", "index", "recommend"))
    for name in ("k", "recommend_seen"):
        if recommended.settings[name] != getattr(lists, name):
            return f"{name} was {recommended.settings[name]} in release {base.name}"
    if not {"lists", "calibrate"} <= base.stages.keys():
        return f"release {base.name} was made by an earlier version of this program"
    calibrated = base.stages["calibrate"].settings["asked"]
    if indexed.settings != done["index"].settings or calibrated != done["calibrate"].settings["asked"]:
        return f"the index of release {base.name} was built in another way"
    then, now = (IngestOutputs.of(each).num_buckets for each in (ingested, done["ingest"]))
    if then != now:
        return f"release {base.name} has {then} buckets of users"
    lists_then, users_then = base.stages["lists"], users_of(base.stages)
    root, digests = (
        chain.settings.output,
        {"users": users_then, "embeddings": embedded, FOLDER: recommended, BLOCKED: lists_then},
    )
    by_bucket = {name: _by_bucket(digests[name].paths(root, name)) for name in ("users", FOLDER)}
    return BaseLists(
        last=BaseFiles(by_bucket["users"], by_bucket[FOLDER], embedded.paths(root, "embeddings"), items_of(root, base.stages)),
        rules=CarryRules(
            by_history=done["train"].settings["user_tower"] != "id",
            recommend_seen=lists.recommend_seen,
            checked_fraction=lists.checked_fraction,
        ),
        described={name: manifest.digest_of_datasets([name]) for name, manifest in digests.items()},
    )


def _by_bucket(paths: list[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        found[part_of(path)].append(path)
    return dict(found)


def newest_of(ingested: StageManifest) -> datetime | None:
    """Returns how new the ratings are: their newest time; of ratings without times, when their newest file changed.

    It goes into the table, and so must not depend on the clock: the same ratings give the same table.
    """
    (ratings,) = (source for source in ingested.sources if source["dataset"] == "ratings")
    newest = IngestOutputs.of(ingested).newest_timestamp
    seconds = newest or max((file.get("mtime") or 0 for file in ratings["files"]), default=0)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def lists_of(settings: Settings, done: Mapping[str, StageManifest]) -> ListSettings:
    """Settles k, and returns what a list holds."""
    num_candidates = done["embed"].rows("embeddings")
    k = settings.recommend.k
    if k > num_candidates:
        LOGGER.warning("k %d is above the number of candidates: using %d", k, num_candidates)
        k = num_candidates
    return ListSettings(
        k=k,
        recommend_seen=settings.recommend.recommend_seen,
        search=CalibrateOutputs.of(done["calibrate"]).search,
        checked_fraction=min(1.0, CHECKED_USERS / max(1, users_of(done).rows("users"))),
    )


def job_of(chain: Chain) -> "RecommendJob":
    """Returns where everything is that lists are made of, what they hold, and how the work is shared out."""
    settings, done = chain.settings, chain.done
    ingested, trained, embedded = (done[name] for name in ("ingest", "train", "embed"))
    served, lists, ask = users_of(done), lists_of(settings, done), settings.recommend
    index = index_files(settings.output, done)
    plan = choose_plan([index.bytes_of(shard) for shard in index.of_shards], ask.max_worker_bytes)
    return RecommendJob(
        users={part_of(path): path for path in served.paths(settings.output, "users")},
        tower=trained.stored(settings.output, USER_TOWER),
        index=index,
        num_items=ingested.rows("items"),
        embeddings=embedded.paths(settings.output, "embeddings"),
        items=done["calibrate"].paths(settings.output, ITEMS_OF_SHARDS),
        dim=EmbedOutputs.of(embedded).dim,
        lists=lists,
        plan=plan if ask.plan == "auto" else ChosenPlan(ask.plan, "asked for with --plan"),
        max_worker_bytes=ask.max_worker_bytes,
        num_slices=choose_slices(served.rows("users")),
        scored_at=ask.as_of or newest_of(ingested),
        layout=ask.layout,
        base=base_lists(chain, lists),
        num_users=served.rows("users"),
    )


@dataclass(frozen=True)
class RecommendJob:
    """Everything that lists are made of."""

    users: dict[int, str]
    tower: StoredFolder
    index: IndexFiles
    num_items: int
    embeddings: list[str]
    items: list[str]
    dim: int
    lists: ListSettings
    plan: ChosenPlan
    max_worker_bytes: int
    num_slices: int
    scored_at: datetime | None
    layout: str
    base: BaseLists | str
    num_users: int


def build(root: beam.Pipeline, attempt: str, job: RecommendJob) -> Reports:
    """Adds the stage's steps: blocks of users get their vectors, then their lists, which are written and judged."""
    recommend: beam.PTransform
    if job.plan.plan == FUSED:
        recommend = RecommendFused(job.index, job.num_items, job.lists)
    else:
        recommend = RecommendByShard(job.index, job.num_items, job.lists, job.max_worker_bytes, job.num_slices)
    blocks = root | "ReadUsers" >> ReadParts(job.users) | "Progress" >> CountBlocks() | "DateRows" >> DateRows(job.scored_at)
    reports = []
    if isinstance(job.base, BaseLists):
        carry = CarryOver(job.base.last, job.embeddings, job.items, job.index.lists, job.base.rules)
        blocks, carried = blocks | "CarryOver" >> carry
        reports.append(carried)
    elif job.base:
        reports.append(root | "ReportCarried" >> beam.Create([nothing_carried(job.base, job.num_users)]))
    known = blocks | "EmbedUsers" >> EmbedUsers(job.tower)
    made = known | "Recommend" >> recommend
    canaries = job.lists.checked_fraction * NUM_CANARIES / CHECKED_USERS
    return [
        made.topk | "WriteTable" >> WriteTable(attempt, job.lists.k, job.layout),
        made.reports,
        *reports,
        Made(known, made.topk, made.exact)
        | "AuditLists" >> AuditLists(job.embeddings, job.items, job.dim, canaries, job.lists, job.index.lists),
        root | "ReportPlan" >> beam.Create([{"plan": job.plan.plan, "plan_reason": job.plan.why}]),
    ]


def check_items(metrics: Mapping[str, Any]) -> None:
    """Raises InputError if no item is left to recommend."""
    if not metrics["items_allowed"]:
        raise InputError(
            f"none of the {metrics['items_indexed']:,} items in the index may be recommended: check the ids in "
            "--block_items and --allow_items"
        )


def check_canaries(verdict: Mapping[str, Any]) -> None:
    """Raises RuntimeError if the table is not what the stored embeddings say: that is a defect, and nothing is published."""
    if not verdict["passed"]:
        raise RuntimeError(
            f"the table is wrong: for user {verdict['first_failure']!r} and perhaps others, scores differ from the inner "
            f"products of the stored embeddings by up to {verdict['max_score_error']:g}, or exact lists from the best by up to "
            f"{verdict['max_exact_gap']:g}"
        )


STAGE = StageDefinition("recommend", __name__, plan, build)
