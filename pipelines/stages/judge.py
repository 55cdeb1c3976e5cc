"""Checks every row of the finished table, and compares it with the last release's table.

What it finds decides, in `pipelines.job.publishing`, whether the table is published, and the report shows it. It does not
depend on any limit, so another limit does not make it run again. It does depend on the table of the release that `LATEST`
names.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import apache_beam as beam

from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.lists import check_same_lists, items_of, reads_of
from pipelines.stages.outputs import IngestOutputs
from schemas.manifest import StageManifest, fingerprint_of, users_of
from schemas.release import read_latest, read_named, read_release
from schemas.release_manifest import LastTable
from schemas.stage_files import ITEMS_OF_SHARDS
from schemas.storage import exists, join, list_files
from schemas.stored import check_file
from schemas.workspace import Workspace
from transforms.evaluate.describe_table import DescribeTable
from transforms.evaluate.judge import BucketFiles, JudgeTable
from transforms.evaluate.judge_bucket import TableRules
from transforms.index.item_lists import ItemLists
from transforms.io.write import part_of

FOUND = "table"
"""The metric that says what was found."""


def last_table(workspace: Workspace, recommended: StageManifest) -> LastTable | None:
    """Returns the table that `LATEST` names; where that is the very table in question, the one which that was compared with.

    Args:
      workspace: the output.
      recommended: the stage that made the table in question.
    """
    latest = read_latest(workspace)
    if latest is None:
        return None
    release = read_release(workspace, latest)
    if release.stages["recommend"].digest == recommended.digest:
        return release.compared_with
    ingested, table = release.stages["ingest"], release.stages["recommend"]
    users, users_digest, users_gone = _users_of(workspace, latest.release, ingested)
    return LastTable(
        release=latest.release,
        digest=table.digest,
        k=table.settings["k"],
        num_buckets=IngestOutputs.of(ingested).num_buckets,
        topk=latest.topk,
        users=users,
        users_digest=users_digest,
        users_gone=users_gone,
    )


def _users_of(workspace: Workspace, release: str, ingested: StageManifest) -> tuple[tuple[str, ...], str | None, str | None]:
    """Returns the files of the users of a release and the digest of their contents, or why they cannot be read any more."""
    files = {f"{ingested.folder}/{file.path}": file for file in ingested.dataset("users")}
    if not files:
        return (), None, f"release {release} does not say where they are"
    sizes = {found.path: found.size_in_bytes for found in list_files(join(workspace.root, ingested.folder, "users", "*"))}
    for name, file in files.items():
        path = join(workspace.root, name)
        if sizes.get(path) != file.bytes:
            return (), None, f"{path} is {'altered' if path in sizes else 'gone'}"
    return tuple(files), fingerprint_of([[name, file.sha256] for name, file in files.items()]), None


def check_last(workspace: Workspace, last: LastTable) -> None:
    """Makes sure that the files of the table that is to be replaced, and of its users, are as they were written.

    Raises:
      InputError: naming the first that is not, and how to go on without it.
    """
    if not exists(join(workspace.root, workspace.release_manifest(last.release))):
        return  # It is not served any more, and was deleted: nothing tells what its files were.
    release = read_named(workspace, last.release)
    ingested = release.stages["ingest"]
    written = {file.path: file for file in release.topk} | {f"{ingested.folder}/{file.path}": file for file in ingested.files}
    repair = (
        f"what is made now is compared with release {last.release}: restore that file from a copy, serve another release with "
        f"python -m pipelines.releases rollback --output {workspace.root}, or delete {workspace.latest} to compare with nothing"
    )
    for path in (*last.topk, *last.users):
        if path in written:
            check_file(join(workspace.root, path), written[path], repair)


def plan(chain: Chain, last: LastTable | None, evaluated: StageManifest | None = None) -> "Stage[JudgeJob]":
    """Returns the stage, which reads the table, the users and items that it is for, and the last table.

    Args:
      chain: the stages that made the table.
      last: the table that it would replace.
      evaluated: where another model was evaluated than this table's, the verdict on its table: the two belong together.

    Raises:
      InputError: if lists are named that are not those that the table was made with.
    """
    settings, done = chain.settings, chain.done
    ingested, recommended = done["ingest"], done["recommend"]
    check_same_lists(settings, done)
    root = settings.output
    rules = TableRules(
        k=recommended.settings["k"],
        recommend_seen=recommended.settings["recommend_seen"],
        num_buckets=IngestOutputs.of(ingested).num_buckets,
        last_k=last.k if last else None,
        layout=recommended.settings["layout"],
        has_last_users=last is not None and not last.users_gone,
    )
    same_buckets = last is not None and last.num_buckets == rules.num_buckets
    last_paths = [join(root, path) for path in last.topk] if last else []
    last_users = [join(root, path) for path in last.users] if last else []
    job = JudgeJob(
        buckets=buckets_of(
            users_of(done).paths(root, "users"),
            recommended.paths(root, "topk"),
            last_paths if same_buckets else [],
            last_users if same_buckets else [],
        ),
        items=ingested.paths(root, "items"),
        num_items=ingested.rows("items"),
        examples=settings.report.users,
        indexed=done["calibrate"].paths(root, ITEMS_OF_SHARDS),
        lists=items_of(root, done),
        rules=rules,
        regrouped=[] if same_buckets else last_paths,
        regrouped_users=[] if same_buckets else last_users,
    )
    return Stage(
        STAGE,
        settings={
            "k": rules.k,
            "recommend_seen": rules.recommend_seen,
            "last": last.settings if last else None,
            "evaluated": evaluated.fingerprint if evaluated else None,
            "examples": settings.report.users,
        },
        inputs={name: done[name] for name in ("ingest", "lists", "calibrate", "recommend")},
        reads={**reads_of(done, "items"), "calibrate": [ITEMS_OF_SHARDS], "recommend": ["topk"]},
        job=job,
        prove=lambda: check_last(Workspace(settings.output), last) if last else None,
    )


@dataclass(frozen=True)
class JudgeJob:
    """The table that is judged, and what it is judged by."""

    buckets: Mapping[int, BucketFiles]
    items: list[str]
    num_items: int
    examples: int
    indexed: list[str]
    lists: ItemLists
    rules: TableRules
    regrouped: list[str]
    regrouped_users: list[str]


def build(root: beam.Pipeline, attempt: str, job: JudgeJob) -> Reports:
    """Adds the stage's steps: each bucket's files are read by one worker, which compares them; what is in them is counted."""
    table = [path for files in job.buckets.values() for path in files.table]
    users = {number: files.users for number, files in job.buckets.items()}
    return [
        root
        | "JudgeTable"
        >> JudgeTable(job.buckets, job.items, job.indexed, job.lists, job.rules, job.regrouped, job.regrouped_users),
        root
        | "DescribeTable"
        >> DescribeTable(attempt, table, job.items, job.num_items, users, job.rules.num_buckets, job.examples),
    ]


def buckets_of(users: list[str], table: list[str], last: list[str], last_users: list[str]) -> dict[int, BucketFiles]:
    """Returns where each bucket lies, from the paths of all files."""
    found: dict[int, list[list[str]]] = defaultdict(lambda: [[], [], [], []])
    for kind, paths in enumerate((users, table, last, last_users)):
        for path in paths:
            found[part_of(path)][kind].append(path)
    return {number: BucketFiles(*map(tuple, kinds)) for number, kinds in found.items()}


STAGE = StageDefinition("judge", __name__, plan, build)
