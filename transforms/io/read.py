"""Reads datasets that other stages wrote: each file by one worker, a row group at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import apache_beam as beam

from schemas.blocks import Block
from schemas.parquet_files import read_parquet_blocks


@dataclass
class ReadParquet(beam.PTransform):
    """Reads Parquet files as blocks, in no particular order.

    Attributes:
      paths: the files.
      columns: what to read; everything by default.
      read: what yields the blocks of a file.
    """

    paths: list[str]
    columns: list[str] | None = None
    read: Callable[[str, list[str] | None], Iterator[Block]] = read_parquet_blocks

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[Block]:
        return (
            root
            | "Paths" >> beam.Create(self.paths)
            | "SpreadFiles" >> beam.Reshuffle()
            | "ReadFile" >> beam.FlatMap(self.read, self.columns).with_output_types(Block)
        )


class Place(NamedTuple):
    """Where a block stands in the table: which part it belongs to, and which of the part's blocks it is."""

    part: int
    ordinal: int
    is_last: bool


PlacedBlock = tuple[Place, Block]


def read_placed_blocks(part: int, path: str, columns: list[str] | None = None) -> Iterator[PlacedBlock]:
    """Yields a file's blocks in order, each with its place; nothing for a file without rows."""
    waiting: Block | None = None
    ordinal = 0
    for block in read_parquet_blocks(path, columns):
        if waiting is not None:
            yield Place(part, ordinal, is_last=False), waiting
            ordinal += 1
        waiting = block
    if waiting is not None:
        yield Place(part, ordinal, is_last=True), waiting


@dataclass
class ReadParts(beam.PTransform):
    """Reads numbered files as blocks that know their places, so that a file of results can be written for each.

    Attributes:
      paths: the files, by part number.
      columns: what to read; everything by default.
    """

    paths: dict[int, str]
    columns: list[str] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[PlacedBlock]:
        return (
            root
            | "Parts" >> beam.Create(sorted(self.paths.items()))
            | "SpreadParts" >> beam.Reshuffle()
            | "ReadPart" >> beam.FlatMapTuple(partial(read_placed_blocks, columns=self.columns)).with_output_types(PlacedBlock)
        )
