"""Gives users the date of their lists, and lays the table out in files that a reader can skip through.

dated users ──> lists ──> row groups of a few users each, in either layout ──> one file a hash bucket, sorted by user

Inside the program a row of the table is a user, whatever the layout of the files: `read_table` reads both.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block, in_blocks, one_block
from schemas.parquet_files import find_rows, read_parquet_blocks, read_parquet_schema
from schemas.storage import WrittenFile
from schemas.topk import LAYOUTS, LONG, LONG_TOPK, NESTED, TOPK
from transforms.io.read import PlacedBlock
from transforms.io.write import WritePlacedBlocks
from transforms.search.id_map import list_lengths, places_in_lists

FOLDER = "topk"
"""Where, below a stage's folder, the files of the table are."""

ITEMS_A_ROW_GROUP = 1 << 17
"""About how many listed items a row group holds: few, so that finding one user's list costs little, and yet enough for an
engine that reads the whole table."""

_SORTED_BY = {NESTED: ("user_id",), LONG: ("user_id", "rank")}


def dated(block: Block, scored_at: datetime | None) -> Block:
    """Returns rows with another column, `scored_at`.

    Args:
      block: rows of users.
      scored_at: how new what their lists are made from is; None where nobody knows.
    """
    field = TOPK.field("scored_at")
    dates = pa.repeat(pa.scalar(scored_at, field.type), len(block))
    return pa.RecordBatch.from_arrays([*block.columns, dates], schema=block.schema.append(field))


def one_row_a_rank(block: Block) -> Block:
    """Returns rows of LONG_TOPK.

    Args:
      block: rows of TOPK.
    """
    lists = block["recommendations"]
    lengths = list_lengths(lists)
    row = pa.array(np.repeat(np.arange(len(block)), lengths))
    pairs = lists.flatten()
    columns = {name: block[name].take(row) for name in ("user_id", "source", "history_length", "scored_at")} | {
        "rank": pa.array((places_in_lists(lengths) + 1).astype(np.int32)),
        "item_id": pairs.field("item_id"),
        "score": pairs.field("score"),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in LONG_TOPK.names], schema=LONG_TOPK)


def starts_of_lists(block: Block) -> np.ndarray:
    """Returns [num_lists] int64: the rows of a block of LONG_TOPK at which another list begins, by user and by rank."""
    ids = block["user_id"].fill_null("")
    starts = block["rank"].fill_null(0).to_numpy(zero_copy_only=False) == 1
    starts[1:] |= pc.not_equal(ids.slice(1), ids.slice(0, max(0, len(ids) - 1))).to_numpy(zero_copy_only=False)
    starts[:1] = True
    return np.flatnonzero(starts)


def one_row_a_user(block: Block) -> Block:
    """Returns rows of TOPK.

    Args:
      block: rows of LONG_TOPK, nulls among them if need be; what belongs to the user may be left out, the scores may not.
    """
    starts = starts_of_lists(block)
    pairs = [block["item_id"], block["score"]] if "item_id" in block.schema.names else []
    columns = {name: block[name].take(pa.array(starts)) for name in TOPK.names if name in block.schema.names}
    if pairs:
        offsets = pa.array(np.append(starts, len(block)), pa.int32())
        columns["recommendations"] = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(pairs, ["item_id", "score"]))
    names = [name for name in TOPK.names if name in columns]
    return pa.RecordBatch.from_arrays([columns[name] for name in names], names)


def read_table(path: str, columns: list[str] | None = None) -> Iterator[Block]:
    """Yields the row groups of a file of the table, in either layout, as blocks of one row a user, in order.

    Args:
      path: the file.
      columns: of TOPK: what to read; everything by default.
    """
    schema = read_parquet_schema(path)
    if "rank" not in schema.names:
        yield from read_parquet_blocks(path, columns)
        return
    yield from map(one_row_a_user, read_parquet_blocks(path, _columns_of_long(columns) if columns else None))


def find_lists(paths: list[str], user_ids: pa.Array, columns: list[str] = TOPK.names) -> Block:
    """Returns the rows of some users, one row a user, reading only the row groups that can hold them.

    Args:
      paths: files of the table, in either layout; at least one.
      user_ids: [n] string, n at least 1.
      columns: of TOPK, in the order in which they are wanted.
    """
    is_long = "rank" in read_parquet_schema(paths[0]).names
    found = find_rows(paths, "user_id", user_ids, _columns_of_long(columns) if is_long else columns)
    block = one_block(found.to_batches(), found.schema)
    return (one_row_a_user(block) if is_long else block).select(columns)


def _columns_of_long(columns: list[str]) -> list[str]:
    """Returns the columns of LONG_TOPK that make some of TOPK."""
    pairs = ["item_id", "score"] if "recommendations" in columns else []
    return ["user_id", "rank", *pairs, *(name for name in columns if name not in ("user_id", "recommendations"))]


def row_groups(block: Block, k: int, layout: str = NESTED) -> Iterator[Block]:
    """Yields the rows of a block, as they are in files: in equal pieces of at most about `ITEMS_A_ROW_GROUP` listed items.

    Args:
      block: rows of TOPK.
      k: items a user.
      layout: one of LAYOUTS; no list is in two pieces in either.
    """
    pieces = math.ceil(len(block) / max(1, ITEMS_A_ROW_GROUP // k))
    for piece in in_blocks(block, math.ceil(len(block) / pieces)) if pieces else ():
        group = one_row_a_rank(piece) if layout == LONG else piece
        if len(group):
            yield group


@dataclass
class WriteTable(beam.PTransform):
    """Writes rows of TOPK: a file for each part, sorted by user, as the rows come.

    Attributes:
      root: the folder of the attempt.
      k: items a user.
      layout: of the files, one of LAYOUTS.
    """

    root: str
    k: int
    layout: str = NESTED

    def __post_init__(self) -> None:
        super().__init__()
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")

    def expand(self, blocks: beam.PCollection[PlacedBlock]) -> beam.PCollection[WrittenFile]:
        groups = partial(row_groups, k=self.k, layout=self.layout)
        return blocks | "WriteFiles" >> WritePlacedBlocks(
            self.root, FOLDER, LAYOUTS[self.layout], groups, _SORTED_BY[self.layout]
        )


@dataclass
class DateRows(beam.PTransform):
    """Appends `scored_at`, the same for all, to blocks of users; see `dated`.

    Attributes:
      scored_at: how new what they were made from is.
    """

    scored_at: datetime | None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, blocks: beam.PCollection[PlacedBlock]) -> beam.PCollection[PlacedBlock]:
        scored_at = self.scored_at
        return blocks | "DateBlock" >> beam.MapTuple(lambda place, block: (place, dated(block, scored_at))).with_output_types(
            PlacedBlock
        )
