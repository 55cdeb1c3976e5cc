"""Turns item ids into codes and back, a block at a time, for the items of an index."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.partition import hash_ids
from transforms.top_k import Lists


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
        self._seed, hashes = self._distinct_hashes()
        self._by_hash = np.argsort(hashes)
        self._hashes = hashes[self._by_hash]

    def _distinct_hashes(self) -> tuple[int, np.ndarray]:
        """Returns the first seed that gives no two items the same hash, and the hashes."""
        for seed in range(100, 200):
            hashes = hash_ids(self.ids, seed)
            if len(np.unique(hashes)) == len(hashes):
                return seed, hashes
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
        return self.ids.take(pa.array(np.searchsorted(self.codes, codes)))

    def lists_of(self, *columns: pa.ListArray) -> Lists:
        """Returns for each row the codes of the ids in its lists of all `columns`; ids that are not in the map are left out."""
        rows, codes = [], []
        for column in columns:
            rows.append(np.repeat(np.arange(len(column)), list_lengths(column)))
            codes.append(self.codes_of(column.flatten()))
        row, code = np.concatenate(rows), np.concatenate(codes)
        present = code >= 0
        row, code = row[present], code[present]
        if len(columns) > 1:
            order = np.argsort(row, kind="stable")
            row, code = row[order], code[order]
        return Lists(code, np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(columns[0])))]))


def list_lengths(column: pa.ListArray) -> np.ndarray:
    """Returns [n] int64: how long each list is."""
    return pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
