"""Describes a finished table: what is recommended how often, how long histories are, and a few users to look at.

Lists are counted by item and joined with the catalogue, in partitions of items; what leaves a partition are counts of counts
(so many items are in so many lists), of which there are few: 45,000 at the very most for a billion ratings, since n different
counts add up to n (n - 1) / 2 at least. They give shares and curves exactly. A table that is damaged is described too: people
will look at its report.

    table ──> listings of items ──┐
                                  ├──> items by popularity, items by listings, top items
    catalogue ────────────────────┘
    table ──> users by history length;  users with the lowest hashes ──> examples, with their histories and titles
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block, one_block
from schemas.description import EXAMPLE_USERS, ITEMS_BY_LISTINGS, ITEMS_BY_POPULARITY, TOP_ITEMS, USERS_BY_HISTORY
from schemas.items import ITEMS
from schemas.parquet_files import find_rows
from schemas.storage import WrittenFile
from schemas.topk import RECOMMENDATION, TOPK
from schemas.users import USERS
from transforms.io.partition import bucket_of, hash_ids, key_by_shard
from transforms.io.read import ReadParquet
from transforms.io.write import write_part
from transforms.lists.table import read_table

NUM_TOP_ITEMS = 10
NUM_SHOWN = 10
"""Items that an example shows of a history, and of a list."""
MAX_EXAMPLES = 100

DATASETS = {
    each.metadata[b"dataset"].decode(): each
    for each in (ITEMS_BY_POPULARITY, ITEMS_BY_LISTINGS, USERS_BY_HISTORY, TOP_ITEMS, EXAMPLE_USERS)
}
"""What is written, by the names of the folders."""

_ITEMS_A_PARTITION = 1 << 20
_TABLE_COLUMNS = ["user_id", "source", "history_length", "recommendations"]
_LISTINGS = pa.schema([("item_id", pa.string()), ("listings", pa.int64())])
_COUNTED = pa.schema([ITEMS.field("item_id"), ITEMS.field("train_count")])
_JOINED = _COUNTED.append(pa.field("listings", pa.int64()))
_PICKED = pa.schema(  # Anything may be null in a damaged table.
    [
        ("place", pa.uint64()),
        *((name, TOPK.field(name).type) for name in _TABLE_COLUMNS[:3]),
        ("recommendations", pa.list_(pa.struct([(each.name, each.type) for each in RECOMMENDATION]))),
    ]
)
_TITLES = pa.schema([ITEMS.field("item_id"), ITEMS.field("title")])
_HISTORIES = pa.schema([USERS.field("user_id"), USERS.field("history"), USERS.field("holdout")])


def count_listings(block: Block) -> Block:
    """Returns the items of a block of the table, and in how many of its lists each is."""
    counted = pc.value_counts(pc.struct_field(block["recommendations"].flatten(), "item_id").drop_null())
    return pa.RecordBatch.from_arrays([counted.field("values"), counted.field("counts")], schema=_LISTINGS)


def join_listings(items: Iterable[Block], listings: Iterable[Block]) -> Block:
    """Returns the items of a partition with their listings, 0 where an item is in no list.

    Args:
      items: blocks of item_id and train_count.
      listings: blocks of item_id and listings, an item perhaps in several.
    """
    known = one_block(items, _COUNTED)
    found = one_block(listings, _LISTINGS)
    at = pc.index_in(found["item_id"], known["item_id"]).fill_null(-1).to_numpy(zero_copy_only=False)
    counts = np.zeros(len(known), np.int64)
    np.add.at(counts, at[at >= 0], found["listings"].to_numpy()[at >= 0])
    return pa.RecordBatch.from_arrays([known["item_id"], known["train_count"], pa.array(counts)], schema=_JOINED)


def items_by_popularity(joined: Block) -> Block:
    """Returns rows of ITEMS_BY_POPULARITY, of joined items; a number may be on several rows."""
    ones = pa.array(np.ones(len(joined), np.int64))
    return pa.RecordBatch.from_arrays([joined["train_count"], ones, joined["listings"]], schema=ITEMS_BY_POPULARITY)


def items_by_listings(joined: Block) -> Block:
    """Returns rows of ITEMS_BY_LISTINGS, likewise."""
    return pa.RecordBatch.from_arrays([joined["listings"], pa.array(np.ones(len(joined), np.int64))], schema=ITEMS_BY_LISTINGS)


def users_by_history(block: Block) -> Block:
    """Returns rows of USERS_BY_HISTORY, of a block of the table, likewise."""
    lengths = block["history_length"].cast(pa.int64()).fill_null(0)
    columns = [lengths, block["source"].fill_null(""), pa.array(np.ones(len(block), np.int64))]
    return pa.RecordBatch.from_arrays(columns, schema=USERS_BY_HISTORY)


def pick_users(block: Block, num_users: int) -> Block:
    """Returns rows of _PICKED: those of the users with the lowest hashes."""
    places = hash_ids(block["user_id"].fill_null(""), seed=5)
    first = pa.array(np.argsort(places, kind="stable")[:num_users])
    rows = block.take(first)
    return pa.RecordBatch.from_arrays([pa.array(places).take(first), *(rows[name] for name in _TABLE_COLUMNS)], schema=_PICKED)


class AddUp(beam.CombineFn):
    """Adds up the numbers of rows with the same key; rows ascend by key.

    Args:
      schema: keys first, then int64 numbers.
      num_keys: how many columns are keys.
    """

    def __init__(self, schema: pa.Schema, num_keys: int) -> None:
        super().__init__()
        self._schema = schema
        self._keys = schema.names[:num_keys]

    def create_accumulator(self) -> Block:
        return one_block([], self._schema)

    def add_input(self, total: Block, block: Block) -> Block:
        return self.merge_accumulators([total, block])

    def merge_accumulators(self, totals: Iterable[Block]) -> Block:
        numbers = self._schema.names[len(self._keys) :]
        added = pa.Table.from_batches(totals, self._schema).group_by(self._keys).aggregate([(name, "sum") for name in numbers])
        renamed = added.select([*self._keys, *(f"{name}_sum" for name in numbers)]).rename_columns(self._schema.names)
        ordered = renamed.sort_by([(name, "ascending") for name in self._keys]).cast(self._schema)
        return one_block(ordered.to_batches(), self._schema)

    def extract_output(self, total: Block) -> Block:
        return total


class KeepFirst(beam.CombineFn):
    """Keeps so many rows, the first by an order.

    Args:
      schema: of the rows.
      num_rows: how many.
      order: columns, each with 'ascending' or 'descending'.
    """

    def __init__(self, schema: pa.Schema, num_rows: int, order: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._schema, self._num_rows, self._order = schema, num_rows, list(order)

    def create_accumulator(self) -> Block:
        return one_block([], self._schema)

    def add_input(self, kept: Block, block: Block) -> Block:
        return self.merge_accumulators([kept, block])

    def merge_accumulators(self, kept: Iterable[Block]) -> Block:
        rows = one_block(kept, self._schema)
        return rows.take(pc.sort_indices(rows, self._order)[: self._num_rows])

    def extract_output(self, kept: Block) -> Block:
        return kept


def wanted_items(picked: Block, users: pa.Table, top: Block) -> pa.Array:
    """Returns the ids of the items that are shown, so that their titles can be looked for.

    Args:
      picked: rows of _PICKED.
      users: the same users' rows of USERS.
      top: joined items.
    """
    ids = {each["item_id"] for row in picked["recommendations"].to_pylist() for each in (row or [])[:NUM_SHOWN]}
    ids |= {item for history in users["history"].to_pylist() for item in history[-NUM_SHOWN:]}
    return pa.array(sorted((ids | set(top["item_id"].to_pylist())) - {None}), pa.string())


def titles_of(items: Block, wanted: pa.Array) -> Iterator[Block]:
    """Yields the rows of a block of the catalogue that are wanted, if it has any."""
    found = items.filter(pc.is_in(items["item_id"], wanted))
    if len(found):
        yield found


def find_users(picked: Block, paths: Mapping[int, Sequence[str]], num_buckets: int) -> pa.Table:
    """Returns the picked users' rows of USERS; each is looked up in the files of its bucket."""
    ids = picked["user_id"].fill_null("")
    found = [
        find_rows(paths[bucket], "user_id", ids.slice(row, 1), _HISTORIES.names).select(_HISTORIES.names).cast(_HISTORIES)
        for row, bucket in enumerate(bucket_of(ids, num_buckets).tolist())
        if paths.get(bucket)
    ]
    return pa.concat_tables([_HISTORIES.empty_table(), *found])


def example_users(picked: Block, users: pa.Table, titles: Mapping[str, str | None]) -> Block:
    """Returns rows of EXAMPLE_USERS.

    Args:
      picked: rows of _PICKED.
      users: rows of USERS, in any order; a picked user may be missing.
      titles: of all items that are shown, by id.
    """
    known = {row["user_id"]: row for row in users.to_pylist()}
    rows = []
    for row in picked.to_pylist():
        user = known.get(row["user_id"], {"history": [], "holdout": []})
        held_out = set(user["holdout"])
        listed = [
            {
                "item_id": each["item_id"] or "",
                "title": titles.get(each["item_id"]),
                "score": each["score"],
                "is_held_out": each["item_id"] in held_out,
            }
            for each in (row["recommendations"] or [])[:NUM_SHOWN]
        ]
        latest = [{"item_id": item, "title": titles.get(item)} for item in user["history"][: -NUM_SHOWN - 1 : -1]]
        rows.append(
            {
                "user_id": row["user_id"] or "",
                "source": row["source"] or "",
                "history_length": row["history_length"] or 0,
                "held_out": len(held_out),
                "history": latest,
                "recommendations": listed,
            }
        )
    return pa.RecordBatch.from_pylist(rows, EXAMPLE_USERS)


def top_items(joined: Block, titles: Mapping[str, str | None]) -> Block:
    """Returns rows of TOP_ITEMS, of joined items in their order; those in no list are left out."""
    rows = [{**row, "title": titles.get(row["item_id"])} for row in joined.to_pylist() if row["listings"]]
    return pa.RecordBatch.from_pylist(rows, TOP_ITEMS)


def titles_by_id(blocks: Iterable[Block]) -> dict[str, str | None]:
    """Returns the titles of some blocks of the catalogue."""
    found = one_block(blocks, _TITLES)
    return dict(zip(found["item_id"].to_pylist(), found["title"].to_pylist(), strict=True))


@dataclass
class DescribeTable(beam.PTransform):
    """Describes a table, and writes each of DATASETS to a folder of its name; the same table gives the same bytes.

    Attributes:
      root: the folder of the attempt.
      table: paths of the table, in either layout.
      items: paths of the catalogue.
      num_items: in it.
      users: paths of the users, by their buckets.
      num_buckets: of users.
      num_examples: users to show.
    """

    root: str
    table: list[str]
    items: list[str]
    num_items: int
    users: Mapping[int, Sequence[str]]
    num_buckets: int
    num_examples: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[WrittenFile]:
        table = root | "ReadTable" >> ReadParquet(self.table, _TABLE_COLUMNS, read_table)
        items = root | "ReadTitles" >> ReadParquet(self.items, ["item_id", "title", "train_count"])

        key_by_item = partial(key_by_shard, num_shards=1 + self.num_items // _ITEMS_A_PARTITION)
        listings = (
            table
            | "CountListings" >> beam.Map(count_listings).with_output_types(Block)
            | "KeyListings" >> beam.FlatMap(key_by_item).with_output_types(tuple[int, Block])
        )
        catalogue = (
            items
            | "PickCounts" >> beam.Map(lambda block: block.select(_COUNTED.names)).with_output_types(Block)
            | "KeyItems" >> beam.FlatMap(key_by_item).with_output_types(tuple[int, Block])
        )
        joined = (
            (catalogue, listings)
            | "GroupByItem" >> beam.CoGroupByKey()
            | "JoinListings" >> beam.MapTuple(lambda _, both: join_listings(*both)).with_output_types(Block)
        )
        top = joined | "TopItems" >> beam.CombineGlobally(
            KeepFirst(_JOINED, NUM_TOP_ITEMS, [("listings", "descending"), ("item_id", "ascending")])
        )
        picked = (
            table
            | "PickUsers" >> beam.FlatMap(lambda block, n: [pick_users(block, n)] if n else [], self.num_examples)
            | "FirstUsers"
            >> beam.CombineGlobally(KeepFirst(_PICKED, self.num_examples, [("place", "ascending"), ("user_id", "ascending")]))
        )
        users = beam.pvalue.AsSingleton(picked | "FindUsers" >> beam.Map(find_users, self.users, self.num_buckets))
        wanted = beam.pvalue.AsSingleton(picked | "WantedItems" >> beam.Map(wanted_items, users, beam.pvalue.AsSingleton(top)))
        titles = beam.pvalue.AsSingleton(
            items
            | "FindTitles" >> beam.FlatMap(lambda block, ids: titles_of(block.select(_TITLES.names), ids), wanted)
            | "GatherTitles" >> beam.combiners.ToList()
            | "TitlesById" >> beam.Map(titles_by_id)
        )
        found = {
            "items_by_popularity": joined
            | "ByPopularity" >> beam.Map(items_by_popularity)
            | "AddByPopularity" >> beam.CombineGlobally(AddUp(ITEMS_BY_POPULARITY, 1)),
            "items_by_listings": joined
            | "ByListings" >> beam.Map(items_by_listings)
            | "AddByListings" >> beam.CombineGlobally(AddUp(ITEMS_BY_LISTINGS, 1)),
            "users_by_history": table
            | "ByHistory" >> beam.Map(users_by_history)
            | "AddByHistory" >> beam.CombineGlobally(AddUp(USERS_BY_HISTORY, 2)),
            "top_items": top | "TitleItems" >> beam.Map(top_items, titles),
            "example_users": picked | "ShowUsers" >> beam.Map(example_users, users, titles),
        }
        written = [
            block | f"Write_{name}" >> beam.Map(partial(_write, self.root, name)).with_output_types(WrittenFile)
            for name, block in found.items()
        ]
        return written | "Written" >> beam.Flatten()


def _write(root: str, name: str, block: Block) -> WrittenFile:
    return write_part(root, name, DATASETS[name], 0, [block])
