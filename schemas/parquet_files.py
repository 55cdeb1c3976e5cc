"""Writes and reads Parquet files on any file system."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.blocks import Block
from schemas.errors import InputError, ReadRefused
from schemas.storage import HashingWriter, WrittenFile, join, open_file, replacing


@contextmanager
def parquet_writer(
    root: str, path: str, schema: pa.Schema, written: list[WrittenFile], sorted_by: Sequence[str] = ()
) -> Iterator["RowGroupWriter"]:
    """Opens a Parquet writer for `root/path` (zstd); appends what was written to `written` once the file is complete.

    Each block written becomes one row group, with statistics, so that readers can skip those that they do not need.

    Args:
      root: the folder of the attempt.
      path: relative to it.
      schema: of the blocks.
      written: what was written is added here.
      sorted_by: columns by which the rows ascend; the file says so.
    """
    with replacing(join(root, path)) as file:
        hashing = HashingWriter(file)
        writer = pq.ParquetWriter(
            pa.PythonFile(hashing, mode="w"),
            schema,
            compression="zstd",
            write_page_index=True,
            sorting_columns=pq.SortingColumn.from_ordering(schema, [(name, "ascending") for name in sorted_by]) or None,
        )
        groups = RowGroupWriter(writer)
        yield groups
        writer.close()
    written.append(WrittenFile(path, groups.rows, hashing.bytes, hashing.sha256))


class RowGroupWriter:
    """Writes each block as a row group, and counts the rows."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self.rows = 0

    def write_batch(self, block: Block) -> None:
        self._writer.write_batch(block, row_group_size=max(1, block.num_rows))
        self.rows += block.num_rows


def read_parquet_blocks(path: str, columns: list[str] | None = None, max_rows: int | None = None) -> Iterator[Block]:
    """Yields a Parquet file's row groups as blocks, in order, none of them empty; of at most `max_rows` rows where given."""
    with _opened(path) as parquet:
        for group in range(parquet.num_row_groups):
            for block in parquet.iter_batches(max_rows or 2**31 - 1, row_groups=[group], columns=columns, use_threads=False):
                if block.num_rows:
                    yield block


def read_parquet_schema(path: str) -> pa.Schema:
    """Returns the schema of one of our own Parquet files."""
    with _opened(path) as parquet:
        return parquet.schema_arrow


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    """Opens one of our own Parquet files; read it with `use_threads=False`.

    Arrow's threads may still hold a Python file, which is what this is, when they have delivered all. Where the process ends
    before they let go of it, it aborts or hangs: apache/arrow#34314 and #50482.

    Raises:
      InputError: if it is gone or damaged.
    """
    try:
        with open_file(path) as file:
            yield pq.ParquetFile(file)
    except ReadRefused:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is gone or damaged ({error}): delete the folder of its stage and run the same command again"
        ) from error


def find_rows(paths: Iterable[str], column: str, values: pa.Array, columns: list[str] | None = None) -> pa.Table:
    """Returns the rows of Parquet files whose `column` is one of `values`, reading only the row groups that can hold one.

    Args:
      paths: the files, at least one.
      column: a string column that has statistics.
      values: [n] string, n at least 1.
      columns: what to return; everything by default.
    """
    low, high = (each.as_py() for each in pc.min_max(values).values())
    found = []
    for path in paths:
        with _opened(path) as parquet:
            leaves = [parquet.schema.column(leaf).path for leaf in range(len(parquet.schema))]
            at = leaves.index(column)
            wanted = list(dict.fromkeys([*columns, column])) if columns else None
            schema = (
                parquet.schema_arrow if wanted is None else pa.schema([parquet.schema_arrow.field(name) for name in wanted])
            )
            groups = []
            for group in range(parquet.num_row_groups):
                statistics = parquet.metadata.row_group(group).column(at).statistics
                if statistics is None or not statistics.has_min_max or (statistics.min <= high and statistics.max >= low):
                    groups.append(group)
            table = parquet.read_row_groups(groups, columns=wanted, use_threads=False) if groups else schema.empty_table()
            found.append(table.filter(pc.is_in(table[column], values)))
    return pa.concat_tables(found)
