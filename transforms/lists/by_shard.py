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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, TaggedOutput
from apache_beam.typehints import with_output_types
from apache_beam.utils.shared import Shared

from schemas.blocks import Block, one_block
from schemas.embeddings import ID_MAP
from schemas.storage import WrittenFile
from transforms.index.build import vectors_of
from transforms.index.embed import vector_column
from transforms.index.item_lists import ItemLists
from transforms.index.load import EVERY_ITEM, LoadedShard, ShardCache, files_of_shards, load_items, load_plan, load_shard
from transforms.index.popular import RANKINGS, PopularItems, most_popular
from transforms.index.search_plan import MAX_WORKER_BYTES, bytes_of_shard
from transforms.io.read import Place, PlacedBlock
from transforms.lists.carry_over import carried_items
from transforms.lists.fused import (
    Asked,
    Finished,
    ListSettings,
    Recommendations,
    asked_of,
    effort_of,
    finish_block,
    heads_of,
    report_lists,
    unwanted_of,
)
from transforms.search.id_map import IdMap
from transforms.search.ranking_metrics import JudgedBlock
from transforms.search.scann_index import ShardPlan
from transforms.search.search import (
    MAX_ROUNDS,
    Answer,
    Request,
    SearchCounters,
    SearchSettings,
    first_requests,
    served_plan,
    settle,
)
from transforms.search.top_k import PAD, Lists, codes_of

POPULAR_ITEMS = 8_192
"""All workers know the k + so many most popular items; more are looked for where a user must not get nearly all of these."""

_SLICES_A_LATER_SLICE = 16

ShardKey = tuple[int, int]
"""A shard, and one of the slices into which the blocks of users are divided."""
RequestKey = tuple[int, int, int]
"""The part and the ordinal of a block of users, and which of its requests is meant."""
Question = tuple[ShardKey, tuple[RequestKey, Block]]
"""A request for one shard: rows of REQUEST."""
Reply = tuple[RequestKey, tuple[bool, Block, Block]]
"""What meets at a request: (True, REQUEST, what its users must not get), and from each shard (False, ANSWER, ITEMS)."""
Piece = tuple[int, tuple[int, int, Block, Block]]
"""What meets at a part: the ordinal of a block, a kind, and two blocks.

_HEADS: rows of HEADS, and nothing. _LISTS and _CHECKS: rows of LISTS, and the ITEMS that are in them.
"""
_HEADS, _LISTS, _CHECKS = range(3)

ITEMS = pa.schema([ID_MAP.field("item_id"), ID_MAP.field("code")])
"""Items that turn ids into codes and back."""

SHARDS = pa.schema(
    [
        ("kind", pa.string()),
        ("num_vectors", pa.int64()),
        ("dim", pa.int64()),
        ("num_leaves", pa.int64()),
        ("quantization_threshold", pa.float64()),
        ("soar", pa.bool_()),
        ("num_items", pa.int64()),
    ]
)
"""What the shards are, a row a shard: the fields of its ShardPlan, and how many of its items may be recommended."""

_NOTHING = pa.RecordBatch.from_pylist([], pa.schema([]))

# REQUEST: row int32, query FixedSizeList<float32>[dim], and the same in each row: kind, width, shard_width int32, exact bool
# ANSWER:  keys FixedSizeList<uint64>[m], bound uint64
# LISTS:   row int32, keys FixedSizeList<uint64>[k]


def requests_of(asked: Asked, excluded: Lists, settings: ListSettings, plans: Sequence[ShardPlan]) -> list[tuple[int, Request]]:
    """Returns the first requests of a block of users, each with its kind; their rows are those of the block.

    Args:
      asked: who is searched for.
      excluded: a list for each row of the block; how long they are is all that counts here.
      settings: what a list holds.
      plans: what each shard is.
    """
    found = []
    for kind, rows, queries, exact in (
        (_LISTS, asked.rows, asked.queries, settings.search.exact),
        (_CHECKS, asked.checked, asked.checked_queries, True),
    ):
        requests = first_requests(queries, excluded.take(rows), settings.k, plans, exact)
        found += [(kind, replace(request, rows=rows[request.rows])) for request in requests]
    return found


def request_block(request: Request, kind: int) -> Block:
    """Returns rows of REQUEST.

    Args:
      request: what is asked.
      kind: _LISTS, or _CHECKS where exact lists are asked for, to compare others with.
    """
    num_rows = len(request.rows)
    same = {"kind": kind, "width": request.width, "shard_width": request.shard_width}
    return pa.RecordBatch.from_pydict(
        {
            "row": pa.array(request.rows, pa.int32()),
            "query": vector_column(np.ascontiguousarray(request.queries, np.float32)),
            **{name: pa.array(np.full(num_rows, value, np.int32)) for name, value in same.items()},
            "exact": pa.array(np.full(num_rows, request.exact)),
        }
    )


def kind_of(block: Block) -> int:
    """Returns the kind of a request, rows of REQUEST."""
    return block["kind"][0].as_py()


def request_of(block: Block) -> Request:
    """Returns what `request_block` packed."""
    width, shard_width, exact = (block[name][0].as_py() for name in ("width", "shard_width", "exact"))
    return Request(block["row"].to_numpy().astype(np.int64), vectors_of(block["query"]), width, shard_width, exact)


def keys_column(keys: np.ndarray) -> pa.FixedSizeListArray:
    """Returns [n, m] uint64 as FixedSizeList<uint64>[m]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), keys.shape[1])


def keys_of(column: pa.FixedSizeListArray) -> np.ndarray:
    """Returns [n, m] uint64, what `keys_column` packed."""
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def lists_block(rows: np.ndarray, keys: np.ndarray) -> Block:
    """Returns rows of LISTS."""
    return pa.RecordBatch.from_arrays([pa.array(rows, pa.int32()), keys_column(keys)], ["row", "keys"])


def codes_in(keys: np.ndarray) -> np.ndarray:
    """Returns the codes in keys, [...] uint64, each once: [n] uint32, ascending."""
    # A code is the low half of a key. Sorting halves is many times quicker than np.unique, which hashes them.
    codes = np.sort(keys[keys != PAD].astype(np.uint32))
    return codes[np.diff(codes, prepend=codes[:1] + np.uint32(1)) != 0]


def answer_block(loaded: LoadedShard, request: Request, settings: SearchSettings) -> tuple[Block, Block]:
    """Returns a shard's answer to a request, rows of ANSWER, and the ITEMS that are in it."""
    answer = loaded.shard.answer(request, settings)
    # Arrow's lists hold at least one key; a shard of which all items are blocked answers with none.
    keys = answer.keys if answer.keys.shape[1] else np.full((len(request.rows), 1), PAD)
    items = loaded.items_of(codes_in(keys)).select(ITEMS.names)
    return pa.RecordBatch.from_arrays([keys_column(keys), pa.array(answer.bounds)], ["keys", "bound"]), items


def id_map_of(blocks: Iterable[Block]) -> IdMap:
    """Returns the map of the items in some blocks of ITEMS, which may repeat them."""
    items = one_block(blocks, ITEMS)
    codes, rows = np.unique(items["code"].to_numpy(), return_index=True)
    return IdMap(items["item_id"].take(pa.array(rows)), codes)


def items_in(keys: np.ndarray, id_map: IdMap) -> Block:
    """Returns the ITEMS that are in lists of keys, [...] uint64."""
    codes = codes_in(keys)
    return pa.RecordBatch.from_arrays([id_map.ids_of(codes), pa.array(codes, pa.int32())], schema=ITEMS)


def shard_block(plan: ShardPlan, num_items: int) -> Block:
    """Returns a row of SHARDS."""
    return pa.RecordBatch.from_pylist([asdict(plan) | {"num_items": num_items}], SHARDS)


def plans_of(shards: Block) -> list[ShardPlan]:
    """Returns the plans in rows of SHARDS."""
    return [ShardPlan(**plan) for plan in shards.drop_columns(["num_items"]).to_pylist()]


class Settled(NamedTuple):
    """What the answers to a request come to."""

    lists: Block
    """Rows of LISTS: the certain ones."""
    items: Block
    """The ITEMS in them."""
    uncertain: Block | None
    """Rows of REQUEST: what is asked next, if anything."""
    unwanted: Block
    """What their users must not get."""


def settle_request(asked: Block, unwanted: Block, answers: Sequence[tuple[Block, Block]], k: int) -> Settled:
    """Settles one request; `search.search_block` does as much for a whole block.

    Args:
      asked: rows of REQUEST.
      unwanted: what their users must not get, from `recommend.unwanted_of`.
      answers: ANSWER and ITEMS of each shard, in any order.
      k: how many items each row wants.
    """
    request = request_of(asked)
    id_map = id_map_of(items for _, items in answers)
    unpacked = [Answer(keys_of(answer["keys"]), answer["bound"].to_numpy()) for answer, _ in answers]
    keys, certain = settle(request, unpacked, id_map.lists_of(*unwanted.columns), k)
    keys, again = keys[certain], ~certain
    return Settled(
        lists=lists_block(request.rows[certain], keys),
        items=items_in(keys, id_map),
        uncertain=request_block(request.next(again), kind_of(asked)) if again.any() else None,
        unwanted=unwanted.filter(pa.array(again)),
    )


def popular_lists(
    unwanted: Block, k: int, ranking: Block, num_items: int, rank: Callable[[int, str], Block], by: str
) -> tuple[np.ndarray, IdMap, Block]:
    """Makes lists by popularity, from as much of the ranking as they need.

    Args:
      unwanted: what the users must not get, from `recommend.unwanted_of`.
      k: how many items each row wants.
      ranking: rows of ID_MAP, the most popular items.
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
    of_kind: dict[int, list[tuple[Block, Block]]] = {_HEADS: [], _LISTS: [], _CHECKS: []}
    for kind, block, items in pieces:
        of_kind[kind].append((block, items))
    ((heads, _),) = of_kind[_HEADS]
    rows, keys = _in_order([lists for lists, _ in of_kind[_LISTS]], k)
    if not np.array_equal(rows, np.arange(heads.num_rows)):
        raise RuntimeError(f"{heads.num_rows} users must have a list each, got {len(rows)} lists")
    checked, exact = _in_order([lists for lists, _ in of_kind[_CHECKS]], k)
    return finish_block(heads, keys, checked, exact, id_map_of(items for _, items in of_kind[_LISTS] + of_kind[_CHECKS]))


def _in_order(blocks: Sequence[Block], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows, ascending, and the keys ([num_rows, k] uint64) of blocks of LISTS."""
    rows = np.concatenate([np.zeros(0, np.int64), *(block["row"].to_numpy() for block in blocks)])
    keys = np.concatenate([np.zeros((0, k), np.uint64), *(keys_of(block["keys"]) for block in blocks)])
    order = np.argsort(rows)
    return rows[order], keys[order]


@dataclass(frozen=True)
class _Index:
    """Where the shards are, and which of their items may be recommended."""

    root: str
    files: Mapping[int, Sequence[WrittenFile]]
    lists: ItemLists

    def plan(self, shard: int) -> ShardPlan:
        return load_plan(self.root, shard, self.files[shard])

    def items(self, shard: int) -> Block:
        return load_items(self.root, shard, self.files[shard], self.lists)

    def load(self, shard: int) -> LoadedShard:
        return load_shard(self.root, shard, self.files[shard], self.lists)

    def rank(self, count: int, by: str) -> Block:
        """Returns the `count` most popular items, after reading the items of one shard at a time."""
        return most_popular((most_popular([self.items(shard)], count, by) for shard in self.files), count, by)


Overview = tuple[Block, dict[str, Block]]
"""What all workers know of some shards: rows of SHARDS, and for each of RANKINGS rows of ID_MAP, the most popular items."""


def describe_shard(shard: int, index: _Index, num_popular: int) -> Overview:
    """Reads what all workers have to know of a shard."""
    items = index.items(shard)
    plan = served_plan(index.plan(shard), items.num_rows)
    return shard_block(plan, items.num_rows), {by: most_popular([items], num_popular, by) for by in RANKINGS}


def join_overviews(overviews: Iterable[Overview], num_popular: int) -> Overview:
    """Returns the overview of all the shards in some overviews."""
    parts = list(overviews)
    popular = {by: most_popular((of_part[by] for _, of_part in parts), num_popular, by) for by in RANKINGS}
    return one_block((shards for shards, _ in parts), SHARDS), popular


@with_output_types(Piece, asked=Reply, questions=Question, counts=dict[str, Any], **dict.fromkeys(RANKINGS, JudgedBlock))
class _AskShards(beam.DoFn):
    """Turns a block of users into requests, lists the popular items, and sends on what the lists are joined to at the end."""

    def __init__(self, index: _Index, settings: ListSettings, num_slices: int) -> None:
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
        for by in RANKINGS:  # The last of them, RECENT, is what users without a vector get.
            ranking = max(rankings[by], self._longest.get(by, rankings[by]), key=lambda block: block.num_rows)
            popular, id_map, self._longest[by] = popular_lists(unwanted, settings.k, ranking, num_items, self._index.rank, by)
            yield TaggedOutput(by, (codes_of(popular), id_map.lists_of(block["holdout"])))
        yield place.part, (place.ordinal, _HEADS, heads_of(block, asked.known), _NOTHING)
        unasked = [(_LISTS, np.flatnonzero(~asked.known))]
        if not num_items:
            # There is nothing to ask for, and all lists are empty.
            unasked = [(_LISTS, np.arange(block.num_rows)), (_CHECKS, asked.checked)]
        for kind, rows in unasked:
            yield place.part, (place.ordinal, kind, lists_block(rows, popular[rows]), items_in(popular[rows], id_map))
        if num_items and len(asked.carried):
            items = pa.RecordBatch.from_arrays(list(carried_items(block)), schema=ITEMS)
            lists = lists_block(asked.carried, asked.carried_keys)
            yield place.part, (place.ordinal, _LISTS, lists, items_in(asked.carried_keys, id_map_of([items])))

        requests = requests_of(asked, id_map.lists_of(*unwanted.columns), settings, plans_of(shards))
        for number, (kind, request) in enumerate(requests):
            key = (place.part, place.ordinal, number)
            of_users = unwanted.take(pa.array(request.rows))
            yield from _ask(key, request_block(request, kind), of_users, self._index.files, self._num_slices)
        counters = SearchCounters()
        for kind, request in requests:
            if kind == _LISTS:
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
    def __init__(self, index: _Index, settings: SearchSettings, max_worker_bytes: int, shared: Shared) -> None:
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
        bytes_of = {shard: bytes_of_shard(files).alone for shard, files in self._index.files.items()}
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
            if kind_of(asked) == _LISTS:
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
      root: the folder of the attempt that built the index.
      files: what that attempt wrote.
      num_shards: of the index.
      num_items: in the catalogue, for coverage.
      settings: what a list holds.
      lists: which items may be recommended at all.
      max_worker_bytes: what the shards that a worker holds may take together; one is always held.
      num_slices: how many workers can search the same shard side by side; each of them loads it.
    """

    root: str
    files: Sequence[WrittenFile]
    num_shards: int
    num_items: int
    settings: ListSettings
    lists: ItemLists = EVERY_ITEM
    max_worker_bytes: int = MAX_WORKER_BYTES
    num_slices: int = 1

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_slices < 1:
            raise ValueError(f"num_slices must be at least 1, got {self.num_slices}")

    def expand(self, users: beam.PCollection[PlacedBlock]) -> Recommendations:
        index = _Index(self.root, files_of_shards(self.files, self.num_shards), self.lists)
        settings, num_popular = self.settings, self.settings.k + POPULAR_ITEMS
        # Few rows go round again, and a shard is loaded for each slice.
        later_slices = math.ceil(self.num_slices / _SLICES_A_LATER_SLICE)

        join = partial(join_overviews, num_popular=num_popular)
        overview = (
            users.pipeline
            | "Shards" >> beam.Create(sorted(index.files))
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
                >> beam.ParDo(_SettleRequest(sorted(index.files), settings.k, later_slices)).with_outputs(
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
