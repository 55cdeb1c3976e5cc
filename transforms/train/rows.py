"""Reads what is trained on: the interactions, with users and items as codes, and the features of items."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.parquet_files import read_parquet_blocks
from transforms.train.encode_features import ItemFeatures, encode_rated
from transforms.train.features import Feature
from transforms.train.fit_features import fit_features
from transforms.train.recency import RatedItems


class TrainingRows(NamedTuple):
    """Every training positive, in codes, sorted by user and then by item.

    Attributes:
      user_ids: [num_users] string, ascending: the user of each code.
      item_ids: [num_items] string, ascending.
      user: [n] int32 codes.
      item: [n] int32 codes.
      timestamp: [n] int64, seconds; None where the source has no times.
      features: of the items, where the item tower looks at them.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray | None = None
    features: ItemFeatures | None = None

    def where(self, chosen: np.ndarray) -> "TrainingRows":
        """Returns the rows where `chosen` ([n] bool) is true, in the same codes."""
        timestamp = None if self.timestamp is None else self.timestamp[chosen]
        return self._replace(user=self.user[chosen], item=self.item[chosen], timestamp=timestamp)

    @property
    def rated(self) -> RatedItems:
        """Which item was rated when."""
        return RatedItems(self.item, self.timestamp, len(self.item_ids))


class TrainingPaths(NamedTuple):
    """The Parquet files that training reads.

    Attributes:
      interactions: of INTERACTIONS.
      items: of ITEMS, in the catalogue's order; needed for features only.
    """

    interactions: list[str]
    items: list[str]


def read_rows(paths: Iterable[str]) -> TrainingRows:
    """Reads files of INTERACTIONS and turns ids into codes, a block at a time; the files' layout and order change nothing.

    Raises:
      InputError: if the files hold no rows.
    """
    users, items, timestamps = [], [], []
    for path in paths:
        for block in read_parquet_blocks(path, columns=["user_id", "item_id", "timestamp"]):
            users.append(block["user_id"].dictionary_encode())
            items.append(block["item_id"].dictionary_encode())
            timestamps.append(block["timestamp"])
    if not users:
        raise InputError("there is nothing to train on, the training interactions have 0 rows: check the ratings and the split")
    user_ids, user = _codes(users)
    users.clear()  # What is no longer needed goes at once: rows are what memory is spent on.
    item_ids, item = _codes(items)
    items.clear()
    pair = user.astype(np.int64) * len(item_ids) + item
    timestamp = pa.chunked_array(timestamps)
    if timestamp.null_count:
        del user, item
        pair.sort()
        return TrainingRows(
            user_ids, item_ids, (pair // len(item_ids)).astype(np.int32), (pair % len(item_ids)).astype(np.int32)
        )
    order = np.argsort(pair)
    del pair
    return TrainingRows(user_ids, item_ids, user[order], item[order], timestamp.to_numpy()[order])


def _codes(blocks: list[pa.DictionaryArray]) -> tuple[pa.Array, np.ndarray]:
    """Returns the different ids, ascending, and [n] int32: which of them each row has."""
    chunks = pa.chunked_array(blocks).unify_dictionaries().chunks
    ids = chunks[0].dictionary
    order = pc.sort_indices(ids).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return ids.take(pa.array(order)), np.concatenate([rank[chunk.indices.to_numpy()] for chunk in chunks])


def with_features(
    rows: TrainingRows, paths: Sequence[str], features: Sequence[Feature]
) -> tuple[TrainingRows, dict[str, dict[str, Any]]]:
    """Learns what features say of the items, and encodes them; reads the catalogue twice and keeps none of it.

    Args:
      rows: what to learn from.
      paths: files of ITEMS with the features' columns, in the catalogue's order.
      features: what is declared; none leaves the rows as they are.

    Returns:
      The rows with their features, and a report on each column.
    """
    if not features:
        return rows, {}
    columns = ["item_id", "train_count", *(feature.column for feature in features)]

    def blocks() -> Iterator[Block]:
        return (block for path in paths for block in read_parquet_blocks(path, columns))

    encoder, report = fit_features(blocks(), features)
    return rows._replace(features=ItemFeatures(encoder, encode_rated(blocks(), encoder, rows.item_ids))), report
