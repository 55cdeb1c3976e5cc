"""Proves a run on a few of its users, from the stored embeddings alone: no index, no shards, no codes, nothing of the search.

For each canary, every embedding is scored in float64, a block at a time:

- the score of every item that is served equals the inner product, recomputed;
- the scores of the exact search over all shards equal the best ones there are, without what the user must not get.

Both hold up to the rounding of float32, whatever the index, so a mismatch means a defect: misaligned ids, towers and index that
do not belong together, a shard that was lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsList, AsSingleton

from schemas.blocks import Block, one_block
from schemas.topk import RECOMMENDATION
from transforms.index.build import vectors_of
from transforms.index.item_lists import ItemLists
from transforms.io.partition import is_sampled
from transforms.io.read import PlacedBlock
from transforms.search.id_map import list_lengths
from transforms.search.list_settings import ListSettings, unwanted_of

NUM_CANARIES = 64
"""About how many users are canaries."""

_ROUNDING = 8 * 2.0**-24


def canaries_schema(dim: int) -> pa.Schema:
    """Returns the schema of canaries whose vectors have `dim` dimensions."""
    return pa.schema(
        [
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("unwanted", pa.list_(pa.string()), nullable=False),
            pa.field("served", pa.list_(RECOMMENDATION), nullable=False),
            pa.field("exact", pa.list_(RECOMMENDATION), nullable=False),
        ]
    )


class Measured(NamedTuple):
    """What some of the embeddings say of the canaries.

    Attributes:
      best: [num_canaries, up to k] float64: the best scores of what each may get, in any order.
      errors: [num_canaries] float64: the largest difference between a stored score and its inner product.
      found: [num_canaries] int64: how many of the served items there are.
      max_norm: the length of the longest embedding.
    """

    best: np.ndarray
    errors: np.ndarray
    found: np.ndarray
    max_norm: float


def measure(embeddings: Block, canaries: Block, k: int, blocked: np.ndarray | None = None) -> Measured:
    """Scores a block of embeddings for every canary.

    Args:
      embeddings: n rows of `embeddings_schema`.
      canaries: rows of `canaries_schema`.
      k: the length of the lists.
      blocked: [n] bool: items that nobody may get.
    """
    vectors = vectors_of(embeddings["embedding"]).astype(np.float64)
    queries = vectors_of(canaries["vector"]).astype(np.float64)
    scores = queries @ vectors.T
    errors, found = np.zeros(len(queries)), np.zeros(len(queries), np.int64)

    canary, row, at = _rows_of(canaries["served"].flatten().field("item_id"), canaries["served"], embeddings["item_id"])
    stored = canaries["served"].flatten().field("score").to_numpy()[at].astype(np.float64)
    np.maximum.at(errors, canary, np.abs(scores[canary, row] - stored))
    np.add.at(found, canary, 1)

    canary, row, _ = _rows_of(canaries["unwanted"].flatten(), canaries["unwanted"], embeddings["item_id"])
    scores[canary, row] = -np.inf
    if blocked is not None:
        scores[:, blocked] = -np.inf
    best = np.partition(scores, -k, axis=1)[:, -k:] if scores.shape[1] > k else scores
    return Measured(best, errors, found, float(np.linalg.norm(vectors, axis=1).max(initial=0)))


def _rows_of(items: pa.Array, lists: pa.ListArray, item_ids: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the items of lists among `item_ids`: whose list, which row, and which place among `items` (the lists' values)."""
    rows = pc.index_in(items, item_ids).fill_null(-1).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(rows >= 0)
    return np.repeat(np.arange(len(lists)), list_lengths(lists))[at], rows[at], at


def judge(measured: Measured, canaries: Block) -> dict[str, Any]:
    """Returns the verdict on a run, given what all embeddings say.

    Returns:
      `passed`, and what it rests on: users, pairs, the largest differences, and an example of what does not fit.
    """
    exact = canaries["exact"]
    queries = vectors_of(canaries["vector"]).astype(np.float64)
    tolerance = _ROUNDING * queries.shape[1] * measured.max_norm * np.linalg.norm(queries, axis=1)
    lengths = list_lengths(canaries["served"])
    gaps = np.zeros(len(exact))
    for at, (best, items) in enumerate(zip(measured.best, exact, strict=True)):
        expected = np.sort(best[np.isfinite(best)])[::-1]
        scores = np.array([each["score"] for each in items.as_py()])
        gaps[at] = np.abs(expected - scores).max(initial=0) if len(expected) == len(scores) else np.inf
    bad = np.flatnonzero((measured.errors > tolerance) | (measured.found < lengths) | (gaps > tolerance))
    return {
        "passed": not len(bad),
        "users": len(exact),
        "pairs": int(lengths.sum()),
        "max_score_error": float(measured.errors.max(initial=0)),
        "max_exact_gap": float(min(gaps.max(initial=0), np.finfo(np.float64).max)),
        "first_failure": canaries["user_id"][int(bad[0])].as_py() if len(bad) else None,
    }


class MergeMeasured(beam.CombineFn):
    """Combines what blocks of embeddings say of the canaries; lists have `k` items."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def create_accumulator(self) -> Measured | None:
        return None

    def add_input(self, merged: Measured | None, measured: Measured) -> Measured:
        return self._merge([each for each in (merged, measured) if each])

    def merge_accumulators(self, accumulators: Iterable[Measured | None]) -> Measured | None:
        present = [each for each in accumulators if each]
        return self._merge(present) if present else None

    def extract_output(self, merged: Measured | None) -> Measured | None:
        return merged

    def _merge(self, measured: list[Measured]) -> Measured:
        best = np.concatenate([each.best for each in measured], axis=1)
        return Measured(
            np.partition(best, -self.k, axis=1)[:, -self.k :] if best.shape[1] > self.k else best,
            np.max([each.errors for each in measured], axis=0),
            np.sum([each.found for each in measured], axis=0),
            max(each.max_norm for each in measured),
        )


def canary_users(block: Block, settings: ListSettings, fraction: float) -> Block:
    """Returns the canaries of a block of users: user_id, vector, and all items in one list that the user must not get.

    Args:
      block: rows of USERS with their vectors.
      settings: what a list holds.
      fraction: of all users that are canaries.
    """
    rows = block.filter(pc.and_(block["vector"].is_valid(), pa.array(is_sampled(block["user_id"], fraction))))
    unwanted = joined_lists(unwanted_of(rows, settings).columns)
    return pa.RecordBatch.from_arrays(
        [rows["user_id"], rows["vector"], unwanted], schema=_part_of(rows["vector"].type.list_size, "vector", "unwanted")
    )


def _part_of(dim: int, *names: str) -> pa.Schema:
    """Returns user_id and some other fields of `canaries_schema`."""
    schema = canaries_schema(dim)
    return pa.schema([schema.field(name) for name in ("user_id", *names)])


def joined_lists(columns: Sequence[pa.ListArray]) -> pa.ListArray:
    """Returns for each row the items of its lists in all columns."""
    row = np.concatenate([np.repeat(np.arange(len(column)), list_lengths(column)) for column in columns])
    items = pa.concat_arrays([column.flatten() for column in columns]).take(pa.array(np.argsort(row, kind="stable")))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(columns[0])))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)


def join_canaries(users: Sequence[Block], served: Sequence[Block], exact: Sequence[Block], dim: int) -> Block:
    """Brings together what is known of each canary.

    Args:
      users: from `canary_users`.
      served: rows of SERVED_LISTS, other users' among them.
      exact: rows of EXACT_LISTS, other users' among them.
      dim: of the vectors.

    Returns:
      Rows of `canaries_schema`, by user.
    """
    known = one_block(users, _part_of(dim, "vector", "unwanted"))
    known = known.take(pc.sort_indices(known["user_id"]))
    columns = list(known.columns)
    for blocks, name in ((served, "served"), (exact, "exact")):
        lists = one_block((block.select(["user_id", name]) for block in blocks), _part_of(dim, name))
        columns.append(lists[name].take(pc.index_in(known["user_id"], lists["user_id"])))
    return pa.RecordBatch.from_arrays(columns, schema=canaries_schema(dim))


class _MeasureBlock(beam.DoFn):
    def __init__(self, k: int, lists: ItemLists) -> None:
        super().__init__()
        self._k = k
        self._lists = lists

    def process(self, embeddings: Block, canaries: Block) -> Iterator[Measured]:
        if canaries.num_rows:
            yield measure(embeddings, canaries, self._k, self._lists.blocked_ids(embeddings["item_id"]))


def report(measured: Measured | None, canaries: Block) -> dict[str, Any]:
    """Returns the verdict as a metric, `canaries`; without canaries there is nothing to prove."""
    return {"canaries": judge(measured, canaries) if measured else {"passed": True, "users": 0, "pairs": 0}}


class Listed(NamedTuple):
    """What canaries are taken from, and what they are measured by."""

    users: beam.PCollection[PlacedBlock]
    """Rows of USERS with their vectors."""
    served: beam.PCollection[Block]
    """Rows of SERVED_LISTS, at least those of all canaries."""
    exact: beam.PCollection[Block]
    """Rows of EXACT_LISTS."""
    embeddings: beam.PCollection[Block]
    """All that is indexed."""


@dataclass
class JudgeRun(beam.PTransform):
    """Measures every embedding against the canaries, and reports the verdict.

    Attributes:
      dim: of the vectors.
      fraction: of all users that are canaries; not more than those that are searched for exactly.
      settings: what a list holds.
      lists: which items may be recommended at all.
    """

    dim: int
    fraction: float
    settings: ListSettings
    lists: ItemLists

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, listed: Listed) -> beam.PCollection[dict[str, Any]]:
        fraction, settings = self.fraction, self.settings
        users = listed.users | "PickUsers" >> beam.MapTuple(lambda _, block: canary_users(block, settings, fraction))
        canaries = AsSingleton(
            listed.users.pipeline
            | "Once" >> beam.Create([self.dim])
            | "JoinCanaries" >> beam.Map(_join, AsList(users), AsList(listed.served), AsList(listed.exact))
        )
        return (
            listed.embeddings
            | "MeasureBlock" >> beam.ParDo(_MeasureBlock(settings.k, self.lists), canaries)
            | "Merge" >> beam.CombineGlobally(MergeMeasured(settings.k))
            | "Verdict" >> beam.Map(report, canaries)
        )


def _join(dim: int, users: Sequence[Block], served: Sequence[Block], exact: Sequence[Block]) -> Block:
    return join_canaries(users, served, exact, dim)
