"""The page for consumers says what the files are, and what is in the files does not change unnoticed."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import contract
from schemas.fields import doc_of
from schemas.topk import HISTORY, LAYOUTS, LONG, NESTED, VERSION
from tests.made_table import GOLDEN, made_rows, pairs_of, write_table
from transforms.io.partition import bucket_of

PAGE = contract.PAGE.read_text(encoding="utf-8")

FIELDS = {
    "user_id": ("string", False),
    "source": ("string", False),
    "history_length": ("int32", False),
    "recommendations": ("list<item: struct<item_id: string not null, score: float not null>>", False),
    "scored_at": ("timestamp[us, tz=UTC]", True),
}
LONG_FIELDS = {
    "user_id": ("string", False),
    "rank": ("int32", False),
    "item_id": ("string", False),
    "score": ("float", False),
    "source": ("string", False),
    "history_length": ("int32", False),
    "scored_at": ("timestamp[us, tz=UTC]", True),
}
PARQUET = {
    NESTED: [
        ("user_id", "BYTE_ARRAY", "String"),
        ("source", "BYTE_ARRAY", "String"),
        ("history_length", "INT32", "None"),
        ("recommendations.list.element.item_id", "BYTE_ARRAY", "String"),
        ("recommendations.list.element.score", "FLOAT", "None"),
        ("scored_at", "INT64", "Timestamp"),
    ],
    LONG: [
        ("user_id", "BYTE_ARRAY", "String"),
        ("rank", "INT32", "None"),
        ("item_id", "BYTE_ARRAY", "String"),
        ("score", "FLOAT", "None"),
        ("source", "BYTE_ARRAY", "String"),
        ("history_length", "INT32", "None"),
        ("scored_at", "INT64", "Timestamp"),
    ],
}


def golden(layout: str) -> Path:
    return GOLDEN / layout / "topk" / "part-000000.parquet"


def test_the_page_is_what_the_schemas_say() -> None:
    assert contract.rendered(PAGE) == PAGE, "run python -m schemas.contract"
    assert re.findall(r"<!-- (\w+) -->", PAGE) == ["nested", "end", "long", "end", "versions", "end"]
    for schema in LAYOUTS.values():
        for field in schema:
            assert f"| `{field.name}` | " in PAGE
            assert doc_of(field) in PAGE


@pytest.mark.parametrize(("layout", "fields"), [(NESTED, FIELDS), (LONG, LONG_FIELDS)])
def test_a_change_of_the_table_is_a_new_version(layout: str, fields: dict[str, tuple[str, bool]]) -> None:
    schema = LAYOUTS[layout]
    assert {field.name: (str(field.type), field.nullable) for field in schema} == fields, (
        "count the version up, then change this"
    )
    assert list(fields) == schema.names
    assert schema.metadata == {b"dataset": b"topk", b"schema_version": b"1.1", b"layout": layout.encode()}
    assert list(HISTORY) == ["1.0", "1.1"]
    assert VERSION == "1.1"
    assert all(doc_of(field) for field in schema)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_files_written_once_are_read_for_ever(layout: str) -> None:
    parquet = pq.ParquetFile(golden(layout))
    schema = parquet.schema_arrow
    assert schema.equals(LAYOUTS[layout])
    assert schema.metadata == LAYOUTS[layout].metadata
    assert [doc_of(field) for field in schema] == [doc_of(field) for field in LAYOUTS[layout]]
    leaves = [parquet.schema.column(at) for at in range(len(parquet.schema))]
    assert [(leaf.path, leaf.physical_type, leaf.logical_type.type.title()) for leaf in leaves] == PARQUET[layout]
    groups: list[Any] = [parquet.metadata.row_group(at) for at in range(parquet.num_row_groups)]
    assert [group.sorting_columns[0].column_index for group in groups] == [0] * 6
    bounds = [(group.column(0).statistics.min, group.column(0).statistics.max) for group in groups]
    assert all(low <= high for low, high in bounds)
    assert all(before[1] < after[0] for before, after in pairwise(bounds))
    assert all(
        group.column(at).compression == "ZSTD" and group.column(at).has_column_index for group in groups for at in (0, 1)
    )
    rows = parquet.read().to_pylist()
    if layout == NESTED:
        assert rows == sorted(made_rows(), key=lambda row: row["user_id"].encode())
    else:
        assert [(row["user_id"], row["rank"], row["item_id"], row["score"]) for row in rows] == sorted(
            pairs_of(made_rows()), key=lambda pair: (pair[0].encode(), pair[1])
        )
        whole = {row["user_id"]: row for row in made_rows()}
        for row in rows:
            assert all(row[name] == whole[row["user_id"]][name] for name in ("source", "history_length", "scored_at"))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_same_rows_give_the_same_bytes(layout: str, tmp_path: Path) -> None:
    (file,) = write_table(tmp_path, made_rows(), layout, num_buckets=1)
    assert (tmp_path / file).read_bytes() == golden(layout).read_bytes(), (
        "every table's digest changes: if that is meant (as with another PyArrow), run python -m tests.made_table"
    )


def documented_bucket() -> Any:
    (code,) = re.findall(r"```python hash\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["bucket_of"]


@given(st.lists(st.text(), min_size=1), st.integers(1, 10**9))
def test_consumers_can_compute_the_bucket_by_the_page(user_ids: list[str], num_buckets: int) -> None:
    ids = [each for each in user_ids if each.isprintable() or each.isascii()]
    expected = [documented_bucket()(each, num_buckets) for each in ids]
    assert bucket_of(pa.array(ids, pa.string()), num_buckets).tolist() == expected


def test_the_pages_examples_of_buckets_are_right() -> None:
    examples = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(examples) == 3
    for user, *buckets in examples:
        for num_buckets, bucket in zip((10, 1_000_000), buckets, strict=True):
            assert (
                bucket_of(pa.array([user]), num_buckets).tolist() == [int(bucket)] == [documented_bucket()(user, num_buckets)]
            )
