"""The verdict on lists that are right, and on lists that are wrong in each way that it is there to see."""

from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.blocks import Block, in_blocks, one_block
from schemas.embeddings import embeddings_schema
from schemas.storage import join, parquet_writer
from transforms.canaries import GatherCanaries, JudgeRun, MergeMeasured, canaries_schema, judge, measure, report
from transforms.embed import vector_column
from transforms.item_lists import ItemLists

DIM, K, NUM_ITEMS = 8, 5, 60
Lists = list[list[dict[str, Any]]]
Change = Callable[[Lists], Lists]


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


ITEMS = vectors(NUM_ITEMS, 0)
ITEM_IDS = [f"i{at:02d}" for at in range(NUM_ITEMS)]
USERS = vectors(4, 1)
UNWANTED = [[], ["i00", "i01", "i02"], ITEM_IDS[:57], ["gone", "i59"]]


def embeddings(**changes: np.ndarray) -> Block:
    columns = [
        pa.array(ITEM_IDS),
        pa.array(range(NUM_ITEMS), pa.int32()),
        pa.array([1] * NUM_ITEMS, pa.int64()),
        vector_column(changes.get("vectors", ITEMS)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=embeddings_schema(DIM))


def right_lists() -> Lists:
    lists = []
    for user, unwanted in zip(USERS, UNWANTED, strict=True):
        scores = ITEMS @ user
        order = [at for at in np.argsort(-scores, kind="stable") if ITEM_IDS[at] not in unwanted][:K]
        lists.append([{"item_id": ITEM_IDS[at], "score": float(scores[at])} for at in order])
    return lists


def canaries(served: Lists, exact: Lists) -> Block:
    schema = canaries_schema(DIM)
    columns = [pa.array([f"u{at}" for at in range(len(USERS))]), vector_column(USERS)]
    columns += [pa.array(lists, field.type) for lists, field in zip((UNWANTED, served, exact), list(schema)[2:], strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def verdict(block: Block, items: Block, rows_a_block: int = 7) -> dict[str, Any]:
    combine = MergeMeasured(K)
    measured = [combine.add_input(None, measure(each, block, K)) for each in in_blocks(items, rows_a_block)]
    merged = combine.merge_accumulators([None, *measured])
    assert merged is not None
    return judge(merged, block)


@pytest.mark.parametrize("rows_a_block", [1, 7, 100])
def test_right_lists_pass_however_embeddings_are_cut(rows_a_block: int) -> None:
    found = verdict(canaries(right_lists(), right_lists()), embeddings(), rows_a_block)
    assert found["passed"]
    assert found["first_failure"] is None
    assert (found["users"], found["pairs"]) == (4, 5 + 5 + 3 + 5)
    assert found["max_score_error"] < 1e-5


def same(lists: Lists) -> Lists:
    return lists


def swap_ids(lists: Lists) -> Lists:
    lists[1][0]["item_id"], lists[1][1]["item_id"] = lists[1][1]["item_id"], lists[1][0]["item_id"]
    return lists


def change_score(lists: Lists) -> Lists:
    lists[1][2]["score"] += 1e-3
    return lists


def drop_last(lists: Lists) -> Lists:
    lists[1].pop()
    return lists


def take_unknown(lists: Lists) -> Lists:
    lists[1][0]["item_id"] = "no such item"
    return lists


@pytest.mark.parametrize(
    ("served", "exact"),
    [
        (swap_ids, same),
        (change_score, same),
        (take_unknown, same),
        (same, change_score),
        (same, drop_last),
    ],
)
def test_wrong_lists_fail_and_name_the_user(
    served: Callable[[Lists], Lists] | None, exact: Callable[[Lists], Lists] | None
) -> None:
    block = canaries(
        served(right_lists()) if served else right_lists(),
        exact(right_lists()) if exact else right_lists(),
    )
    found = verdict(block, embeddings())
    assert not found["passed"]
    assert found["first_failure"] == "u1"


def test_embeddings_of_another_tower_fail() -> None:
    assert not verdict(canaries(right_lists(), right_lists()), embeddings(vectors=vectors(NUM_ITEMS, 9)))["passed"]


def test_a_served_list_may_miss_items_but_not_invent_them() -> None:
    approximate = [each[1:] for each in right_lists()]
    assert verdict(canaries(approximate, right_lists()), embeddings())["passed"]


def test_no_canaries_pass() -> None:
    assert report(None, canaries(right_lists(), right_lists()).slice(0, 0))["canaries"]["passed"]


def test_the_verdict_comes_out_of_a_pipeline(root: str) -> None:
    with parquet_writer(root, "e.parquet", embeddings_schema(DIM), []) as writer:
        for block in in_blocks(embeddings(), 9):
            writer.write_batch(block)
    block = canaries(right_lists(), right_lists())

    def check(reports: list[dict[str, Any]]) -> None:
        assert [each["canaries"]["passed"] for each in reports] == [True]
        assert reports[0]["canaries"]["pairs"] == 18

    with TestPipeline("FnApiRunner") as pipeline:
        found = pipeline | beam.Create(list(in_blocks(block, 2))) | JudgeRun([join(root, "e.parquet")], DIM, K, ItemLists())
        assert_that(found, check)


def test_gathered_canaries_do_not_depend_on_their_order() -> None:
    blocks = list(in_blocks(canaries(right_lists(), right_lists()), 1))
    combine = GatherCanaries(DIM)
    merged = combine.extract_output(
        combine.merge_accumulators(
            [combine.add_input([], blocks[3]), combine.add_input(combine.add_input([], blocks[2]), blocks[0])]
        )
    )
    assert merged.equals(one_block([blocks[0], blocks[2], blocks[3]], canaries_schema(DIM)))
