"""Compares a finished table with what it must be, row by row, and with the table that it would replace.

One element is one hash bucket: the bucket's users, its files of the table, and the same users' lists in the last table. A
worker holds the users of a bucket, then and now, and, of the table, one block at a time. Nothing is shuffled, unless the last
table has another number of buckets: then its lists and users are, once.

    users ──────┐
    table ──────┼──> faults, each with how many users it concerns and an example; items listed; held-out items found
    last table ─┤    by the lists and by popularity; overlap       (the catalogue is a side input of 16 bytes an item)
    last users ─┘    how much of their histories the same users still have

It knows nothing of how lists are made: it reads Parquet and compares ids, so that a defect of the search, the exclusion or the
writing shows.

Popularity is judged without making its lists: the rank of an item in a user's list of popular items is its place among all
eligible items by popularity, less the number of those before it that the user must not get. It is judged on the very users
whose lists are their own (those without a vector are served popular items anyway), user by user, so that the difference has a
standard error of its own.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import FEWER_USERS, Block, joined, one_block
from schemas.storage import read_parquet_blocks
from schemas.topk import LONG, NESTED, SOURCES, TOPK
from schemas.users import USERS, unwanted_columns
from transforms.index.item_lists import ItemLists
from transforms.io.partition import bucket_of, hash_ids, key_by_user
from transforms.io.read import ReadParquet
from transforms.lists.table import one_row_a_user, read_table, starts_of_lists
from transforms.search.id_map import list_lengths

FAULTS: Mapping[str, str] = {
    "users_once": "every user of ingest has exactly one list",
    "list_length": "a list has exactly min(k, eligible) items",
    "seen": "no list has an item that its user has seen",
    "excluded": "no list has an item that --exclude names for its user",
    "blocked": "every item is in the index, not in --block_items, and in --allow_items where that is given",
    "repeated_items": "no list has an item twice",
    "values": "nothing but scored_at is null, nothing NaN or infinite, every source is known",
    "order": "scores descend, equal ones by item id; ranks count from 1",
    "catalogue": "every item is in the catalogue",
    "layout": "files are hash buckets of users, sorted by user id",
}
"""What can be wrong with a table, by the rule that it breaks."""

OWN = SOURCES[0]
"""The source of lists that follow the user's own vector."""

LAST_LISTS = pa.schema(
    [pa.field("user_id", pa.string(), nullable=False), pa.field("items", pa.list_(pa.string()), nullable=False)]
)
"""The lists of the table that would be replaced, without their scores; or what its users had rated."""

_RATED = ("history", "below_min_rating", "holdout")
"""The columns of USERS that hold, together, all that a user has rated."""


@dataclass(frozen=True)
class TableRules:
    """What the table claims of itself.

    Attributes:
      k: items a user.
      recommend_seen: whether a list may hold items that the user has seen.
      num_buckets: of users.
      last_k: items a user in the table it would replace; None where there is none. The shorter k counts for the overlap.
      layout: of its files; a long one has no row for an empty list.
      has_last_users: whether what users had rated then is compared with what they have rated now.
    """

    k: int
    recommend_seen: bool
    num_buckets: int
    last_k: int | None = None
    layout: str = NESTED
    has_last_users: bool = False


class EligibleItems(NamedTuple):
    """Some of the items that are indexed and may be recommended.

    Attributes:
      hashes: [n] uint64, of their ids.
      codes: [n] int64.
      train_counts: [n] int64.
    """

    hashes: np.ndarray
    codes: np.ndarray
    train_counts: np.ndarray

    @classmethod
    def of(cls, block: Block, lists: ItemLists) -> "EligibleItems":
        """Returns those of a block of embeddings that may be recommended."""
        may = ~lists.blocked(block["code"].to_numpy())
        return cls(_hashes(block)[may], block["code"].to_numpy()[may].astype(np.int64), block["train_count"].to_numpy()[may])


class KnownItems(NamedTuple):
    """The catalogue, as hashes of its ids: of unknown ids, one in 2^64 / n passes for a known one.

    Attributes:
      hashes: [n] uint64, ascending.
      popularity: [n] int64: the place among the eligible items, by training positives and then by code; -1 for other items.
    """

    hashes: np.ndarray
    popularity: np.ndarray

    @classmethod
    def of(cls, catalogue: Iterable[np.ndarray], eligible: Iterable[EligibleItems]) -> "KnownItems":
        """Returns the items of some blocks of hashes, each [m] uint64, and which of them are eligible."""
        hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *catalogue]))
        popularity = np.full(len(hashes), -1, np.int64)
        found = list(eligible)
        if found and len(hashes):
            may = EligibleItems(*(np.concatenate(column) for column in zip(*found, strict=True)))
            best_first = may.hashes[np.lexsort((may.codes, -may.train_counts))]
            places = np.minimum(np.searchsorted(hashes, best_first), len(hashes) - 1)
            ranked = hashes[places] == best_first
            popularity[places[ranked]] = np.flatnonzero(ranked)
        return cls(hashes, popularity)

    @property
    def num_eligible(self) -> int:
        """How many items may be recommended."""
        return int((self.popularity >= 0).sum())

    def places_of(self, ids: pa.Array) -> np.ndarray:
        """Returns [n] int64: the place of each id, -1 for one that is not in the catalogue."""
        if not len(self.hashes):
            return np.full(len(ids), -1, np.int64)
        hashes = hash_ids(ids)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, places, -1)


@dataclass
class Findings:
    """What was found of some buckets; adds up.

    Attributes:
      faults: by the names of FAULTS: how many users (rows of the table, for `users_once` rows and missing users) it concerns.
      examples: by the same names, one of them in words.
      listed: [num_items] bool, packed to bits: items that are in a list.
      numbers: 'users', 'users_expected', 'pairs', 'lists_empty', 'lists_short' (see `report`); of the overlap
        'users_in_both', 'users_changed' and 'jaccard' (a sum); of histories 'rated_then' (users who had rated something then),
        'rated_both' (those of them who are users now) and 'kept' (a sum of shares).
      gains: [2, 4] float64: for each of `metrics_of`, sums over the users on whom popularity is compared: of the list's value,
        of popularity's, of their difference's square, and of 1.
    """

    listed: np.ndarray
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    examples: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    gains: np.ndarray = field(default_factory=lambda: np.zeros((2, 4)))

    @classmethod
    def none(cls, num_items: int) -> "Findings":
        """Returns what is found of nothing, in a catalogue of `num_items`."""
        return cls(np.zeros((num_items + 7) // 8, np.uint8))

    def note(self, fault: str, rows: np.ndarray, users: pa.Array, items: pa.Array | None = None) -> None:
        """Counts the users whom a fault concerns, and keeps the first as an example.

        Args:
          fault: one of FAULTS.
          rows: [m] int64, ascending: which of `users`; repeats count once.
          users: [n] string.
          items: [m] string: the item concerned in each of `rows`, where there is one.
        """
        if len(rows):
            self.faults[fault] += len(np.unique(rows))
            example = f"user {users[int(rows[0])].as_py()!r}" + (f", item {items[0].as_py()!r}" if items is not None else "")
            self.examples.setdefault(fault, example)

    def count(self, **numbers: float) -> None:
        """Adds to the numbers."""
        for name, number in numbers.items():
            self.numbers[name] = self.numbers.get(name, 0) + number

    def add(self, other: "Findings") -> None:
        """Takes in what was found elsewhere; of two examples the first by alphabet stays, whatever the order of adding."""
        self.listed = self.listed | other.listed
        for name, count in other.faults.items():
            self.faults[name] += count
        for name, example in other.examples.items():
            self.examples[name] = min(example, self.examples.get(name, example))
        self.count(**other.numbers)
        self.gains = self.gains + other.gains


class Bucket(NamedTuple):
    """One hash bucket of users.

    Attributes:
      number: which.
      users: all of them, rows of USERS.
      last: their lists in the last table, rows of LAST_LISTS; others' may be among them.
      last_rated: what users of the last release had rated, rows of LAST_LISTS; others' may be among them.
    """

    number: int
    users: Block
    last: Block
    last_rated: Block | None = None


class ListedPairs(NamedTuple):
    """The lists of a block, taken apart.

    Attributes:
      lengths: [num_rows] int64, 0 for a null.
      row: [num_pairs] int64.
      item: [num_pairs] string, may be null.
      score: [num_pairs] float32, NaN for a null.
    """

    lengths: np.ndarray
    row: np.ndarray
    item: pa.Array
    score: np.ndarray

    @classmethod
    def of(cls, lists: pa.ListArray) -> "ListedPairs":
        """Takes a column of lists of RECOMMENDATION apart."""
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        pairs = lists.flatten()
        return cls(
            lengths,
            np.repeat(np.arange(len(lengths)), lengths),
            pc.struct_field(pairs, "item_id"),
            pc.struct_field(pairs, "score").to_numpy(zero_copy_only=False),
        )


def judge_bucket(bucket: Bucket, files: Iterable[Iterable[Block]], items: KnownItems, rules: TableRules) -> Findings:
    """Judges the files of the table that one bucket of users has.

    Args:
      bucket: its users.
      files: the blocks of each file, in order.
      items: the catalogue.
      rules: what the table claims of itself.
    """
    found = Findings.none(len(items.hashes))
    user_ids = bucket.users["user_id"]
    times = np.zeros(len(user_ids), np.int64)
    for file in files:
        before = pa.array([], pa.string())
        for block in file:
            if rules.layout == LONG:
                _judge_long(found, block)
                block = one_row_a_user(block)
            ids = block["user_id"].fill_null("")
            row = pc.index_in(ids, user_ids).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            np.add.at(times, row[row >= 0], 1)
            found.note("users_once", np.flatnonzero(row < 0), ids)
            _judge_layout(found, bucket.number, ids, before, rules.num_buckets)
            before = ids.slice(len(ids) - 1) if len(ids) else before
            _judge_block(found, block, row, bucket, items, rules)
    if rules.layout == LONG:
        missing = np.flatnonzero(times == 0)
        empty = missing[num_left(bucket.users.take(pa.array(missing)), items, rules) == 0]
        times[empty] = 1
        found.count(users=len(empty), lists_empty=len(empty), lists_short=len(empty))
    found.note("users_once", np.flatnonzero(times != 1), user_ids)
    found.count(users_expected=len(user_ids))
    if bucket.last_rated is not None:
        _compare_rated(found, bucket.last_rated, rated(bucket.users))
    return found


def _compare_rated(found: Findings, then: Block, now: Block) -> None:
    """Adds how much of what users had rated then, rows of LAST_LISTS, is among what the same users have rated now."""
    then = then.filter(pc.greater(pc.list_value_length(then["items"]), 0))
    row = pc.index_in(then["user_id"], now["user_id"]).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    both = np.flatnonzero(row >= 0)
    lists = [then["items"].take(pa.array(both)), now["items"].take(pa.array(row[both]))]
    coded = joined([each.flatten() for each in lists], "item_id", FEWER_USERS).dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    ends = len(lists[0].flatten())
    keys = [
        _distinct(_keys(np.repeat(np.arange(len(both)), list_lengths(each)), code))
        for each, code in zip(lists, np.split(codes, [ends]), strict=True)
    ]
    had = np.bincount(keys[0] >> 32, minlength=len(both))
    kept = np.bincount(_common(*keys) >> 32, minlength=len(both))
    found.count(rated_then=len(then), rated_both=len(both), kept=float((kept / np.maximum(had, 1)).sum()))


def num_left(users: Block, items: KnownItems, rules: TableRules) -> np.ndarray:
    """Returns [num_users] int64: how many eligible items each of some users (rows of USERS) may get."""
    unwanted = []
    for name in unwanted_columns(rules.recommend_seen):
        places = items.places_of(users[name].flatten())
        row = np.repeat(np.arange(len(users)), list_lengths(users[name]))
        known = places >= 0
        known[known] = items.popularity[places[known]] >= 0
        unwanted.append(_keys(row[known], places[known]))
    return items.num_eligible - np.bincount(_distinct(np.concatenate(unwanted)) >> 32, minlength=len(users))


def _judge_long(found: Findings, block: Block) -> None:
    """Judges what only a long table can have wrong: ranks, and what each row repeats of its user."""
    starts = starts_of_lists(block)
    lengths = np.diff(starts, append=len(block))
    row = np.repeat(np.arange(len(starts)), lengths)
    ids = block["user_id"].fill_null("").take(pa.array(starts))
    rank = block["rank"].fill_null(0).to_numpy(zero_copy_only=False)
    found.note("order", row[rank != np.arange(len(block)) - np.repeat(starts, lengths) + 1], ids)
    for name in ("source", "history_length", "scored_at"):
        codes = block[name].dictionary_encode(null_encoding="encode").indices.to_numpy()
        found.note("values", row[codes != np.repeat(codes[starts], lengths)], ids)


def _judge_layout(found: Findings, bucket: int, ids: pa.Array, before: pa.Array, num_buckets: int) -> None:
    found.note("layout", np.flatnonzero(bucket_of(ids, num_buckets) != bucket), ids)
    run = pa.concat_arrays([before, ids])
    fell = pc.greater(run.slice(0, max(0, len(run) - 1)), run.slice(1)).to_numpy(zero_copy_only=False)
    found.note("layout", np.flatnonzero(fell) + 1, run)


def _judge_block(
    found: Findings, block: Block, place: np.ndarray, bucket: Bucket, items: KnownItems, rules: TableRules
) -> None:
    """Judges the lists of a block of the table.

    Args:
      found: what is found is added here.
      block: n rows of TOPK.
      place: [n] int64: the rows of the users in `bucket.users`, -1 for a stranger.
      bucket: their bucket.
      items: the catalogue.
      rules: what the table claims of itself.
    """
    ids = block["user_id"].fill_null("")
    pairs = ListedPairs.of(block["recommendations"])
    found.count(
        users=len(ids),
        pairs=len(pairs.row),
        lists_empty=int((pairs.lengths == 0).sum()),
        lists_short=int((2 * pairs.lengths < min(rules.k, len(items.hashes))).sum()),
    )
    _judge_values(found, block, pairs, ids)

    owners = np.flatnonzero(place >= 0)
    users = bucket.users.take(pa.array(place[owners]))
    last = pc.index_in(ids, bucket.last["user_id"]).fill_null(-1).to_numpy(zero_copy_only=False)
    both = np.flatnonzero(last >= 0)
    lists = {name: users[name] for name in ("excluded", "history", "below_min_rating", "holdout")}
    lists["last"] = bucket.last["items"].take(pa.array(last[both]))
    # One code for each different id of the block, whatever list it is in; a key is a row and a code.
    values = [pairs.item.fill_null(""), *(column.flatten() for column in lists.values())]
    coded = joined(values, "item_id", FEWER_USERS).dictionary_encode()
    codes = np.split(coded.indices.to_numpy().astype(np.int64), np.cumsum([len(each) for each in values])[:-1])
    places = items.places_of(coded.dictionary)
    popularity = np.where(places >= 0, items.popularity[places], -1) if len(items.hashes) else places
    listed = _keys(pairs.row, codes[0])
    keys = {
        name: _keys(np.repeat(both if name == "last" else owners, list_lengths(column)), code)
        for (name, column), code in zip(lists.items(), codes[1:], strict=True)
    }

    found.note("catalogue", *_at(places[codes[0]] < 0, pairs, ids))
    found.note("blocked", *_at((places[codes[0]] >= 0) & (popularity[codes[0]] < 0), pairs, ids))
    _mark(found.listed, places[codes[0]])
    in_lists = np.sort(listed)
    again = in_lists[1:][np.diff(in_lists) == 0]
    found.note("repeated_items", *_at(_is_in(listed, again), pairs, ids))
    in_lists = _distinct(listed) if len(again) else in_lists
    seen = np.concatenate([keys["history"], keys["below_min_rating"]])[: 0 if rules.recommend_seen else None]
    for fault, forbidden in (("excluded", keys["excluded"]), ("seen", seen)):
        found.note(fault, *_at(_is_in(listed, _common(in_lists, _distinct(forbidden))), pairs, ids))
    unwanted = _distinct(np.concatenate([keys["excluded"], seen]))
    unwanted = unwanted[popularity[unwanted & _CODE] >= 0]
    left = items.num_eligible - np.bincount(unwanted >> 32, minlength=len(ids))
    found.note("list_length", owners[(pairs.lengths != np.minimum(rules.k, left))[owners]], ids)

    own = pc.equal(block["source"], OWN).fill_null(False).to_numpy(zero_copy_only=False)
    held = _distinct(keys["holdout"])
    held = held[own[held >> 32]]
    found.gains = found.gains + _gains(listed, held, unwanted, popularity, rules.k)
    if rules.last_k is not None:
        m = min(rules.k, rules.last_k)
        jaccard = _jaccard(_first(m, listed), _first(m, keys["last"]), len(ids))[both]
        found.count(users_in_both=len(both), users_changed=int((jaccard < 1).sum()), jaccard=float(jaccard.sum()))


def metrics_of(k: int) -> tuple[str, str]:
    """Returns the names of the metrics by which lists of k items are compared with popularity."""
    return f"recall@{k}", f"ndcg@{min(10, k)}"


def _gains(listed: np.ndarray, held: np.ndarray, unwanted: np.ndarray, popularity: np.ndarray, k: int) -> np.ndarray:
    """Compares lists with what popularity alone would give, by the items held out: see `Findings.gains`.

    Args:
      listed: [num_pairs] int64 keys of the lists; rows ascend, and within a row the best is first.
      held: [m] int64 keys of the held-out items, ascending.
      unwanted: [u] int64 keys of eligible items that a row must not get, ascending, none twice.
      popularity: [num_codes] int64: an item's place among all eligible ones, -1 for others.
      k: of the lists.
    """
    rows, row = np.unique(held >> 32, return_inverse=True)
    relevant = np.bincount(row, minlength=len(rows))
    hits = np.flatnonzero(_is_in(listed, held))
    by_list = _Hits(np.searchsorted(rows, listed[hits] >> 32), hits - np.searchsorted(listed >> 32, listed[hits] >> 32))

    could = (popularity[held & _CODE] >= 0) & ~_is_in(held, unwanted)
    place = popularity[held[could] & _CODE]
    taken = np.sort(_keys(unwanted >> 32, popularity[unwanted & _CODE]))
    above = np.searchsorted(taken, _keys(held[could] >> 32, place)) - np.searchsorted(taken, held[could] & ~_CODE)
    by_popularity = _Hits(row[could], place - above)

    values = [_recall_and_ndcg(found, relevant, k) for found in (by_list, by_popularity)]
    squares = np.square(values[0] - values[1])
    return np.stack([*(each.sum(axis=1) for each in (*values, squares)), np.full(2, len(rows))], axis=1)


class _Hits(NamedTuple):
    """Held-out items in lists.

    Attributes:
      user: [n] int64: whose.
      rank: [n] int64, from 0.
    """

    user: np.ndarray
    rank: np.ndarray


def _recall_and_ndcg(hits: _Hits, relevant: np.ndarray, k: int) -> np.ndarray:
    """Returns [2, num_users] float64: `metrics_of` of users of whom `relevant` ([num_users], above 0) items are held out."""
    m = min(10, k)
    discounts = 1 / np.log2(np.arange(2, m + 2))
    found = np.bincount(hits.user[hits.rank < k], minlength=len(relevant))
    early = hits.rank < m
    gained = np.bincount(hits.user[early], discounts[hits.rank[early]], minlength=len(relevant))
    return np.stack([found / relevant, gained / np.cumsum(discounts)[np.minimum(m, relevant) - 1]])


_CODE = (1 << 32) - 1
"""The bits of a key that are its code."""


def _judge_values(found: Findings, block: Block, pairs: ListedPairs, ids: pa.Array) -> None:
    sound = pairs.item.is_valid().to_numpy(zero_copy_only=False) & np.isfinite(pairs.score)
    known_source = pc.is_in(block["source"], pa.array(SOURCES)).to_numpy(zero_copy_only=False)
    needed = [block[field.name] for field in TOPK if not field.nullable]
    complete = np.logical_and.reduce([column.is_valid().to_numpy(zero_copy_only=False) for column in needed])
    found.note("values", np.union1d(np.flatnonzero(~(complete & known_source)), pairs.row[~sound]), ids)

    neighbors = (pairs.row[1:] == pairs.row[:-1]) & sound[1:] & sound[:-1]
    rose = np.flatnonzero(neighbors & (pairs.score[1:] > pairs.score[:-1]))
    tied = np.flatnonzero(neighbors & (pairs.score[1:] == pairs.score[:-1]))
    wrong = pc.greater(pairs.item.take(pa.array(tied)), pairs.item.take(pa.array(tied + 1))).to_numpy(zero_copy_only=False)
    at = np.union1d(rose, tied[wrong.astype(bool)]).astype(np.int64)
    found.note("order", pairs.row[at], ids, pairs.item.take(pa.array(at)))


def _keys(row: np.ndarray, code: np.ndarray) -> np.ndarray:
    return (row << 32) | code


def _distinct(values: np.ndarray) -> np.ndarray:
    """Returns the different values, ascending; `np.unique` hashes them, which takes ten times as long here."""
    values = np.sort(values)
    return values[np.flatnonzero(np.diff(values, prepend=-1))]


def _common(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the values that are in both of two arrays, each of different values."""
    both = np.sort(np.concatenate([one, other]))
    return both[1:][np.diff(both) == 0]


def _at(mask: np.ndarray, pairs: ListedPairs, ids: pa.Array) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Returns where pairs are at fault, as `Findings.note` takes it."""
    at = np.flatnonzero(mask)
    return pairs.row[at], ids, pairs.item.take(pa.array(at))


def _mark(bits: np.ndarray, places: np.ndarray) -> None:
    """Sets the bits of items, [n] int64, -1 for none."""
    places = _distinct(places[places >= 0])
    np.bitwise_or.at(bits, places >> 3, np.uint8(1) << (places & 7).astype(np.uint8))


def _is_in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    if not len(others):
        return np.zeros(len(keys), bool)
    return pc.is_in(pa.array(keys), pa.array(others)).to_numpy(zero_copy_only=False)


def _first(m: int, keys: np.ndarray) -> np.ndarray:
    """Returns the first m keys of each row; rows ascend."""
    row = keys >> 32
    return keys[np.arange(len(row)) - np.searchsorted(row, row) < m]


def _jaccard(keys: np.ndarray, others: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns [num_rows] float64: |A and B| / |A or B| of each row's two sets of keys; 1 where both are empty."""
    keys, others = _distinct(keys), _distinct(others)
    common = np.bincount(_common(keys, others) >> 32, minlength=num_rows)
    either = np.bincount(np.concatenate([keys, others]) >> 32, minlength=num_rows) - common
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)


@dataclass(frozen=True)
class BucketFiles:
    """Where a bucket lies.

    Attributes:
      users: paths of its users; none where it has none.
      table: paths of the table's files.
      last: paths of the last table's files, where that has the same buckets.
      last_users: paths of the last release's users, likewise.
    """

    users: tuple[str, ...] = ()
    table: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    last_users: tuple[str, ...] = ()


def last_lists(block: Block) -> Block:
    """Returns rows of LAST_LISTS, of a block of the table that would be replaced."""
    pairs = ListedPairs.of(block["recommendations"])
    offsets = np.concatenate([[0], np.cumsum(pairs.lengths)])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pairs.item.fill_null(""))
    return pa.RecordBatch.from_arrays([block["user_id"].fill_null(""), lists], schema=LAST_LISTS)


def rated(block: Block) -> Block:
    """Returns rows of LAST_LISTS: all that each of some users has rated, one kind after the other.

    Args:
      block: rows of USERS.
    """
    lengths = [list_lengths(block[name]) for name in _RATED]
    values = joined([block[name].flatten() for name in _RATED], "item_id", FEWER_USERS)
    row = np.concatenate([np.repeat(np.arange(len(block)), each) for each in lengths])
    offsets = np.concatenate([[0], np.cumsum(np.sum(lengths, axis=0))])
    items = values.take(pa.array(np.argsort(row, kind="stable")))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)
    return pa.RecordBatch.from_arrays([block["user_id"], lists], schema=LAST_LISTS)


_LAST_COLUMNS = ["user_id", "recommendations"]
_USER_COLUMNS = ["user_id", *_RATED]


class _JudgeBucket(beam.DoFn):
    def __init__(self, rules: TableRules) -> None:
        super().__init__()
        self._rules = rules

    def process(
        self, element: tuple[int, tuple[Iterable[BucketFiles], Iterable[Block], Iterable[Block]]], items: KnownItems
    ) -> Iterator[Findings]:
        number, (found, regrouped, regrouped_users) = element
        files = next(iter(found), BucketFiles())  # A bucket of the last table alone has no files.
        users = one_block([block for path in files.users for block in read_parquet_blocks(path)], USERS, FEWER_USERS)
        read = (last_lists(block) for path in files.last for block in read_table(path, _LAST_COLUMNS))
        last_rated = None
        if self._rules.has_last_users:
            blocks = (rated(block) for path in files.last_users for block in read_parquet_blocks(path, _USER_COLUMNS))
            last_rated = one_block([*blocks, *regrouped_users], LAST_LISTS, FEWER_USERS)
        bucket = Bucket(number, users, one_block([*read, *regrouped], LAST_LISTS, FEWER_USERS), last_rated)
        yield judge_bucket(bucket, map(read_parquet_blocks, files.table), items, self._rules)


class _MergeFindings(beam.CombineFn):
    def create_accumulator(self) -> Findings | None:
        return None

    def add_input(self, merged: Findings | None, findings: Findings) -> Findings | None:
        return self.merge_accumulators([merged, findings])

    def merge_accumulators(self, accumulators: Iterable[Findings | None]) -> Findings | None:
        merged: Findings | None = None
        for each in accumulators:
            if each is not None:
                merged = merged or Findings(np.zeros_like(each.listed))  # What is given stays as it is: others may hold it too.
                merged.add(each)
        return merged

    def extract_output(self, merged: Findings | None) -> Findings | None:
        return merged


def report(findings: Findings | None, items: KnownItems, rules: TableRules) -> dict[str, Any]:
    """Returns what was found of the whole table, as metrics.

    A list is short, and counted in `lists_short`, where it has less than half of min(k, number of items) items.
    """
    found = findings or Findings.none(len(items.hashes))
    numbers = found.numbers
    made: dict[str, Any] = {
        name: int(numbers.get(name, 0)) for name in ("users", "users_expected", "pairs", "lists_empty", "lists_short")
    }
    made |= {
        "items": len(items.hashes),
        "items_eligible": items.num_eligible,
        "items_listed": int(np.bitwise_count(found.listed).sum(dtype=np.int64)),
        "faults": found.faults,
        "examples": found.examples,
        "overlap": None,
        "histories": None,
        "against_popularity": {
            name: _gain(*sums) for name, sums in zip(metrics_of(rules.k), found.gains.tolist(), strict=True)
        },
    }
    if rules.last_k is not None:
        both = int(numbers.get("users_in_both", 0))
        made["overlap"] = {
            "k": min(rules.k, rules.last_k),
            "users_in_both": both,
            "users_changed": int(numbers.get("users_changed", 0)),
            "mean_jaccard": numbers.get("jaccard", 0.0) / both if both else 0.0,
        }
    if rules.has_last_users:
        compared = int(numbers.get("rated_both", 0))
        made["histories"] = {
            "users_then": int(numbers.get("rated_then", 0)),
            "users_in_both": compared,
            "mean_kept": numbers.get("kept", 0.0) / compared if compared else 0.0,
        }
    return {"table": made}


def _gain(of_list: float, of_popularity: float, squares: float, users: float) -> dict[str, Any]:
    """Returns the two means, and the standard error of their difference, which is paired; None where there is none."""
    if not users:
        return {"users": 0, "mean": None, "popularity": None, "standard_error": None}
    difference = (of_list - of_popularity) / users
    variance = max(0.0, squares - users * difference**2) / (users - 1) if users > 1 else None
    return {
        "users": int(users),
        "mean": of_list / users,
        "popularity": of_popularity / users,
        "standard_error": None if variance is None else math.sqrt(variance / users),
    }


@dataclass
class JudgeTable(beam.PTransform):
    """Judges a table, and reports what was found as one metric, `table`.

    Attributes:
      buckets: where each bucket lies, by its number.
      items: paths of the catalogue.
      embeddings: paths of the stored embeddings: all that is indexed.
      lists: which items may be recommended at all.
      rules: what the table claims of itself.
      regrouped: paths of the last table, where that has another number of buckets: its lists are regrouped by the new ones.
      regrouped_users: paths of the last release's users, likewise.
    """

    buckets: Mapping[int, BucketFiles]
    items: list[str]
    embeddings: list[str]
    lists: ItemLists
    rules: TableRules
    regrouped: list[str] = field(default_factory=list)
    regrouped_users: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[dict[str, Any]]:
        rules, lists = self.rules, self.lists
        catalogue = root | "ReadItems" >> ReadParquet(self.items, ["item_id"]) | "HashItems" >> beam.Map(_hashes)
        indexed = root | "ReadIndexed" >> ReadParquet(self.embeddings, ["item_id", "code", "train_count"])
        eligible = indexed | "PickEligible" >> beam.Map(EligibleItems.of, lists)
        items = beam.pvalue.AsSingleton(
            root
            | "Once" >> beam.Create([None])
            | "KnowItems"
            >> beam.Map(
                lambda _, found, may: KnownItems.of(found, may), beam.pvalue.AsList(catalogue), beam.pvalue.AsList(eligible)
            )
        )
        files = root | "Buckets" >> beam.Create(sorted(self.buckets.items()))
        last = (
            root
            | "ReadLast" >> ReadParquet(self.regrouped, _LAST_COLUMNS, read_table)
            | "LastLists" >> beam.Map(last_lists).with_output_types(Block)
            | "KeyByUser"
            >> beam.FlatMap(partial(key_by_user, num_buckets=rules.num_buckets)).with_output_types(tuple[int, Block])
        )
        last_users = (
            root
            | "ReadLastUsers" >> ReadParquet(self.regrouped_users, _USER_COLUMNS)
            | "LastRated" >> beam.Map(rated).with_output_types(Block)
            | "KeyLastUsers"
            >> beam.FlatMap(partial(key_by_user, num_buckets=rules.num_buckets)).with_output_types(tuple[int, Block])
        )
        return (
            (files, last, last_users)
            | "GroupByBucket" >> beam.CoGroupByKey()
            | "JudgeBucket" >> beam.ParDo(_JudgeBucket(rules), items)
            | "Merge" >> beam.CombineGlobally(_MergeFindings())
            | "Report" >> beam.Map(report, items, rules)
        )


def _hashes(block: Block) -> np.ndarray:
    return hash_ids(block["item_id"])
