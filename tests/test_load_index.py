"""Loading shards: what was written comes back, what was altered is refused, and a cache stays within its bytes."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from schemas.blocks import in_blocks
from schemas.embeddings import SHARD_ITEMS
from schemas.errors import InputError
from schemas.storage import create_file, delete, join, read_bytes
from tests.made_index import MadeItems, item_lists, make_items, write_index
from transforms.index.load import (
    IndexFiles,
    LoadedShard,
    ShardCache,
    load_index,
)
from transforms.index.shard_items import items_of_shard, read_id_map
from transforms.search.scann_index import ShardPlan
from transforms.search.search import SearchSettings, served_plan, top_k_of_block
from transforms.search.top_k import Lists, codes_of

NUM_SHARDS = 4


@pytest.fixture
def items() -> MadeItems:
    return make_items(70)


def test_an_index_comes_back_whole(root: str, items: MadeItems) -> None:
    index = load_index(write_index(root, items, NUM_SHARDS))
    assert len(index.shards) == NUM_SHARDS
    assert index.id_map.ids_of(np.arange(70)).to_pylist() == items.ids
    for by, counts in (("train_count", items.train_counts), ("recent_count", items.recent_counts)):
        ranked = np.lexsort((np.arange(70), -counts)).tolist()
        assert index.popular[by].keys.astype(np.uint32).tolist() == ranked
    top, _ = top_k_of_block(index.shards, items.vectors[:5], Lists.none(5), 3, SearchSettings())
    scores = items.vectors[:5] @ items.vectors.T
    assert top.codes.tolist() == [sorted(range(70), key=lambda code: (-row[code], code))[:3] for row in scores]


@pytest.mark.parametrize("num_leaves", [None, 3])
def test_shards_come_back_one_by_one(root: str, items: MadeItems, num_leaves: int | None) -> None:
    found: set[str] = set()
    index = write_index(root, items, NUM_SHARDS, num_leaves)
    for shard in index.of_shards:
        loaded = index.load(shard)
        codes = loaded.shard.codes
        assert loaded.items.schema.equals(SHARD_ITEMS)
        assert loaded.items["item_id"].to_pylist() == [items.ids[code] for code in codes]
        assert loaded.items_of(codes[::-2])["item_id"].to_pylist() == [items.ids[code] for code in codes[::-2]]
        assert index.items_of(shard).equals(loaded.items)
        assert index.plan_of(shard) == loaded.shard.index.plan
        is_tree = num_leaves is not None and len(codes) >= 16
        assert loaded.shard.index.plan == ShardPlan("tree" if is_tree else "exact", len(codes), 8, 3 if is_tree else 1)
        assert not found & set(loaded.items["item_id"].to_pylist())
        found |= set(loaded.items["item_id"].to_pylist())
    assert found == set(items.ids)


@pytest.mark.parametrize("num_leaves", [None, 3])
def test_blocked_items_are_not_there(root: str, items: MadeItems, num_leaves: int | None, tmp_path: Path) -> None:
    lists = item_lists(tmp_path, items.ids, block=[*items.ids[::3], "nothing of ours"])
    eligible = [code for code in range(70) if code % 3]
    files = write_index(root, items, NUM_SHARDS, num_leaves, lists)
    index = load_index(files)
    assert index.id_map.codes.tolist() == eligible
    for ranking in index.popular.values():
        assert sorted(codes_of(ranking.keys)) == eligible
    top, _ = top_k_of_block(index.shards, items.vectors[:2], Lists.none(2), 70, SearchSettings())
    assert [sorted(codes[codes >= 0]) for codes in top.codes] == [eligible] * 2
    for shard in files.of_shards:
        loaded = files.load(shard)
        assert files.items_of(shard).equals(loaded.items)
        assert served_plan(files.plan_of(shard), loaded.items.num_rows) == loaded.shard.index.plan
        assert not set(loaded.items["item_id"].to_pylist()) & set(items.ids[::3])


def test_shards_without_items_have_no_files(items: MadeItems, tmp_path: Path) -> None:
    index = write_index(str(tmp_path), make_items(5), 16)
    shards = index.of_shards
    assert 1 <= len(shards) <= 5
    assert sorted(shards) == list(shards) == sorted(index.items)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("shards/**/*") if path.is_file()}
    assert {file.path for each in shards.values() for file in each} == written
    assert len(load_index(index).id_map) == 5


LOADERS: dict[str, list[Callable[[IndexFiles, int], Any]]] = {
    "items.arrow": [IndexFiles.load, lambda index, shard: read_id_map(index.root, shard, index.of_shards[shard])],
    "dataset.npy": [IndexFiles.load],
    "shard.json": [IndexFiles.load, IndexFiles.plan_of],
}


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_altered_or_missing_is_refused(root: str, items: MadeItems, name: str) -> None:
    index = write_index(root, items, 2)
    (path,) = [join(root, file.path) for file in index.of_shards[1] if file.path.endswith(name)]
    data = read_bytes(path)
    with create_file(path) as file:
        file.write(data[:-1] + bytes([data[-1] ^ 1]))
    for load in LOADERS[name]:
        with pytest.raises(InputError, match=rf"{name} is not what was written \(SHA-256 .* delete the stage's folder"):
            load(index, 1)
    delete(path)
    for load in LOADERS[name]:
        with pytest.raises((InputError, OSError), match=rf"{name}"):
            load(index, 1)


def test_a_shard_and_the_items_of_another_are_no_pair(items: MadeItems, tmp_path: Path) -> None:
    index = write_index(str(tmp_path), items, 2)
    forged = replace(index, items={0: index.items[1], 1: index.items[0]})
    with pytest.raises(InputError, match=r"shard 0 of .* cannot be used: the index has .*: build the index again"):
        forged.load(0)


def test_the_items_of_a_shard_are_in_the_order_of_its_rows(items: MadeItems) -> None:
    rows = [7, 3, 68, 0]
    ids = pa.array([items.ids[row] for row in rows])
    shuffled = items.known.take(pa.array(np.random.default_rng(0).permutation(70)))
    found = items_of_shard(ids, in_blocks(shuffled, 9))
    assert found.equals(items.known.take(pa.array(rows)))
    assert items_of_shard(ids[:0], []).schema.equals(SHARD_ITEMS)
    with pytest.raises(InputError, match=r"^item 'item 00068' is in the index and not in the catalogue: build"):
        items_of_shard(ids, [items.known.slice(0, 60)])


class FakeShards:
    """Loads shards that are nothing but their numbers, and counts."""

    def __init__(self, bytes_of: dict[int, int], max_bytes: int, load_sec: float = 0) -> None:
        self.loads: list[int] = []
        self.cache = ShardCache(self._load, bytes_of, max_bytes)
        self._load_sec = load_sec

    def _load(self, shard: int) -> LoadedShard:
        time.sleep(self._load_sec)
        self.loads.append(shard)
        return cast(LoadedShard, f"shard {shard}")

    def use(self, *shards: int) -> None:
        for shard in shards:
            with self.cache.hold(shard) as loaded:
                assert cast(Any, loaded) == f"shard {shard}"


def test_shards_that_fit_are_loaded_once() -> None:
    fake = FakeShards({0: 10, 1: 10, 2: 10}, 30)
    fake.use(0, 1, 2, 0, 1, 2)
    assert fake.loads == [0, 1, 2]


def test_the_shard_unused_for_longest_makes_room() -> None:
    fake = FakeShards({0: 10, 1: 10, 2: 10, 3: 20}, 20)
    fake.use(0, 1, 0, 2, 0, 1)
    assert fake.loads == [0, 1, 2, 1]
    fake.use(3, 3, 0)
    assert fake.loads == [0, 1, 2, 1, 3, 0]


def test_one_shard_is_always_allowed() -> None:
    fake = FakeShards({0: 10, 1: 10}, 1)
    fake.use(0, 0, 1, 1, 0)
    assert fake.loads == [0, 1, 0]


def test_threads_share_shards_and_stay_within_the_bytes() -> None:
    fake = FakeShards(dict.fromkeys(range(4), 10), 20, load_sec=0.001)
    held: list[int] = []
    most = 0
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        nonlocal most
        try:
            for shard in np.random.default_rng(seed).integers(0, 4, 40).tolist():
                with fake.cache.hold(shard):
                    held.append(shard)
                    most = max(most, len(set(held.copy())))
                    time.sleep(0.0002)
                    held.remove(shard)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert most <= 2


def test_a_failure_to_load_leaves_the_cache_usable() -> None:
    calls = iter([True, False])

    def load(shard: int) -> LoadedShard:
        if next(calls):
            raise InputError("altered")
        return cast(LoadedShard, shard)

    cache = ShardCache(load, {0: 1}, 1)
    with pytest.raises(InputError, match="altered"), cache.hold(0):
        pass
    with cache.hold(0) as loaded:
        assert cast(Any, loaded) == 0


def test_a_slow_load_does_not_keep_others_from_releasing_or_taking() -> None:
    loading, let_go = threading.Event(), threading.Event()
    loads: list[int] = []

    def load(shard: int) -> LoadedShard:
        loads.append(shard)
        if shard == 1:
            loading.set()
            assert let_go.wait(30)
        return cast(LoadedShard, shard)

    cache = ShardCache(load, dict.fromkeys(range(3), 10), 20)
    found: list[Any] = []

    def take(shard: int) -> None:
        with cache.hold(shard) as loaded:
            found.append(loaded)

    with cache.hold(0):
        slow = [threading.Thread(target=take, args=(1,)) for _ in range(3)]
        for thread in slow:
            thread.start()
        assert loading.wait(30)
        others = [threading.Thread(target=take, args=(shard,)) for shard in (0, 2)]
        others[0].start()
        others[0].join(30)
        assert found == [0]  # Taken and released while another shard is loaded.
        others[1].start()
        others[1].join(0.1)
        assert others[1].is_alive()  # There is no room: shard 0 is held, shard 1 is on its way.
    others[1].join(30)
    assert found == [0, 2]  # Shard 0 made room.
    let_go.set()
    for thread in slow:
        thread.join(30)
    assert loads == [0, 1, 2]  # Three threads asked for shard 1; one loaded it.
    assert found == [0, 2, 1, 1, 1]


def test_who_waited_for_a_load_that_failed_loads_again() -> None:
    loading, let_go = threading.Event(), threading.Event()
    loads: list[int] = []

    def load(shard: int) -> LoadedShard:
        loads.append(shard)
        if len(loads) == 1:
            loading.set()
            assert let_go.wait(30)
            raise InputError("altered")
        return cast(LoadedShard, shard)

    cache = ShardCache(load, {0: 1}, 1)
    found: list[Any] = []

    def take() -> None:
        try:
            with cache.hold(0) as loaded:
                found.append(loaded)
        except InputError as error:
            found.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(2)]
    threads[0].start()
    assert loading.wait(30)
    threads[1].start()
    let_go.set()
    for thread in threads:
        thread.join(30)
    assert sorted(map(str, found)) == ["0", "altered"]  # Whichever thread comes to say so first.
    assert loads == [0, 0]
