"""Which items may be recommended at all: a list of items that must not be, and a list of the only ones that may be.

    catalogue ────────> by a hash of the id ──┐
    items to block ──>  likewise ─────────────┼─> the items of the catalogue that must not be recommended, with their codes
    the only items ──>  likewise ─────────────┘

This is done once, when the lists are read. Whoever searches, judges or carries over reads what came of it, once a process.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block, in_blocks, one_block
from schemas.items import BLOCKED_ITEMS
from schemas.parquet_files import read_parquet_blocks
from schemas.stage_files import BLOCKED
from schemas.storage import WrittenFile
from transforms.io.partition import hash_ids, key_by_shard, places_in
from transforms.io.write import Counts, Part, WriteParts

_LOADING = threading.Lock()
_ID_SEED = 6


@dataclass(frozen=True)
class ItemLists:
    """The items of a catalogue that nobody may get; they may change from day to day without a new model or index.

    Attributes:
      paths: files of BLOCKED_ITEMS, which are never written again; none blocks nothing.
      num_items: in the catalogue.
    """

    paths: tuple[str, ...] = ()
    num_items: int = 0

    def blocked(self, codes: np.ndarray) -> np.ndarray:
        """Returns [n] bool: which of the items with these codes, [n] integers, must not be recommended."""
        if not self.paths:
            return np.zeros(len(codes), bool)
        with _LOADING:  # One thread reads, the others wait for what it has read.
            mask = _load(self.paths, self.num_items)
        return mask[codes]

    def blocked_ids(self, ids: pa.Array) -> np.ndarray:
        """Returns [n] bool: the same, of items known by their ids; of 2^64 / m items, one passes for one of m blocked ones."""
        if not self.paths:
            return np.zeros(len(ids), bool)
        with _LOADING:
            hashes = _load_hashes(self.paths)
        return places_in(hashes, hash_ids(ids, _ID_SEED)) >= 0


@lru_cache(maxsize=2)
def _load(paths: tuple[str, ...], num_items: int) -> np.ndarray:
    """Returns [num_items] bool, by code; a process keeps the lists of now and of a release that it builds on."""
    mask = np.zeros(num_items, bool)
    for path in paths:
        for block in read_parquet_blocks(path, ["code"]):
            mask[block["code"].to_numpy()] = True
    return mask


@lru_cache(maxsize=2)
def _load_hashes(paths: tuple[str, ...]) -> np.ndarray:
    """Returns [m] uint64, ascending: the hashes of the ids of all blocked items."""
    blocks = (block for path in paths for block in read_parquet_blocks(path, ["item_id"]))
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *(hash_ids(block["item_id"], _ID_SEED) for block in blocks)]))


def blocked_items(catalogue: Block, block: pa.Array | None, allow: pa.Array | None) -> Block:
    """Returns the rows of BLOCKED_ITEMS, in ascending order of code, among some items of the catalogue.

    Args:
      catalogue: item_id and code.
      block: the ids that must not be recommended; None blocks none.
      allow: the only ids that may be; None allows all.
    """
    ids = catalogue["item_id"]
    blocked = pa.array(np.zeros(len(ids), bool))
    if allow is not None:
        blocked = pc.invert(pc.is_in(ids, allow))
    if block is not None:
        blocked = pc.or_(blocked, pc.is_in(ids, block))
    found = catalogue.filter(blocked)
    return found.take(pc.sort_indices(found["code"])).cast(BLOCKED_ITEMS)


CATALOGUE = "catalogue"
"""The name of all items among what `WriteBlocked` is applied to."""


@dataclass
class WriteBlocked(beam.PTransform):
    """Writes which items of the catalogue must not be recommended, a file a partition of the catalogue.

    What it is applied to are blocks by name: CATALOGUE, with item_id and code; `block_items`, ITEM_IDS that must not be
    recommended, and `allow_items`, the only ones that may be, where there are such lists.

    Attributes:
      root: the folder of the attempt.
      num_partitions: how many workers may share the catalogue.
    """

    root: str
    num_partitions: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, named: Mapping[str, beam.PCollection[Block]]) -> beam.PCollection[WrittenFile]:
        keyed = {
            name: blocks | f"Key {name}" >> beam.FlatMap(key_by_shard, self.num_partitions).with_output_types(tuple[int, Block])
            for name, blocks in named.items()
        }
        return (
            keyed
            | "GroupByPartition" >> beam.CoGroupByKey()
            | "FindBlocked" >> beam.FlatMapTuple(_part_of_blocked)
            | "WriteFile" >> WriteParts(self.root, BLOCKED, BLOCKED_ITEMS)
        )


def _part_of_blocked(part: int, found: dict[str, Iterable[Block]]) -> Iterator[Part]:
    def ids_of(name: str) -> pa.Array | None:
        nothing = pa.array([], pa.string())
        return pa.concat_arrays([nothing, *(block["item_id"] for block in found[name])]) if name in found else None

    names = ["item_id", "code"]
    schema = pa.schema([BLOCKED_ITEMS.field(name) for name in names])
    catalogue = one_block((block.select(names).cast(schema) for block in found[CATALOGUE]), schema)
    blocked = blocked_items(catalogue, ids_of("block_items"), ids_of("allow_items"))
    if blocked.num_rows:
        yield part, list(in_blocks(blocked))


@dataclass
class CountItems(beam.PTransform):
    """Reports how many items the index has, and how many of them may be recommended, given blocks of SHARD_ITEMS.

    Attributes:
      lists: which items may be recommended at all.
    """

    lists: ItemLists

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, items: beam.PCollection[Block]) -> beam.PCollection[Counts]:
        return items | "CountBlock" >> beam.Map(self._count)

    def _count(self, block: Block) -> Counts:
        may = ~self.lists.blocked(block["code"].to_numpy())
        return Counts({"items_indexed": block.num_rows, "items_allowed": int(may.sum())})
