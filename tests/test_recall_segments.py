"""Recall by segment against a count in plain Python."""

from collections import defaultdict

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.blocks import Block, in_blocks
from schemas.topk import TOPK
from transforms.lists.fused import EXACT_LISTS
from transforms.lists.recall_segments import (
    Compared,
    RecallBySegment,
    compare,
    report,
    segment_names,
    served_lists,
    sums_by_popularity,
)

NUM_USERS, NUM_ITEMS, K = 60, 90, 8
RNG = np.random.default_rng(0)
COUNTS = RNG.choice([1, 9, 10, 99, 100, 999, 1_000, 50_000], NUM_ITEMS)
HISTORY = RNG.choice([0, 4, 5, 19, 20, 99, 100, 3_000], NUM_USERS)
EXACT = [RNG.permutation(NUM_ITEMS)[:K].tolist() for _ in range(NUM_USERS)]
SERVED = [[item for item in items if RNG.random() < 0.8] + [NUM_ITEMS + 1] for items in EXACT]


def lists_of(items: list[int]) -> list[dict]:
    return [{"item_id": f"i{item}", "score": 1.0} for item in items]


def table() -> Block:
    columns = [
        [f"u{at:02d}" for at in range(NUM_USERS)],
        ["personalised"] * NUM_USERS,
        pa.array(HISTORY, pa.int32()),
        pa.array([lists_of(items) for items in SERVED], TOPK.field("recommendations").type),
        pa.nulls(NUM_USERS, TOPK.field("scored_at").type),
    ]
    return pa.RecordBatch.from_arrays([pa.array(each) if isinstance(each, list) else each for each in columns], schema=TOPK)


def exact_lists() -> Block:
    users = pa.array([f"u{at:02d}" for at in range(NUM_USERS)])
    lists = pa.array([lists_of(items) for items in EXACT], EXACT_LISTS.field("exact").type)
    return pa.RecordBatch.from_arrays([users, lists], schema=EXACT_LISTS)


def indexed() -> Block:
    return pa.record_batch({"item_id": [f"i{at}" for at in range(NUM_ITEMS)], "train_count": pa.array(COUNTS, pa.int64())})


def expected() -> dict[str, dict[str, tuple[int, float]]]:
    histories, popularities = defaultdict(list), defaultdict(list)
    for at in range(NUM_USERS):
        name = next((n for n, low in (("100+", 100), ("20-99", 20), ("5-19", 5)) if HISTORY[at] >= low), "0-4")
        histories[name].append(len(set(EXACT[at]) & set(SERVED[at])) / K)
        for segment, low, high in (("0-9", 0, 10), ("10-99", 10, 100), ("100-999", 100, 1_000), ("1000+", 1_000, 10**9)):
            items = {item for item in EXACT[at] if low <= COUNTS[item] < high}
            if items:
                popularities[segment].append(len(items & set(SERVED[at])) / len(items))
    return {
        "recall_by_history_length": {name: (len(each), float(np.mean(each))) for name, each in histories.items()},
        "recall_by_item_popularity": {name: (len(each), float(np.mean(each))) for name, each in popularities.items()},
    }


def found_of(metrics: dict) -> dict:
    return {
        kind: {name: (each["users"], pytest.approx(each["mean"])) for name, each in segments.items()}
        for kind, segments in metrics.items()
    }


@pytest.mark.parametrize("rows_a_block", [7, 100])
def test_segments_equal_a_count_however_blocks_are_cut(rows_a_block: int) -> None:
    served = [served_lists(block, 1.0) for block in in_blocks(table(), 11)]
    items = compare(served, list(in_blocks(exact_lists(), 13))[::-1])
    sums = sum(sums_by_popularity(block, items) for block in in_blocks(indexed(), rows_a_block))
    assert found_of(report(np.asarray(sums), items)) == expected()


def test_segments_come_out_of_a_pipeline() -> None:
    def check(reports: list[dict]) -> None:
        assert [found_of(each) for each in reports] == [expected()]

    with TestPipeline("FnApiRunner") as pipeline:
        lists = Compared(
            pipeline | "Served" >> beam.Create([served_lists(block, 1.0) for block in in_blocks(table(), 25)]),
            pipeline | "Exact" >> beam.Create([exact_lists()]),
            pipeline | "Indexed" >> beam.Create(list(in_blocks(indexed(), 20))),
        )
        assert_that(lists | RecallBySegment(), check)


def test_without_users_there_is_nothing_to_tell() -> None:
    items = compare([], [])
    metrics = report(sums_by_popularity(indexed(), items), items)
    assert {each["users"] for segments in metrics.values() for each in segments.values()} == {0}


def test_names() -> None:
    assert segment_names((5, 20, 100)) == ["0-4", "5-19", "20-99", "100+"]
