"""Loads the shards of an index, each proved to be what was written: all of them at once, or one at a time.

A loaded shard can be searched, and knows the ids of its own items. Only `load_index` makes a map of all items.
"""

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.blocks import FEWER_ITEMS, Block, one_block
from schemas.embeddings import ID_MAP
from schemas.errors import InputError
from schemas.stage_files import ID_MAP_FILE, INDEX_FOLDER
from schemas.storage import WrittenFile
from schemas.stored import checked_folder
from transforms.index.build import shard_path
from transforms.index.item_lists import ItemLists
from transforms.index.popular import RANKINGS, PopularItems
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
    """Rows of ID_MAP in ascending order of code: the shard's items that may be recommended."""

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


def load_plan(root: str, shard: int, files: Sequence[WrittenFile]) -> ShardPlan:
    """Returns what a shard is, before any item is left out; the arguments are those of `load_items`."""
    path = f"{shard_path(shard)}/{INDEX_FOLDER}/{_PLAN_FILE}"
    with checked_folder(root, [file for file in files if file.path == path]) as folder:
        return ShardPlan(**json.loads((folder / path).read_text())["plan"])


def load_items(root: str, shard: int, files: Sequence[WrittenFile], lists: ItemLists = EVERY_ITEM) -> Block:
    """Returns a shard's items that may be recommended, rows of ID_MAP in ascending order of code, without its index.

    Args:
      root: the folder of the attempt that wrote the index.
      shard: which one.
      files: the shard's.
      lists: which items may be recommended.

    Raises:
      InputError: if the file is missing or altered.
    """
    path = f"{shard_path(shard)}/{ID_MAP_FILE}"
    with checked_folder(root, [file for file in files if file.path == path]) as folder:
        items = _read_items(folder / path)
        return items.filter(pa.array(~lists.blocked(items["code"].to_numpy())))


def _read_items(path: Path) -> Block:
    with pa.memory_map(str(path)) as source:
        return one_block(pa.ipc.open_file(source).read_all().cast(ID_MAP).to_batches(), ID_MAP, FEWER_ITEMS)


def load_shard(root: str, shard: int, files: Sequence[WrittenFile], lists: ItemLists = EVERY_ITEM) -> LoadedShard:
    """Loads a shard that `BuildIndexes` wrote, after its files are proved unchanged.

    Args:
      root: the folder of the attempt that wrote the index.
      shard: which one.
      files: the shard's.
      lists: which items may be recommended.

    Raises:
      InputError: if a file is missing or altered, or the shard and its id map are no pair.
    """
    with checked_folder(root, files) as folder:
        at = folder / shard_path(shard)
        items = _read_items(at / ID_MAP_FILE)
        blocked = lists.blocked(items["code"].to_numpy())
        try:
            shard_to_search = Shard(load(at / INDEX_FOLDER), items["code"].to_numpy(), blocked)
        except ValueError as error:
            raise InputError(f"shard {shard} of {root} cannot be used: {error}: build the index again") from error
        return LoadedShard(shard_to_search, items.filter(pa.array(~blocked)))


@dataclass(frozen=True)
class IndexFiles:
    """An index as it was written, of which nothing is loaded yet.

    Attributes:
      root: the folder of the attempt that built it.
      of_shards: the files of each shard that has items, shards ascending.
      lists: which of its items may be recommended.
    """

    root: str
    of_shards: Mapping[int, Sequence[WrittenFile]]
    lists: ItemLists = EVERY_ITEM

    @classmethod
    def of(cls, root: str, files: Sequence[WrittenFile], num_shards: int, lists: ItemLists = EVERY_ITEM) -> "IndexFiles":
        """Returns the index of so many shards, empty ones included, whose files are among those that an attempt wrote."""
        return cls(root, files_of_shards(files, num_shards), lists)

    def plan(self, shard: int) -> ShardPlan:
        """Returns what a shard is: see `load_plan`."""
        return load_plan(self.root, shard, self.of_shards[shard])

    def items(self, shard: int) -> Block:
        """Returns a shard's items that may be recommended: see `load_items`."""
        return load_items(self.root, shard, self.of_shards[shard], self.lists)

    def load(self, shard: int) -> LoadedShard:
        """Loads a shard: see `load_shard`."""
        return load_shard(self.root, shard, self.of_shards[shard], self.lists)


def load_index(index: IndexFiles) -> LoadedIndex:
    """Loads all shards of an index; see `load_shard`."""
    loaded = [index.load(shard) for shard in index.of_shards]
    items = one_block([each.items for each in loaded], ID_MAP, _ONE_SHARD_AT_A_TIME)
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
