"""Copies an index whose vectors have not changed; only the counts and codes of its items are written again."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.compute as pc

from schemas.blocks import FEWER_ITEMS, Block, one_block
from schemas.embeddings import ID_MAP
from schemas.errors import InputError
from schemas.stage_files import ID_MAP_FILE
from schemas.storage import WrittenFile, copy_file, join, upload_folder
from schemas.stored import check_file
from transforms.index.build import shard_path, write_id_map
from transforms.io.partition import key_by_shard


@dataclass
class CopyIndexes(beam.PTransform):
    """Copies the shards of an index, each with a new id map: the same items in the same order, their codes and counts of now.

    Attributes:
      root: the folder of the attempt.
      source: the folder of the attempt that built the index.
      files: all that this attempt wrote.
      num_shards: of the index.
    """

    root: str
    source: str
    files: Sequence[WrittenFile]
    num_shards: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, items: beam.PCollection[Block]) -> beam.PCollection[WrittenFile]:
        copied = [file for file in self.files if not file.path.endswith(f"/{ID_MAP_FILE}")]
        return (
            items.pipeline
            | "Files" >> beam.Create(copied)
            | "SpreadFiles" >> beam.Reshuffle()
            | "CopyFile" >> beam.Map(self._copy).with_output_types(WrittenFile),
            items
            | "KeyByShard" >> beam.FlatMap(key_by_shard, self.num_shards).with_output_types(tuple[int, Block])
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteIdMap" >> beam.FlatMapTuple(self._write).with_output_types(WrittenFile),
        ) | "GatherFiles" >> beam.Flatten()

    def _copy(self, file: WrittenFile) -> WrittenFile:
        copy = copy_file(join(self.source, file.path), self.root, file.path)
        if copy.sha256 != file.sha256:
            check_file(join(self.source, file.path), file)
            raise InputError(f"{join(self.source, file.path)} changed while it was read: run the same command again")
        return copy

    def _write(self, shard: int, blocks: Iterable[Block]) -> Iterator[Any]:
        rows = one_block(blocks, ID_MAP, FEWER_ITEMS)
        with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
            write_id_map(rows.take(pc.sort_indices(rows["code"])), Path(folder))
            yield from upload_folder(Path(folder), self.root, shard_path(shard))
