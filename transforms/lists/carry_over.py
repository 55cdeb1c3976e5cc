"""Copies the lists of a release for users whose lists cannot have changed.

    embeddings of the release, embeddings now ──> the items that are as they were ──┐
    users now ──> beside them, the users and lists of the release ──────────────────┴─> whose list is unchanged

A list is the best k of the items that may be recommended, without those that its user must not get. Under the same towers, and
as far as search is exact, it is so still where

- the user's vector is the same: the tower looks at no history, or the history is the same, in the same order;
- none of its items has gone: left the index, been blocked, got another vector, or become one that the user must not get;
- nothing can have come in: no item is new, newly allowed or has another vector (or else nobody's list is carried over), and
  there is nothing that the user must not get no longer.

Who keeps a list needs neither a vector nor a search, unless chosen to be compared with exact search. Lists by popularity are
made anew: counts change every day, and it takes no search.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput

from schemas.blocks import Block, one_block
from schemas.parquet_files import find_rows
from schemas.topk import RECOMMENDATION, SOURCES, TOPK
from schemas.users import USERS, unwanted_columns
from transforms.index.item_lists import ItemLists
from transforms.io.partition import hash_ids, hash_vectors, is_sampled, places_in
from transforms.io.read import PlacedBlock, ReadParquet
from transforms.lists.table import find_lists
from transforms.search.id_map import list_lengths, places_in_lists
from transforms.search.top_k import PAD, is_in, pack

CARRIED = pa.schema(
    [
        pa.field("carried", pa.list_(RECOMMENDATION)),
        pa.field("carried_codes", pa.list_(pa.int32()), nullable=False),
        pa.field("embed", pa.bool_(), nullable=False),
    ]
)
"""What is appended to blocks of users: an unchanged list, or null; its items' codes; whether a vector is needed."""

LISTS = pa.schema([TOPK.field(name) for name in ("user_id", "source", "recommendations", "scored_at")])
"""What is read of the release's table."""

NEW_USER, POPULAR, NEW_ITEMS, HISTORY, UNWANTED, LOST_ITEM = REASONS = (
    "new_user",
    "popular",
    "new_items",
    "history",
    "unwanted",
    "lost_item",
)
"""Why a user gets a new list; the first that holds counts: was in the release with no list or not at all, has a list by
popularity, items have come in, the history is another, what must not be recommended is, an item of the list has gone."""

_KEEPS = len(REASONS)
_ID_SEED = 5


def is_carried(block: Block) -> np.ndarray:
    """Returns [num_rows] bool: which users of a block keep a list; none where the block has no rows of CARRIED."""
    if "carried" not in block.schema.names:
        return np.zeros(len(block), bool)
    return block["carried"].is_valid().to_numpy(zero_copy_only=False)


def carried_keys(block: Block, k: int) -> np.ndarray:
    """Returns [num_carried, k] uint64: the keys of the lists that are kept, PAD after the last."""
    rows = block.filter(pa.array(is_carried(block)))
    keys = np.full((len(rows), k), PAD)
    if len(rows):
        lengths = list_lengths(rows["carried"])
        scores, codes = rows["carried"].flatten().field("score").to_numpy(), rows["carried_codes"].flatten().to_numpy()
        keys[np.repeat(np.arange(len(rows)), lengths), places_in_lists(lengths)] = pack(scores, codes)
    return keys


def carried_items(block: Block) -> tuple[pa.Array, pa.Array]:
    """Returns the ids (string) and the codes (int32) of the items in the lists that are kept, as often as they are listed."""
    rows = block.filter(pa.array(is_carried(block)))
    return rows["carried"].flatten().field("item_id"), rows["carried_codes"].flatten()


class SomeItems(NamedTuple):
    """Some items of an index.

    Attributes:
      ids: [n] uint64, hashes of their ids.
      rows: [n] uint64, hashes of their ids and vectors.
    """

    ids: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, embeddings: Block, lists: ItemLists) -> "SomeItems":
        """Returns those of a block of embeddings that may be recommended."""
        may = embeddings.filter(pa.array(~lists.blocked_ids(embeddings["item_id"])))
        return cls(hash_ids(may["item_id"], _ID_SEED), hash_vectors(may["item_id"], may["embedding"]))


class ItemCodes(NamedTuple):
    """Some items' codes of now.

    Attributes:
      ids: [n] uint64, hashes of their ids.
      codes: [n] int32.
    """

    ids: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, items: Block) -> "ItemCodes":
        """Returns those of a block of SHARD_ITEMS."""
        return cls(hash_ids(items["item_id"], _ID_SEED), items["code"].to_numpy())


class KeptItems(NamedTuple):
    """The items that could be recommended in the release, can be now, and have the same vectors; known by their hashes.

    Attributes:
      hashes: [n] uint64, ascending; of 2^64 / n unknown ids, one passes for a kept one.
      codes: [n] int32: their codes now.
      gained: how many may be recommended now that could not be, or had another vector.
      lost: the other way round.
    """

    hashes: np.ndarray
    codes: np.ndarray
    gained: int
    lost: int

    @classmethod
    def of(cls, before: Iterable[SomeItems], now: Iterable[SomeItems], codes: Iterable[ItemCodes]) -> "KeptItems":
        """Compares what could be recommended in the release with what can be now, whose codes are among `codes`."""
        then, those = (SomeItems(*_joined(items, (np.uint64, np.uint64))) for items in (before, now))
        known = ItemCodes(*_joined(codes, (np.uint64, np.int32)))
        same = np.isin(those.rows, then.rows)
        hashes = np.sort(those.ids[same])
        order = np.argsort(known.ids)
        places = order[places_in(known.ids[order], hashes)] if len(hashes) else np.zeros(0, np.int64)
        return cls(hashes, known.codes[places], len(same) - len(hashes), len(then.rows) - len(hashes))

    def codes_of(self, ids: pa.Array) -> np.ndarray:
        """Returns [n] int32: the code of each item, -1 for one that is not kept."""
        places = places_in(self.hashes, hash_ids(ids, _ID_SEED))
        return np.append(self.codes, np.int32(-1))[places].astype(np.int32)


def _joined(items: Iterable[Sequence[np.ndarray]], kinds: Sequence[type]) -> Iterator[np.ndarray]:
    """Yields the columns of all items, which have these kinds."""
    for column in zip([np.zeros(0, kind) for kind in kinds], *items, strict=True):
        yield np.concatenate(column)


@dataclass(frozen=True)
class CarryRules:
    """What decides whether a list is unchanged, beside the items.

    Attributes:
      by_history: whether a user's vector is made of the history.
      recommend_seen: whether lists may hold items that the user has seen.
      checked_fraction: the share of users whose lists are compared with exact search, and who therefore need a vector.
    """

    by_history: bool
    recommend_seen: bool
    checked_fraction: float


def carry_over(block: Block, users: Block, lists: Block, items: KeptItems, rules: CarryRules) -> tuple[Block, Counter[str]]:
    """Tells which users' lists of a release are unchanged.

    Args:
      block: n rows of USERS with `scored_at`: what a new list would say there.
      users: rows of USERS of the release, in any order; others may be among them.
      lists: rows of LISTS of the release, in any order; others may be among them.
      items: those that are as they were.
      rules: what else decides.

    Returns:
      block: the same with the columns of CARRIED; `scored_at` is that of the list which is kept.
      counts: how many keep a list (`carried`) and how many of these are `compared` with exact search, for which they need a
        vector; how many get a new list, by REASONS.
    """
    was, had = (_rows_of(block["user_id"], found["user_id"]) for found in (users, lists))
    reason = np.full(len(block), _KEEPS)
    own = pc.equal(lists["source"], SOURCES[0]).to_numpy(zero_copy_only=False)
    reason[(was >= 0) & (had >= 0)] = REASONS.index(NEW_ITEMS) if items.gained else _KEEPS
    reason[(had >= 0) & ~own[had]] = REASONS.index(POPULAR) if len(own) else _KEEPS
    reason[(was < 0) | (had < 0)] = REASONS.index(NEW_USER)

    rows = np.flatnonzero(reason == _KEEPS)
    now, then, listed = block.take(pa.array(rows)), users.take(pa.array(was[rows])), lists.take(pa.array(had[rows]))
    for name, changed in _changes(now, then, listed["recommendations"], items, rules):
        reason[rows[changed & (reason[rows] == _KEEPS)]] = REASONS.index(name)

    keeps = reason == _KEEPS
    taken = lists.take(pa.array(had, mask=~keeps))
    carried = taken["recommendations"].cast(CARRIED.field("carried").type)
    lengths = pc.list_value_length(carried).fill_null(0).to_numpy(zero_copy_only=False)
    codes = pa.array(items.codes_of(carried.flatten().field("item_id")), pa.int32())
    compared = keeps & is_sampled(block["user_id"], rules.checked_fraction)
    columns = dict(zip(block.schema.names, block.columns, strict=True))
    columns["scored_at"] = pc.if_else(pa.array(keeps), taken["scored_at"], block["scored_at"])
    columns["carried"] = carried
    columns["carried_codes"] = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), codes)
    columns["embed"] = pa.array(~keeps | compared)
    counts = Counter({name: int((reason == at).sum()) for at, name in enumerate((*REASONS, "carried"))})
    counts["compared"] = int(compared.sum())
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema([*block.schema, *CARRIED])), counts


def _rows_of(ids: pa.Array, among: pa.Array) -> np.ndarray:
    return pc.index_in(ids, among).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _changes(
    now: Block, then: Block, listed: pa.ListArray, items: KeptItems, rules: CarryRules
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields reasons, and [num_rows] bool: for which rows each holds. Row i of all three is the same user."""
    num_rows = len(now)
    if rules.by_history:
        yield HISTORY, ~same_lists(now["history"], then["history"])
    unwanted = unwanted_columns(rules.recommend_seen)
    columns = [listed, *(block[name] for block in (then, now) for name in unwanted)]
    items_of = [column.flatten() for column in columns]
    items_of[0] = items_of[0].field("item_id")
    # One code for each different id, whatever list it is in; a key is a row and a code.
    codes = pa.concat_arrays(items_of).dictionary_encode().indices.to_numpy().astype(np.int64)
    row = np.concatenate([np.repeat(np.arange(num_rows), list_lengths(column)) for column in columns])
    sizes = [len(each) for each in items_of]
    in_list, before, after = np.split((row << 32) | codes, np.cumsum([sizes[0], sum(sizes[1 : 1 + len(unwanted)])]))
    changed = np.zeros(num_rows, bool)
    changed[in_list[is_in(in_list, after)] >> 32] = True
    changed[before[~is_in(before, after)] >> 32] = True
    yield UNWANTED, changed
    lost = np.zeros(num_rows, bool)
    lost[(in_list >> 32)[items.codes_of(items_of[0]) < 0]] = True
    yield LOST_ITEM, lost


def same_lists(one: pa.ListArray, other: pa.ListArray) -> np.ndarray:
    """Returns [n] bool: whether two columns of lists hold the same values in the same order, row by row."""
    lengths, others = list_lengths(one), list_lengths(other)
    same = lengths == others
    rows = pa.array(np.flatnonzero(same))
    equal = pc.equal(one.take(rows).flatten(), other.take(rows).flatten()).to_numpy(zero_copy_only=False)
    row = np.repeat(rows.to_numpy(), lengths[same])
    same[row[~equal.astype(bool)]] = False
    return same


@dataclass(frozen=True)
class BaseFiles:
    """Where everything is of the release whose lists are carried over.

    Attributes:
      users: paths of its users, by bucket.
      topk: paths of its table, by the same buckets.
      embeddings: paths of its embeddings.
      lists: which items could be recommended.
    """

    users: Mapping[int, list[str]]
    topk: Mapping[int, list[str]]
    embeddings: list[str]
    lists: ItemLists


class CarriedOver(NamedTuple):
    """Blocks of users with the columns of CARRIED, and a report of how many keep their lists."""

    users: beam.PCollection[PlacedBlock]
    reports: beam.PCollection[dict[str, Any]]


class _CarryBlock(beam.DoFn):
    def __init__(self, last: BaseFiles, rules: CarryRules) -> None:
        super().__init__()
        self._last = last
        self._rules = rules

    def process(self, element: PlacedBlock, items: KeptItems) -> Iterator[Any]:
        place, block = element
        users = one_block([], USERS)
        lists = one_block([], LISTS)
        if paths := self._last.users.get(place.part):
            users = one_block(find_rows(paths, "user_id", block["user_id"], USERS.names).to_batches(), USERS)
        if paths := self._last.topk.get(place.part):
            lists = find_lists(paths, block["user_id"], LISTS.names).cast(LISTS)
        made, counts = carry_over(block, users, lists, items, self._rules)
        yield place, made
        yield TaggedOutput("counts", counts)


@dataclass
class CarryOver(beam.PTransform):
    """Finds, for blocks of users with `scored_at`, which lists of a release are unchanged.

    Attributes:
      last: the release; its users lie in the same buckets.
      embeddings: paths of the embeddings now.
      items: paths of the files of SHARD_ITEMS now.
      lists: which items may be recommended now.
      rules: what else decides.
    """

    last: BaseFiles
    embeddings: list[str]
    items: list[str]
    lists: ItemLists
    rules: CarryRules

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, users: beam.PCollection[PlacedBlock]) -> CarriedOver:
        root = users.pipeline
        before = root | "ReadBefore" >> ReadParquet(self.last.embeddings)
        before = before | "HashBefore" >> beam.Map(SomeItems.of, self.last.lists)
        codes = root | "ReadItems" >> ReadParquet(self.items, ["item_id", "code"]) | "HashItems" >> beam.Map(ItemCodes.of)
        now = root | "ReadNow" >> ReadParquet(self.embeddings) | "HashNow" >> beam.Map(SomeItems.of, self.lists)
        items = (
            root
            | "Once" >> beam.Create([None])
            | "CompareItems" >> beam.Map(_compare, AsList(before), AsList(now), AsList(codes))
        )
        made = users | "CarryBlock" >> beam.ParDo(_CarryBlock(self.last, self.rules), AsSingleton(items)).with_outputs(
            "counts", main="users"
        )
        counts = made.counts | "AddCounts" >> beam.CombineGlobally(_add)
        return CarriedOver(made.users, counts | "ReportCarried" >> beam.Map(report, AsSingleton(items)))


def _compare(_: None, before: list[SomeItems], now: list[SomeItems], codes: list[ItemCodes]) -> KeptItems:
    return KeptItems.of(before, now, codes)


def _add(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def report(counts: Mapping[str, int], items: KeptItems) -> dict[str, Any]:
    """Returns as a metric, `carried_over`, how much work was saved, and why the rest of it was done."""
    scored = {name: counts.get(name, 0) for name in REASONS}
    carried = counts.get("carried", 0)
    return _metric(carried + sum(scored.values()), carried, counts.get("compared", 0), scored, items.gained, items.lost, "")


def nothing_carried(why: str, users: int) -> dict[str, Any]:
    """Returns the same metric if no list can be copied, with the reason in words."""
    return _metric(users, 0, 0, {}, None, None, why)


def _metric(
    users: int, carried: int, compared: int, new_lists: Mapping[str, int], gained: int | None, lost: int | None, why_nobody: str
) -> dict[str, Any]:
    return {
        "carried_over": {
            "users": users,
            "carried": carried,
            "share_carried": carried / users if users else 0.0,
            "compared": compared,
            "new_lists": new_lists,
            "items_gained": gained,
            "items_lost": lost,
            "why_nobody": why_nobody,
        }
    }
