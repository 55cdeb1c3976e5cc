"""Block and allow lists against sets."""

import uuid
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.blocks import Block
from schemas.interactions import ITEM_IDS
from schemas.stage_files import BLOCKED
from schemas.storage import exists, join
from tests.made_data import ODD_IDS
from tests.made_index import item_lists
from transforms.index import item_lists as module
from transforms.index.item_lists import CATALOGUE, ItemLists, WriteBlocked, blocked_items

IDS = [*ODD_IDS, "a", "b", "c"]
BLOCK = [None, [], ["a", "7", "new\nline", "not in the catalogue"]]
ALLOW = [None, ["a", "b", "007", "emoji 🙂", "x" * 10_000]]


def catalogue() -> Block:
    return pa.RecordBatch.from_pydict({"item_id": pa.array(IDS), "code": pa.array(range(len(IDS)), pa.int32())})


def expected(block: list[str] | None, allow: list[str] | None) -> list[bool]:
    return [each in (block or []) or (allow is not None and each not in allow) for each in IDS]


def ids_of(ids: list[str]) -> Block:
    return pa.RecordBatch.from_arrays([pa.array(ids, pa.string())], schema=ITEM_IDS)


@pytest.mark.parametrize("block", BLOCK)
@pytest.mark.parametrize("allow", ALLOW)
def test_lists_equal_sets(tmp_path: Path, block: list[str] | None, allow: list[str] | None) -> None:
    arrays = [None if each is None else pa.array(each, pa.string()) for each in (block, allow)]
    found = blocked_items(catalogue().take(pa.array(np.random.default_rng(0).permutation(len(IDS)))), *arrays)
    wanted = [(each, code) for code, each in enumerate(IDS) if expected(block, allow)[code]]
    assert [tuple(row.values()) for row in found.to_pylist()] == wanted


@pytest.mark.parametrize(
    ("block", "allow", "num_partitions"),
    [(BLOCK[2], None, 1), (BLOCK[1], None, 3), (None, ALLOW[1], 3), (BLOCK[2], ALLOW[1], 3)],
)
def test_what_is_written_blocks_by_code(
    root: str, block: list[str] | None, allow: list[str] | None, num_partitions: int
) -> None:
    root = join(root, uuid.uuid4().hex)  # As attempts do: what is written once is never written again.
    with TestPipeline("FnApiRunner") as pipeline:
        named = {
            name: pipeline | name >> beam.Create([ids_of(ids[:2]), ids_of(ids[1:])]).with_output_types(Block)
            for name, ids in (("block_items", block), ("allow_items", allow))
            if ids is not None
        }
        items = pipeline | "Items" >> beam.Create([catalogue()[:4], catalogue()[4:]]).with_output_types(Block)
        written = {CATALOGUE: items, **named} | WriteBlocked(root, num_partitions)
        assert_that(written | beam.Map(lambda file: file.path.partition("/")[0]), lambda names: _check(set(names)))
    codes = np.arange(len(IDS))
    paths = tuple(f"{root}/{BLOCKED}/part-{part:06d}.parquet" for part in range(num_partitions))
    there = tuple(path for path in paths if exists(path))
    assert ItemLists(there, len(IDS)).blocked(codes).tolist() == expected(block, allow)


def _check(folders: set[str]) -> None:
    assert folders <= {BLOCKED}


def test_a_list_is_read_once_a_process_however_often_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = item_lists(tmp_path, IDS, block=["a", "7"])
    read = []

    def read_and_count(path: str, columns: list[str]) -> list[Block]:
        read.append(path)
        return list(pq.read_table(path, columns=columns).to_batches())

    monkeypatch.setattr(module, "read_parquet_blocks", read_and_count)
    for code in range(len(IDS)):
        assert lists.blocked(np.array([code])).tolist() == [IDS[code] in ("a", "7")]
    assert read == list(lists.paths)


def test_a_code_outside_the_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        item_lists(tmp_path, IDS, block=["a"]).blocked(np.array([len(IDS)]))
