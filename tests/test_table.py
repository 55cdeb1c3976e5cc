"""The two layouts hold the same, row groups are small and never cut a list."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topk import LAYOUTS, LONG, LONG_TOPK, NESTED, TOPK
from tests.made_table import Row, made_rows, pairs_of, write_table
from transforms.lists.table import (
    ITEMS_A_ROW_GROUP,
    WriteTable,
    dated,
    one_row_a_rank,
    one_row_a_user,
    read_table,
    row_groups,
)

ROWS = made_rows()
BLOCK = pa.RecordBatch.from_pylist(ROWS, TOPK)


def test_rows_get_the_date_of_their_run() -> None:
    when = datetime(2026, 11, 24, 5, 6, 7, tzinfo=UTC)
    block = dated(BLOCK.drop_columns("scored_at"), when)
    assert block.schema.equals(TOPK, check_metadata=True)
    assert block.to_pylist() == [row | {"scored_at": when} for row in ROWS]
    assert {row["scored_at"] for row in dated(BLOCK.drop_columns("scored_at"), None).to_pylist()} == {None}


def test_a_long_row_is_a_user_and_a_rank() -> None:
    block = one_row_a_rank(BLOCK.slice(3, 30))
    assert block.schema.equals(LONG_TOPK, check_metadata=True)
    expected = [
        {
            "user_id": row["user_id"],
            "rank": rank,
            **pair,
            **{name: row[name] for name in ("source", "history_length", "scored_at")},
        }
        for row in ROWS[3:33]
        for rank, pair in enumerate(row["recommendations"], 1)
    ]
    assert block.to_pylist() == expected


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 3))
def test_a_long_table_becomes_a_nested_one_again(lengths: list[int], skipped: int) -> None:
    rows: list[Row] = [
        {
            "user_id": f"u{at:02}",
            "source": "personalised",
            "history_length": at,
            "recommendations": [{"item_id": f"i{rank}", "score": float(-rank)} for rank in range(length)],
            "scored_at": None,
        }
        for at, length in enumerate(lengths)
    ]
    block = pa.RecordBatch.from_pylist(rows, TOPK).slice(skipped)
    again = one_row_a_user(one_row_a_rank(block))
    assert again.to_pylist() == [row for row in rows[skipped:] if row["recommendations"]]
    if len(again):
        assert again.schema.names == TOPK.names
        again.cast(TOPK)


def test_two_lists_of_one_user_stay_two() -> None:
    twice = pa.concat_batches([one_row_a_rank(BLOCK.slice(0, 1))] * 2)
    assert [row["user_id"] for row in one_row_a_user(twice).to_pylist()] == [ROWS[0]["user_id"]] * 2


@pytest.mark.parametrize("columns", [None, ["user_id", "recommendations"], ["user_id", "source", "history_length"]])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_both_layouts_read_alike(layout: str, columns: list[str] | None, tmp_path: Path) -> None:
    files = write_table(tmp_path, ROWS, layout)
    found = [row for file in files for block in read_table(str(tmp_path / file), columns) for row in block.to_pylist()]
    expected = [
        {name: row[name] for name in columns or TOPK.names} for row in ROWS if layout == NESTED or row["recommendations"]
    ]
    assert sorted(found, key=lambda row: row["user_id"]) == sorted(expected, key=lambda row: row["user_id"])


def test_row_groups_are_even_and_small_and_keep_lists_whole() -> None:
    k = ITEMS_A_ROW_GROUP // 10
    sizes = [len(group) for group in row_groups(BLOCK, k)]
    assert sizes == [10, 10, 10, 10, 7]
    assert [row for group in row_groups(BLOCK, k) for row in group.to_pylist()] == ROWS
    groups = list(row_groups(BLOCK, k, LONG))
    users = [set(group["user_id"].to_pylist()) for group in groups]
    assert sum(map(len, users)) == len(set.union(*users))
    assert sorted(
        (row["user_id"], row["rank"], row["item_id"], row["score"]) for group in groups for row in group.to_pylist()
    ) == (pairs_of(ROWS))
    assert [len(group) for group in row_groups(BLOCK, 10 * ITEMS_A_ROW_GROUP)] == [1] * len(ROWS)
    assert list(row_groups(BLOCK.slice(0, 0), k)) == []


def test_a_long_file_of_empty_lists_has_no_rows(tmp_path: Path) -> None:
    (file,) = write_table(tmp_path, [row for row in ROWS if not row["recommendations"]], LONG, num_buckets=1)
    assert pq.read_table(tmp_path / file).num_rows == 0
    assert pq.read_schema(tmp_path / file).equals(LONG_TOPK, check_metadata=True)


def test_an_unknown_layout_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="layout must be one of nested, long, got 'wide'"):
        WriteTable("root", 10, "wide")
