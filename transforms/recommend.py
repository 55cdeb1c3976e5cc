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
from schemas.embeddings import ID_MAP
from schemas.errors import InputError
from schemas.storage import WrittenFile, local_folder, sha256_of
from schemas.topk import RECOMMENDATION, TOPK
from transforms.build_indexes import ID_MAP_FILE, INDEX_FOLDER, shard_path, vectors_of
from transforms.id_map import IdMap, list_lengths
from transforms.partition import hash_ids
from transforms.ranking_metrics import JudgeRankings, MeanOfRows, RankingMetrics, recall_of_rows
from transforms.read import PlacedBlock
from transforms.scann_index import load
from transforms.search import SearchSettings, Shard, TopK, most_popular_of_block, top_k_of_block
from transforms.top_k import Lists

CUTOFFS = (10, 50, 100)
"""Where lists are judged, beside at k."""


@dataclass(frozen=True)
class ListSettings:
    """What a list holds.

    Attributes:
      k: items a user.
      recommend_seen: whether a list may hold items that the user has seen.
      search: how the index is searched.
      checked_fraction: the share of users whose lists are compared with exact search.
    """

    k: int
    recommend_seen: bool
    search: SearchSettings
    checked_fraction: float

    @property
    def cutoffs(self) -> list[int]:
        """Where lists are judged: never beyond k."""
        return sorted({min(cutoff, self.k) for cutoff in CUTOFFS} | {self.k})


class LoadedIndex:
    """All shards of an index, in this process, and the map between its rows and items."""

    def __init__(self, shards: Sequence[Shard], id_map: IdMap) -> None:
        self.shards = shards
        self.id_map = id_map


def load_index(root: str, files: Sequence[WrittenFile], num_shards: int) -> LoadedIndex:
    """Loads an index that `BuildIndexes` wrote, after its files are proved unchanged.

    Args:
      root: the folder of the attempt that wrote it.
      files: what the attempt wrote.
      num_shards: how many shards there are, empty ones included.

    Raises:
      InputError: if a file is missing or altered, or a shard and its id map are no pair.
    """
    shards, maps = [], []
    with local_folder(root, list(files)) as folder:
        for file in files:
            check_file(str(folder / file.path), file)
        for shard in range(num_shards):
            at = folder / shard_path(shard)
            if not (at / ID_MAP_FILE).exists():
                continue
            with pa.memory_map(str(at / ID_MAP_FILE)) as source:
                id_map = pa.ipc.open_file(source).read_all().cast(ID_MAP).combine_chunks()
            try:
                shards.append(Shard(load(at / INDEX_FOLDER), id_map["code"].to_numpy(), id_map["train_count"].to_numpy()))
            except ValueError as error:
                raise InputError(f"shard {shard} of {root} cannot be used: {error}: build the index again") from error
            maps.append(id_map)
    table = pa.concat_tables(maps).combine_chunks()
    return LoadedIndex(shards, IdMap(table["item_id"].combine_chunks(), table["code"].to_numpy()))


def check_file(path: str, file: WrittenFile) -> None:
    """Raises InputError if what is at `path` is not what was written."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise InputError(
            f"{path} is missing or cannot be read ({error}): delete the stage's folder and run it again"
        ) from error
    if found != file.sha256:
        raise InputError(
            f"{path} is not what was written (SHA-256 {found[:12]}…, the manifest says {file.sha256[:12]}…): "
            "delete the stage's folder and run it again"
        )


class Recommended(NamedTuple):
    """What becomes of one block of users.

    Attributes:
      topk: rows of TOPK.
      lists: [num_rows, k] int64 codes, -1 after the last.
      popular: [num_rows, k] int64 codes: what everyone would get from popularity alone.
      holdout: each row's held-out codes.
      recalls: [num_checked] float64: the share of the exact list that each checked row has.
      counts: numbers that add up over blocks.
    """

    topk: Block
    lists: np.ndarray
    popular: np.ndarray
    holdout: Lists
    recalls: np.ndarray
    counts: dict[str, int]


def recommend_block(block: Block, index: LoadedIndex, settings: ListSettings) -> Recommended:
    """Makes the lists of a block of users.

    Args:
      block: rows of USERS with their vectors (`vector`, FixedSizeList<float32>[dim], null without one).
      index: all shards.
      settings: what a list holds.
    """
    num_rows = block.num_rows
    excluded = (
        Lists.none(num_rows) if settings.recommend_seen else index.id_map.lists_of(block["history"], block["below_min_rating"])
    )
    known = block["vector"].is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(known)
    queries = vectors_of(block["vector"].filter(pa.array(known)))
    found, counters = top_k_of_block(index.shards, queries, excluded.take(rows), settings.k, settings.search)
    popular = most_popular_of_block(index.shards, excluded, settings.k)
    lists = TopK(popular.codes.copy(), popular.scores.copy(), popular.counts.copy())
    lists.codes[rows], lists.scores[rows], lists.counts[rows] = found.codes, found.scores, found.counts

    checked = np.flatnonzero(hash_ids(block["user_id"].filter(pa.array(known)), seed=3) < settings.checked_fraction * 2.0**64)
    exact, _ = top_k_of_block(
        index.shards, queries[checked], excluded.take(rows[checked]), settings.k, settings.search, exact=True
    )
    return Recommended(
        topk=topk_block(block, lists, known, index.id_map),
        lists=lists.codes,
        popular=popular.codes,
        holdout=holdout_lists(block["holdout"], index.id_map),
        recalls=recall_of_rows(found.codes[checked], exact.codes),
        counts={
            "users": num_rows,
            "users_personalised": len(rows),
            "users_popular": num_rows - len(rows),
            "rows_researched": counters.rows_widened,
            "rows_exact": counters.rows_exact,
            "pairs": int(lists.counts.sum()),
            "lists_short_of_k": int((lists.counts < settings.k).sum()),
        },
    )


def topk_block(block: Block, lists: TopK, known: np.ndarray, id_map: IdMap) -> Block:
    """Returns rows of TOPK.

    Args:
      block: the users.
      lists: their lists.
      known: [num_rows] bool: whose list is their own.
      id_map: of the index.
    """
    present = lists.codes >= 0
    items = pa.StructArray.from_arrays(
        [id_map.ids_of(lists.codes[present]), pa.array(lists.scores[present])], fields=list(RECOMMENDATION)
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(lists.counts)]), pa.int32())
    return pa.RecordBatch.from_arrays(
        [
            block["user_id"],
            pc.if_else(pa.array(known), "personalised", "popular"),
            pa.array(list_lengths(block["history"]).astype(np.int32)),
            pa.ListArray.from_arrays(offsets, items),
        ],
        schema=TOPK,
    )


def holdout_lists(holdout: pa.ListArray, id_map: IdMap) -> Lists:
    """Returns the held-out codes of each row; an item outside the index keeps its place under a code that no list can hold."""
    codes = id_map.codes_of(holdout.flatten())
    beyond = int(id_map.codes[-1]) + 1 if len(id_map) else 0
    missing = np.flatnonzero(codes < 0)
    codes[missing] = beyond + np.arange(len(missing))
    return Lists(codes, np.concatenate([[0], np.cumsum(list_lengths(holdout))]))


class _RecommendBlock(beam.DoFn):
    def __init__(self, root: str, files: Sequence[WrittenFile], num_shards: int, settings: ListSettings) -> None:
        super().__init__()
        self._root = root
        self._files = files
        self._num_shards = num_shards
        self._settings = settings
        self._shared = Shared()

    def setup(self) -> None:
        # Once a process, whatever the number of threads; the tag tells indexes of different runs apart.
        self._index = self._shared.acquire(lambda: load_index(self._root, self._files, self._num_shards), tag=self._root)

    def process(self, element: PlacedBlock) -> Iterator[Any]:
        place, block = element
        made = recommend_block(block, self._index, self._settings)
        yield place, made.topk
        yield beam.pvalue.TaggedOutput("judged", (made.lists, made.holdout))
        yield beam.pvalue.TaggedOutput("popular", (made.popular, made.holdout))
        yield beam.pvalue.TaggedOutput("recalls", made.recalls)
        yield beam.pvalue.TaggedOutput("counts", made.counts)


class Recommendations(NamedTuple):
    """What `RecommendFused` makes: the table's blocks, and reports of what it found."""

    topk: beam.PCollection[PlacedBlock]
    reports: beam.PCollection[dict]


@dataclass
class RecommendFused(beam.PTransform):
    """Takes blocks of users with vectors through all shards in one process; nothing is shuffled.

    Attributes:
      root: the folder of the attempt that built the index.
      files: what that attempt wrote.
      num_shards: of the index.
      num_items: in the catalogue, for coverage.
      settings: what a list holds.
    """

    root: str
    files: Sequence[WrittenFile]
    num_shards: int
    num_items: int
    settings: ListSettings

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, users: beam.PCollection[PlacedBlock]) -> Recommendations:
        made = users | "RecommendBlock" >> beam.ParDo(
            _RecommendBlock(self.root, self.files, self.num_shards, self.settings)
        ).with_outputs("judged", "popular", "recalls", "counts", main="topk")
        judge = JudgeRankings(self.settings.cutoffs, self.num_items)
        reports = (
            made.counts,
            made.judged | "Judge" >> beam.CombineGlobally(judge) | "ReportQuality" >> beam.Map(quality_report, "quality"),
            made.popular
            | "JudgePopular" >> beam.CombineGlobally(judge)
            | "ReportPopular" >> beam.Map(quality_report, "popularity"),
            made.recalls | "MeanRecall" >> beam.CombineGlobally(MeanOfRows()) | "ReportRecall" >> beam.Map(recall_report),
        )
        return Recommendations(made.topk, reports | "GatherReports" >> beam.Flatten())


def quality_report(metrics: RankingMetrics, name: str) -> Mapping[str, Any]:
    """Returns the metrics as a report; without held-out items there is nothing but coverage to tell."""
    report = asdict(metrics)
    if not metrics.users:
        report["means"] = {each: value for each, value in report["means"].items() if each.startswith("coverage")}
    return {name: report}


def recall_report(estimate: Any) -> Mapping[str, Any]:
    """Returns the recall against exact search as a report; JSON has no infinity."""
    return {"recall_against_exact": {each: value if math.isfinite(value) else None for each, value in asdict(estimate).items()}}
