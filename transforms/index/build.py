"""Builds the shards of the index from blocks of embeddings, each with the map that turns its rows back into items."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import FEWER_ITEMS, Block, one_block
from schemas.embeddings import ID_MAP, embeddings_schema
from schemas.errors import InputError
from schemas.stage_files import ID_MAP_FILE, INDEX_FOLDER
from schemas.storage import WrittenFile, upload_folder
from transforms.io.partition import key_by_shard
from transforms.search.scann_index import BuildSettings, build, plan_shard

BY_SIZE = BuildSettings()
"""Nothing asked for: the size of a shard decides."""


def shard_path(shard: int) -> str:
    """Returns a shard's folder, relative to the attempt."""
    return f"shards/{shard:05d}"


def vectors_of(embeddings: pa.Array) -> np.ndarray:
    """Returns [n, dim] float32 from a FixedSizeList<float32>[dim] column without nulls, without a copy where possible."""
    return embeddings.flatten().to_numpy(zero_copy_only=False).reshape(len(embeddings), embeddings.type.list_size)


def build_shard(blocks: Iterable[Block], dim: int, seed: int, folder: Path, ask: BuildSettings = BY_SIZE) -> int:
    """Builds one shard and writes it to a local folder.

    Args:
      blocks: the shard's rows of `embeddings_schema(dim)`, in any order; the index keeps them in the order of their ids.
      dim: of the vectors.
      seed: of the clustering.
      folder: where to write; `scann/` and the id map.
      ask: how to index, where not as the size says.

    Returns:
      How many vectors the shard has.
    """
    rows = one_block(blocks, embeddings_schema(dim), FEWER_ITEMS)
    rows = rows.take(pc.sort_indices(rows["item_id"]))
    index = build(vectors_of(rows["embedding"]), ask.applied_to(plan_shard(rows.num_rows, dim)), seed)
    index.save(folder / INDEX_FOLDER)
    with pa.ipc.new_file(str(folder / ID_MAP_FILE), ID_MAP) as writer:
        writer.write_batch(rows.select(ID_MAP.names).cast(ID_MAP))
    return rows.num_rows


def write_shard(
    shard: int, blocks: Iterable[Block], root: str, dim: int, seed: int, ask: BuildSettings = BY_SIZE
) -> list[WrittenFile]:
    """Builds one shard and writes it below `root`, which may be remote; see `build_shard`.

    Raises:
      InputError: naming the shard, if its vectors cannot be indexed.
    """
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        try:
            build_shard(blocks, dim, seed, Path(folder), ask)
        except InputError as error:
            raise InputError(f"failed to build the index of shard {shard}: {error}") from error
        except Exception as error:
            raise RuntimeError(f"failed to build the index of shard {shard}") from error
        return upload_folder(Path(folder), root, shard_path(shard))


@dataclass
class BuildIndexes(beam.PTransform):
    """Builds one ScaNN index a shard.

    Attributes:
      root: the folder of the attempt.
      num_shards: how many; items go to shards by a stable hash of their ids. A shard without items is not written.
      dim: of the vectors.
      seed: of the clustering.
      ask: how to index, where not as the size of a shard says.
    """

    root: str
    num_shards: int
    dim: int
    seed: int
    ask: BuildSettings = BY_SIZE

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, embeddings: beam.PCollection[Block]) -> beam.PCollection[WrittenFile]:
        return (
            embeddings
            | "KeyByShard" >> beam.FlatMap(key_by_shard, self.num_shards).with_output_types(tuple[int, Block])
            | "GroupByShard" >> beam.GroupByKey()
            | "BuildShard" >> beam.FlatMapTuple(self._write).with_output_types(WrittenFile)
        )

    def _write(self, shard: int, blocks: Iterable[Block]) -> Iterator[Any]:
        yield from write_shard(shard, blocks, self.root, self.dim, self.seed, self.ask)
