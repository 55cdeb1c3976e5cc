"""Reads a source in pieces, as blocks whose columns have the names of their roles."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import MAX_ROWS, Block, in_blocks
from schemas.errors import InputError
from schemas.ids import as_whole_numbers
from schemas.rejected import REJECTED
from transforms.ingest import tfds_blocks
from transforms.ingest.csv_pieces import NOT_UTF8, cut, decode_utf8, parse_run, record_runs
from transforms.ingest.formats import BY_NAME, opened, opened_parquet, text_header
from transforms.ingest.rejects import rejected_block
from transforms.ingest.sources import POSITION_BITS, Source
from transforms.ingest.validate import RawBlocks
from transforms.ingest.values import is_text

PIECE_BYTES = 64 << 20
"""How much of a file one worker reads at a time."""


Piece = tuple[int, int, int]
"""A file's ordinal, and a range of it: bytes of text (to the end: -1), row groups of Parquet, examples of TFDS."""

_TO_THE_END = -1


def cut_file(ordinal: int, source: Source, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yields the pieces of a file: whole records, all of them, each once."""
    path, size, file_format = source.files[ordinal].path, source.files[ordinal].size, BY_NAME[source.format]
    if source.format == "tfds":
        # `size` counts examples; about 64 bytes of a column's values each.
        step = max(1, piece_bytes // 64)
        yield from ((ordinal, start, min(start + step, size)) for start in range(0, size, step))
    elif file_format.dialect is None:
        with opened_parquet(path) as parquet:
            start, total = 0, 0
            for group in range(parquet.num_row_groups):
                total += parquet.metadata.row_group(group).total_byte_size
                if total >= piece_bytes or group + 1 == parquet.num_row_groups:
                    yield ordinal, start, group + 1
                    start, total = group + 1, 0
    else:
        with opened(path, file_format) as file:
            _, start, _ = text_header(file, file_format)
            if file_format.is_gzip:
                yield ordinal, start, _TO_THE_END
            else:
                yield from ((ordinal, *piece) for piece in cut(file, start, size, file_format.dialect, piece_bytes))


def read_piece(piece: Piece, source: Source) -> Iterator[Any]:
    """Yields the raw blocks of a piece, and REJECTED blocks tagged 'malformed'."""
    if source.format == "tfds":
        yield from _read_tfds(piece, source)
    elif source.format == "parquet":
        yield from _read_parquet(piece, source)
    else:
        yield from _read_text(piece, source)


def _read_tfds(piece: Piece, source: Source) -> Iterator[Any]:
    ordinal, start, stop = piece
    assert source.tfds_name is not None
    builder = tfds_blocks.open_builder(source.tfds_name, source.tfds_data_dir)
    split = source.files[ordinal].path.rpartition("/")[2]
    for block in tfds_blocks.read_split(builder, split, start, stop, source.wanted):
        yield from _raw(*_decoded_block(block, source), source, ordinal, np.arange(start, start + block.num_rows))
        start += block.num_rows


def _read_parquet(piece: Piece, source: Source) -> Iterator[Any]:
    ordinal, first, stop = piece
    with opened_parquet(source.files[ordinal].path) as parquet:
        start = sum(parquet.metadata.row_group(group).num_rows for group in range(first))
        groups = list(range(first, stop))
        for block in parquet.iter_batches(MAX_ROWS, row_groups=groups, columns=source.wanted, use_threads=False):
            yield from _raw(*_decoded_block(block, source), source, ordinal, np.arange(start, start + block.num_rows))
            start += block.num_rows


def _read_text(piece: Piece, source: Source) -> Iterator[Any]:
    ordinal, first, stop = piece
    file_format = BY_NAME[source.format]
    dialect = file_format.dialect
    assert dialect is not None
    with opened(source.files[ordinal].path, file_format) as file:
        names, _, _ = text_header(file, file_format)
        for run in record_runs(file, first, None if stop == _TO_THE_END else stop, dialect):
            if run.is_open:
                text = run.data.decode("utf-8", "replace").rstrip("\r\n")
                yield _malformed(source, ordinal, "line has a quote that is never closed", [(run.start, text)])
                continue
            parsed = parse_run(run.data, names, source.wanted, dialect)
            if parsed.malformed:
                lines = [(run.start + row, text.replace(NOT_UTF8, "\ufffd")) for row, text in parsed.malformed]
                yield _malformed(source, ordinal, "line has the wrong number of columns", lines)
            row = 0
            for block in in_blocks(parsed.table):
                rows = run.start + parsed.rows[row : row + block.num_rows]
                yield from _raw(_whole_ids(block, source), parsed.has_not_utf8, source, ordinal, rows)
                row += block.num_rows


def _whole_ids(block: Block, source: Source) -> Block:
    """Writes the ids of a text file that are whole numbers with `.0` as the same numbers in a column of floats are written."""
    columns = dict(zip(block.schema.names, block.columns, strict=True))
    for role, name in source.columns.items():
        if role.endswith("_id"):
            columns[name] = as_whole_numbers(columns[name])
    return pa.RecordBatch.from_pydict(columns)


def _positions(ordinal: int, rows: Any) -> pa.Array:
    return pa.array(np.asarray(rows, np.int64) + (ordinal << POSITION_BITS))


def _malformed(source: Source, ordinal: int, reason: str, lines: list[tuple[int, str]]) -> beam.pvalue.TaggedOutput:
    """Returns lines, each with its place in the file, as a tagged REJECTED block."""
    rows = {
        "source": pa.repeat(source.files[ordinal].path, len(lines)),
        "position": _positions(ordinal, [row for row, _ in lines]),
        "text": pa.array([text for _, text in lines], pa.string()),
    }
    return beam.pvalue.TaggedOutput("malformed", rejected_block(source.dataset, pa.repeat(reason, len(lines)), rows))


def _decoded(column: pa.Array, wanted: pa.DataType | None) -> tuple[pa.Array, bool]:
    """Decodes dictionaries, and bytes where text is wanted.

    Args:
      column: A column in the file's type.
      wanted: The type to return; None, for a role: text if it is bytes, else the file's.

    Returns:
      The column, and whether NOT_UTF8 stands for anything in it.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    dtype = column.type
    is_bytes = pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype)
    if not is_text(dtype) and not (is_bytes and (wanted is None or is_text(wanted))):
        return column, False
    texts, has_not_utf8 = decode_utf8(column.cast(pa.binary()))
    return texts if wanted is None else texts.cast(wanted), has_not_utf8


def _decoded_block(block: Block, source: Source) -> tuple[Block, bool]:
    """Decodes the wanted columns of a block of Parquet or TFDS; tells whether NOT_UTF8 stands for anything in it."""
    types: list[pa.DataType | None] = [*([None] * len(source.columns)), *source.other_columns.types]
    decoded = [_decoded(block[name], wanted) for name, wanted in zip(source.wanted, types, strict=True)]
    columns = [column for column, _ in decoded]
    return pa.RecordBatch.from_arrays(columns, source.wanted), any(has_not_utf8 for _, has_not_utf8 in decoded)


def _raw(block: Block, has_not_utf8: bool, source: Source, ordinal: int, rows: np.ndarray) -> Iterator[Any]:
    """Yields the raw block of [n] rows of a file's wanted columns; tagged 'malformed', those whose ids are not UTF-8.

    Args:
      block: [n] rows, text decoded.
      has_not_utf8: Whether NOT_UTF8 stands for anything in it.
      source: The source.
      ordinal: Of the file.
      rows: [n] int64: where each row stands in the file.
    """
    columns = dict(zip((*source.columns, *source.other_columns.names), block.columns, strict=True))
    is_bad = np.zeros(block.num_rows, bool)
    if has_not_utf8:
        for name, column in columns.items():
            if is_text(column.type):
                if name.endswith("_id") and name in source.columns:
                    is_bad |= pc.fill_null(pc.match_substring(column, NOT_UTF8), False).to_numpy(zero_copy_only=False)
                columns[name] = pc.replace_substring(column, NOT_UTF8, "\ufffd")
    columns["position"] = _positions(ordinal, rows)
    path = pa.array([source.files[ordinal].path], pa.string())
    columns["source"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(block.num_rows, np.int32)), path)
    raw = pa.RecordBatch.from_pydict(columns)
    if is_bad.any():
        bad = raw.filter(pa.array(is_bad))
        found = {name: bad[name] for name in bad.schema.names if name in REJECTED.names}
        reasons = pa.repeat("id is not UTF-8 text", bad.num_rows)
        yield beam.pvalue.TaggedOutput("malformed", rejected_block(source.dataset, reasons, found))
        raw = raw.filter(pa.array(~is_bad))
    if raw.num_rows:
        yield raw


@dataclass
class ReadBlocks(beam.PTransform):
    """Reads a source: its pieces are spread over the workers, whichever file they are of."""

    source: Source
    piece_bytes: int = PIECE_BYTES

    def __post_init__(self) -> None:
        super().__init__()
        if self.piece_bytes < 1:
            raise InputError(f"piece_bytes must be positive, got {self.piece_bytes}")

    def expand(self, begin: beam.pvalue.PBegin) -> RawBlocks:
        read = (
            begin
            | "Files" >> beam.Create(range(len(self.source.files)), reshuffle=False).with_output_types(int)
            | "SpreadFiles" >> beam.Reshuffle()
            | "Cut" >> beam.FlatMap(cut_file, self.source, self.piece_bytes).with_output_types(Piece)
            | "SpreadPieces" >> beam.Reshuffle()
            | "Read"
            >> beam.FlatMap(read_piece, self.source)
            .with_output_types(Block, malformed=Block)
            .with_outputs("malformed", main="blocks")
        )
        blocks = read.blocks
        if BY_NAME[self.source.format].is_gzip:
            blocks |= "SpreadBlocks" >> beam.Reshuffle()
        return RawBlocks(blocks, read.malformed)
