"""Joins the items of an index with the catalogue of today: their codes, which settle ties, and their counts.

An index holds ids and vectors alone, so it stays as it is while the counts change from day to day.

    catalogue ──> by shard ──┐
                             ├──> the shard's items, in the order of its rows
    id map of the shard ─────┘
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import FEWER_ITEMS, Block, in_blocks, one_block
from schemas.embeddings import ID_MAP, SHARD_ITEMS
from schemas.errors import InputError
from schemas.stage_files import ID_MAP_FILE, ITEMS_OF_SHARDS
from schemas.storage import WrittenFile
from schemas.stored import checked_folder
from transforms.index.build import shard_path
from transforms.index.load import BuiltIndex
from transforms.io.partition import key_by_shard
from transforms.io.write import Part, WriteParts


def items_of_shard(ids: pa.Array, catalogue: Iterable[Block]) -> Block:
    """Returns the rows of SHARD_ITEMS of a shard.

    Args:
      ids: [n] string: the items in the shard's rows.
      catalogue: rows of ITEMS, at least those of all `ids`, in any order.

    Raises:
      InputError: naming an item that the catalogue lacks.
    """
    items = one_block((block.select(SHARD_ITEMS.names).cast(SHARD_ITEMS) for block in catalogue), SHARD_ITEMS, FEWER_ITEMS)
    rows = pc.index_in(ids, items["item_id"])
    if rows.null_count:
        lost = ids.filter(rows.is_null())[0].as_py()
        raise InputError(f"item {lost!r} is in the index and not in the catalogue: build the index again")
    return items.take(rows)


def read_id_map(root: str, shard: int, files: Sequence[WrittenFile]) -> pa.Array:
    """Returns [n] string: the item in each row of a shard, once its file is proved unchanged.

    Args:
      root: the folder of the attempt that built the index.
      shard: which one.
      files: the shard's.

    Raises:
      InputError: if the file is missing or altered.
    """
    path = f"{shard_path(shard)}/{ID_MAP_FILE}"
    of_map = [file for file in files if file.path == path]
    with checked_folder(root, of_map) as folder, pa.memory_map(str(Path(folder, path))) as source:
        return one_block(pa.ipc.open_file(source).read_all().cast(ID_MAP).to_batches(), ID_MAP, FEWER_ITEMS)["item_id"]


@dataclass
class WriteShardItems(beam.PTransform):
    """Writes what blocks of ITEMS say of the items of each shard, a file a shard.

    Attributes:
      root: the folder of the attempt.
      built: the index.
    """

    root: str
    built: BuiltIndex

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, items: beam.PCollection[Block]) -> beam.PCollection[WrittenFile]:
        return (
            items
            | "KeyByShard" >> beam.FlatMap(key_by_shard, self.built.num_shards).with_output_types(tuple[int, Block])
            | "GroupByShard" >> beam.GroupByKey()
            | "JoinItems" >> beam.FlatMapTuple(self._join).with_output_types(Part)
            | "WriteItems" >> WriteParts(self.root, ITEMS_OF_SHARDS, SHARD_ITEMS)
        )

    def _join(self, shard: int, catalogue: Iterable[Block]) -> Iterator[Part]:
        if shard in self.built.of_shards:  # Of the others, the item tower knows no item.
            ids = read_id_map(self.built.root, shard, self.built.of_shards[shard])
            yield shard, list(in_blocks(items_of_shard(ids, catalogue)))
