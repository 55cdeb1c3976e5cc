"""Turns a bucket of validated rows into users with their histories, training and holdout interactions, and item counts.

Everyone who has a rating becomes a user. Who else is to be served, and what must not be recommended to whom, is said by lists
that change without the ratings: see `transforms.ingest.served_users`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import FEWER_USERS, Block, in_blocks, joined, one_block
from schemas.interactions import INTERACTIONS, VALID
from schemas.users import USERS
from transforms.ingest.split import Parts, SplitSettings, UserRows, split_rows, user_rows
from transforms.io.partition import key_by_user
from transforms.io.write import Counts, Part

USERS_A_BLOCK = 8_192
"""Users are searched in blocks of so many: large enough for ScaNN's threads, small enough for a worker's memory."""

MILLION = 1_000_000

RATINGS, HELD_OUT = "ratings", "heldout"
"""What `SplitByUser` is given."""

ITEM_COUNTS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("train_count", pa.int64(), nullable=False),
        pa.field("recent_millionths", pa.int64(), nullable=False),
        pa.field("holdout_count", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class SplitTimes:
    """Moments that the whole of the ratings decides, in seconds.

    Attributes:
      cut: for the temporal split, the first second that is held out.
      latest: of all ratings; what is recent is counted from here, or from the cut.
      half_life: how long it takes for a rating to count half.
    """

    cut: int | None
    latest: int
    half_life: float

    def recency(self, timestamp: np.ndarray) -> np.ndarray:
        """Returns [n] int64: how much a rating of each second counts, in millionths: whole numbers add up in any order."""
        end = self.latest if self.cut is None else self.cut
        return np.rint(MILLION * 0.5 ** ((end - np.minimum(timestamp, end)) / self.half_life)).astype(np.int64)


class BucketParts(NamedTuple):
    """What one bucket of users becomes."""

    users: list[Block]
    train: list[Block]
    holdout: list[Block]
    item_counts: list[Block]
    metrics: dict[str, Any]


def latest_of_each_pair(block: Block, users: pa.Array, cut: int | None = None) -> tuple[Block, np.ndarray]:
    """Keeps the latest row of each (user, item), and sorts by user, then by time, then by place in the source.

    With a cut, the latest before it, where there is one: what happens afterwards must not take a row from what came before, and
    an item that the user knew before is nothing to find afterwards.

    Args:
      block: n rows of VALID in any order.
      users: the users, in their order; all those of `block` are among them.
      cut: for the temporal split, the first second that is held out.

    Returns:
      The m rows kept, and [m] int64: the place of each row's user in `users`.
    """
    user = places_of(block["user_id"], users)
    item = block["item_id"].dictionary_encode().indices.to_numpy()
    timestamp = block["timestamp"].fill_null(0).to_numpy(zero_copy_only=False)
    position = block["position"].to_numpy()
    by_time = np.lexsort((position, timestamp, user))
    pair = user[by_time] * (int(item.max(initial=0)) + 1) + item[by_time]
    # In order of time within a pair, since a stable sort keeps the order it finds: the last of each run is the latest.
    by_pair = np.argsort(pair, kind="stable")
    last = np.flatnonzero(np.diff(pair[by_pair], append=-1))
    if cut is not None:
        run = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1))
        before = np.bincount(run, timestamp[by_time][by_pair] < cut, minlength=len(last)).astype(np.int64)
        first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
        last = np.where(before > 0, first + before - 1, last)
    kept = by_time[np.sort(by_pair[last])]
    return block.take(pa.array(kept)), user[kept]


def sorted_unique(*ids: pa.Array) -> pa.Array:
    """Returns the different ids, in the order of their bytes."""
    unique = pc.unique(joined([pc.unique(each) for each in ids], "user_id", FEWER_USERS))
    return unique.take(pc.sort_indices(unique))


def places_of(ids: pa.Array, users: pa.Array) -> np.ndarray:
    """Returns [n] int64: the place of each id in `users`, -1 for others."""
    encoded = ids.dictionary_encode()
    places = pc.index_in(encoded.dictionary, users).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return places[encoded.indices.to_numpy()]


HELD_OUT_TWICE = "rows_held_out_and_trained_on"
"""The metric that counts pairs of files that are held out which are among the ratings too; there must be none."""


def with_held_out(block: Block, user: np.ndarray, held: Block, users: pa.Array) -> tuple[Block, np.ndarray, np.ndarray, int]:
    """Adds the rows of files that are held out to the ratings, in the order of users and then of time.

    Args:
      block: n rows of VALID, each pair once.
      user: [n] int64: the place of each row's user in `users`.
      held: rows of VALID, in any order; of a pair that repeats, the latest counts.
      users: those of both.

    Returns:
      All rows, [m] int64: the places of their users, [m] bool: which are held out, and how many pairs are in both.
    """
    held, held_user = latest_of_each_pair(held, users)
    both = one_block([block, held], VALID, FEWER_USERS)
    of = np.concatenate([user, held_user])
    given = np.arange(len(of)) >= len(user)
    item = both["item_id"].dictionary_encode().indices.to_numpy()
    pair = of * (int(item.max(initial=0)) + 1) + item
    twice = int(np.isin(pair[given], pair[~given]).sum())
    order = np.lexsort((given, both["timestamp"].fill_null(0).to_numpy(zero_copy_only=False), of))
    return both.take(pa.array(order)), of[order], given[order], twice


def split_bucket(
    blocks: Iterable[Block], settings: SplitSettings, times: SplitTimes, held_out: Iterable[Block] = ()
) -> BucketParts:
    """Deduplicates, sorts and splits the rows of a bucket of users.

    Args:
      blocks: rows of VALID; all rows of each of their users.
      settings: how to split.
      times: when to cut, and what is recent.
      held_out: likewise, of files that are held out as they are.
    """
    found, held = (one_block(each, VALID, FEWER_USERS) for each in (blocks, held_out))
    users = sorted_unique(found["user_id"], held["user_id"])
    block, user = latest_of_each_pair(found, users, times.cut)
    repeated = found.num_rows - block.num_rows
    given, twice = None, 0
    if held.num_rows:
        block, user, given, twice = with_held_out(block, user, held, users)
    rows = user_rows(block, user, settings, given)
    parts = split_rows(rows, settings, times.cut)
    train = parts.train & rows.positive
    interactions = block.select(INTERACTIONS.names)
    return BucketParts(
        users=list(in_blocks(_users(users, block, rows, parts), USERS_A_BLOCK)),
        train=list(in_blocks(interactions.filter(pa.array(train)))),
        holdout=list(in_blocks(interactions.filter(pa.array(parts.holdout)))),
        item_counts=list(
            in_blocks(_item_counts(block["item_id"], train, train * times.recency(rows.timestamp), parts.holdout))
        ),
        metrics={
            "rows_repeated": repeated,
            "rows_train": int(train.sum()),
            "rows_holdout": int(parts.holdout.sum()),
            "rows_below_min_rating": int((~rows.positive).sum()),
            "users_without_history": int((np.bincount(user, train, minlength=len(users)) == 0).sum()),
            "users_with_holdout": int((np.bincount(user, parts.holdout) > 0).sum()),
            **({HELD_OUT_TWICE: twice} if settings.split == "given" else {}),
        },
    )


def _users(users: pa.Array, block: Block, rows: UserRows, parts: Parts) -> Block:
    """Returns one row of USERS for each of `users`, of the sorted `block`; nothing is excluded yet."""

    def lists_of(mask: np.ndarray) -> pa.ListArray:
        return group_lists(rows.user[mask], block["item_id"].filter(pa.array(mask)), len(users))

    nothing = group_lists(np.zeros(0, np.int64), pa.array([], pa.string()), len(users))
    columns = {
        "user_id": users,
        "history": lists_of(parts.train & rows.positive),
        "excluded": nothing,
        "below_min_rating": lists_of(parts.train & ~rows.positive),
        "holdout": lists_of(parts.holdout),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in USERS.names], schema=USERS)


def group_lists(row: np.ndarray, items: pa.Array, num_rows: int) -> pa.ListArray:
    """Returns [num_rows] lists: row i holds, in their order, the items whose `row`, [n] int64 ascending, is i."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=num_rows))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)


def _item_counts(items: pa.Array, *weights: np.ndarray) -> Block:
    """Returns one row of ITEM_COUNTS for each different item: the sums of `weights`, each [n] whole numbers."""
    encoded = items.dictionary_encode()
    codes = encoded.indices.to_numpy()
    counts = [np.bincount(codes, weight, minlength=len(encoded.dictionary)).astype(np.int64) for weight in weights]
    return pa.RecordBatch.from_arrays([encoded.dictionary, *(pa.array(count) for count in counts)], schema=ITEM_COUNTS)


class _SplitBucket(beam.DoFn):
    def __init__(self, settings: SplitSettings, half_life: float) -> None:
        super().__init__()
        self._settings = settings
        self._half_life = half_life

    def process(self, element: tuple[int, Mapping[str, Iterable[Block]]], latest: int, cut: int | None) -> Iterator[Any]:
        key, rows = element
        times = SplitTimes(cut, latest, self._half_life)
        bucket = split_bucket(rows[RATINGS], self._settings, times, rows.get(HELD_OUT, ()))
        yield beam.pvalue.TaggedOutput("users", (key, bucket.users))
        yield beam.pvalue.TaggedOutput("train", (key, bucket.train))
        yield beam.pvalue.TaggedOutput("holdout", (key, bucket.holdout))
        for block in bucket.item_counts:
            yield beam.pvalue.TaggedOutput("item_counts", block)
        yield beam.pvalue.TaggedOutput("metrics", Counts(bucket.metrics))


class UserParts(NamedTuple):
    """What `SplitByUser` makes: parts of users, train and holdout (a part a bucket), item counts, metrics."""

    users: beam.PCollection[Part]
    train: beam.PCollection[Part]
    holdout: beam.PCollection[Part]
    item_counts: beam.PCollection[Block]
    metrics: beam.PCollection[Counts]


@dataclass
class SplitByUser(beam.PTransform):
    """Brings each user's rows together, keeps the latest of each pair, and splits them into training and holdout.

    It is given collections of blocks by name: RATINGS, and HELD_OUT where files of their own are held out.

    Attributes:
      settings: how to split.
      num_buckets: how many hash buckets of users; each becomes one file of every dataset.
      half_life: how long it takes for a rating to count half towards what is recent, in seconds.
      latest: the latest second of all ratings, as a side input.
      cut: for the temporal split, the first second that is held out, as a side input.
    """

    settings: SplitSettings
    num_buckets: int
    half_life: float
    latest: beam.pvalue.AsSingleton
    cut: beam.pvalue.AsSingleton | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: Mapping[str, beam.PCollection[Block]]) -> UserParts:
        keyed = {
            name: blocks
            | f"KeyByUser{name.title()}" >> beam.FlatMap(key_by_user, self.num_buckets).with_output_types(tuple[int, Block])
            for name, blocks in rows.items()
        }
        outputs = (
            keyed
            | "GroupByBucket" >> beam.CoGroupByKey()
            | "SplitBucket"
            >> beam.ParDo(_SplitBucket(self.settings, self.half_life), self.latest, self.cut).with_outputs(*UserParts._fields)
        )
        return UserParts(*(outputs[name] for name in UserParts._fields))
