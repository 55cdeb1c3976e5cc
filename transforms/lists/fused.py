"""Makes the table: a block of users in, their lists out, judged on the way.

users + vectors ──> what each has seen ──> search all shards ──> exclude, merge, certify ──> the table's rows
                                  └──> the most popular, for users without a vector, and as the baseline
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.utils.shared import Shared

from schemas.blocks import Block
from schemas.topk import RECOMMENDATION, TOPK
from transforms.index.build import vectors_of
from transforms.index.load import IndexFiles, LoadedIndex, load_index
from transforms.index.popular import RANKINGS, RECENT
from transforms.io.partition import is_sampled
from transforms.io.read import PlacedBlock
from transforms.io.write import Counts
from transforms.lists.carry_over import carried_keys, is_carried
from transforms.search.id_map import IdMap, list_lengths
from transforms.search.list_settings import ListSettings, unwanted_of
from transforms.search.ranking_metrics import JudgedBlock, JudgeRankings, MeanOfRows, RankingMetrics, recall_of_rows
from transforms.search.search import SearchCounters, TopK, search_block, top_k_of
from transforms.search.top_k import Lists, codes_of

USER_ROWS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("known", pa.bool_(), nullable=False),
        pa.field("history_length", pa.int32(), nullable=False),
        pa.field("holdout", pa.list_(pa.string()), nullable=False),
        TOPK.field("scored_at"),
    ]
)
"""Rows of the table without their lists; `known` tells whose list is their own."""

EXACT_LISTS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("exact", pa.list_(RECOMMENDATION), nullable=False),
    ]
)
"""What exact search finds for the users whose lists are compared with it."""


class BlockQueries(NamedTuple):
    """Who in a block of users is searched for, and how everyone else gets a list."""

    known: np.ndarray
    """[num_rows] bool: whose list is their own; the others get what is popular."""
    rows: np.ndarray
    """[num_asked] int64: who is searched for."""
    queries: np.ndarray
    """[num_asked, dim] float32: their vectors."""
    checked: np.ndarray
    """[num_checked] int64: who is compared with exact search, chosen by a hash of their ids."""
    checked_queries: np.ndarray
    """[num_checked, dim] float32: their vectors."""
    carried: np.ndarray
    """[num_carried] int64: who keeps a list that was found before."""
    carried_keys: np.ndarray
    """[num_carried, k] uint64: those lists."""


def asked_of(block: Block, settings: ListSettings) -> BlockQueries:
    """Tells who is searched for.

    Args:
      block: rows of USERS with their vectors (`vector`, FixedSizeList<float32>[dim], null without one), and, where lists are
        carried over, what `transforms.lists.carry_over` says of them.
      settings: what a list holds.
    """
    has_vector = block["vector"].is_valid().to_numpy(zero_copy_only=False)
    keeps = is_carried(block)
    rows = np.flatnonzero(has_vector & ~keeps)
    checked = np.flatnonzero(has_vector & is_sampled(block["user_id"], settings.checked_fraction))
    return BlockQueries(
        known=has_vector | keeps,
        rows=rows,
        queries=_vectors_at(block, rows),
        checked=checked,
        checked_queries=_vectors_at(block, checked),
        carried=np.flatnonzero(keeps),
        carried_keys=carried_keys(block, settings.k),
    )


def _vectors_at(block: Block, rows: np.ndarray) -> np.ndarray:
    return vectors_of(block["vector"].take(pa.array(rows)))


def user_rows_of(block: Block, known: np.ndarray) -> Block:
    """Returns what the table says of each user beside the list, and the held-out items: rows of USER_ROWS.

    Args:
      block: rows of USERS, with `scored_at` where that is known.
      known: [num_rows] bool: whose list is their own.
    """
    history_lengths = list_lengths(block["history"]).astype(np.int32)
    kind = USER_ROWS.field("scored_at").type
    dates = block["scored_at"] if "scored_at" in block.schema.names else pa.nulls(len(block), kind)
    return pa.RecordBatch.from_arrays(
        [block["user_id"], pa.array(known), pa.array(history_lengths), block["holdout"], dates], schema=USER_ROWS
    )


@dataclass(frozen=True)
class Finished:
    """What becomes of one block of users."""

    topk: Block
    """Rows of TOPK."""
    lists: np.ndarray
    """[num_rows, k] int64 codes, -1 after the last."""
    holdout: Lists
    """Each row's held-out codes, -1 for an item that is in no list."""
    recalls: np.ndarray
    """[num_checked] float64: the share of the exact list that each checked row has."""
    exact: Block
    """Rows of EXACT_LISTS: what exact search found for the checked rows."""
    counts: dict[str, int]
    """Numbers that add up over blocks."""


@dataclass(frozen=True)
class Recommended(Finished):
    """What becomes of one block of users, and what popularity alone would give them."""

    popular: Mapping[str, np.ndarray]
    """For each of RANKINGS: [num_rows, k] int64 codes."""


def finish_block(user_rows: Block, keys: np.ndarray, checked: np.ndarray, exact: np.ndarray, id_map: IdMap) -> Finished:
    """Makes the table's rows of settled lists, and compares them with what they are judged by.

    Args:
      user_rows: rows of USER_ROWS.
      keys: [num_rows, k] uint64: the lists; of what is popular lately where a row is not known.
      checked: [num_checked] int64: the rows that were searched exactly, too.
      exact: [num_checked, k] uint64: what that found.
      id_map: of the items in all these lists, at least.
    """
    known = user_rows["known"].to_numpy(zero_copy_only=False)
    codes = codes_of(keys)
    lists = top_k_of(keys)
    return Finished(
        topk=topk_block(user_rows, lists, id_map),
        lists=codes,
        holdout=id_map.lists_of(user_rows["holdout"]),
        recalls=recall_of_rows(codes[checked], codes_of(exact)),
        exact=pa.RecordBatch.from_arrays(
            [user_rows["user_id"].take(pa.array(checked)), lists_column(top_k_of(exact), id_map)], schema=EXACT_LISTS
        ),
        counts={
            "users": len(known),
            "users_personalised": int(known.sum()),
            "users_popular": int((~known).sum()),
            "pairs": int(lists.counts.sum()),
            "lists_short_of_k": int((lists.counts < keys.shape[1]).sum()),
        },
    )


def topk_block(user_rows: Block, lists: TopK, id_map: IdMap) -> Block:
    """Returns rows of TOPK.

    Args:
      user_rows: rows of USER_ROWS.
      lists: their lists.
      id_map: of the items in them, at least.
    """
    return pa.RecordBatch.from_arrays(
        [
            user_rows["user_id"],
            pc.if_else(user_rows["known"], "personalised", "popular"),
            user_rows["history_length"],
            lists_column(lists, id_map),
            user_rows["scored_at"],
        ],
        schema=TOPK,
    )


def lists_column(lists: TopK, id_map: IdMap) -> pa.ListArray:
    """Returns lists as the table holds them: list<RECOMMENDATION>."""
    present = lists.codes >= 0
    items = pa.StructArray.from_arrays(
        [id_map.ids_of(lists.codes[present]), pa.array(lists.scores[present])], fields=list(RECOMMENDATION)
    )
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lists.counts)]), pa.int32()), items)


def effort_of(counters: SearchCounters) -> dict[str, int]:
    """Returns the counts of rows that took more than the usual effort, as a report."""
    return {"rows_researched": counters.rows_widened, "rows_exact": counters.rows_exact}


def recommend_block(block: Block, index: LoadedIndex, settings: ListSettings) -> Recommended:
    """Makes the lists of a block of users, and those that popularity alone would give them.

    Args:
      block: as `asked_of` takes it, with `scored_at` where that is known.
      index: all shards.
      settings: what a list holds.
    """
    asked = asked_of(block, settings)
    excluded = index.id_map.lists_of(*unwanted_of(block, settings).columns)
    popular = {by: ranking.top_k(excluded, settings.k) for by, ranking in index.popular.items()}
    keys = popular[RECENT].copy()
    keys[asked.carried] = asked.carried_keys
    keys[asked.rows], counters = search_block(
        index.shards, asked.queries, excluded.take(asked.rows), settings.k, settings.search
    )
    exact, _ = search_block(
        index.shards, asked.checked_queries, excluded.take(asked.checked), settings.k, settings.search, exact=True
    )
    finished = finish_block(user_rows_of(block, asked.known), keys, asked.checked, exact, index.id_map)
    return Recommended(
        topk=finished.topk,
        lists=finished.lists,
        holdout=finished.holdout,
        recalls=finished.recalls,
        exact=finished.exact,
        counts=finished.counts | effort_of(counters),
        popular={by: codes_of(found) for by, found in popular.items()},
    )


class _RecommendBlock(beam.DoFn):
    def __init__(self, files: IndexFiles, settings: ListSettings) -> None:
        super().__init__()
        self._files = files
        self._settings = settings
        self._shared = Shared()

    def setup(self) -> None:
        # Once a process, whatever the number of threads; the tag tells indexes of different runs apart.
        self._index = self._shared.acquire(self._load, tag=self._files.root)

    def _load(self) -> LoadedIndex:
        return load_index(self._files)

    def process(self, element: PlacedBlock) -> Iterator[Any]:
        place, block = element
        made = recommend_block(block, self._index, self._settings)
        yield place, made.topk
        yield beam.pvalue.TaggedOutput("judged", (made.lists, made.holdout))
        for by, lists in made.popular.items():
            yield beam.pvalue.TaggedOutput(by, (lists, made.holdout))
        yield beam.pvalue.TaggedOutput("recalls", made.recalls)
        yield beam.pvalue.TaggedOutput("exact", made.exact)
        yield beam.pvalue.TaggedOutput("counts", made.counts)


class Recommendations(NamedTuple):
    """What either plan makes: the table's blocks, exact lists of some users, and reports of what was found."""

    topk: beam.PCollection[PlacedBlock]
    """Rows of TOPK."""
    exact: beam.PCollection[Block]
    """Rows of EXACT_LISTS."""
    reports: beam.PCollection[dict[str, Any]]


@dataclass
class RecommendFused(beam.PTransform):
    """Takes blocks of users with vectors through all shards in one process; nothing is shuffled.

    Attributes:
      index: what is searched.
      num_items: in the catalogue, for coverage.
      settings: what a list holds.
    """

    index: IndexFiles
    num_items: int
    settings: ListSettings

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, users: beam.PCollection[PlacedBlock]) -> Recommendations:
        made = users | "RecommendBlock" >> beam.ParDo(_RecommendBlock(self.index, self.settings)).with_outputs(
            "judged", *RANKINGS, "recalls", "exact", "counts", main="topk"
        )
        popular = {by: made[by] for by in RANKINGS}
        reports = report_lists(made.judged, popular, made.recalls, [made.counts], self.settings, self.num_items)
        return Recommendations(made.topk, made.exact, reports)


def report_lists(
    judged: beam.PCollection[JudgedBlock],
    popular: Mapping[str, beam.PCollection[JudgedBlock]],
    recalls: beam.PCollection,
    counts: Sequence[beam.PCollection[dict[str, Any]]],
    settings: ListSettings,
    num_items: int,
) -> beam.PCollection[dict[str, Any]]:
    """Adds the steps that sum up what was found of the blocks' lists.

    Args:
      judged: lists and what was held out.
      popular: for each of RANKINGS, the same of popularity alone.
      recalls: of checked rows, an array a block.
      counts: numbers that add up over blocks.
      settings: what a list holds.
      num_items: in the catalogue, for coverage.

    Returns:
      Reports of metrics.
    """
    judge = JudgeRankings(settings.cutoffs, num_items)
    reports = (
        counts | "GatherCounts" >> beam.Flatten() | "Count" >> beam.Map(Counts).with_output_types(Counts),
        judged | "Judge" >> beam.CombineGlobally(judge) | "ReportQuality" >> beam.Map(quality_report, "quality"),
        *(
            popular[by] | f"Judge_{by}" >> beam.CombineGlobally(judge) | f"Report_{by}" >> beam.Map(quality_report, name)
            for by, name in zip(RANKINGS, ("popularity", "recent_popularity"), strict=True)
        ),
        recalls | "MeanRecall" >> beam.CombineGlobally(MeanOfRows()) | "ReportRecall" >> beam.Map(recall_report),
    )
    return reports | "GatherReports" >> beam.Flatten()


def quality_report(metrics: RankingMetrics, name: str) -> dict[str, Any]:
    """Returns the metrics as a report; without held-out items there is nothing but coverage to tell."""
    report = asdict(metrics)
    if not metrics.users:
        report["means"] = {each: value for each, value in report["means"].items() if each.startswith("coverage")}
    return {name: report}


def recall_report(estimate: Any) -> dict[str, Any]:
    """Returns the recall against exact search as a report; JSON has no infinity."""
    return {"recall_against_exact": {each: value if math.isfinite(value) else None for each, value in asdict(estimate).items()}}
