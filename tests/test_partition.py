"""Hashing is stable and independent of how ids are laid out in memory; splitting loses nothing."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from transforms.io.partition import bucket_of, hash_ids, key_by_shard, key_by_user, shard_of

GOLDEN = (1 << 64) - 1


def slow_hash(text: str, seed: int = 0) -> int:
    """The same hash, written for one id in plain integers."""

    def mix(word: int) -> int:
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & GOLDEN
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & GOLDEN
        return word ^ (word >> 31)

    data = text.encode()
    hashed = mix((len(data) + (seed + 1) * 0x9E3779B97F4A7C15) & GOLDEN)
    for start in range(0, len(data), 8):
        hashed = mix(((hashed ^ int.from_bytes(data[start : start + 8], "little")) + 0x9E3779B97F4A7C15) & GOLDEN)
    return hashed


@given(st.lists(st.text(max_size=40)), st.integers(0, 5))
def test_hash_equals_the_same_hash_in_plain_integers(ids: list[str], seed: int) -> None:
    assert hash_ids(pa.array(ids, pa.string()), seed).tolist() == [slow_hash(each, seed) for each in ids]


def test_hash_is_pinned_since_files_on_disk_are_laid_out_by_it() -> None:
    ids = pa.array(["", "0002844", "42", "x" * 10_000, "ünïcødé 🙂"])
    assert [format(each, "016x") for each in hash_ids(ids).tolist()] == [
        "e220a8397b1dcdaf",
        "29e89f556fdbff15",
        "a99f12210aab97f1",
        "06b17156ecc064e0",
        "20a90f7d5c50f608",
    ]
    assert bucket_of(ids, 7).tolist() == [2, 5, 2, 6, 6]
    assert shard_of(ids, 7).tolist() == [1, 6, 2, 3, 2]


@given(st.lists(st.text(max_size=12), min_size=1), st.data())
def test_hash_ignores_slices_and_large_offsets(ids: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(ids)))
    whole = pa.array(ids, pa.string())
    assert (hash_ids(whole.slice(start)) == hash_ids(whole)[start:]).all()
    assert (hash_ids(whole.cast(pa.large_string())) == hash_ids(whole)).all()


def test_buckets_and_shards_are_even_and_independent() -> None:
    ids = pa.array([str(each) for each in range(70_000)])
    counts = np.zeros((7, 7))
    np.add.at(counts, (bucket_of(ids, 7), shard_of(ids, 7)), 1)
    expected = 70_000 / 49
    # Chi-squared of 48 degrees of freedom: 93 is beyond the 1 - 1e-4 quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 93


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3))), st.integers(1, 5))
def test_split_blocks_hold_every_row_once_in_order(rows: list[tuple[str, str]], parts: int) -> None:
    block = pa.record_batch(
        {"user_id": pa.array([u for u, _ in rows], pa.string()), "item_id": pa.array([i for _, i in rows], pa.string())}
    )
    for key_by, key_of, column in ((key_by_user, bucket_of, 0), (key_by_shard, shard_of, 1)):
        found = dict(key_by(block, parts))
        for key in range(parts):
            expected = [row for row in rows if key_of(pa.array([row[column]]), parts)[0] == key]
            got = found[key].to_pylist() if key in found else []
            assert [(row["user_id"], row["item_id"]) for row in got] == expected
