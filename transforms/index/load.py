"""Loads the shards of an index, each proved to be what was written: all of them at once, or one at a time.

A loaded shard can be searched, and knows the ids of its own items. Only `load_index` makes a map of all items.
"""

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from schemas.blocks import FEWER_ITEMS, Block, one_block
from schemas.embeddings import SHARD_ITEMS
from schemas.errors import InputError
from schemas.parquet_files import read_parquet_blocks
from schemas.stage_files import INDEX_FOLDER
from schemas.storage import WrittenFile, join
from schemas.stored import checked_folder
from transforms.index.build import shard_path
from transforms.index.item_lists import ItemLists
from transforms.index.popular import RANKINGS, PopularItems
from transforms.index.search_plan import ShardBytes, bytes_of_shard
from transforms.io.write import part_of
from transforms.search.id_map import IdMap
from transforms.search.scann_index import ShardPlan, load
from transforms.search.search import Shard

EVERY_ITEM = ItemLists()
"""No list: every item may be recommended."""

_PLAN_FILE = "shard.json"
_ONE_SHARD_AT_A_TIME = "pass --plan by_shard, so that no worker holds the ids of all shards"


@dataclass(frozen=True)
class LoadedShard:
    """A shard in this process."""

    shard: Shard
    items: Block
    """Rows of SHARD_ITEMS in ascending order of code: the shard's items that may be recommended."""

    def items_of(self, codes: np.ndarray) -> Block:
        """Returns the rows of `items` that have `codes`, [n] integers, all of them the shard's."""
        return self.items.take(pa.array(np.searchsorted(self.items["code"].to_numpy(), codes)))


@dataclass(frozen=True)
class LoadedIndex:
    """All shards of an index, in this process."""

    shards: Sequence[Shard]
    id_map: IdMap
    """Of all items that may be recommended."""
    popular: Mapping[str, PopularItems]
    """The same, for each of RANKINGS in its order."""


def files_of_shards(files: Sequence[WrittenFile], num_shards: int) -> dict[int, list[WrittenFile]]:
    """Returns the files of each shard that has items, shards ascending; one without items was not written."""
    found = {}
    for shard in range(num_shards):
        prefix = f"{shard_path(shard)}/"
        if of_shard := [file for file in files if file.path.startswith(prefix)]:
            found[shard] = of_shard
    return found


class ItemsFile(NamedTuple):
    """A file of SHARD_ITEMS.

    Attributes:
      path: where it is.
      rows: how many items the shard has.
    """

    path: str
    rows: int


@dataclass(frozen=True)
class BuiltIndex:
    """An index as it was built: vectors and ids.

    Attributes:
      root: the folder of the attempt that built it.
      of_shards: the files of each shard that has items, shards ascending.
      num_shards: those without items included.
    """

    root: str
    of_shards: Mapping[int, Sequence[WrittenFile]]
    num_shards: int

    @classmethod
    def of(cls, root: str, files: Sequence[WrittenFile], num_shards: int) -> "BuiltIndex":
        """Returns the index of so many shards, empty ones included, whose files are among those that an attempt wrote."""
        return cls(root, files_of_shards(files, num_shards), num_shards)

    def with_items(self, root: str, items: Sequence[WrittenFile], lists: ItemLists = EVERY_ITEM) -> "IndexFiles":
        """Returns the index with what a catalogue says of its items.

        Args:
          root: the folder of the attempt that joined them.
          items: the files of SHARD_ITEMS.
          lists: which items may be recommended.
        """
        items_of = {part_of(file.path): ItemsFile(join(root, file.path), file.rows) for file in items}
        return IndexFiles(self.root, self.of_shards, items_of, lists)


@dataclass(frozen=True)
class IndexFiles:
    """An index, and what the catalogue says of its items; nothing of it is loaded yet.

    Attributes:
      root: the folder of the attempt that built the index.
      of_shards: the files of each shard that has items, shards ascending.
      items: what the catalogue says of each shard's items.
      lists: which of its items may be recommended.
    """

    root: str
    of_shards: Mapping[int, Sequence[WrittenFile]]
    items: Mapping[int, ItemsFile]
    lists: ItemLists = EVERY_ITEM

    def bytes_of(self, shard: int) -> ShardBytes:
        """Returns what a shard takes in memory."""
        return bytes_of_shard(self.of_shards[shard], self.items[shard].rows)

    def plan_of(self, shard: int) -> ShardPlan:
        """Returns what a shard is, before any item is left out.

        Raises:
          InputError: if the file that says it is missing or altered.
        """
        path = f"{shard_path(shard)}/{INDEX_FOLDER}/{_PLAN_FILE}"
        with checked_folder(self.root, [file for file in self.of_shards[shard] if file.path == path]) as folder:
            return ShardPlan(**json.loads((folder / path).read_text())["plan"])

    def items_of(self, shard: int) -> Block:
        """Returns a shard's items that may be recommended, rows of SHARD_ITEMS by ascending code, without its index."""
        items = self._all_items_of(shard)
        return items.filter(pa.array(~self.lists.blocked(items["code"].to_numpy())))

    def _all_items_of(self, shard: int) -> Block:
        return one_block(read_parquet_blocks(self.items[shard].path), SHARD_ITEMS, FEWER_ITEMS)

    def load(self, shard: int) -> LoadedShard:
        """Loads a shard, after the files of its index are proved unchanged.

        Raises:
          InputError: if a file is missing or altered, or the shard and its items are no pair.
        """
        items = self._all_items_of(shard)
        codes = items["code"].to_numpy()
        blocked = self.lists.blocked(codes)
        with checked_folder(self.root, self.of_shards[shard]) as folder:
            try:
                shard_to_search = Shard(load(folder / shard_path(shard) / INDEX_FOLDER), codes, blocked)
            except ValueError as error:
                raise InputError(f"shard {shard} of {self.root} cannot be used: {error}: build the index again") from error
        return LoadedShard(shard_to_search, items.filter(pa.array(~blocked)))


def load_index(index: IndexFiles) -> LoadedIndex:
    """Loads all shards of an index; see `IndexFiles.load`."""
    loaded = [index.load(shard) for shard in index.of_shards]
    items = one_block([each.items for each in loaded], SHARD_ITEMS, _ONE_SHARD_AT_A_TIME)
    id_map = IdMap(items["item_id"], items["code"].to_numpy())
    return LoadedIndex([each.shard for each in loaded], id_map, {by: PopularItems.of(items, by) for by in RANKINGS})


class ShardCache:
    """The shards that a process holds, so many bytes of them at most; one is always allowed.

    Threads share it. A shard that a thread holds stays; of the others, those unused for longest make room.
    """

    def __init__(self, load: Callable[[int], LoadedShard], bytes_of: Mapping[int, int], max_bytes: int) -> None:
        """Starts empty.

        Args:
          load: loads a shard.
          bytes_of: what each shard takes.
          max_bytes: how much they may take together.
        """
        self._load = load
        self._bytes_of = bytes_of
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[int, LoadedShard] = OrderedDict()
        self._loading: set[int] = set()
        self._holders: Counter[int] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, shard: int) -> Iterator[LoadedShard]:
        """Gives a shard, loaded if need be, once there is room for it. A thread holds one at a time.

        While a thread loads, others take and release what is there; who wants the same shard waits for it.
        """
        with self._changed:
            self._changed.wait_for(lambda: shard not in self._loading and self._make_room(shard))
            self._holders[shard] += 1
            is_new = shard not in self._loaded
            if is_new:
                self._loading.add(shard)
        try:
            yield self._load_once(shard) if is_new else self._taken(shard)
        finally:
            with self._changed:
                self._holders[shard] -= 1
                self._changed.notify_all()

    def _load_once(self, shard: int) -> LoadedShard:
        try:
            loaded = self._load(shard)
            with self._changed:
                self._loaded[shard] = loaded
            return loaded
        finally:
            with self._changed:
                self._loading.discard(shard)
                self._changed.notify_all()

    def _taken(self, shard: int) -> LoadedShard:
        with self._changed:
            self._loaded.move_to_end(shard)
            return self._loaded[shard]

    def _make_room(self, shard: int) -> bool:
        """Drops shards that nobody holds until `shard` fits, and tells whether it does."""
        for each in [each for each in self._loaded if each != shard and not self._holders[each]]:
            if self._fits(shard):
                break
            del self._loaded[each]
        return self._fits(shard)

    def _fits(self, shard: int) -> bool:
        there = self._loaded.keys() | self._loading
        return shard in there or not there or sum(self._bytes_of[each] for each in there | {shard}) <= self._max_bytes
