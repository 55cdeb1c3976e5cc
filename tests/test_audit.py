"""The audit of a table says what its parts say, and reads the stored embeddings once."""

from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.blocks import Block, in_blocks
from schemas.embeddings import SHARD_ITEMS, embeddings_schema
from schemas.parquet_files import parquet_writer
from tests.made_index import item_lists
from tests.test_canaries import (
    DIM,
    ITEM_IDS,
    SETTINGS,
    canaries,
    embeddings,
    indexed,
    right_lists,
    swap_ids,
    table_of,
    users_of,
)
from transforms.io.read import Place, PlacedBlock
from transforms.io.write import Counts
from transforms.lists.audit import AuditLists, Made

LISTED = {each["item_id"] for of_user in right_lists() for each in of_user}
BLOCKED = [each for each in ITEM_IDS if each not in LISTED][:2]


def placed(rows: Block) -> list[PlacedBlock]:
    return [(Place(0, ordinal, False), each) for ordinal, each in enumerate(in_blocks(rows, 2))]


def audit(pipeline: beam.Pipeline, folder: Path, block: Block) -> beam.PCollection:
    with parquet_writer(str(folder), "e.parquet", embeddings_schema(DIM), []) as writer:
        for each in in_blocks(embeddings(), 9):
            writer.write_batch(each)
    with parquet_writer(str(folder), "i.parquet", SHARD_ITEMS, []) as writer:
        for each in in_blocks(indexed(), 9):
            writer.write_batch(each)
    made = Made(
        pipeline | "Users" >> beam.Create(placed(users_of(block))),
        pipeline | "Table" >> beam.Create(placed(table_of(block))),
        pipeline | "Exact" >> beam.Create(list(in_blocks(block.select(["user_id", "exact"]), 3))),
    )
    lists = item_lists(folder, ITEM_IDS, block=BLOCKED)
    return made | "AuditLists" >> AuditLists(
        [str(folder / "e.parquet")], [str(folder / "i.parquet")], DIM, 1.0, SETTINGS, lists
    )


@pytest.mark.parametrize("is_right", [True, False])
def test_an_audit_tells_all_of_one_table(tmp_path: Path, is_right: bool) -> None:
    block = canaries(right_lists() if is_right else swap_ids(right_lists()), right_lists())

    def check(reports: list[Any]) -> None:
        found: dict[str, Any] = {}
        counts: Counter[str] = Counter()
        for each in reports:
            if isinstance(each, Counts):
                counts.update({name: int(number) for name, number in each.numbers.items()})
            else:
                found |= each
        assert counts == {"items_indexed": len(ITEM_IDS), "items_allowed": len(ITEM_IDS) - 2}
        assert found.keys() == {"canaries", "recall_by_history_length", "recall_by_item_popularity"}
        assert (found["canaries"]["users"], found["canaries"]["passed"]) == (4, is_right)
        assert found["recall_by_item_popularity"]["0-9"] == {"users": 4, "mean": 1.0, "standard_error": 0.0}

    with TestPipeline("FnApiRunner") as pipeline:
        assert_that(audit(pipeline, tmp_path, block), check)


def test_embeddings_and_items_are_read_once(tmp_path: Path) -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    audit(pipeline, tmp_path, canaries(right_lists(), right_lists()))
    names = [each.unique_name for each in pipeline.to_runner_api().components.transforms.values()]
    reads = [f"AuditLists/{name}/ReadFile" for name in ("ReadEmbeddings", "ReadItems")]
    assert sorted(name for name in names if name.endswith("/ReadFile")) == reads
