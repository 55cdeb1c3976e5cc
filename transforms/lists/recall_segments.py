"""Tells where the search finds less: the recall against exact search by how long a user's history is, and how popular an item.

lists of the table ──┐
                     ├──> which items of the exact lists were found ──> a mean for each segment, with its standard error
exact lists ─────────┘                  (popularity: from the items of the shards, a block at a time)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsList, AsSingleton

from schemas.blocks import Block, joined, one_block
from schemas.topk import RECOMMENDATION
from transforms.io.partition import is_sampled
from transforms.lists.fused import EXACT_LISTS
from transforms.search.id_map import list_lengths

HISTORY_BOUNDS = (5, 20, 100)
POPULARITY_BOUNDS = (10, 100, 1_000)
"""Where one segment ends and the next begins: '0-4', '5-19', '20-99', '100+' in the history; training positives likewise."""

SERVED_LISTS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("history_length", pa.int32(), nullable=False),
        pa.field("served", pa.list_(RECOMMENDATION), nullable=False),
    ]
)


class FoundItems(NamedTuple):
    """The items of the exact lists of some users.

    Attributes:
      user: [n] int64: whose list, from 0.
      items: [n] string.
      found: [n] bool: whether the user's list has it.
      history_length: [num_users] int64.
    """

    user: np.ndarray
    items: pa.Array
    found: np.ndarray
    history_length: np.ndarray


def compare(served: Sequence[Block], exact: Sequence[Block]) -> FoundItems:
    """Looks the items of exact lists up in the lists that are served.

    Args:
      served: rows of SERVED_LISTS, other users' among them.
      exact: rows of EXACT_LISTS.
    """
    truth = one_block(exact, EXACT_LISTS)
    truth = truth.take(pc.sort_indices(truth["user_id"]))
    lists = one_block(served, SERVED_LISTS)
    lists = lists.take(pc.index_in(truth["user_id"], lists["user_id"]))
    items = [column.flatten().field("item_id") for column in (truth["exact"], lists["served"])]
    codes = joined(items, "item_id").dictionary_encode().indices.to_numpy().astype(np.int64)
    users = [np.repeat(np.arange(len(truth)), list_lengths(column)) for column in (truth["exact"], lists["served"])]
    pairs = (np.concatenate(users) << 32) | codes
    found = np.isin(pairs[: len(items[0])], pairs[len(items[0]) :])
    return FoundItems(users[0], items[0], found, lists["history_length"].to_numpy().astype(np.int64))


def segment_names(bounds: Sequence[int]) -> list[str]:
    """Returns '0-4', '5-19', '20-99', '100+' for (5, 20, 100)."""
    starts = [0, *bounds]
    return [f"{low}-{high - 1}" for low, high in zip(starts, bounds, strict=False)] + [f"{bounds[-1]}+"]


def sums_by_popularity(indexed: Block, items: FoundItems) -> np.ndarray:
    """Counts, among the items of a block, those of the exact lists and those of them that were found.

    Args:
      indexed: rows of SHARD_ITEMS.
      items: of the exact lists.

    Returns:
      [2, num_users, num_segments] int64: items, and items found.
    """
    rows = pc.index_in(items.items, indexed["item_id"]).fill_null(-1).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(rows >= 0)
    segment = np.searchsorted(POPULARITY_BOUNDS, indexed["train_count"].to_numpy()[rows[at]], side="right")
    sums = np.zeros((2, len(items.history_length), len(POPULARITY_BOUNDS) + 1), np.int64)
    np.add.at(sums[0], (items.user[at], segment), 1)
    np.add.at(sums[1], (items.user[at], segment), items.found[at])
    return sums


def report(sums: np.ndarray, items: FoundItems) -> dict[str, Any]:
    """Returns the recall of each segment: its mean over the users who have an item in it, the standard error, and how many.

    Args:
      sums: from `sums_by_popularity`, of all that is indexed.
      items: of the exact lists.
    """
    wanted, found = sums.sum(axis=2)
    segment = np.searchsorted(HISTORY_BOUNDS, items.history_length, side="right")
    by_history = {
        name: _mean(wanted[segment == at], found[segment == at]) for at, name in enumerate(segment_names(HISTORY_BOUNDS))
    }
    by_popularity = {name: _mean(sums[0, :, at], sums[1, :, at]) for at, name in enumerate(segment_names(POPULARITY_BOUNDS))}
    return {"recall_by_history_length": by_history, "recall_by_item_popularity": by_popularity}


def _mean(wanted: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    recalls = found[wanted > 0] / wanted[wanted > 0]
    count = len(recalls)
    return {
        "users": count,
        "mean": float(recalls.mean()) if count else None,
        "standard_error": float(recalls.std(ddof=1)) / math.sqrt(count) if count > 1 else None,
    }


def served_lists(block: Block, fraction: float) -> Block:
    """Returns rows of SERVED_LISTS of the users of a block of the table who are compared with exact search."""
    own = block.filter(pa.array(is_sampled(block["user_id"], fraction)))
    return pa.RecordBatch.from_arrays([own["user_id"], own["history_length"], own["recommendations"]], schema=SERVED_LISTS)


class _SumBlock(beam.DoFn):
    def process(self, indexed: Block, items: FoundItems) -> Iterator[np.ndarray]:
        yield sums_by_popularity(indexed, items)


def _add(sums: Iterable[np.ndarray]) -> np.ndarray:
    return np.sum(list(sums), axis=0)


class Compared(NamedTuple):
    """What is compared, and what tells how popular an item is."""

    served: beam.PCollection[Block]
    """Rows of SERVED_LISTS."""
    exact: beam.PCollection[Block]
    """Rows of EXACT_LISTS."""
    indexed: beam.PCollection[Block]
    """Rows of SHARD_ITEMS: all that is indexed."""


class RecallBySegment(beam.PTransform):
    """Reports the recall of the table against exact search by segment."""

    def expand(self, lists: Compared) -> beam.PCollection[dict[str, Any]]:
        items = AsSingleton(
            lists.served.pipeline
            | "Once" >> beam.Create([None])
            | "Compare" >> beam.Map(lambda _, served, exact: compare(served, exact), AsList(lists.served), AsList(lists.exact))
        )
        return (
            lists.indexed
            | "SumBlock" >> beam.ParDo(_SumBlock(), items)
            | "Add" >> beam.CombineGlobally(_add)
            | "Report" >> beam.Map(report, items)
        )
