"""Writes the top-k of every user, and judges it: `python -m pipelines.recommend --output DIR [--k 100]`."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam

from pipelines.index import settings_of_index
from pipelines.logs import LOGGER
from pipelines.settings import RecommendSettings, Settings
from pipelines.stage import Reports, Stage
from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.storage import WrittenFile, join
from transforms.canaries import NUM_CANARIES, JudgeRun, Listed
from transforms.carry_over import CarryOver, CarryRules, LastRelease, nothing_carried
from transforms.embed import EmbedUsers
from transforms.item_lists import BLOCKED, CountItems, ItemLists, WriteBlocked
from transforms.load_index import files_of_shards
from transforms.progress import CountBlocks
from transforms.read import ReadParts
from transforms.recall_segments import RecallBySegment
from transforms.recommend import ListSettings, RecommendFused
from transforms.recommend_by_shard import RecommendByShard
from transforms.search import SearchSettings
from transforms.search_plan import FUSED, ChosenPlan, bytes_of_shard, choose_plan, choose_slices
from transforms.sources import ITEM_LIST_ROLES, resolve_list
from transforms.table import FOLDER, DateRows, WriteTable
from transforms.training import USER_TOWER
from transforms.write import part_of

CHECKED_USERS = 1_000
"""About how many users' lists are compared with exact search."""


def stage(settings: Settings, done: Mapping[str, StageManifest]) -> Stage:
    """Returns the stage, which reads users, the user tower and the index."""
    job, lists = job_of(settings, done)
    item_lists = item_lists_of(settings.recommend)
    shards = files_of_shards(job["index_files"], job["num_shards"])
    plan = choose_plan([bytes_of_shard(files) for files in shards.values()], settings.recommend.max_worker_bytes)
    if settings.recommend.plan != "auto":
        plan = ChosenPlan(settings.recommend.plan, "asked for with --plan")
    how: dict[str, Any] = {
        "plan": plan,
        "max_worker_bytes": settings.recommend.max_worker_bytes,
        "num_slices": choose_slices(done["ingest"].rows("users")),
    }
    base = base_lists(settings, done, lists)
    how |= {"base": base, "num_users": done["ingest"].rows("users")}
    scored_at, layout = settings.recommend.as_of or newest_of(done["ingest"]), settings.recommend.layout
    how |= {"scored_at": scored_at, "layout": layout}

    def check(metrics: Mapping[str, Any], folder: str) -> None:
        check_canaries(metrics["canaries"])
        check_items(metrics, settings.recommend)

    return Stage(
        name="recommend",
        module=__name__,
        settings=asdict(lists)
        | {"layout": layout, "scored_at": scored_at.isoformat() if scored_at else None}
        | ({"base": base.described if isinstance(base, BaseLists) else {"why_nobody": base}} if base else {}),
        sources=[source.description() for source in item_lists.given],
        check=check,
        inputs={name: done[name] for name in ("ingest", "train", "embed", "index")},
        reads={"ingest": ["users", "items"], "train": [USER_TOWER], "embed": ["embeddings"], "index": ["shards"]},
        build=lambda root, attempt: build(root, attempt, **job, **how, lists=lists, item_lists=item_lists),
    )


@dataclass(frozen=True)
class BaseLists:
    """The lists that may be carried over.

    Attributes:
      last: where they are.
      rules: what decides whether one holds still.
      described: what they are, for the fingerprint.
    """

    last: LastRelease
    rules: CarryRules
    described: Mapping[str, Any]


def base_lists(settings: Settings, done: Mapping[str, StageManifest], lists: ListSettings) -> BaseLists | str:
    """Returns the lists of the release whose model is kept, or why nobody's can be carried over; '' where none is kept."""
    base = settings.base
    if base is None:
        return ""
    ingested, embedded, indexed, recommended = (base.stages[name] for name in ("ingest", "embed", "index", "recommend"))
    for name in ("k", "recommend_seen"):
        if recommended.settings[name] != getattr(lists, name):
            return f"{name} was {recommended.settings[name]} in release {base.release}"
    if settings_of_index(indexed) != settings_of_index(done["index"]):
        return f"the index of release {base.release} was built in another way"
    if ingested.metrics["num_buckets"] != done["ingest"].metrics["num_buckets"]:
        return f"release {base.release} has {ingested.metrics['num_buckets']} buckets of users"
    if recommended.sources and not recommended.dataset(BLOCKED):
        return f"release {base.release} does not say which items were blocked"
    root, digests = settings.output, {"users": ingested, "embeddings": embedded, FOLDER: recommended, BLOCKED: recommended}
    by_bucket = {name: _by_bucket(digests[name].paths(root, name)) for name in ("users", FOLDER)}
    return BaseLists(
        last=LastRelease(
            by_bucket["users"], by_bucket[FOLDER], embedded.paths(root, "embeddings"), recommended.paths(root, BLOCKED)
        ),
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
    seconds = ingested.metrics["newest_timestamp"] or max((file.get("mtime") or 0 for file in ratings["files"]), default=0)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


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
        search=SearchSettings(**indexed.metrics["search"]),
        checked_fraction=min(1.0, CHECKED_USERS / max(1, ingested.rows("users"))),
    )
    job = {
        "users": {part_of(path): path for path in ingested.paths(settings.output, "users")},
        "tower": join(settings.output, trained.folder, USER_TOWER),
        "index_root": join(settings.output, indexed.folder),
        "index_files": indexed.dataset("shards"),
        "num_shards": indexed.metrics["num_shards"],
        "num_items": ingested.rows("items"),
        "embeddings": embedded.paths(settings.output, "embeddings"),
        "dim": embedded.metrics["dim"],
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
    embeddings: list[str],
    dim: int,
    lists: ListSettings,
    item_lists: ItemLists,
    plan: ChosenPlan,
    max_worker_bytes: int,
    num_slices: int,
    scored_at: datetime | None,
    layout: str,
    base: BaseLists | str,
    num_users: int,
) -> Reports:
    """Adds the stage's steps: blocks of users get their vectors, then their lists, which are written and judged."""
    recommend: beam.PTransform
    if plan.plan == FUSED:
        recommend = RecommendFused(index_root, index_files, num_shards, num_items, lists, item_lists)
    else:
        recommend = RecommendByShard(
            index_root, index_files, num_shards, num_items, lists, item_lists, max_worker_bytes, num_slices
        )
    blocks = root | "ReadUsers" >> ReadParts(users) | "Progress" >> CountBlocks() | "DateRows" >> DateRows(scored_at)
    reports = []
    if isinstance(base, BaseLists):
        blocks, carried = blocks | "CarryOver" >> CarryOver(base.last, embeddings, item_lists, base.rules)
        reports.append(carried)
    elif base:
        reports.append(root | "ReportCarried" >> beam.Create([nothing_carried(base, num_users)]))
    known = blocks | "EmbedUsers" >> EmbedUsers(tower)
    made = known | "Recommend" >> recommend
    judge = JudgeRun(embeddings, dim, lists.checked_fraction * NUM_CANARIES / CHECKED_USERS, lists, item_lists)
    return [
        made.topk | "WriteTable" >> WriteTable(attempt, lists.k, layout),
        made.reports,
        *reports,
        root | "WriteBlocked" >> WriteBlocked(attempt, embeddings, item_lists),
        Listed(known, made.topk, made.exact) | "JudgeRun" >> judge,
        (made.topk, made.exact) | "RecallBySegment" >> RecallBySegment(embeddings, lists.checked_fraction),
        root | "CountItems" >> CountItems(embeddings, item_lists),
        root | "ReportPlan" >> beam.Create([{"plan": plan.plan, "plan_reason": plan.why}]),
    ]


def item_lists_of(ask: RecommendSettings) -> ItemLists:
    """Finds the lists of items that were asked for.

    Raises:
      InputError: if one cannot be read.
    """
    block, allow = (
        resolve_list(uri, ITEM_LIST_ROLES, ask.list_columns, ask.tfds_data_dir) if uri else None
        for uri in (ask.block_items, ask.allow_items)
    )
    return ItemLists(block, allow)


def check_items(metrics: Mapping[str, Any], ask: RecommendSettings) -> None:
    """Raises InputError if no item is left to recommend."""
    if not metrics["items_allowed"]:
        flags = " and ".join(flag for flag in ("--block_items", "--allow_items") if getattr(ask, flag[2:]))
        raise InputError(
            f"none of the {metrics['items_indexed']:,} items in the index may be recommended: check the ids in {flags}"
        )


def check_canaries(verdict: Mapping[str, Any]) -> None:
    """Raises RuntimeError if the table is not what the stored embeddings say: that is a defect, and nothing is published."""
    if not verdict["passed"]:
        raise RuntimeError(
            f"the table is wrong: for user {verdict['first_failure']!r} and perhaps others, scores differ from the inner "
            f"products of the stored embeddings by up to {verdict['max_score_error']:g}, or exact lists from the best by up to "
            f"{verdict['max_exact_gap']:g}"
        )


if __name__ == "__main__":
    from pipelines.run import run_alone

    sys.exit(run_alone("recommend"))
