"""Splits blocks by a stable hash of an id, so that one user's rows, or one item's, meet in one place."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from schemas.blocks import Block

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(words: np.ndarray) -> np.ndarray:
    """Scrambles [n] uint64 (the finalizer of SplitMix64: Steele, Lea, Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def hash_ids(ids: pa.Array, seed: int = 0) -> np.ndarray:
    """Hashes text ids, the same on every machine and in every version, since files on disk are laid out by it.

    Reads the ids' UTF-8 bytes eight at a time, all ids at once, and mixes each word in with SplitMix64's finalizer.

    Args:
      ids: [n] string, no nulls.
      seed: another seed gives an independent hash.

    Returns:
      [n] uint64.
    """
    ids = ids.cast(pa.large_string())
    offsets = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1]
    lengths = np.diff(offsets)
    hashes = _mix(lengths.astype(np.uint64) + np.uint64((seed * int(_GOLDEN) + int(_GOLDEN)) % 2**64))
    if not len(ids) or not lengths.any():
        return hashes
    text = np.frombuffer(ids.buffers()[2], np.uint8)[: offsets[-1]]
    # Eight spare bytes, so that a word can be read at the last byte; [total bytes] overlapping words, one from each byte on.
    padded = np.concatenate([text, np.zeros(8, np.uint8)])
    words = np.ndarray((len(text),), "<u8", padded.data, strides=(1,))
    rows = np.flatnonzero(lengths)
    done = 0
    while len(rows):
        left = np.minimum(lengths[rows] - done, 8).astype(np.uint64)
        keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - np.uint64(8) * left)
        hashes[rows] = _mix((hashes[rows] ^ (words[offsets[rows] + done] & keep)) + _GOLDEN)
        done += 8
        rows = rows[lengths[rows] > done]
    return hashes


def hash_vectors(ids: pa.Array, vectors: pa.FixedSizeListArray) -> np.ndarray:
    """Hashes ids together with their vectors, bit by bit.

    Args:
      ids: [n] string, no nulls.
      vectors: [n] FixedSizeList<float32>[dim], no nulls.

    Returns:
      [n] uint64.
    """
    hashes = hash_ids(ids, seed=4)
    bits = vectors.flatten().to_numpy().view(np.uint32).reshape(len(ids), vectors.type.list_size)
    for column in bits.T:
        hashes = _mix((hashes ^ column) + _GOLDEN)
    return hashes


def is_sampled(user_ids: pa.Array, fraction: float) -> np.ndarray:
    """Returns [n] bool: which users belong to a sample of `fraction` of all, by a hash of their ids; samples are nested."""
    return hash_ids(user_ids, seed=3) < fraction * 2.0**64


def bucket_of(ids: pa.Array, num_buckets: int) -> np.ndarray:
    """Returns [n] int64: the hash bucket of each user id. The table's files are these buckets."""
    return (hash_ids(ids) % np.uint64(num_buckets)).astype(np.int64)


def shard_of(ids: pa.Array, num_shards: int) -> np.ndarray:
    """Returns [n] int64: the index shard of each item id, independent of any bucket."""
    return (hash_ids(ids, seed=1) % np.uint64(num_shards)).astype(np.int64)


def split_by_key(block: Block, keys: np.ndarray) -> Iterator[tuple[int, Block]]:
    """Yields (key, the rows of `block` that have it), keys ascending, rows in their order.

    Args:
      block: n rows.
      keys: [n] int64.
    """
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    ends = np.flatnonzero(np.diff(sorted_keys, append=np.nan))
    taken = block.take(pa.array(order)) if len(ends) > 1 else block
    starts = np.concatenate([[0], ends + 1])
    for start, end in zip(starts, ends, strict=False):
        yield int(sorted_keys[end]), taken.slice(start, end + 1 - start)


def key_by_user(block: Block, num_buckets: int) -> Iterator[tuple[int, Block]]:
    """Yields (bucket, the block's rows whose user is in it)."""
    return split_by_key(block, bucket_of(block["user_id"], num_buckets))


def key_by_shard(block: Block, num_shards: int) -> Iterator[tuple[int, Block]]:
    """Yields (shard, the block's rows whose item is in it)."""
    return split_by_key(block, shard_of(block["item_id"], num_shards))


def places_in(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Returns [n] int64: the place of each hash in `known`, [m] uint64 in ascending order; -1 for one that is not there."""
    if not len(known):
        return np.full(len(hashes), -1, np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[places] == hashes, places, -1)
