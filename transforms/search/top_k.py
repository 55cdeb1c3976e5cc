"""Merges lists of scored items exactly: keys that sort by score and then by item, exclusions, and the certificate.

A (score, item) pair is one 64-bit key: the score's bits, turned so that better is smaller, above the item's code.

    63        32 31         0
    [ ~score    ][ code      ]      ascending = best score first, equal scores by code

So sorting keys, which NumPy does with SIMD instructions, is ranking; there is no argsort and no second array to reorder.
Codes are ranks of item ids in the catalogue, so ties go to the lower id.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PAD = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""The key of no item: it sorts after every item's."""
NO_MORE = np.uint64(0xFFFF_FFFF_FFFF_FFFE)
"""A bound above every item's key and below PAD: see `is_certain`."""

_SIGN = np.uint32(0x8000_0000)
_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_CODE = np.uint64(0xFFFF_FFFF)
_GOLDEN = np.uint32(0x9E37_79B1)
_EMPTY = np.uint32(0xFFFF_FFFE)
_CONTESTED = np.uint32(0xFFFF_FFFD)
_SLOTS_PER_CODE = 4
_TABLE_BYTES = 1 << 20


def pack(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the keys of scored items.

    Args:
      scores: [...] float32, none NaN; 0.0 and -0.0 are equal.
      codes: [...] integers from 0 to 2^31 - 1, broadcast against `scores`.

    Returns:
      [...] uint64, smaller is better.
    """
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)
    # Negative floats already grow with their magnitude; the others are turned round below them.
    high = np.where(bits & _SIGN, bits, bits ^ _MAGNITUDE)
    return _joined(high, codes)


def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores (float32, -inf for PAD) and the codes (int64, -1 for PAD) that `pack` put together."""
    high = (keys >> np.uint64(32)).astype(np.uint32)
    scores = np.where(high & _SIGN, high, high ^ _MAGNITUDE).view(np.float32)
    return np.where(keys == PAD, np.float32(-np.inf), scores), codes_of(keys)


def pack_counts(counts: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns keys that sort by whole-number scores, [...] int64 from 0 to 2^32 - 1, exactly where float32 would round."""
    return _joined(np.uint32(0xFFFF_FFFF) - np.asarray(counts).astype(np.uint32), codes)


def _joined(high: np.ndarray, codes: np.ndarray) -> np.ndarray:
    keys = np.empty((*high.shape, 2), "<u4")
    keys[..., 1] = high
    keys[..., 0] = codes
    return keys.view("<u8")[..., 0]


def codes_of(keys: np.ndarray) -> np.ndarray:
    """Returns the codes in `keys`, [...] int64, -1 for PAD."""
    return np.where(keys == PAD, np.int64(-1), (keys & _CODE).astype(np.int64))


def merge(keys: np.ndarray, k: int) -> np.ndarray:
    """Returns the k best keys of each row, best first.

    Args:
      keys: [num_rows, m] uint64, PAD where there is no item.
      k: how many.

    Returns:
      [num_rows, k] uint64, PAD where there are fewer.
    """
    best = np.sort(keys, axis=1)[:, :k]
    return best if best.shape[1] == k else np.pad(best, ((0, 0), (0, k - best.shape[1])), constant_values=PAD)


def is_certain(merged: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Certifies rows: no longer answers of the shards could change them.

    A shard's bound is the key before which it has kept nothing back: that of the worst item it looked at. Where it has
    returned every item, the bound is PAD; where it would return no others, however many were asked for, it is NO_MORE.
    So a full list is certain if its k-th key does not come after any bound, and a short one only if all bounds are PAD.

    Args:
      merged: [num_rows, k] uint64, from `merge`.
      bounds: [num_rows, num_shards] uint64.

    Returns:
      [num_rows] bool.
    """
    return merged[:, -1] <= bounds.min(axis=1, initial=PAD)


@cache
def width_per_shard(width: int, num_shards: int, miss: float = 1e-4) -> int:
    """Returns how many of the best `width` items one shard has to return, so that all of them together hardly ever miss one.

    Items are hashed to shards, so the number of the best that lie in one shard is binomial (width, 1/num_shards).

    Args:
      width: how many items the merged list must be right for.
      num_shards: how many shards of about the same size.
      miss: the chance, at most, that any one shard holds more of them than it returns.
    """
    if num_shards <= 1 or width <= 1:
        return width
    odds = 1 / (num_shards - 1)
    # log P(X = i) from log P(X = i - 1), then tails summed from the small end.
    i = np.arange(1, width + 1)
    log_chances = width * math.log1p(-1 / num_shards) + np.concatenate([[0.0], np.cumsum(np.log((width - i + 1) / i * odds))])
    above = np.cumsum(np.exp(log_chances)[::-1])[::-1]  # [width + 1]: P(X >= i)
    return int(np.searchsorted(-above[1:], -miss / num_shards))


@dataclass(frozen=True)
class Lists:
    """A list of item codes for each row, ragged: row r has values[offsets[r]:offsets[r + 1]]."""

    values: np.ndarray
    """[total] integers from 0 to 2^31 - 1, or -1 for an unknown item, in any order; repeats are no error."""
    offsets: np.ndarray
    """[num_rows + 1] int64, ascending."""

    @classmethod
    def none(cls, num_rows: int) -> "Lists":
        """Returns an empty list for each of `num_rows` rows."""
        return cls(np.zeros(0, np.int64), np.zeros(num_rows + 1, np.int64))

    @classmethod
    def of(cls, rows: list[list[int]]) -> "Lists":
        """Returns Python lists as Lists."""
        offsets = np.cumsum([0, *(len(row) for row in rows)])
        return cls(np.array([code for row in rows for code in row], np.int64), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """[num_rows] int64: how long each list is."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Lists":
        """Returns the lists of `rows` ([m] int64), in that order."""
        counts = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Lists(self.values[positions], offsets)


def contains(lists: Lists, codes: np.ndarray) -> np.ndarray:
    """Tells which codes are in their row's list, at a cost that does not depend on how many items there are.

    Rows are taken a few at a time, so that a small hash table for each fits the cache together. A slot holds the one code that
    hashes to it; where several do, the slot says so and they are looked up in a short sorted list. So the answer is exact,
    and nearly every look-up costs one read.

    Args:
      lists: num_rows lists.
      codes: [num_rows, m] integers from 0 to 2^31 - 1, or -1 (also as uint32), which matches only -1.

    Returns:
      [num_rows, m] bool.
    """
    found = np.zeros(codes.shape, bool)
    counts = lists.counts
    start = 0
    while start < len(lists):
        # Rows of like length share a chunk; a long one among short ones only makes its own chunk's tables larger.
        bits = _table_bits(int(counts[start]))
        rows = max(1, _TABLE_BYTES >> (bits + 2))
        longest = int(counts[start : start + rows].max())
        if longest > counts[start]:
            bits = _table_bits(longest)
            rows = max(1, _TABLE_BYTES >> (bits + 2))
        stop = min(start + rows, len(lists))
        if longest:
            values = lists.values[lists.offsets[start] : lists.offsets[stop]].astype(np.uint32)
            found[start:stop] = _contains_chunk(values, counts[start:stop], codes[start:stop].astype(np.uint32), bits)
        start = stop
    return found


def _table_bits(count: int) -> int:
    return max(4, (_SLOTS_PER_CODE * count - 1).bit_length())


def _contains_chunk(values: np.ndarray, counts: np.ndarray, codes: np.ndarray, bits: int) -> np.ndarray:
    """Does what `contains` says for rows whose tables, of 2^bits slots, fit the cache.

    Args:
      values: [counts.sum()] uint32, the rows' lists one after the other.
      counts: [num_rows] int64.
      codes: [num_rows, m] uint32.
      bits: of a slot's number.

    Returns:
      [num_rows, m] bool.
    """
    shift = np.uint32(32 - bits)
    table = np.full(len(counts) << bits, _EMPTY)
    row_of_value = np.repeat(np.arange(len(counts)), counts)
    slots = ((values * _GOLDEN) >> shift).astype(np.intp)
    slots += row_of_value << bits
    table[slots] = values
    table[slots[table[slots] != values]] = _CONTESTED
    contested = table[slots] == _CONTESTED
    slots_of_codes = ((codes * _GOLDEN) >> shift).astype(np.intp)
    slots_of_codes += (np.arange(len(counts)) << bits)[:, None]
    held = table.take(slots_of_codes)
    found = held == codes
    if contested.any():
        rows, columns = np.nonzero(held == _CONTESTED)
        pairs = np.sort((row_of_value[contested] << 32) | values[contested])
        asked = (rows << 32) | codes[rows, columns]
        places = np.searchsorted(pairs, asked)
        found[rows, columns] = pairs[np.minimum(places, len(pairs) - 1)] == asked
    return found


def exclude(keys: np.ndarray, lists: Lists) -> np.ndarray:
    """Returns `keys` ([num_rows, m] uint64) with PAD in place of the items in their row's list."""
    return np.where(contains(lists, keys.astype(np.uint32)), PAD, keys)


def is_in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns [n] bool: which of some keys are among others."""
    if not len(others):
        return np.zeros(len(keys), bool)
    return pc.is_in(pa.array(keys), pa.array(others)).to_numpy(zero_copy_only=False)
