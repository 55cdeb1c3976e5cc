"""Writes keyed blocks as Parquet files, and what a pipeline made as one JSON file that the next step can read."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa

from schemas.blocks import Block
from schemas.storage import WrittenFile, join, parquet_writer, write_json

Part = tuple[int, list[Block]]
"""A part's number and its blocks, in order: the contents of one file."""


def part_path(folder: str, part: int) -> str:
    """Returns the name of a part's file; names sort as the parts do."""
    return f"{folder}/part-{part:06d}.parquet"


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


SUMMARY = "summary.json"
"""The file, in an attempt's folder, that holds what its pipeline reported."""


class MergeReports(beam.CombineFn):
    """Merges what the workers report: files are listed by path, metrics of the same name add up."""

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
