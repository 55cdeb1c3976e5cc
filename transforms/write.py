"""Writes keyed blocks as Parquet files, and what a pipeline made as one JSON file that the next step can read."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from schemas.blocks import Block
from schemas.storage import WrittenFile, join, parquet_writer, write_json
from transforms.read import PlacedBlock

Part = tuple[int, list[Block]]
"""A part's number and its blocks, in order: the contents of one file."""


def part_path(folder: str, part: int, ordinal: int = 0) -> str:
    """Returns the name of a part's file, or of the rest of a part from its `ordinal`-th block on; names sort as parts do."""
    return f"{folder}/part-{part:06d}{f'-{ordinal:06d}' if ordinal else ''}.parquet"


def part_of(path: str) -> int:
    """Returns the number of the part that `part_path` named."""
    return int(path[path.rindex("part-") + 5 :][:6])


def write_part(root: str, folder: str, schema: pa.Schema, part: int, blocks: Iterable[Block]) -> WrittenFile:
    """Writes one part to `root/folder`, a row group a block; the same input gives the same bytes."""
    written: list[WrittenFile] = []
    with parquet_writer(root, part_path(folder, part), schema, written) as writer:
        for block in blocks:
            writer.write_batch(block.cast(schema))
    return written[0]


@dataclass
class WriteParts(beam.PTransform):
    """Writes each part to a file of its own.

    Attributes:
      root: the folder of the attempt.
      folder: the dataset's folder, relative to it.
      schema: the dataset's schema.
    """

    root: str
    folder: str
    schema: pa.Schema

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, parts: beam.PCollection[Part]) -> beam.PCollection[WrittenFile]:
        return parts | "WriteFile" >> beam.MapTuple(
            lambda part, blocks: write_part(self.root, self.folder, self.schema, part, blocks)
        ).with_output_types(WrittenFile)


RowGroups = Callable[[Block], Iterable[Block]]
"""What a block becomes in a file, a row group each."""


def as_it_is(block: Block) -> Iterator[Block]:
    """Makes a block one row group."""
    yield block


class _WritePlaced(beam.DoFn):
    """Keeps a file open while the blocks of its part come by, and closes it after the last; memory holds one block."""

    def __init__(
        self,
        root: str,
        folder: str,
        schema: pa.Schema,
        row_groups: RowGroups = as_it_is,
        sorted_by: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._root = root
        self._folder = folder
        self._schema = schema
        self._row_groups = row_groups
        self._sorted_by = sorted_by

    def start_bundle(self) -> None:
        self._stack = ExitStack()
        self._part: int | None = None
        self._written: list[WrittenFile] = []

    def process(self, element: PlacedBlock) -> Iterator[WrittenFile]:
        place, block = element
        if place.part != self._part:
            yield from self._close()
            path = part_path(self._folder, place.part, place.ordinal)
            self._writer = self._stack.enter_context(
                parquet_writer(self._root, path, self._schema, self._written, self._sorted_by)
            )
            self._part = place.part
        for group in self._row_groups(block):
            self._writer.write_batch(group.cast(self._schema))
        if place.is_last:
            yield from self._close()

    def finish_bundle(self) -> Iterator[Any]:
        for file in self._close():
            yield GlobalWindows.windowed_value(file)

    def _close(self) -> list[WrittenFile]:
        self._stack.close()
        self._part = None
        done, self._written = self._written, []
        self._stack = ExitStack()
        return done


@dataclass
class WritePlacedBlocks(beam.PTransform):
    """Writes the blocks of each part to one file, in order, as they come; nothing is shuffled.

    The blocks of a part come one after the other where the reading and what follows it are fused, as they are when nothing
    between them groups. Should a runner break a part over two bundles, it becomes two files, each sorted.

    Attributes:
      root: the folder of the attempt.
      folder: the dataset's folder, relative to it.
      schema: the dataset's schema.
      row_groups: what a block becomes in the file.
      sorted_by: columns by which the rows of a file ascend, for readers to know.
    """

    root: str
    folder: str
    schema: pa.Schema
    row_groups: RowGroups = as_it_is
    sorted_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, blocks: beam.PCollection[PlacedBlock]) -> beam.PCollection[WrittenFile]:
        write = _WritePlaced(self.root, self.folder, self.schema, self.row_groups, self.sorted_by)
        return blocks | "WriteBlocks" >> beam.ParDo(write).with_output_types(WrittenFile)


SUMMARY = "summary.json"
"""The file, in an attempt's folder, that holds what its pipeline reported."""


class MergeReports(beam.CombineFn):
    """Merges what the workers report: files are listed by path, metrics of the same name add up, in dicts too."""

    def create_accumulator(self) -> dict[str, Any]:
        return {"files": [], "metrics": {}}

    def add_input(self, merged: dict[str, Any], report: WrittenFile | dict[str, Any]) -> dict[str, Any]:
        if isinstance(report, WrittenFile):
            merged["files"].append(asdict(report))
        else:
            _add_metrics(merged["metrics"], report)
        return merged

    def merge_accumulators(self, accumulators: Iterable[dict[str, Any]]) -> dict[str, Any]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged["files"].extend(accumulator["files"])
            _add_metrics(merged["metrics"], accumulator["metrics"])
        return merged

    def extract_output(self, merged: dict[str, Any]) -> dict[str, Any]:
        return {"files": sorted(merged["files"], key=lambda file: file["path"]), "metrics": merged["metrics"]}


def _add_metrics(total: dict[str, Any], metrics: dict[str, Any]) -> None:
    for name, value in metrics.items():
        if isinstance(value, dict) and isinstance(total.get(name), dict):
            total[name] = dict(total[name])
            _add_metrics(total[name], value)
        else:
            total[name] = total[name] + value if name in total else value


@dataclass
class WriteSummary(beam.PTransform):
    """Writes all reports (files and metrics) to one JSON file in the attempt's folder, once everything else is done."""

    root: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, reports: beam.PCollection[WrittenFile | dict[str, Any]]) -> beam.PCollection[None]:
        return (
            reports
            | "MergeReports" >> beam.CombineGlobally(MergeReports())
            | "WriteJson" >> beam.Map(lambda summary: write_json(join(self.root, SUMMARY), summary))
        )
