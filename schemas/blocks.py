"""Blocks: the elements of every PCollection here are Arrow record batches of thousands of rows, never single rows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import InputError

Block: TypeAlias = pa.RecordBatch

MAX_ROWS = 65_536
"""The most rows a block of ratings or items holds: a few MB, so that many fit in a bundle."""

MAX_SPAN = 2**31 - 1
"""The most bytes of text in a column of a block, and the most values in its lists: Arrow counts them in 32 bits."""

FEWER_USERS = "raise --num_buckets, so that fewer users meet in one bucket"
FEWER_ITEMS = "raise --num_shards, so that fewer items meet in one shard"
"""What mends a block that is too large, where it holds a bucket of users, or a shard of items."""

_FEWER_ROWS = "raise --num_buckets and --num_shards, so that fewer users and items meet in one place"


class BlockCoder(beam.coders.Coder):
    """Encodes a block in Arrow's IPC format: a copy of its buffers, where pickle would cost several."""

    def encode(self, value: Block) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> Block:
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return Block


beam.coders.registry.register_coder(Block, BlockCoder)


def one_block(blocks: Iterable[Block], schema: pa.Schema, repair: str = _FEWER_ROWS) -> Block:
    """Returns the rows of `blocks`, in order, as one block of `schema`; an empty one where there are none.

    Args:
      blocks: rows of `schema`.
      schema: of the block.
      repair: what the user can do where they are too large for one block: which flag to turn.

    Raises:
      InputError: if a column has more text, or its lists more values, than one block holds.
    """
    table = pa.Table.from_batches(blocks, schema)
    for name, column in zip(table.schema.names, table.columns, strict=True):
        _check_spans(name, column.chunks, repair)
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:  # Arrow would cut a table that it cannot join, and the rest of the rows would be lost.
        raise InputError(f"{table.num_rows:,} rows of {table.nbytes:,} bytes do not fit one block: {repair}")
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema)


def joined(arrays: Sequence[pa.Array], name: str, repair: str = _FEWER_ROWS) -> pa.Array:
    """Returns the values of `arrays`, of one type and at least one of them, in order.

    Args:
      arrays: columns, or parts of them.
      name: of the column, for the user.
      repair: as in `one_block`.

    Raises:
      InputError: if they have more text, or their lists more values, than one array holds.
    """
    _check_spans(name, arrays, repair)
    return pa.concat_arrays(arrays)


def _check_spans(name: str, arrays: Sequence[pa.Array], repair: str) -> None:
    longest = max((sum(spans) for spans in zip(*(_spans_of(array) for array in arrays), strict=True)), default=0)
    if longest > MAX_SPAN:
        raise InputError(f"{name} comes to {longest:,} bytes in one block, which holds at most {MAX_SPAN:,}: {repair}")


def _spans_of(array: pa.Array) -> Iterator[int]:
    """Yields how far the offsets of an array reach, one number for each level at which it has any; no value is read."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        first, last = _ends_of(array)
        yield last - first
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        first, last = _ends_of(array)
        if pa.types.is_list(kind):
            yield last - first
        yield from _spans_of(array.values.slice(first, last - first))
    elif pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        yield from _spans_of(array.values.slice(array.offset * size, len(array) * size))
    elif pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            yield from _spans_of(array.field(place))


def _ends_of(array: pa.Array) -> tuple[int, int]:
    """Returns the first and the last offset of text or lists."""
    if not len(array):
        return 0, 0
    offsets = np.frombuffer(array.buffers()[1], np.int64 if pa.types.is_large_list(array.type) else np.int32)
    return int(offsets[array.offset]), int(offsets[array.offset + len(array)])


_TEXT = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)


def text_lengths(array: pa.Array) -> np.ndarray:
    """Returns [n] int64: how many bytes of text each row has, at whatever depth; 0 for what is no text."""
    kind = array.type
    if any(is_text(kind) for is_text in _TEXT):
        return pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        total = np.concatenate([[0], np.cumsum(text_lengths(array.flatten()))])
        ends = np.cumsum(lengths, dtype=np.int64)
        return total[ends] - total[ends - lengths]
    if pa.types.is_struct(kind):
        return np.sum([np.zeros(len(array), np.int64), *(text_lengths(each) for each in array.flatten())], axis=0)
    return np.zeros(len(array), np.int64)


def in_blocks(table: pa.Table | Block, max_rows: int = MAX_ROWS) -> Iterator[Block]:
    """Yields `table` in blocks of at most `max_rows` rows, none of them empty."""
    for start in range(0, table.num_rows, max_rows):
        piece = table.slice(start, max_rows)
        yield piece if isinstance(piece, pa.RecordBatch) else one_block(piece.to_batches(), piece.schema)
