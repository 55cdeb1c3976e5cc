"""The verdict on lists that are right, and on lists that are wrong in each way that it is there to see."""

from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.blocks import Block, in_blocks
from schemas.embeddings import embeddings_schema
from schemas.topk import RECOMMENDATION, TOPK
from schemas.users import USERS
from tests.made_index import MadeItems
from transforms.index.embed import vector_column
from transforms.index.item_lists import ItemLists
from transforms.io.read import Place
from transforms.lists.canaries import JudgeRun, Listed, MergeMeasured, canaries_schema, join_canaries, judge, measure, report
from transforms.lists.recall_segments import served_lists
from transforms.search.list_settings import ListSettings
from transforms.search.search import SearchSettings

DIM, K, NUM_ITEMS = 8, 5, 60
Lists = list[list[dict[str, Any]]]
Change = Callable[[Lists], Lists]


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


ITEMS = vectors(NUM_ITEMS, 0)
ITEM_IDS = [f"i{at:02d}" for at in range(NUM_ITEMS)]
USERS_VECTORS = vectors(4, 1)
UNWANTED = [[], ["i00", "i01", "i02"], ITEM_IDS[:57], ["gone", "i59"]]


def embeddings(**changes: np.ndarray) -> Block:
    columns = [pa.array(ITEM_IDS), vector_column(changes.get("vectors", ITEMS))]
    return pa.RecordBatch.from_arrays(columns, schema=embeddings_schema(DIM))


def indexed() -> Block:
    """Returns rows of SHARD_ITEMS, with one training positive each."""
    return MadeItems(ITEM_IDS, ITEMS, np.ones(NUM_ITEMS, int), np.ones(NUM_ITEMS)).known


def right_lists() -> Lists:
    lists = []
    for user, unwanted in zip(USERS_VECTORS, UNWANTED, strict=True):
        scores = ITEMS @ user
        order = [at for at in np.argsort(-scores, kind="stable") if ITEM_IDS[at] not in unwanted][:K]
        lists.append([{"item_id": ITEM_IDS[at], "score": float(scores[at])} for at in order])
    return lists


def canaries(served: Lists, exact: Lists) -> Block:
    schema = canaries_schema(DIM)
    columns = [pa.array([f"u{at}" for at in range(len(USERS_VECTORS))]), vector_column(USERS_VECTORS)]
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


SETTINGS = ListSettings(K, False, SearchSettings(), 1.0)


def users_of(block: Block) -> Block:
    """Users with vectors whose unwanted items lie in three lists, and one user without a vector."""
    unwanted = block["unwanted"].to_pylist()
    columns = {
        "user_id": [*block["user_id"].to_pylist(), "unknown"],
        "history": [*(each[::3] for each in unwanted), ["i07"]],
        "excluded": [*(each[1::3] for each in unwanted), []],
        "below_min_rating": [*(each[2::3] for each in unwanted), []],
        "holdout": [*([] for _ in unwanted), []],
    }
    users = pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in USERS], schema=USERS)
    vectors = vector_column(np.concatenate([USERS_VECTORS, np.zeros((1, DIM), np.float32)]), np.array([True] * 4 + [False]))
    return pa.RecordBatch.from_arrays([*users.columns, vectors], schema=users.schema.append(pa.field("vector", vectors.type)))


def table_of(block: Block) -> Block:
    return pa.RecordBatch.from_arrays(
        [
            pa.array([*block["user_id"].to_pylist(), "unknown"]),
            pa.array(["personalised"] * 4 + ["popular"]),
            pa.array([0] * 5, pa.int32()),
            pa.array([*block["served"].to_pylist(), []], pa.list_(RECOMMENDATION)),
            pa.nulls(5, TOPK.field("scored_at").type),
        ],
        schema=TOPK,
    )


@pytest.mark.parametrize("change", [same, swap_ids])
def test_the_verdict_comes_out_of_a_pipeline(change: Change) -> None:
    block = canaries(change(right_lists()), right_lists())

    def check(reports: list[dict[str, Any]]) -> None:
        assert [each["canaries"]["passed"] for each in reports] == [change is same]
        assert reports[0]["canaries"]["users"] == 4
        assert reports[0]["canaries"]["pairs"] == 18

    def placed(rows: Block) -> list[tuple[Place, Block]]:
        return [(Place(0, ordinal, False), each) for ordinal, each in enumerate(in_blocks(rows, 2))]

    with TestPipeline("FnApiRunner") as pipeline:
        listed = Listed(
            pipeline | "Users" >> beam.Create(placed(users_of(block))),
            pipeline | "Served" >> beam.Create([served_lists(each, 1.0) for each in in_blocks(table_of(block), 2)]),
            pipeline | "Exact" >> beam.Create(list(in_blocks(block.select(["user_id", "exact"]), 3))),
            pipeline | "Embeddings" >> beam.Create(list(in_blocks(embeddings(), 9))),
        )
        found = listed | JudgeRun(DIM, 1.0, SETTINGS, ItemLists())
        assert_that(found, check)


def test_joined_canaries_do_not_depend_on_the_order_of_blocks() -> None:
    block = canaries(right_lists(), right_lists())
    users = [block.select(["user_id", "vector", "unwanted"]).slice(at, 1) for at in (3, 0, 2, 1)]
    served = [block.select(["user_id", "served"])]
    exact = list(in_blocks(block.select(["user_id", "exact"]), 1))[::-1]
    assert join_canaries(users, served, exact, DIM).equals(block)
    assert join_canaries([], [], [], DIM).num_rows == 0
