"""Makes the table where the index is larger than a worker's memory: the requests of users go round, the shards stay.

A worker holds one shard at a time, and none has the ids of all items: a shard sends the ids of the items that it returns
along with them, and these few are all that histories and held-out items have to be compared with.

    shards ──> their plans and most popular items, for all workers to know
                 v
    users ──> AskShards ──> requests, one copy for each shard ──> GroupByShard ──> AnswerRequests ──┐
                │  └──────> requests, with what their users must not get ────────────────> GroupByRequest
                │                                                                                   v
                │                    uncertain rows go round again: wider, at last exactly <── SettleRequest
                │                                                                                   v
                └──> rows of the table without their lists, popular lists ──> GroupByPart <── certain rows
                                                                                   v
                                                                              FinishPart ──> the table's rows, in order

The functions are those of `transforms.lists.fused` and `transforms.search.search`, and so are the answers, bit for bit. An
element is a request (rows of one block of users who exclude about as many items), or a block. What this plan costs beside the
search is the shuffle: of each user's vector to every shard, and of the keys (8 bytes an item) and ids of what the shards find.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, TaggedOutput
from apache_beam.typehints import with_output_types
from apache_beam.utils.shared import Shared

from schemas.blocks import Block, one_block
from transforms.index.load import IndexFiles, ShardCache
from transforms.index.popular import RANKINGS, PopularItems, most_popular
from transforms.index.search_plan import MAX_WORKER_BYTES
from transforms.io.read import Place, PlacedBlock
from transforms.lists.carry_over import carried_items
from transforms.lists.fused import (
    Finished,
    ListSettings,
    Recommendations,
    asked_of,
    effort_of,
    finish_block,
    report_lists,
    unwanted_of,
    user_rows_of,
)
from transforms.lists.requests import (
    CHECKS,
    ITEMS,
    LISTS,
    NOTHING,
    ROWS,
    SHARDS,
    Question,
    Reply,
    RequestKey,
    ShardKey,
    answer_block,
    id_map_of,
    items_in,
    keys_of,
    kind_of,
    lists_block,
    plans_of,
    request_block,
    request_of,
    requests_of,
    settle_request,
    shard_block,
)
from transforms.search.id_map import IdMap
from transforms.search.ranking_metrics import JudgedBlock
from transforms.search.search import (
    MAX_ROUNDS,
    SearchCounters,
    SearchSettings,
    served_plan,
)
from transforms.search.top_k import PAD, codes_of

POPULAR_ITEMS = 8_192
"""All workers know the k + so many most popular items; more are looked for where a user must not get nearly all of these."""

_SLICES_A_LATER_SLICE = 16
Piece = tuple[int, tuple[int, int, Block, Block]]
"""What meets at a part: the ordinal of a block, a kind, and two blocks.

ROWS: rows of USER_ROWS, and nothing. LISTS and CHECKS: rows of LISTS, and the ITEMS that are in them.
"""


def popular_lists(
    unwanted: Block, k: int, ranking: Block, num_items: int, rank: Callable[[int, str], Block], by: str
) -> tuple[np.ndarray, IdMap, Block]:
    """Makes lists by popularity, from as much of the ranking as they need.

    Args:
      unwanted: what the users must not get, from `recommend.unwanted_of`.
      k: how many items each row wants.
      ranking: rows of SHARD_ITEMS, the most popular items.
      num_items: how many there are that may be recommended.
      rank: returns so many of the most popular items; called if some user must not get nearly all of `ranking`.
      by: one of RANKINGS.

    Returns:
      keys: [num_rows, k] uint64, as `PopularItems.top_k` makes them.
      id_map: of the items of the ranking that was used.
      ranking: the same.
    """
    id_map = IdMap(ranking["item_id"], ranking["code"].to_numpy())
    excluded = id_map.lists_of(*unwanted.columns)
    keys = PopularItems.of(ranking, by).top_k(excluded, k)
    if ranking.num_rows < num_items and (keys[:, -1] == PAD).any():
        longer = rank(min(num_items, k + int(excluded.counts.max())), by)
        return popular_lists(unwanted, k, longer, num_items, rank, by)
    return keys, id_map, ranking


def finish_pieces(pieces: Iterable[tuple[int, Block, Block]], k: int) -> Finished:
    """Puts a block of users together.

    Args:
      pieces: kinds and blocks, as in Piece, of all of the block's rows, in any order.
      k: how many items each row wants.
    """
    of_kind: dict[int, list[tuple[Block, Block]]] = {ROWS: [], LISTS: [], CHECKS: []}
    for kind, block, items in pieces:
        of_kind[kind].append((block, items))
    ((user_rows, _),) = of_kind[ROWS]
    rows, keys = _in_order([lists for lists, _ in of_kind[LISTS]], k)
    if not np.array_equal(rows, np.arange(user_rows.num_rows)):
        raise RuntimeError(f"{user_rows.num_rows} users must have a list each, got {len(rows)} lists")
    checked, exact = _in_order([lists for lists, _ in of_kind[CHECKS]], k)
    return finish_block(user_rows, keys, checked, exact, id_map_of(items for _, items in of_kind[LISTS] + of_kind[CHECKS]))


def _in_order(blocks: Sequence[Block], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows, ascending, and the keys ([num_rows, k] uint64) of blocks of LISTS."""
    rows = np.concatenate([np.zeros(0, np.int64), *(block["row"].to_numpy() for block in blocks)])
    keys = np.concatenate([np.zeros((0, k), np.uint64), *(keys_of(block["keys"]) for block in blocks)])
    order = np.argsort(rows)
    return rows[order], keys[order]


def rank_items(index: IndexFiles, count: int, by: str) -> Block:
    """Returns the `count` most popular items, after reading the items of one shard at a time."""
    return most_popular((most_popular([index.items_of(shard)], count, by) for shard in index.of_shards), count, by)


Overview = tuple[Block, dict[str, Block]]
"""What all workers know of some shards: rows of SHARDS, and for each of RANKINGS the most popular of SHARD_ITEMS."""


def describe_shard(shard: int, index: IndexFiles, num_popular: int) -> Overview:
    """Reads what all workers have to know of a shard."""
    items = index.items_of(shard)
    plan = served_plan(index.plan_of(shard), items.num_rows)
    return shard_block(plan, items.num_rows), {by: most_popular([items], num_popular, by) for by in RANKINGS}


def join_overviews(overviews: Iterable[Overview], num_popular: int) -> Overview:
    """Returns the overview of all the shards in some overviews."""
    parts = list(overviews)
    popular = {by: most_popular((of_part[by] for _, of_part in parts), num_popular, by) for by in RANKINGS}
    return one_block((shards for shards, _ in parts), SHARDS), popular


@with_output_types(Piece, asked=Reply, questions=Question, counts=dict[str, Any], **dict.fromkeys(RANKINGS, JudgedBlock))
class _AskShards(beam.DoFn):
    """Turns a block of users into requests, lists the popular items, and sends on what the lists are joined to at the end."""

    def __init__(self, index: IndexFiles, settings: ListSettings, num_slices: int) -> None:
        super().__init__()
        self._index = index
        self._settings = settings
        self._num_slices = num_slices
        self._longest: dict[str, Block] = {}

    def process(self, element: PlacedBlock, overview: Overview) -> Iterator[Any]:
        place, block = element
        shards, rankings = overview
        settings = self._settings
        asked, unwanted = asked_of(block, settings), unwanted_of(block, settings)
        num_items = sum(shards["num_items"].to_pylist())
        rank = partial(rank_items, self._index)
        for by in RANKINGS:  # The last of them, RECENT, is what users without a vector get.
            ranking = max(rankings[by], self._longest.get(by, rankings[by]), key=lambda block: block.num_rows)
            popular, id_map, self._longest[by] = popular_lists(unwanted, settings.k, ranking, num_items, rank, by)
            yield TaggedOutput(by, (codes_of(popular), id_map.lists_of(block["holdout"])))
        yield place.part, (place.ordinal, ROWS, user_rows_of(block, asked.known), NOTHING)
        unasked = [(LISTS, np.flatnonzero(~asked.known))]
        if not num_items:
            # There is nothing to ask for, and all lists are empty.
            unasked = [(LISTS, np.arange(block.num_rows)), (CHECKS, asked.checked)]
        for kind, rows in unasked:
            yield place.part, (place.ordinal, kind, lists_block(rows, popular[rows]), items_in(popular[rows], id_map))
        if num_items and len(asked.carried):
            items = pa.RecordBatch.from_arrays(list(carried_items(block)), schema=ITEMS)
            lists = lists_block(asked.carried, asked.carried_keys)
            yield place.part, (place.ordinal, LISTS, lists, items_in(asked.carried_keys, id_map_of([items])))

        requests = requests_of(asked, id_map.lists_of(*unwanted.columns), settings, plans_of(shards))
        for number, (kind, request) in enumerate(requests):
            key = (place.part, place.ordinal, number)
            of_users = unwanted.take(pa.array(request.rows))
            yield from _ask(key, request_block(request, kind), of_users, self._index.of_shards, self._num_slices)
        counters = SearchCounters()
        for kind, request in requests:
            if kind == LISTS:
                counters.add(request, is_first=True)
        yield TaggedOutput("counts", effort_of(counters))


def _ask(key: RequestKey, request: Block, unwanted: Block, shards: Iterable[int], num_slices: int) -> Iterator[TaggedOutput]:
    """Sends a request to all shards, and, with what its users must not get, to where their answers will meet."""
    yield TaggedOutput("asked", (key, (True, request, unwanted)))
    part, ordinal, _ = key
    for shard in shards:
        yield TaggedOutput("questions", ((shard, (part + ordinal) % num_slices), (key, request)))


@with_output_types(Reply)
class _AnswerRequests(beam.DoFn):
    def __init__(self, index: IndexFiles, settings: SearchSettings, max_worker_bytes: int, shared: Shared) -> None:
        super().__init__()
        self._index = index
        self._settings = settings
        self._max_worker_bytes = max_worker_bytes
        self._shared = shared

    def setup(self) -> None:
        # One a process, whatever the number of threads and rounds; the tag tells indexes of different runs apart.
        self._cache = self._shared.acquire(self._new_cache, tag=self._index.root)

    def process(self, element: tuple[ShardKey, Iterable[tuple[RequestKey, Block]]]) -> Iterator[Reply]:
        (shard, _), questions = element
        with self._cache.hold(shard) as loaded:
            for key, request in questions:
                yield key, (False, *answer_block(loaded, request_of(request), self._settings))

    def _new_cache(self) -> ShardCache:
        bytes_of = {shard: self._index.bytes_of(shard).alone for shard in self._index.of_shards}
        return ShardCache(self._index.load, bytes_of, self._max_worker_bytes)


@with_output_types(Piece, asked=Reply, questions=Question, counts=dict[str, Any])
class _SettleRequest(beam.DoFn):
    def __init__(self, shards: Sequence[int], k: int, num_slices: int) -> None:
        super().__init__()
        self._shards = shards
        self._k = k
        self._num_slices = num_slices

    def process(self, element: tuple[RequestKey, Iterable[tuple[bool, Block, Block]]]) -> Iterator[Any]:
        key, replies = element
        answers = []
        for is_asked, first, second in replies:
            if is_asked:
                asked, unwanted = first, second
            else:
                answers.append((first, second))
        settled = settle_request(asked, unwanted, answers, self._k)
        part, ordinal, _ = key
        if settled.lists.num_rows:
            yield part, (ordinal, kind_of(asked), settled.lists, settled.items)
        if settled.uncertain is not None:
            if kind_of(asked) == LISTS:
                counters = SearchCounters()
                counters.add(request_of(settled.uncertain), is_first=False)
                yield TaggedOutput("counts", effort_of(counters))
            yield from _ask(key, settled.uncertain, settled.unwanted, self._shards, self._num_slices)


@with_output_types(PlacedBlock, judged=JudgedBlock, recalls=np.ndarray, exact=Block, counts=dict[str, Any])
class _FinishPart(beam.DoFn):
    """Yields the blocks of a part one after the other, so that they are written to one file."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self._k = k

    def process(self, element: tuple[int, Iterable[tuple[int, int, Block, Block]]]) -> Iterator[Any]:
        part, pieces = element
        blocks: dict[int, list[tuple[int, Block, Block]]] = {}
        for ordinal, *piece in pieces:
            blocks.setdefault(ordinal, []).append(tuple(piece))
        last = max(blocks)
        for ordinal in range(last + 1):
            finished = finish_pieces(blocks.pop(ordinal), self._k)
            yield Place(part, ordinal, ordinal == last), finished.topk
            yield TaggedOutput("judged", (finished.lists, finished.holdout))
            yield TaggedOutput("recalls", finished.recalls)
            yield TaggedOutput("exact", finished.exact)
            yield TaggedOutput("counts", finished.counts)


@dataclass
class RecommendByShard(beam.PTransform):
    """Takes the requests of blocks of users to the shards and back; does what `RecommendFused` does.

    Attributes:
      index: what is searched.
      num_items: in the catalogue, for coverage.
      settings: what a list holds.
      max_worker_bytes: what the shards that a worker holds may take together; one is always held.
      num_slices: how many workers can search the same shard side by side; each of them loads it.
    """

    index: IndexFiles
    num_items: int
    settings: ListSettings
    max_worker_bytes: int = MAX_WORKER_BYTES
    num_slices: int = 1

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_slices < 1:
            raise ValueError(f"num_slices must be at least 1, got {self.num_slices}")

    def expand(self, users: beam.PCollection[PlacedBlock]) -> Recommendations:
        index, settings, num_popular = self.index, self.settings, self.settings.k + POPULAR_ITEMS
        # Few rows go round again, and a shard is loaded for each slice.
        later_slices = math.ceil(self.num_slices / _SLICES_A_LATER_SLICE)

        join = partial(join_overviews, num_popular=num_popular)
        overview = (
            users.pipeline
            | "Shards" >> beam.Create(sorted(index.of_shards))
            | "DescribeShard" >> beam.Map(describe_shard, index, num_popular).with_output_types(Overview)
            | "JoinOverviews" >> beam.CombineGlobally(join).with_output_types(Overview)
        )
        asked = users | "AskShards" >> beam.ParDo(
            _AskShards(index, settings, self.num_slices), AsSingleton(overview)
        ).with_outputs("asked", "questions", *RANKINGS, "counts", main="pieces")

        answer = _AnswerRequests(index, settings.search, self.max_worker_bytes, Shared())
        popular = {by: asked[by] for by in RANKINGS}
        pieces, counts = [asked.pieces], [asked.counts]
        for number in range(1, MAX_ROUNDS + 1):
            answers = (
                asked.questions | f"GroupByShard{number}" >> beam.GroupByKey() | f"AnswerRequests{number}" >> beam.ParDo(answer)
            )
            asked = (
                (asked.asked, answers)
                | f"GatherReplies{number}" >> beam.Flatten()
                | f"GroupByRequest{number}" >> beam.GroupByKey()
                | f"SettleRequest{number}"
                >> beam.ParDo(_SettleRequest(sorted(index.of_shards), settings.k, later_slices)).with_outputs(
                    "asked", "questions", "counts", main="pieces"
                )
            )
            pieces.append(asked.pieces)
            counts.append(asked.counts)

        made = (
            pieces
            | "GatherPieces" >> beam.Flatten()
            | "GroupByPart" >> beam.GroupByKey()
            | "FinishPart"
            >> beam.ParDo(_FinishPart(settings.k)).with_outputs("judged", "recalls", "exact", "counts", main="topk")
        )
        reports = report_lists(made.judged, popular, made.recalls, [*counts, made.counts], settings, self.num_items)
        return Recommendations(made.topk, made.exact, reports)
