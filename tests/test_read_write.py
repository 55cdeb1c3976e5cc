"""Parts are read with their places and written back, a file a part, in order, however bundles fall."""

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.blocks import in_blocks
from schemas.storage import WrittenFile, join, list_files, parquet_writer, read_json, read_parquet_blocks
from transforms.read import Place, ReadParquet, ReadParts
from transforms.write import (
    SUMMARY,
    MergeReports,
    WriteParts,
    WritePlacedBlocks,
    WriteSummary,
    _WritePlaced,
    part_of,
    part_path,
)

SCHEMA = pa.schema([("n", pa.int64())])


def table_of(start: int, stop: int) -> pa.Table:
    return pa.table({"n": pa.array(range(start, stop), pa.int64())})


@pytest.fixture
def parts(root: str) -> dict[int, str]:
    """Two files of three row groups each, and one without rows."""
    for part, (start, stop) in {0: (0, 30), 7: (30, 60), 9: (0, 0)}.items():
        with parquet_writer(root, part_path("in", part), SCHEMA, []) as writer:
            for block in in_blocks(table_of(start, stop), 10):
                writer.write_batch(block)
    return {part: join(root, part_path("in", part)) for part in (0, 7, 9)}


def test_placed_blocks_are_written_back_as_they_were(root: str, parts: dict[int, str]) -> None:
    with TestPipeline("FnApiRunner") as pipeline:
        files = pipeline | ReadParts(parts) | WritePlacedBlocks(root, "out", SCHEMA)
        _ = files | WriteSummary(root)
    summary = read_json(join(root, SUMMARY))
    assert [(file["path"], file["rows"]) for file in summary["files"]] == [
        ("out/part-000000.parquet", 30),
        ("out/part-000007.parquet", 30),
    ]
    for part in (0, 7):
        blocks = list(read_parquet_blocks(join(root, part_path("out", part))))
        assert [block.num_rows for block in blocks] == [10, 10, 10]
        assert pa.Table.from_batches(blocks).equals(pa.Table.from_batches(read_parquet_blocks(parts[part])))


def test_a_part_broken_over_bundles_becomes_two_sorted_files(root: str) -> None:
    blocks = list(in_blocks(table_of(0, 30), 10))
    writer = _WritePlaced(root, "out", SCHEMA)
    written: list[WrittenFile] = []
    for bundle in (range(2), range(2, 3)):
        writer.start_bundle()
        for at in bundle:
            written += writer.process((Place(3, at, at == 2), blocks[at]))
        written += [each.value for each in writer.finish_bundle()]
    assert [(file.path, file.rows) for file in written] == [
        ("out/part-000003.parquet", 20),
        ("out/part-000003-000002.parquet", 10),
    ]
    assert {part_of(file.path) for file in written} == {3}
    assert not [file for file in list_files(join(root, "out", "*")) if file.path.endswith(".tmp")]


def test_read_parquet_reads_every_row_once(parts: dict[int, str]) -> None:
    with TestPipeline("FnApiRunner") as pipeline:
        blocks = pipeline | ReadParquet(list(parts.values()))

        def check(found: list[pa.RecordBatch]) -> None:
            assert sorted(pa.Table.from_batches(found)["n"].to_pylist()) == list(range(60))

        assert_that(blocks, check)


def test_parts_and_reports_end_in_one_summary(root: str) -> None:
    blocks = list(in_blocks(table_of(0, 10), 4))
    with TestPipeline("FnApiRunner") as pipeline:
        files = pipeline | "Parts" >> beam.Create([(2, blocks), (1, [])]) | WriteParts(root, "d", SCHEMA)
        metrics = pipeline | "Metrics" >> beam.Create([{"rows": 3, "only": {"a": 1}}, {"rows": 4}])
        _ = (files, metrics) | beam.Flatten() | WriteSummary(root)
    summary = read_json(join(root, SUMMARY))
    assert summary["metrics"] == {"rows": 7, "only": {"a": 1}}
    assert [(file["path"], file["rows"]) for file in summary["files"]] == [
        ("d/part-000001.parquet", 0),
        ("d/part-000002.parquet", 10),
    ]


def test_reports_merge_in_any_grouping() -> None:
    combine = MergeReports()
    reports = [{"a": 1}, {"a": 2, "b": 5}, {"b": 1}]
    one = combine.create_accumulator()
    for report in reports:
        one = combine.add_input(one, report)
    each = [combine.add_input(combine.create_accumulator(), report) for report in reports]
    assert combine.extract_output(one) == combine.extract_output(combine.merge_accumulators(each))
    assert combine.extract_output(one)["metrics"] == {"a": 3, "b": 6}
