"""Lists the most popular items that a user has not seen: for users without a vector, and as the baseline to beat.

There are two rankings: by training positives, and by recent ones, for what is popular grows old; equal items go by code.
Everyone's list is cut from the same ranking, so a user who has seen n items needs only its first k + n, and no worker needs the
ranking of all items.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.blocks import FEWER_ITEMS, Block, one_block
from schemas.embeddings import SHARD_ITEMS
from transforms.search.search import in_parts, rows_by_need
from transforms.search.top_k import PAD, Lists, exclude, merge, pack, pack_counts

OVERALL, RECENT = RANKINGS = ("train_count", "recent_count")
"""The columns of SHARD_ITEMS that items are ranked by. RECENT is what users without a vector get; both are baselines."""


def most_popular(blocks: Iterable[Block], count: int, by: str) -> Block:
    """Returns the `count` most popular of the items in blocks (rows of SHARD_ITEMS), best first; all if there are fewer.

    So the ranking of all items begins with what this returns of what it returns of each shard.
    """
    items = one_block(blocks, SHARD_ITEMS, FEWER_ITEMS)
    keys = _keys_of(items, by)
    if count < len(keys):
        rows = np.argpartition(keys, count)[:count]
        return items.take(pa.array(rows[np.argsort(keys[rows])]))
    return items.take(pa.array(np.argsort(keys)))


def _keys_of(items: Block, by: str) -> np.ndarray:
    codes = items["code"].to_numpy()
    if by == OVERALL:
        return pack_counts(items[by].to_numpy(), codes)
    return pack(items[by].to_numpy().astype(np.float32), codes)


@dataclass(frozen=True)
class PopularItems:
    """The most popular items, or all of them, by popularity."""

    keys: np.ndarray
    """[num_items] uint64, ascending; those of RECENT unpack to scores."""

    @classmethod
    def of(cls, items: Block, by: str) -> "PopularItems":
        """Ranks items, rows of SHARD_ITEMS in any order, by one of RANKINGS."""
        return cls(np.sort(_keys_of(items, by)))

    def top_k(self, excluded: Lists, k: int) -> np.ndarray:
        """Returns each row's k most popular items: [num_rows, k] uint64 keys, best first, PAD after the last.

        A row that ends in PAD has seen too much: there may be more for it where `keys` are not all items.

        Args:
          excluded: codes that each row must not get.
          k: how many.
        """
        keys = np.full((len(excluded), k), PAD)
        for span, members in rows_by_need(excluded.counts):
            first = self.keys[: k + span]
            for rows in in_parts(members, len(first)):
                asked = np.broadcast_to(first, (len(rows), len(first)))
                keys[rows] = merge(exclude(asked, excluded.take(rows)), k)
        return keys
