"""Judges one hash bucket of users: which rules its rows break, how good its lists are, how they differ from the last."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import FEWER_USERS, Block, joined
from schemas.topk import LONG, NESTED, SOURCES, TOPK
from schemas.users import unwanted_columns
from transforms.evaluate.findings import LAST_LISTS, OWN, RATED, Findings
from transforms.index.item_lists import ItemLists
from transforms.io.partition import bucket_of, hash_ids, places_in
from transforms.lists.table import one_row_a_user, starts_of_lists
from transforms.search.id_map import list_lengths
from transforms.search.top_k import is_in


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
        """Returns those of a block of SHARD_ITEMS that may be recommended."""
        may = ~lists.blocked(block["code"].to_numpy())
        return cls(hashes(block)[may], block["code"].to_numpy()[may].astype(np.int64), block["train_count"].to_numpy()[may])


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
            places = places_in(hashes, best_first)
            popularity[places[places >= 0]] = np.flatnonzero(places >= 0)
        return cls(hashes, popularity)

    @property
    def num_eligible(self) -> int:
        """How many items may be recommended."""
        return int((self.popularity >= 0).sum())

    def places_of(self, ids: pa.Array) -> np.ndarray:
        """Returns [n] int64: the place of each id, -1 for one that is not in the catalogue."""
        return places_in(self.hashes, hash_ids(ids))


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
    found.note("repeated_items", *_at(is_in(listed, again), pairs, ids))
    in_lists = _distinct(listed) if len(again) else in_lists
    seen = np.concatenate([keys["history"], keys["below_min_rating"]])[: 0 if rules.recommend_seen else None]
    for fault, forbidden in (("excluded", keys["excluded"]), ("seen", seen)):
        found.note(fault, *_at(is_in(listed, _common(in_lists, _distinct(forbidden))), pairs, ids))
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
    hits = np.flatnonzero(is_in(listed, held))
    by_list = _Hits(np.searchsorted(rows, listed[hits] >> 32), hits - np.searchsorted(listed >> 32, listed[hits] >> 32))

    could = (popularity[held & _CODE] >= 0) & ~is_in(held, unwanted)
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


def rated(block: Block) -> Block:
    """Returns rows of LAST_LISTS: all that each of some users has rated, one kind after the other.

    Args:
      block: rows of USERS.
    """
    lengths = [list_lengths(block[name]) for name in RATED]
    values = joined([block[name].flatten() for name in RATED], "item_id", FEWER_USERS)
    row = np.concatenate([np.repeat(np.arange(len(block)), each) for each in lengths])
    offsets = np.concatenate([[0], np.cumsum(np.sum(lengths, axis=0))])
    items = values.take(pa.array(np.argsort(row, kind="stable")))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)
    return pa.RecordBatch.from_arrays([block["user_id"], lists], schema=LAST_LISTS)


def hashes(block: Block) -> np.ndarray:
    return hash_ids(block["item_id"])
