"""Makes a small sharded index and blocks of users with vectors, for the tests of what searches them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from schemas.blocks import Block, in_blocks
from schemas.embeddings import embeddings_schema
from schemas.items import BLOCKED_ITEMS
from schemas.parquet_files import parquet_writer
from schemas.stage_files import BLOCKED
from schemas.storage import WrittenFile, join
from schemas.users import USERS
from transforms.index.build import write_shard
from transforms.index.embed import vector_column
from transforms.index.item_lists import ItemLists
from transforms.io.partition import key_by_shard
from transforms.io.write import part_path, write_part
from transforms.search.scann_index import plan_shard


@dataclass(frozen=True)
class MadeItems:
    """A catalogue: item i has code i."""

    ids: list[str]
    vectors: np.ndarray
    train_counts: np.ndarray
    recent_counts: np.ndarray

    @property
    def block(self) -> Block:
        n, dim = self.vectors.shape
        columns = [pa.array(self.ids), pa.array(range(n), pa.int32()), pa.array(self.train_counts)]
        columns += [pa.array(self.recent_counts), vector_column(self.vectors)]
        return pa.RecordBatch.from_arrays(columns, schema=embeddings_schema(dim))


def make_items(num_items: int, dim: int = 8, seed: int = 0) -> MadeItems:
    """Makes whole-number vectors, so that scores are exact and many are equal, and training counts of which many are equal."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (num_items, dim)).astype(np.float32)
    train_counts, halves = (rng.integers(0, num_items // 3 + 1, num_items) for _ in range(2))
    return MadeItems([f"item {i:05d}" for i in range(num_items)], vectors, train_counts, halves / 2)


def write_index(root: str, items: MadeItems, num_shards: int, num_leaves: int | None = None) -> list[WrittenFile]:
    """Builds the shards, with trees of `num_leaves` where given."""
    files = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.index.build.plan_shard", lambda n, dim: plan_shard(n, dim, num_leaves))
        for shard, block in key_by_shard(items.block, num_shards):
            files += write_shard(shard, [block], root, items.vectors.shape[1], seed=0)
    return files


def item_lists(folder: Path, ids: list[str], block: list[str] | None = None, allow: list[str] | None = None) -> ItemLists:
    """Writes which items of a catalogue, whose i-th item has code i, must not be recommended."""
    rows = [
        {"item_id": each, "code": code}
        for code, each in enumerate(ids)
        if each in (block or []) or (allow is not None and each not in allow)
    ]
    blocked = pa.RecordBatch.from_pylist(rows, BLOCKED_ITEMS)
    written = write_part(str(folder), BLOCKED, BLOCKED_ITEMS, 0, [blocked])
    return ItemLists((f"{folder}/{written.path}",), len(ids))


def make_users(items: MadeItems, num_users: int, seed: int = 1) -> list[dict]:
    """Makes users of all kinds: without a vector, without a history, with a very long one, with everything seen."""
    rng = np.random.default_rng(seed)
    num_items, dim = items.vectors.shape
    rows = []
    for user in range(num_users):
        seen = [0, 3, 12, num_items // 2, num_items - 3, num_items][user % 11 if user % 11 < 6 else int(rng.integers(3))]
        mixed = [items.ids[i] for i in rng.permutation(num_items)]
        history, others = mixed[:seen], mixed[seen:]
        below = int(rng.integers(0, 3)) if user % 2 else 0
        rows.append(
            {
                "user_id": f"user {user:04d}",
                "history": history,
                "excluded": others[:1] if user % 3 == 0 else [],
                "below_min_rating": [*others[1 : 1 + below], *(["nobody trained on it"] if user % 5 == 0 else [])],
                "holdout": [*others[4:7], *(["not in the index"] if user % 4 == 0 else [])],
                "vector": None if user % 7 == 3 else rng.integers(-2, 3, dim).astype(np.float32).tolist(),
            }
        )
    return rows


def users_block(rows: Sequence[dict], dim: int = 8) -> Block:
    """Returns rows of USERS with their vectors."""
    schema = USERS.append(pa.field("vector", pa.list_(pa.float32())))
    return with_vectors(pa.RecordBatch.from_pylist(list(rows), schema), dim)


def with_vectors(block: Block, dim: int = 8) -> Block:
    """Returns the block with its `vector` as EmbedUsers appends it; Parquet has no nulls among lists of a fixed size."""
    known = block["vector"].is_valid().to_numpy(zero_copy_only=False)
    vectors = np.zeros((block.num_rows, dim), np.float32)
    vectors[known] = block["vector"].flatten().to_numpy().reshape(-1, dim)
    return block.set_column(block.num_columns - 1, "vector", vector_column(vectors, known))


def write_users(root: str, rows: Sequence[dict], parts: dict[int, int], block_rows: int) -> dict[int, str]:
    """Writes users to parts of so many users each, in blocks, and returns the files by part."""
    block = pa.RecordBatch.from_pylist(list(rows), USERS.append(pa.field("vector", pa.list_(pa.float32()))))
    start, paths = 0, {}
    for part, size in parts.items():
        path = part_path("users", part)
        with parquet_writer(root, path, block.schema, []) as writer:
            for each in in_blocks(block.slice(start, size), block_rows):
                writer.write_batch(each)
        paths[part] = join(root, path)
        start += size
    return paths
