"""The blocks that travel between users and shards: what is asked of a shard, and what it answers."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from schemas.blocks import Block, one_block
from schemas.embeddings import SHARD_ITEMS
from transforms.index.build import vectors_of
from transforms.index.embed import vector_column
from transforms.index.load import LoadedShard
from transforms.lists.fused import (
    BlockQueries,
    ListSettings,
)
from transforms.search.id_map import IdMap
from transforms.search.scann_index import ShardPlan
from transforms.search.search import (
    Answer,
    Request,
    SearchSettings,
    first_requests,
    settle,
)
from transforms.search.top_k import PAD, Lists

ShardKey = tuple[int, int]
"""A shard, and one of the slices into which the blocks of users are divided."""
RequestKey = tuple[int, int, int]
"""The part and the ordinal of a block of users, and which of its requests is meant."""
Question = tuple[ShardKey, tuple[RequestKey, Block]]
"""A request for one shard: rows of REQUEST."""
Reply = tuple[RequestKey, tuple[bool, Block, Block]]
"""What meets at a request: (True, REQUEST, what its users must not get), and from each shard (False, ANSWER, ITEMS)."""
ROWS, LISTS, CHECKS = range(3)

ITEMS = pa.schema([SHARD_ITEMS.field("item_id"), SHARD_ITEMS.field("code")])
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

NOTHING = pa.RecordBatch.from_pylist([], pa.schema([]))

# REQUEST: row int32, query FixedSizeList<float32>[dim], and the same in each row: kind, width, shard_width int32, exact bool
# ANSWER:  keys FixedSizeList<uint64>[m], bound uint64
# LISTS:   row int32, keys FixedSizeList<uint64>[k]


def requests_of(
    asked: BlockQueries, excluded: Lists, settings: ListSettings, plans: Sequence[ShardPlan]
) -> list[tuple[int, Request]]:
    """Returns the first requests of a block of users, each with its kind; their rows are those of the block.

    Args:
      asked: who is searched for.
      excluded: a list for each row of the block; how long they are is all that counts here.
      settings: what a list holds.
      plans: what each shard is.
    """
    found = []
    for kind, rows, queries, exact in (
        (LISTS, asked.rows, asked.queries, settings.search.exact),
        (CHECKS, asked.checked, asked.checked_queries, True),
    ):
        requests = first_requests(queries, excluded.take(rows), settings.k, plans, exact)
        found += [(kind, replace(request, rows=rows[request.rows])) for request in requests]
    return found


def request_block(request: Request, kind: int) -> Block:
    """Returns rows of REQUEST.

    Args:
      request: what is asked.
      kind: LISTS, or CHECKS where exact lists are asked for, to compare others with.
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
