"""Writes small releases by hand, as the stages lay them out, so that what looks after releases can be tested in no time."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.job.publishing import describe_stage
from schemas.items import ITEMS
from schemas.manifest import StageManifest, digest_of, fingerprint_of, write_manifest
from schemas.parquet_files import parquet_writer
from schemas.release import SCHEMA_VERSION, pointer_to, write_latest
from schemas.release_manifest import release_in
from schemas.storage import WrittenFile, join, write_file, write_json
from schemas.topk import LAYOUTS, LONG, NESTED, TOPK
from schemas.workspace import Workspace
from transforms.io.partition import bucket_of
from transforms.lists.table import one_row_a_rank

Table = Mapping[str, Sequence[str]]
"""The list of each user, best first."""


def signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a release's manifest with the checksum of what it says: as if it had been written so."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return content | {"checksum": fingerprint_of(content)}


def write_stage(
    workspace: Workspace, name: str, fingerprint: str, time: str, files: list[WrittenFile], folder: str, **facts: Any
) -> StageManifest:
    """Writes the manifest of a finished stage, whose files are already in `folder`."""
    files = sorted(files, key=lambda file: file.path)
    stage = StageManifest(
        stage=name,
        fingerprint=fingerprint,
        folder=folder,
        digest=digest_of(files),
        settings=facts.get("settings", {}),
        inputs={},
        sources=[],
        files=files,
        metrics=facts.get("metrics", {}),
        versions={},
        started_at=time,
        finished_at=time,
    )
    write_manifest(workspace.manifest(name, fingerprint), stage)
    return stage


def write_topk(workspace: Workspace, folder: str, table: Table, num_buckets: int, layout: str = NESTED) -> list[WrittenFile]:
    """Writes a table as hash buckets, sorted by user, a few users a row group."""
    files: list[WrittenFile] = []
    users = sorted(table, key=lambda user: user.encode())
    buckets = bucket_of(pa.array(users, pa.string()), num_buckets).tolist()
    for bucket in range(num_buckets):
        mine = [user for user, its in zip(users, buckets, strict=True) if its == bucket]
        rows = [
            {
                "user_id": user,
                "source": "personalised",
                "history_length": 1,
                "recommendations": [{"item_id": item, "score": float(-rank)} for rank, item in enumerate(table[user])],
            }
            for user in mine
        ]
        path = f"topk/part-{bucket:06d}.parquet"
        with parquet_writer(join(workspace.root, folder), path, LAYOUTS[layout], files) as writer:
            for start in range(0, len(rows), 3):
                block = pa.RecordBatch.from_pylist(rows[start : start + 3], TOPK)
                writer.write_batch(one_row_a_rank(block) if layout == LONG else block)
    return files


def write_release(
    root: str,
    day: int,
    table: Table,
    k: int = 3,
    num_buckets: int = 2,
    status: str = "passed",
    serve: bool = True,
    means: Mapping[str, float] | None = None,
    layout: str = NESTED,
) -> dict[str, Any]:
    """Writes a release of its own stages, made on a day of January, and points LATEST to it; returns its manifest."""
    workspace, time = Workspace(root), f"2026-01-{day:02d}T00:00:00.000Z"
    made = {}
    for name in ("ingest", "train", "recommend"):
        fingerprint = fingerprint_of([name, day])
        folder = workspace.new_attempt(name, fingerprint)
        base = join(root, folder)
        files: list[WrittenFile] = []
        facts: dict[str, Any] = {}
        if name == "ingest":
            ids = sorted({item for items in table.values() for item in items})
            with parquet_writer(base, "items/part-000000.parquet", ITEMS, files) as writer:
                rows = [
                    {
                        "item_id": item,
                        "code": at,
                        "title": f"<b>{item}",
                        "train_count": 1,
                        "recent_count": 1,
                        "holdout_count": 0,
                    }
                    for at, item in enumerate(ids)
                ]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, ITEMS))
            counted = {
                "ratings_read": {"rows": 1_000 * day, "reasons": {}},
                "rows_repeated": 3,
                "newest_timestamp": 86_400 * day,
            }
            facts = {"metrics": {"num_buckets": num_buckets, **counted}}
        elif name == "train":
            files = [write_file(base, "towers/weights", f"weights of day {day}".encode())]
            write_file(base, "tensorboard/train/events.out.tfevents.1", b"a clock")
        else:
            files = write_topk(workspace, folder, table, num_buckets, layout)
            facts = {
                "settings": {"k": k},
                "metrics": {
                    "users": len(table),
                    "items_allowed": len({item for items in table.values() for item in items}),
                    "recall_against_exact": {"mean": 0.97},
                },
            }
        write_file(base, "summary.json", b"{}")
        made[name] = write_stage(workspace, name, fingerprint, time, files, folder, **facts)
    stages = {name: describe_stage(stage) for name, stage in made.items()}
    quality = {"users": len(table), "means": {f"recall@{k}": 0.5, f"ndcg@{k}": 0.25} | dict(means or {})}
    failed = status == "failed"
    gate = {"status": status, "value": 0.05, "limit": 0.1, "reason": "lists share 0.05", "forced": None}
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "release": f"202601{day:02d}T000000Z-{made['recommend'].digest[:8]}",
        "status": status,
        "created_at": time,
        "judged_at": time,
        "rows": len(table),
        "topk": [file for file in stages["recommend"]["files"] if "/topk/" in file["path"]],
        "metrics": made["recommend"].metrics,
        "evaluated": {"model": "the published one", "split": {}, "metrics": {"quality": quality}, "stages": {}},
        "gates": {"overlap": gate},
        "compared_with": None,
        "stages": stages,
    }
    manifest = signed(manifest)
    write_json(join(root, workspace.release_manifest(manifest["release"])), manifest)
    if serve and not failed:
        write_latest(workspace, pointer_to(workspace, release_in(manifest)))
    return manifest
