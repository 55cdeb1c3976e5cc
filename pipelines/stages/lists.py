"""Reads the lists of users to serve and of items that must not be recommended, once, before anything is trained.

    users of ingest, --users, --exclude ──> users: one row a user, with what must not be recommended to that user
    items of ingest, --block_items, --allow_items ──> blocked: the items that must not be recommended to anyone

A list that changes makes this stage run again, and what comes after it, but neither ingest nor training. Where there is neither
--users nor --exclude, the users are those of ingest, and nothing is copied.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam

from pipelines.cli.logs import LOGGER
from pipelines.cli.settings import ListsSettings, Settings
from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.ingest import (
    FORGOTTEN,
    key_rejected,
    name_forgotten,
    name_forms,
    name_summary,
    rows_forgotten,
    rows_read,
    sort_rejected,
    warn_of_forms,
)
from pipelines.stages.outputs import IngestOutputs
from schemas.errors import InputError
from schemas.forgotten import Forgotten, read_forgotten
from schemas.interactions import EXCLUSIONS, ITEM_IDS, SERVED_USERS
from schemas.manifest import StageManifest, users_of
from schemas.rejected import REJECTED
from schemas.stage_files import BLOCKED
from schemas.users import USERS
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.index.item_lists import CATALOGUE, ItemLists, WriteBlocked
from transforms.ingest.catalogue import ITEMS_A_RANGE
from transforms.ingest.columns import ALLOWED_ITEMS_ROLES, BLOCKED_ITEMS_ROLES, EXCLUSIONS_ROLES, SERVED_USERS_ROLES
from transforms.ingest.join_ids import FEW, JOINED, OTHERS, JoinIds, in_words, nothing_joins
from transforms.ingest.leave_out import LeaveOut, Unwanted
from transforms.ingest.read_source import ReadBlocks
from transforms.ingest.rejects import Summary, check_rejected
from transforms.ingest.served_users import AddLists
from transforms.ingest.sources import Source, resolve_list
from transforms.ingest.validate import ValidateIds
from transforms.io.progress import CountBlocks
from transforms.io.read import ReadParquet
from transforms.io.write import Counts, WriteParts, part_of

_KINDS = {
    "users": (SERVED_USERS_ROLES, SERVED_USERS),
    "exclude": (EXCLUSIONS_ROLES, EXCLUSIONS),
    "block_items": (BLOCKED_ITEMS_ROLES, ITEM_IDS),
    "allow_items": (ALLOWED_ITEMS_ROLES, ITEM_IDS),
}
"""The lists, by their flags: whose columns they have, and what is left of a row that is valid."""

_OF_ITEMS = ("block_items", "allow_items")


class GivenLists(NamedTuple):
    """The lists that were asked for, by their flags."""

    users: Source | None
    exclude: Source | None
    block_items: Source | None
    allow_items: Source | None

    @property
    def given(self) -> dict[str, Source]:
        """The lists that there are."""
        return {flag: source for flag, source in self._asdict().items() if source}


def resolve_lists(ask: ListsSettings) -> GivenLists:
    """Finds the lists that were asked for.

    Raises:
      InputError: if one cannot be read.
    """
    return GivenLists(
        *(
            resolve_list(uri, roles, ask.columns, ask.tfds_data_dir) if (uri := getattr(ask, flag)) else None
            for flag, (roles, _) in _KINDS.items()
        )
    )


def plan(chain: Chain) -> "Stage[ListsJob]":
    """Looks at the lists and returns the stage, which reads the users and the items of ingest.

    Raises:
      InputError: if a list cannot be read, or if it is unknown who is to be forgotten.
    """
    settings, ingested, ask = chain.settings, chain.done["ingest"], chain.settings.lists
    lists = resolve_lists(ask)
    forgotten = read_forgotten(Workspace(settings.output))
    num_buckets, num_items = IngestOutputs.of(ingested).num_buckets, ingested.rows("items")
    job = ListsJob(
        lists=lists,
        users={part_of(path): path for path in ingested.paths(settings.output, "users")},
        items=ingested.paths(settings.output, "items"),
        num_buckets=num_buckets,
        num_items=num_items,
        forgotten=forgotten,
    )

    def check(metrics: Mapping[str, Any], folder: str) -> None:
        check_rows(lists, metrics, ask, folder)
        check_joined(lists, metrics)
        blocked = metrics["items_blocked"]
        if num_items and blocked == num_items:
            flags = " and ".join(f"--{flag}" for flag in _OF_ITEMS if flag in lists.given)
            items = counted(num_items, "item")
            raise InputError(f"no item of the catalogue ({items}) may be recommended: check the ids in {flags}")

    return Stage(
        STAGE,
        settings={"num_buckets": num_buckets, **({FORGOTTEN: forgotten.digest} if forgotten.digest else {})},
        inputs={"ingest": ingested},
        reads={"ingest": ["users", "items"]},
        sources=[source.description() for source in lists.given.values()],
        job=job,
        check=check,
    )


@dataclass(frozen=True)
class ListsJob:
    """Which lists there are, and what they are compared with."""

    lists: GivenLists
    users: dict[int, str]
    items: list[str]
    num_buckets: int
    num_items: int
    forgotten: Forgotten


def build(root: beam.Pipeline, attempt: str, job: ListsJob) -> Reports:
    """Adds the stage's steps: each list is read and validated; ids are looked for; users and items are marked."""
    checked, left_out = {}, {}
    unwanted = Unwanted.of(job.forgotten)
    for flag, source in job.lists.given.items():
        name = flag.title().replace("_", "")
        raw = root | f"Read{name}" >> ReadBlocks(source)
        if job.forgotten.digest:
            raw, left_out[flag] = raw | f"LeaveOut{name}" >> LeaveOut(unwanted)
        checked[flag] = raw | f"Validate{name}" >> ValidateIds(_KINDS[flag][1], source.dataset)
    valid = {flag: each.valid | f"Count{flag.title()}" >> CountBlocks() for flag, each in checked.items()}
    partitions = max(1, math.ceil(job.num_items / ITEMS_A_RANGE))
    reports: list[beam.PCollection] = []

    of_items = {"exclude_items" if flag == "exclude" else flag: each for flag, each in valid.items() if flag != "users"}
    if of_items:
        catalogue = root | "ReadItems" >> ReadParquet(job.items, ["item_id", "code"])
        reports.append({**of_items, OTHERS: catalogue} | "JoinItems" >> JoinIds("item_id", partitions))
        if any(flag in valid for flag in _OF_ITEMS):
            named = {CATALOGUE: catalogue} | {flag: valid[flag] for flag in _OF_ITEMS if flag in valid}
            written = named | "WriteBlocked" >> WriteBlocked(attempt, partitions)
            reports += [written, written | "CountBlocked" >> beam.Map(lambda file: Counts({"items_blocked": file.rows}))]
    reports.append(root | "NoneBlocked" >> beam.Create([Counts({"items_blocked": 0})]))

    of_users = {"exclude_users" if flag == "exclude" else flag: valid[flag] for flag in ("users", "exclude") if flag in valid}
    if of_users:
        rated = root | "ReadUserIds" >> ReadParquet(list(job.users.values()), ["user_id"])
        join = JoinIds("user_id", job.num_buckets, {"exclude_users": "users"} if "users" in valid else {})
        everyone = (
            list(of_users.values()) | "GatherUsers" >> beam.Flatten() | "AddLists" >> AddLists(job.users, job.num_buckets)
        )
        reports += [
            {**of_users, OTHERS: rated} | "JoinUsers" >> join,
            everyone.metrics,
            everyone.users | "WriteUsers" >> WriteParts(attempt, "users", USERS),
        ]

    if checked:
        rejected = [each.rejected for each in checked.values()]
        kept = rejected | "GatherRejected" >> beam.Flatten() | "PartRejected" >> beam.FlatMap(key_rejected, 1)
        reports.append(
            kept
            | "GroupRejected" >> beam.GroupByKey()
            | "SortRejected" >> beam.MapTuple(sort_rejected)
            | "WriteRejected" >> WriteParts(attempt, "rejected", REJECTED)
        )
    for flag, each in checked.items():
        dataset = _KINDS[flag][0].dataset
        reports.append(each.summary | f"Report{flag.title()}" >> beam.Map(name_summary, dataset))
        reports.append(each.forms | f"ReportIdsOf{flag.title()}" >> beam.Map(name_forms, dataset))
    for flag, rows in left_out.items():
        reports.append(rows | f"ReportForgotten{flag.title()}" >> beam.Map(name_forgotten, _KINDS[flag][0].dataset))
    return reports


def check_rows(lists: GivenLists, metrics: Mapping[str, Any], ask: ListsSettings, folder: str) -> None:
    """Raises InputError if a list has too many rows that cannot be used, or an allow list none that can; warns of odd ids.

    Of lists of items every row must name one: what should be blocked must not slip through.
    """
    for flag, source in lists.given.items():
        read: Summary = metrics[rows_read(source.dataset)]
        if flag in _OF_ITEMS:
            check_every_row(read)
        elif read["rows"]:  # A list may name no one, or no one who is not to be forgotten.
            try:
                check_rejected(read, ask.max_rejected_fraction, source.dataset)
            except InputError as error:
                raise InputError(f"{error}. They are in {folder}/rejected") from error
        if flag == "allow_items" and not read["rows"]:
            gone = metrics.get(rows_forgotten(source.dataset), 0)
            forgotten = f" but {gone:,} that are to be forgotten" if gone else ""
            raise InputError(
                f"--allow_items {source.uri} names no item{forgotten}, so nothing might be recommended: name those that "
                "may be, or leave --allow_items out to allow all"
            )
        warn_of_forms(source.dataset, metrics)


def check_every_row(read: Summary) -> None:
    """Raises InputError if a row of a list of items names none."""
    if not read["reasons"]:
        return
    reason, first = min(read["reasons"].items(), key=lambda each: each[1]["position"])
    if reason == "item_id is missing":
        raise InputError(
            f"{first['source']} has a row without an item_id (position {first['position']}): a list of items must name one in "
            "every row: remove the row"
        )
    text = first["example"].get("text", first["example"].get("item_id"))
    raise InputError(f"{first['source']} has a line that cannot be read ({reason}): {text!r}: correct it")


_JOINS = {
    "users": ("users", "ids of --users", "the ratings"),
    "exclude_users": ("exclude", "user ids of --exclude", "the users"),
    "exclude_items": ("exclude", "item ids of --exclude", "the catalogue"),
    "block_items": ("block_items", "ids of --block_items", "the catalogue"),
    "allow_items": ("allow_items", "ids of --allow_items", "the catalogue"),
}
"""What is looked for: in which list, what it is called, and where it should be."""


def check_joined(lists: GivenLists, metrics: Mapping[str, Any]) -> None:
    """Says how many ids of each list are known.

    Users who are to be served may all be new, so that none of them is known is a mistake only where they are spelled otherwise.

    Raises:
      InputError: if a list names nothing that there is.
    """
    for name, joined in metrics.get(JOINED, {}).items():
        flag, what, elsewhere = _JOINS[name]
        uri = lists.given[flag].uri
        if joined["ids"] and not joined["known"] and (name != "users" or joined["spellings"]):
            role = "user_id" if name.endswith("users") else "item_id"
            repair = f"check that {uri} is of the same data, and that --list_columns {role}=NAME names the right column"
            if flag in ("block_items", "exclude"):
                repair += "; if all that it names is gone, leave only its header, which is a list of nothing"
            raise InputError(nothing_joins(joined, what, elsewhere, repair))
        few = joined["ids"] and name != "users" and joined["share"] < FEW
        log = LOGGER.warning if few or joined["spelled_otherwise"] or (joined["ids"] and not joined["known"]) else LOGGER.info
        log("%s: in %s, %s", what, elsewhere, in_words(joined))


def items_of(output: str, done: Mapping[str, StageManifest]) -> ItemLists:
    """Returns which items must not be recommended to anyone."""
    return ItemLists(tuple(done["lists"].paths(output, BLOCKED)), done["ingest"].rows("items"))


def reads_of(done: Mapping[str, StageManifest], *ingested: str, blocked: bool = True) -> dict[str, Sequence[str]]:
    """Returns what a later stage reads of ingest and of the lists: the users, wherever they are, and what is blocked.

    Args:
      done: the finished stages.
      *ingested: further datasets of ingest.
      blocked: whether it reads which items are blocked.
    """
    reads = {"ingest": list(ingested), "lists": [BLOCKED] if blocked else []}
    reads[users_of(done).stage].append("users")
    return {name: sorted(datasets) for name, datasets in reads.items() if datasets}


def check_same_lists(settings: Settings, done: Mapping[str, StageManifest]) -> None:
    """Makes sure that flags which name lists name those that a table was made with.

    Raises:
      InputError: if they name others, or the lists have changed.
    """
    named = [source.description() for source in resolve_lists(settings.lists).given.values()]
    if named and named != list(done["lists"].sources):
        raise InputError(
            "the table was made with other lists than --users, --exclude, --block_items and --allow_items name now, or they "
            "have changed since: give those of the table, or none, or run python -m pipelines.lists and then "
            "python -m pipelines.recommend again"
        )


STAGE = StageDefinition("lists", __name__, plan, build)
