"""The catalogue against a dictionary built row by row, for any number of ranges."""

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from transforms.ingest.catalogue import BuildCatalogue, FindRanges, range_of
from transforms.ingest.histories import ITEM_COUNTS

FEATURES = [pa.field("genres", pa.string())]


def counts_of(rows: list[tuple[str, int, int]]) -> pa.RecordBatch:
    ids, train, holdout = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays([ids, train, [each * 500_000 for each in train], holdout], schema=ITEM_COUNTS)


def described(rows: list[tuple[str, str | None, str | None]], first_position: int = 0) -> pa.RecordBatch:
    ids, titles, genres = zip(*rows, strict=True)
    return pa.record_batch(
        {
            "item_id": pa.array(ids, pa.string()),
            "title": pa.array(titles, pa.string()),
            "genres": pa.array(genres, pa.string()),
            "position": pa.array(range(first_position, first_position + len(rows)), pa.int64()),
        }
    )


@given(st.lists(st.text(max_size=4)), st.lists(st.text(max_size=4), unique=True))
def test_range_counts_the_cuts_at_or_before_an_id(ids: list[str], cuts: list[str]) -> None:
    cuts.sort(key=str.encode)
    expected = [sum(cut.encode() <= each.encode() for cut in cuts) for each in ids]
    assert range_of(pa.array(ids, pa.string()), cuts).tolist() == expected


@pytest.mark.parametrize("sample_ids", [1 << 16, 500])
def test_ranges_hold_about_as_many_items_as_asked_however_merged(sample_ids: int) -> None:
    ids = [f"{i:05d}" for i in range(10_000)]
    blocks = [counts_of([(each, 1, 0) for each in ids[start : start + 3_000]]) for start in range(0, 10_000, 1_500)]
    combine = FindRanges(items_a_range=1_000, sample_ids=sample_ids)
    cuts = combine.extract_output(
        combine.merge_accumulators([combine.add_input(combine.create_accumulator(), block) for block in blocks])
    )
    one = combine.create_accumulator()
    for block in blocks:
        one = combine.add_input(one, block)
    assert combine.extract_output(one) == cuts
    if sample_ids > len(ids):
        assert cuts == ids[1_000::1_000]
    else:
        assert 8 <= len(cuts) + 1 <= 12


@pytest.mark.parametrize("items_a_range", [1, 3, 1_000])
def test_catalogue_merges_sources_and_numbers_items_in_the_order_of_their_ids(items_a_range: int) -> None:
    blocks = [
        counts_of([("b", 2, 1), ("10", 1, 0), ("é", 0, 1)]),
        counts_of([("b", 1, 0), ("9", 5, 0), ("a", 0, 0)]),
        described([("b", "B later", "x"), ("9", "Nine", None)], first_position=10),
        described([("b", "B", "drama"), ("new", None, "new")]),
    ]
    expected = [
        ("10", None, 1, 0, None),
        ("9", "Nine", 5, 0, None),
        ("a", None, 0, 0, None),
        ("b", "B", 3, 1, "drama"),
        ("new", None, 0, 0, "new"),
        ("é", None, 0, 1, None),
    ]

    def check(parts: list) -> None:
        rows = [row for _, blocks in sorted(parts, key=lambda part: part[0]) for block in blocks for row in block.to_pylist()]
        assert [
            tuple(row[name] for name in ("item_id", "title", "train_count", "holdout_count", "genres")) for row in rows
        ] == expected
        assert [row["code"] for row in rows] == list(range(len(expected)))
        assert [row["recent_count"] for row in rows] == [row["train_count"] / 2 for row in rows]

    def check_metrics(reports: list) -> None:
        assert sum(report.numbers["item_rows_repeated"] for report in reports) == 1
        assert sum(report.numbers["items_never_trained_on"] for report in reports) == 3

    with TestPipeline("FnApiRunner") as pipeline:
        catalogue = pipeline | beam.Create(blocks) | BuildCatalogue(FEATURES, items_a_range)
        assert_that(catalogue.items, check)
        assert_that(catalogue.metrics, check_metrics, label="CheckMetrics")


@pytest.mark.parametrize("sample_ids", [1 << 16, 500])
def test_ranges_hold_no_more_text_than_asked_however_merged(sample_ids: int) -> None:
    """Long texts lie together, where the ranges must be short, whatever the order of the rows."""
    texts = {f"{i:05d}": "x" * (1_000 if 4_000 <= i < 4_400 else 5) for i in range(10_000)}
    ids = sorted(texts, key=lambda each: each[::-1])
    blocks = [
        described([(each, None, texts[each]) for each in ids[start : start + 1_500]]) for start in range(0, 10_000, 1_000)
    ]
    blocks.append(counts_of([(each, 1, 0) for each in ids[:5_000]]))
    combine = FindRanges(items_a_range=4_000, sample_ids=sample_ids, bytes_a_range=100_000)
    parts = [combine.add_input(combine.create_accumulator(), block) for block in blocks]
    cuts = combine.extract_output(combine.merge_accumulators(parts))
    one = combine.create_accumulator()
    for block in blocks:
        one = combine.add_input(one, block)
    assert combine.extract_output(one) == cuts == sorted(set(cuts))

    rows = [row for block in blocks for row in block.to_pylist()]
    ranges = range_of(pa.array([row["item_id"] for row in rows]), cuts)
    size = np.bincount(ranges, [len(row["item_id"]) + len(row.get("genres") or "") for row in rows])
    in_range = np.bincount(range_of(pa.array(list(texts)), cuts))
    slack = 1.1 if sample_ids > len(ids) else 1.6
    assert size.max() <= 100_000 * slack
    assert in_range.max() <= 4_000 * slack
    assert len(cuts) + 1 <= 1.3 * (size.sum() / 100_000 + 10_000 / 4_000)
