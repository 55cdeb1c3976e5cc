"""Blocks: the elements of every PCollection here are Arrow record batches of thousands of rows, never single rows."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import apache_beam as beam
import pyarrow as pa

Block: TypeAlias = pa.RecordBatch

MAX_ROWS = 65_536
"""The most rows a block of ratings or items holds: a few MB, so that many fit in a bundle."""


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


def one_block(blocks: Iterable[Block], schema: pa.Schema) -> Block:
    """Returns the rows of `blocks`, in order, as one block of `schema`; an empty one where there are none."""
    table = pa.Table.from_batches(blocks, schema).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema)


def in_blocks(table: pa.Table | Block, max_rows: int = MAX_ROWS) -> Iterator[Block]:
    """Yields `table` in blocks of at most `max_rows` rows, none of them empty."""
    for start in range(0, table.num_rows, max_rows):
        piece = table.slice(start, max_rows)
        yield piece if isinstance(piece, pa.RecordBatch) else one_block(piece.to_batches(), piece.schema)
