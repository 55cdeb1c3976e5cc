"""Turns a bucket of validated rows into users with their histories, training and holdout interactions, and item counts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block, in_blocks, one_block
from schemas.interactions import INTERACTIONS, VALID
from schemas.users import USERS
from transforms.partition import key_by_user
from transforms.split import Parts, SplitSettings, UserRows, split_rows, user_rows
from transforms.write import Part

USERS_A_BLOCK = 8_192
"""Users are searched in blocks of so many: large enough for ScaNN's threads, small enough for a worker's memory."""

ITEM_COUNTS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("train_count", pa.int64(), nullable=False),
        pa.field("holdout_count", pa.int64(), nullable=False),
    ]
)


class Bucket(NamedTuple):
    """What one bucket of users becomes."""

    users: list[Block]
    train: list[Block]
    holdout: list[Block]
    item_counts: list[Block]
    metrics: dict[str, Any]


def latest_of_each_pair(block: Block) -> tuple[Block, np.ndarray]:
    """Keeps the latest row of each (user, item), and sorts by user id, then by time, then by place in the source.

    Args:
      block: n rows of VALID in any order.

    Returns:
      The m rows kept, and [m] int64: the rank of each row's user among the users of the block.
    """
    user = _ranks(block["user_id"])
    item = block["item_id"].dictionary_encode().indices.to_numpy()
    timestamp = block["timestamp"].fill_null(0).to_numpy(zero_copy_only=False)
    position = block["position"].to_numpy()
    by_time = np.lexsort((position, timestamp, user))
    pair = user[by_time] * (int(item.max(initial=0)) + 1) + item[by_time]
    # In order of time within a pair, since a stable sort keeps the order it finds: the last of each run is the latest.
    by_pair = np.argsort(pair, kind="stable")
    last_of_run = np.diff(pair[by_pair], append=-1) != 0
    kept = by_time[np.sort(by_pair[last_of_run])]
    return block.take(pa.array(kept)), user[kept]


def _ranks(ids: pa.Array) -> np.ndarray:
    """Returns [n] int64: the rank of each id among the different ids, in the order of their bytes."""
    encoded = ids.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()]


def split_bucket(blocks: Iterable[Block], settings: SplitSettings, cut: int | None) -> Bucket:
    """Deduplicates, sorts and splits the rows of a bucket of users.

    Args:
      blocks: rows of VALID; all rows of each of their users.
      settings: how to split.
      cut: for the temporal split, the first second that is held out.
    """
    found = one_block(blocks, VALID)
    block, user = latest_of_each_pair(found)
    rows = user_rows(block, user, settings)
    parts = split_rows(rows, settings, cut)
    train = parts.train & rows.positive
    interactions = block.select(INTERACTIONS.names)
    return Bucket(
        users=list(in_blocks(_users(block, rows, parts), USERS_A_BLOCK)),
        train=list(in_blocks(interactions.filter(pa.array(train)))),
        holdout=list(in_blocks(interactions.filter(pa.array(parts.holdout)))),
        item_counts=list(in_blocks(_item_counts(block["item_id"], train, parts.holdout))),
        metrics={
            "rows_repeated": found.num_rows - block.num_rows,
            "rows_below_min_rating": int((~rows.positive).sum()),
            "users_without_history": int((np.bincount(user, train) == 0).sum()),
            "users_with_holdout": int((np.bincount(user, parts.holdout) > 0).sum()),
        },
    )


def _users(block: Block, rows: UserRows, parts: Parts) -> Block:
    """Returns one row of USERS for each user of the sorted `block`."""
    starts = np.flatnonzero(np.diff(rows.user, prepend=-1))

    def lists(mask: np.ndarray) -> pa.ListArray:
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows.user[mask], minlength=len(starts)))])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), block["item_id"].filter(pa.array(mask)))

    history = lists(parts.train & rows.positive)
    return pa.RecordBatch.from_arrays(
        [block["user_id"].take(pa.array(starts)), history, lists(parts.train & ~rows.positive), lists(parts.holdout)],
        schema=USERS,
    )


def _item_counts(items: pa.Array, train: np.ndarray, holdout: np.ndarray) -> Block:
    """Returns one row of ITEM_COUNTS for each different item."""
    encoded = items.dictionary_encode()
    codes = encoded.indices.to_numpy()
    counts = [np.bincount(codes, part, minlength=len(encoded.dictionary)).astype(np.int64) for part in (train, holdout)]
    return pa.RecordBatch.from_arrays([encoded.dictionary, *(pa.array(count) for count in counts)], schema=ITEM_COUNTS)


class _SplitBucket(beam.DoFn):
    def __init__(self, settings: SplitSettings) -> None:
        super().__init__()
        self._settings = settings

    def process(self, element: tuple[int, Iterable[Block]], cut: int | None) -> Iterator[Any]:
        key, blocks = element
        bucket = split_bucket(blocks, self._settings, cut)
        yield beam.pvalue.TaggedOutput("users", (key, bucket.users))
        yield beam.pvalue.TaggedOutput("train", (key, bucket.train))
        yield beam.pvalue.TaggedOutput("holdout", (key, bucket.holdout))
        for block in bucket.item_counts:
            yield beam.pvalue.TaggedOutput("item_counts", block)
        yield beam.pvalue.TaggedOutput("metrics", bucket.metrics)


class UserParts(NamedTuple):
    """What `SplitByUser` makes: parts of users, train and holdout (a part a bucket), item counts, metrics."""

    users: beam.PCollection[Part]
    train: beam.PCollection[Part]
    holdout: beam.PCollection[Part]
    item_counts: beam.PCollection[Block]
    metrics: beam.PCollection[dict]


@dataclass
class SplitByUser(beam.PTransform):
    """Brings each user's rows together, keeps the latest of each pair, and splits them into training and holdout.

    Attributes:
      settings: how to split.
      num_buckets: how many hash buckets of users; each becomes one file of every dataset.
      cut: for the temporal split, the first second that is held out, as a side input.
    """

    settings: SplitSettings
    num_buckets: int
    cut: beam.pvalue.AsSingleton | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, blocks: beam.PCollection[Block]) -> UserParts:
        outputs = (
            blocks
            | "KeyByUser" >> beam.FlatMap(key_by_user, self.num_buckets).with_output_types(tuple[int, Block])
            | "GroupByBucket" >> beam.GroupByKey()
            | "SplitBucket" >> beam.ParDo(_SplitBucket(self.settings), self.cut).with_outputs(*UserParts._fields)
        )
        return UserParts(*(outputs[name] for name in UserParts._fields))
