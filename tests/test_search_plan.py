"""The choice of a plan: what fits is fused, what does not is searched by shard, and the sentence has the numbers."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.storage import WrittenFile
from tests.made_index import make_items, write_index
from transforms.index.search_plan import BY_SHARD, FUSED, ShardBytes, bytes_of_shard, choose_plan, choose_slices

GIB = 1 << 30


@pytest.mark.parametrize(
    ("shards", "max_worker_bytes", "plan", "why"),
    [
        (
            [ShardBytes(GIB, 0, 0)] * 4,
            4 * GIB,
            FUSED,
            "the index takes 4 GiB in memory, within --max_worker_bytes 4 GiB: each worker holds all 4 shards and nothing is "
            "shuffled",
        ),
        (
            [ShardBytes(GIB, GIB // 2, 0)] * 4,
            4 * GIB,
            BY_SHARD,
            "the index takes 6 GiB in memory, 2 GiB of it a second copy of the vectors, for exact searches, above "
            "--max_worker_bytes 4 GiB: a worker holds one of 4 shards, 1.5 GiB at most, and requests are shuffled",
        ),
        (
            [ShardBytes(GIB, 0, GIB // 4)] * 2,
            2 * GIB,
            BY_SHARD,
            "the index takes 2.5 GiB in memory, above --max_worker_bytes 2 GiB: a worker holds one of 2 shards, 1 GiB at most, "
            "and requests are shuffled",
        ),
        (
            [ShardBytes(3 * GIB, 0, 0), ShardBytes(GIB, 0, 0)],
            2 * GIB,
            BY_SHARD,
            "the index takes 4 GiB in memory, above --max_worker_bytes 2 GiB: a worker holds one of 2 shards, though the "
            "largest takes 3 GiB: raise --num_shards",
        ),
        (
            [ShardBytes(3 * GIB, 0, 0)],
            2 * GIB,
            FUSED,
            "the index takes 3 GiB in memory, above --max_worker_bytes 2 GiB, and is one shard, which no plan divides: raise "
            "--num_shards",
        ),
        ([ShardBytes(3 << 20, 0, 0)], 512 << 20, FUSED, "the index takes 3 MiB in memory, within --max_worker_bytes 512 MiB: "),
        ([], 1000, FUSED, "the index takes 0 bytes in memory, within --max_worker_bytes 1000 bytes: "),
    ],
)
def test_plans_and_reasons(shards: list[ShardBytes], max_worker_bytes: int, plan: str, why: str) -> None:
    chosen = choose_plan(shards, max_worker_bytes)
    assert chosen.plan == plan
    assert chosen.why.startswith(why)


SHARDS = st.builds(ShardBytes, *[st.integers(0, 10 * GIB)] * 3)


@given(st.lists(SHARDS, min_size=2, max_size=9), st.integers(1, 40 * GIB))
def test_more_memory_never_leads_away_from_fused(shards: list[ShardBytes], max_worker_bytes: int) -> None:
    plans = [choose_plan(shards, limit).plan for limit in (max_worker_bytes, 2 * max_worker_bytes, 300 * GIB)]
    assert plans == sorted(plans, key=[BY_SHARD, FUSED].index)
    assert plans[-1] == FUSED


@pytest.mark.parametrize("num_leaves", [None, 5])
def test_bytes_are_those_of_the_files(tmp_path: Path, num_leaves: int | None) -> None:
    items = make_items(500)
    index = write_index(str(tmp_path), items, 2, num_leaves)
    for shard in index.of_shards:
        found = index.bytes_of(shard)
        counts = 20 * index.items[shard].rows
        folder = tmp_path / f"shards/{shard:05d}"
        assert found.files == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) + counts
        assert found.vectors_again == (0 if num_leaves is None else (folder / "scann/dataset.npy").stat().st_size)
        assert found.alone == found.files + found.vectors_again
        assert found.among_all - found.alone == 2 * ((folder / "items.arrow").stat().st_size + counts)


def test_no_files_take_no_bytes() -> None:
    assert bytes_of_shard([], 0) == ShardBytes(0, 0, 0)
    assert bytes_of_shard([WrittenFile("shards/00000/scann/dataset.npy", 0, 8, "")], 3) == ShardBytes(68, 0, 120)


@pytest.mark.parametrize(("num_users", "expected"), [(0, 1), (1, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (10**9, 954)])
def test_slices(num_users: int, expected: int) -> None:
    assert choose_slices(num_users) == expected
