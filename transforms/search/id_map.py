"""Turns item ids into codes and back, a block at a time, for the items of an index."""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.io.partition import hash_ids
from transforms.search.top_k import Lists

_CODES_A_ROW = 4


class IdMap:
    """The ids and codes of some items. Looking ids up costs one hash an id and one binary search a different id."""

    def __init__(self, ids: pa.Array, codes: np.ndarray) -> None:
        """Sorts the items by code, and their hashes.

        Args:
          ids: [n] string, no two equal.
          codes: [n] integers, no two equal.

        Raises:
          ValueError: if two codes are equal.
        """
        order = np.argsort(codes, kind="stable")
        self.codes = np.asarray(codes, np.int64)[order]
        if (np.diff(self.codes) <= 0).any():
            raise ValueError("two items have the same code: the id maps are of different catalogues")
        self.ids = ids.take(pa.array(order))
        self._seed, self._by_hash, self._hashes = self._distinct_hashes()

    def _distinct_hashes(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Returns the first seed that gives no two items the same hash, the items by hash, and the hashes, ascending."""
        for seed in range(100, 200):
            hashes = hash_ids(self.ids, seed)
            by_hash = np.argsort(hashes)
            hashes = hashes[by_hash]
            if (hashes[1:] != hashes[:-1]).all():
                return seed, by_hash, hashes
        raise ValueError("two items have the same id: the id maps overlap")

    def __len__(self) -> int:
        return len(self.codes)

    def codes_of(self, ids: pa.Array) -> np.ndarray:
        """Returns [n] int64: the code of each id, -1 where there is no such item."""
        if not len(ids) or not len(self):
            return np.full(len(ids), -1, np.int64)
        encoded = ids.dictionary_encode()
        places = np.searchsorted(self._hashes, hash_ids(encoded.dictionary, self._seed))
        rows = self._by_hash[np.minimum(places, len(self) - 1)]
        equal = pc.equal(self.ids.take(pa.array(rows)), encoded.dictionary).to_numpy(zero_copy_only=False)
        codes = np.where(equal, self.codes[rows], -1)
        return codes[encoded.indices.to_numpy()]

    def ids_of(self, codes: np.ndarray) -> pa.Array:
        """Returns [n] string: the id of each code, all of which must be in the map."""
        if self._row_of_code is not None:
            return self.ids.take(pa.array(self._row_of_code[codes]))
        return self.ids.take(pa.array(np.searchsorted(self.codes, codes)))

    @cached_property
    def _row_of_code(self) -> np.ndarray | None:
        """[highest code + 1] int32: the row of each code, where that is not much longer than the map itself."""
        if not len(self) or self.codes[-1] >= _CODES_A_ROW * len(self):
            return None
        rows = np.zeros(self.codes[-1] + 1, np.int32)
        rows[self.codes] = np.arange(len(self))
        return rows

    def lists_of(self, *columns: pa.ListArray) -> Lists:
        """Returns for each row the codes of the ids in its lists of all `columns`, -1 for an id that is not in the map.

        So a list is as long whatever the map holds, and a map of the items that can matter will do for all.
        """
        counts = [list_lengths(column) for column in columns]
        codes = np.concatenate([self.codes_of(column.flatten()) for column in columns])
        if len(columns) > 1:
            rows = np.concatenate([np.repeat(np.arange(len(each)), each) for each in counts])
            codes = codes[np.argsort(rows, kind="stable")]
        return Lists(codes, np.concatenate([[0], np.cumsum(np.sum(counts, axis=0))]))


def places_in_lists(lengths: np.ndarray) -> np.ndarray:
    """Returns [sum of lengths] int64: which place of its list each value has, from 0.

    Args:
      lengths: [n] int64: how long each list is.
    """
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def list_lengths(column: pa.ListArray) -> np.ndarray:
    """Returns [n] int64: how long each list is."""
    return pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
