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
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from schemas.blocks import FEWER_USERS, Block, one_block
from schemas.parquet_files import read_parquet_blocks
from schemas.users import USERS
from transforms.evaluate.findings import LAST_LISTS, RATED, Findings
from transforms.evaluate.judge_bucket import (
    Bucket,
    EligibleItems,
    KnownItems,
    ListedPairs,
    TableRules,
    hashes,
    judge_bucket,
    rated,
)
from transforms.index.item_lists import ItemLists
from transforms.io.partition import key_by_user
from transforms.io.read import ReadParquet
from transforms.lists.table import read_table
from transforms.search.ranking_metrics import compared_metrics


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


_LAST_COLUMNS = ["user_id", "recommendations"]
_USER_COLUMNS = ["user_id", *RATED]


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
            name: _gain(*sums) for name, sums in zip(compared_metrics(rules.k), found.gains.tolist(), strict=True)
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
      indexed: paths of the files of SHARD_ITEMS: all that is indexed.
      lists: which items may be recommended at all.
      rules: what the table claims of itself.
      regrouped: paths of the last table, where that has another number of buckets: its lists are regrouped by the new ones.
      regrouped_users: paths of the last release's users, likewise.
    """

    buckets: Mapping[int, BucketFiles]
    items: list[str]
    indexed: list[str]
    lists: ItemLists
    rules: TableRules
    regrouped: list[str] = field(default_factory=list)
    regrouped_users: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[dict[str, Any]]:
        rules, lists = self.rules, self.lists
        catalogue = root | "ReadItems" >> ReadParquet(self.items, ["item_id"]) | "HashItems" >> beam.Map(hashes)
        indexed = root | "ReadIndexed" >> ReadParquet(self.indexed, ["item_id", "code", "train_count"])
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
