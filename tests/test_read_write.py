"""Parts are read with their places and written back, a file a part, in order, however bundles fall."""

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.blocks import in_blocks
from schemas.errors import InputError
from schemas.parquet_files import parquet_writer, read_parquet_blocks
from schemas.stage_files import SUMMARY
from schemas.storage import WrittenFile, join, list_files, read_json
from transforms.io.read import Place, ReadParquet, ReadParts
from transforms.io.write import (
    Counts,
    MergeReports,
    Report,
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
        ("out/part-000003_000002.parquet", 10),
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
        metrics = pipeline | "Metrics" >> beam.Create([Counts({"rows": 3}), {"only": {"a": 1}}, Counts({"rows": 4})])
        _ = (files, metrics) | beam.Flatten() | WriteSummary(root)
    summary = read_json(join(root, SUMMARY))
    assert summary["metrics"] == {"rows": 7, "only": {"a": 1}}
    assert [(file["path"], file["rows"]) for file in summary["files"]] == [
        ("d/part-000001.parquet", 0),
        ("d/part-000002.parquet", 10),
    ]


@pytest.mark.parametrize("part", [0, 7, 999_999])
@pytest.mark.parametrize("ordinal", [0, 2, 999_999])
def test_the_name_of_a_file_tells_its_part(part: int, ordinal: int) -> None:
    assert part_of(f"memory://part-000001/{part_path('in', part, ordinal)}") == part


def test_files_of_before_are_still_known() -> None:
    assert part_of("topk/part-000003-000002.parquet") == 3


def test_names_sort_as_parts_do_and_too_many_are_refused() -> None:
    places = [(part, ordinal) for part in (0, 9, 10, 99_999, 100_000, 999_999) for ordinal in (0, 1, 10, 999_999)]
    names = [part_path("in", *place) for place in places]
    assert sorted(names) == names
    for place in ((1_000_000, 0), (0, 1_000_000)):
        with pytest.raises(InputError, match=r"at most 1,000,000 parts of as many blocks, got .* lower --num_buckets"):
            part_path("in", *place)
    for name in ("part-1000000.parquet", "part-1.parquet", "part-000001.parquet.tmp", "other.parquet"):
        with pytest.raises(InputError, match=r"are named part-000000\.parquet and so on, got"):
            part_of(f"in/{name}")


def merged_in_every_way(reports: list[Report]) -> list[dict]:
    """Merges reports one after the other, and each from an accumulator of its own."""
    combine = MergeReports()
    one = combine.create_accumulator()
    for report in reports:
        one = combine.add_input(one, report)
    each = [combine.add_input(combine.create_accumulator(), report) for report in reports]
    return [combine.extract_output(one), combine.extract_output(combine.merge_accumulators(each))]


def test_counts_add_up_and_everything_else_is_told_once() -> None:
    for merged in merged_in_every_way([Counts({"a": 1}), {"dim": 8}, Counts({"a": 2, "b": 5}), Counts({"b": 1}), {"dim": 8}]):
        assert merged["metrics"] == {"a": 3, "b": 6, "dim": 8}


def test_reports_under_one_name_are_put_together() -> None:
    for merged in merged_in_every_way([{"joined": {"a": {"ids": 1}}}, {"joined": {"b": {"ids": 2}}}, {"joined": {}}]):
        assert merged["metrics"] == {"joined": {"a": {"ids": 1}, "b": {"ids": 2}}}


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ([{"dim": 8}, {"dim": 16}], "dim is reported twice, as 8 and as 16: only counts add up"),
        ([{"plan": "fused"}, {"plan": "by shard"}], "plan is reported twice, as fused and as by shard"),
        ([{"joined": {"a": 1, "b": 2}}, {"joined": {"a": 3, "c": 4}}], "joined.a is reported twice, as 1 and as 3"),
        ([{"rows": 3}, Counts({"rows": 4})], "rows is reported both as a count, 4, and as it is, 3"),
        ([WrittenFile("a", 1, 2, "00"), WrittenFile("a", 1, 2, "01")], "a.sha256 is reported twice"),
    ],
)
def test_two_reports_that_differ_are_an_error_that_names_the_metric(reports: list[Report], said: str) -> None:
    for order in (reports, reports[::-1]):
        with pytest.raises(ValueError, match=said if order is reports else said.split(" is ")[0]):
            merged_in_every_way(order)
