"""Writes keyed blocks as Parquet files, and what a pipeline made as one JSON file that the next step can read."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.parquet_files import parquet_writer
from schemas.stage_files import SUMMARY
from schemas.storage import WrittenFile, join, write_json
from transforms.io.read import PlacedBlock

MAX_PARTS = 1_000_000
"""A dataset has at most so many parts: six digits, and so the order of the names is that of the numbers."""

_PART = re.compile(r"part-(?P<part>\d{6})(?:[_-]\d{6})?\.parquet")

Part = tuple[int, list[Block]]
"""A part's number and its blocks, in order: the contents of one file."""


def part_path(folder: str, part: int, ordinal: int = 0) -> str:
    """Returns the name of a part's file, or of the rest of a part from its `ordinal`-th block on.

    Names sort as parts and their blocks do: `_` comes after the dot.

    Raises:
      InputError: if there are too many of them for that.
    """
    if not (0 <= part < MAX_PARTS and 0 <= ordinal < MAX_PARTS):
        raise InputError(
            f"a dataset has at most {MAX_PARTS:,} parts of as many blocks, got block {ordinal} of part {part} of {folder}: "
            "lower --num_buckets"
        )
    return f"{folder}/part-{part:06d}{f'_{ordinal:06d}' if ordinal else ''}.parquet"


def part_of(path: str) -> int:
    """Returns the number of the part that `part_path` named.

    Raises:
      InputError: if it named no such file.
    """
    match = _PART.fullmatch(path.rpartition("/")[2])
    if not match:
        raise InputError(f"the files of a dataset are named part-000000.parquet and so on, got {path}: delete it")
    return int(match["part"])


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


class Counts(NamedTuple):
    """Metrics that add up: what a worker counted in its share of the work."""

    numbers: Mapping[str, int | float]


Report = WrittenFile | Counts | dict[str, Any]
"""What a worker reports: a file that it wrote, its share of some counts, or metrics that are known as they are."""


class MergeReports(beam.CombineFn):
    """Merges what the workers report: files are listed by path, counts of the same name add up, all else is told once.

    Raises:
      ValueError: naming a metric or a file of which two reports differ.
    """

    def create_accumulator(self) -> dict[str, Any]:
        return {"files": {}, "counts": {}, "metrics": {}}

    def add_input(self, merged: dict[str, Any], report: Report) -> dict[str, Any]:
        if isinstance(report, WrittenFile):
            _tell(merged["files"], report.path, asdict(report))
        elif isinstance(report, Counts):
            _count(merged["counts"], report.numbers)
        else:
            for name, value in report.items():
                _tell(merged["metrics"], name, value)
        return merged

    def merge_accumulators(self, accumulators: Iterable[dict[str, Any]]) -> dict[str, Any]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            for kind in ("files", "metrics"):
                for name, value in accumulator[kind].items():
                    _tell(merged[kind], name, value)
            _count(merged["counts"], accumulator["counts"])
        return merged

    def extract_output(self, merged: dict[str, Any]) -> dict[str, Any]:
        metrics = dict(merged["metrics"])
        for name, value in merged["counts"].items():
            if name in metrics:
                raise ValueError(f"{name} is reported both as a count, {value}, and as it is, {metrics[name]}")
            metrics[name] = value
        return {"files": [merged["files"][path] for path in sorted(merged["files"])], "metrics": metrics}


def _tell(told: dict[str, Any], name: str, value: Any, above: str = "") -> None:
    """Adds what is known of a name; dicts are merged, and what is in two of them must be the same."""
    if isinstance(value, dict) and isinstance(told.get(name, {}), dict):
        told[name] = dict(told.get(name, {}))
        for key, each in value.items():
            _tell(told[name], key, each, f"{above}{name}.")
    elif name in told and told[name] != value:
        one, other = (shorten(str(each), 80) for each in (told[name], value))
        raise ValueError(f"{above}{name} is reported twice, as {one} and as {other}: only counts add up")
    else:
        told[name] = value


def _count(total: dict[str, Any], numbers: Mapping[str, int | float]) -> None:
    for name, value in numbers.items():
        total[name] = total.get(name, 0) + value


@dataclass
class WriteSummary(beam.PTransform):
    """Writes all reports (files and metrics) to one JSON file in the attempt's folder, once everything else is done."""

    root: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, reports: beam.PCollection[Report]) -> beam.PCollection[None]:
        return (
            reports
            | "MergeReports" >> beam.CombineGlobally(MergeReports())
            | "WriteJson" >> beam.Map(lambda summary: write_json(join(self.root, SUMMARY), summary))
        )
