"""Makes a small sharded index and blocks of users with vectors, for the tests of what searches them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from schemas.blocks import Block, in_blocks
from schemas.embeddings import SHARD_ITEMS, embeddings_schema
from schemas.items import BLOCKED_ITEMS
from schemas.manifest import StageManifest
from schemas.parquet_files import parquet_writer
from schemas.stage_files import BLOCKED, ITEMS_OF_SHARDS
from schemas.storage import WrittenFile, join
from schemas.users import USERS
from transforms.index.build import write_shard
from transforms.index.embed import vector_column
from transforms.index.item_lists import ItemLists
from transforms.index.load import BuiltIndex, IndexFiles
from transforms.io.partition import key_by_shard
from transforms.io.write import part_path, write_part
from transforms.search.scann_index import ShardPlan, plan_shard


@dataclass(frozen=True)
class MadeItems:
    """A catalogue: item i has code i."""

    ids: list[str]
    vectors: np.ndarray
    train_counts: np.ndarray
    recent_counts: np.ndarray

    @property
    def block(self) -> Block:
        """Rows of `embeddings_schema`."""
        schema = embeddings_schema(self.vectors.shape[1])
        return pa.RecordBatch.from_arrays([pa.array(self.ids), vector_column(self.vectors)], schema=schema)

    @property
    def known(self) -> Block:
        """Rows of SHARD_ITEMS."""
        codes = pa.array(range(len(self.ids)), pa.int32())
        columns = [pa.array(self.ids), codes, pa.array(self.train_counts), pa.array(self.recent_counts)]
        return pa.RecordBatch.from_arrays(columns, schema=SHARD_ITEMS)


def make_items(num_items: int, dim: int = 8, seed: int = 0) -> MadeItems:
    """Makes whole-number vectors, so that scores are exact and many are equal, and training counts of which many are equal."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (num_items, dim)).astype(np.float32)
    train_counts, halves = (rng.integers(0, num_items // 3 + 1, num_items) for _ in range(2))
    return MadeItems([f"item {i:05d}" for i in range(num_items)], vectors, train_counts, halves / 2)


def write_index(
    root: str, items: MadeItems, num_shards: int, num_leaves: int | None = None, lists: ItemLists | None = None
) -> IndexFiles:
    """Builds the shards, with trees of `num_leaves` where given, and writes what is known of their items beside them."""
    files: list[WrittenFile] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.index.build.plan_shard", lambda n, dim: plan_shard(n, dim, num_leaves))
        for shard, block in key_by_shard(items.block, num_shards):
            files += write_shard(shard, [block], root, items.vectors.shape[1], seed=0)
    known = [
        write_part(root, ITEMS_OF_SHARDS, SHARD_ITEMS, shard, [block]) for shard, block in key_by_shard(items.known, num_shards)
    ]
    return BuiltIndex.of(root, files, num_shards).with_items(root, known, lists or ItemLists())


def plan_in(output: Path, indexed: StageManifest) -> ShardPlan:
    """Returns what shard 0 of a finished index is."""
    return BuiltIndex.of(str(output / indexed.folder), indexed.dataset("shards"), 1).with_items("", []).plan_of(0)


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
