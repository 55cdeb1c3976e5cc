"""Makes a small table, and releases of it, without a job: `python -m tests.made_table` writes the golden files anew."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.testing.test_pipeline import TestPipeline

from schemas.blocks import Block
from schemas.topk import TOPK
from tests.made_data import ODD_IDS
from transforms.io.partition import bucket_of
from transforms.io.read import Place, PlacedBlock
from transforms.lists.table import WriteTable

GOLDEN = Path(__file__).parent / "golden"

Row = dict[str, Any]

K = 5


def made_rows(num_users: int = 40) -> list[Row]:
    """Returns rows of TOPK, of users with odd ids too; of every seventh the list is short, of one it is empty."""
    users = [*(each for each in ODD_IDS if len(each) < 100), *(f"u{number}" for number in range(num_users))]
    return [
        {
            "user_id": user,
            "source": "popular" if at % 5 == 4 else "personalised",
            "history_length": 0 if at % 5 == 4 else at,
            "recommendations": [
                {"item_id": f"i{(at * 3 + rank) % 17}", "score": 9.5 - rank - at / 64}
                for rank in range(0 if at == 8 else 2 if at % 7 == 6 else K)
            ],
            "scored_at": None if at == 9 else datetime(2026, 11, 20 + at % 3, 4, 5, 6, 789000, UTC),
        }
        for at, user in enumerate(users)
    ]


def blocks_of(rows: Sequence[Row], num_buckets: int, rows_a_block: int = 8) -> list[PlacedBlock]:
    """Returns rows as the blocks of sorted hash buckets."""
    buckets = bucket_of(pa.array([row["user_id"] for row in rows]), num_buckets)
    made = []
    for bucket in sorted(set(buckets.tolist())):
        mine = sorted(
            (row for row, own in zip(rows, buckets, strict=True) if own == bucket), key=lambda row: row["user_id"].encode()
        )
        starts = range(0, len(mine), rows_a_block)
        for ordinal, start in enumerate(starts):
            block: Block = pa.RecordBatch.from_pylist(mine[start : start + rows_a_block], TOPK)
            made.append((Place(int(bucket), ordinal, ordinal == len(starts) - 1), block))
    return made


def write_table(root: Path, rows: Sequence[Row], layout: str, num_buckets: int = 3) -> list[str]:
    """Writes a table below `root`, as the pipeline does, and returns its files, relative to it."""
    with TestPipeline("FnApiRunner") as pipeline:
        blocks = pipeline | beam.Create([blocks_of(rows, num_buckets)]) | beam.FlatMap(iter).with_output_types(PlacedBlock)
        _ = blocks | WriteTable(str(root), K, layout)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.parquet"))


def write_latest(root: Path, files: list[str]) -> None:
    """Points `LATEST` to a table."""
    latest = {"schema_version": 2, "release": "r", "manifest": "releases/r/manifest.json", "topk": files}
    (root / "LATEST").write_text(json.dumps(latest))


def pairs_of(rows: Sequence[Row]) -> list[tuple[str, int, str, float]]:
    """Returns (user_id, rank, item_id, score) of every listed item, sorted."""
    return sorted(
        (row["user_id"], rank, pair["item_id"], pair["score"])
        for row in rows
        for rank, pair in enumerate(row["recommendations"], 1)
    )


if __name__ == "__main__":
    for name in ("nested", "long"):
        write_table(GOLDEN / name, made_rows(), name, num_buckets=1)
