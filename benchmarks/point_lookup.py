"""Measures what finding one user's list reads, and what small row groups cost: `python -m benchmarks.point_lookup`.

A table of made lists is written in both layouts and with row groups of several sizes. Users are looked up with the function
that `pipelines.lookup` uses, through a file that counts; then DuckDB reads the whole table, sizes in turns.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest import mock

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import storage
from schemas.blocks import Block
from schemas.parquet_files import find_rows, parquet_writer
from schemas.storage import WrittenFile
from schemas.topk import LAYOUTS, TOPK
from transforms.ingest.histories import USERS_A_BLOCK
from transforms.io.partition import bucket_of, split_by_key
from transforms.io.write import part_path
from transforms.lists import table

ITEM_IDS = pa.array([f"item-{number}" for number in range(50_000)])
SIZES = (1 << 13, 1 << 15, 1 << 16, table.ITEMS_A_ROW_GROUP, 1 << 20)
"""Listed items a row group."""


def made_block(users: pa.Array, k: int, rng: np.random.Generator) -> Block:
    """Returns rows of TOPK: lists of items that are popular by Zipf's law, scores falling."""
    chosen = (len(ITEM_IDS) * rng.random((len(users), k)) ** 3).astype(np.int64).ravel()
    scores = -np.sort(-rng.normal(5, 1, (len(users), k)).astype(np.float32), axis=1).ravel()
    ids = ITEM_IDS.take(pa.array(chosen))
    pairs = pa.StructArray.from_arrays([ids, pa.array(scores)], fields=list(TOPK.field("recommendations").type.value_type))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(len(users) + 1) * k, pa.int32()), pairs)
    lengths = pa.array(rng.integers(1, 300, len(users)).astype(np.int32))
    columns = [
        users,
        pa.repeat(pa.scalar("personalised"), len(users)),
        lengths,
        lists,
        pa.nulls(len(users), TOPK.field("scored_at").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TOPK)


def write(folder: Path, num_users: int, num_buckets: int, k: int, layout: str, items_a_row_group: int) -> list[str]:
    """Writes a table as the job does, but for the size of row groups, and returns its files by bucket."""
    rng = np.random.default_rng(0)
    everyone = pa.RecordBatch.from_arrays([pa.array([f"user-{number}" for number in range(num_users)])], ["user_id"])
    written: list[WrittenFile] = []
    with mock.patch.object(table, "ITEMS_A_ROW_GROUP", items_a_row_group):
        for bucket, mine in split_by_key(everyone, bucket_of(everyone["user_id"], num_buckets)):
            users = mine.sort_by("user_id")["user_id"]
            with parquet_writer(str(folder), part_path("topk", bucket), LAYOUTS[layout], written, ("user_id",)) as writer:
                for start in range(0, len(users), USERS_A_BLOCK):
                    block = made_block(users.slice(start, USERS_A_BLOCK), k, rng)
                    for group in table.row_groups(block, k, layout):
                        writer.write_batch(group)
    return [str(folder / file.path) for file in written]


@dataclass
class Read:
    """What look-ups have read."""

    bytes: int = 0
    requests: int = 0
    rows: int = 0
    row_groups: int = 0
    files: list[str] = field(default_factory=list)


class _Counting(RawIOBase):
    """A file that counts what is read of it."""

    def __init__(self, file: BinaryIO, read: Read) -> None:
        self._file, self._read = file, read

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._read.bytes += len(data)
        self._read.requests += 1
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def counted(read: Read) -> Iterator[None]:
    """Counts everything that is read of Parquet files while the block runs."""
    opened, read_row_groups = storage.open_file, pq.ParquetFile.read_row_groups

    def open_counting(path: str) -> BinaryIO:
        read.files.append(path)
        return cast(BinaryIO, _Counting(opened(path), read))

    def read_counting(self: pq.ParquetFile, groups: list[int], *args: Any, **options: Any) -> pa.Table:
        read.row_groups += len(groups)
        read.rows += sum(self.metadata.row_group(group).num_rows for group in groups)
        return read_row_groups(self, groups, *args, **options)

    with (
        mock.patch.object(storage, "open_file", open_counting),
        mock.patch.object(pq.ParquetFile, "read_row_groups", read_counting),
    ):
        yield


def look_up(files: list[str], user_ids: list[str]) -> Read:
    """Looks users up, one at a time, as `pipelines.lookup` does."""
    read = Read()
    ids = pa.array(user_ids)
    with counted(read):
        for at, bucket in enumerate(bucket_of(ids, len(files)).tolist()):
            found = find_rows([files[bucket]], "user_id", ids.slice(at, 1))
            assert found.num_rows
    return read


def scan(files: list[str]) -> float:
    """Returns the seconds in which DuckDB reads every column of the table."""
    nested = "recommendations" in pq.read_schema(files[0]).names
    columns = "unnest(recommendations, recursive := true)" if nested else "item_id, score"
    started = time.perf_counter()
    duckdb.execute(
        f"SELECT sum(score), max(item_id), max(user_id) FROM (SELECT user_id, {columns} FROM read_parquet(?))", [files]
    ).fetchall()
    return time.perf_counter() - started


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_users", type=int, default=200_000)
    parser.add_argument("--num_buckets", type=int, default=4)
    parser.add_argument("--items_a_user", type=int, default=100)
    parser.add_argument("--items_a_row_group", default=",".join(map(str, SIZES)), help="sizes to compare with the job's")
    parser.add_argument("--lookups", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args(argv)
    sizes = sorted({*map(int, flags.items_a_row_group.split(",")), table.ITEMS_A_ROW_GROUP})
    rng = np.random.default_rng(1)
    users = [f"user-{number}" for number in rng.choice(flags.num_users, min(flags.lookups, flags.num_users), replace=False)]
    print("| layout | listed items a row group | MB in all | row groups | a look-up reads: rows | kB | reads | to read all |")
    print("|---|---|---|---|---|---|---|---|")
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            tables = {
                size: write(Path(folder, str(size)), flags.num_users, flags.num_buckets, flags.items_a_user, layout, size)
                for size in sizes
            }
            seconds: dict[int, list[float]] = {size: [] for size in sizes}
            for _ in range(flags.repeats):
                for size, files in tables.items():
                    seconds[size].append(scan(files))
            whole = statistics.median(seconds[table.ITEMS_A_ROW_GROUP])
            for size, files in tables.items():
                read = look_up(files, users)
                megabytes = sum(Path(file).stat().st_size for file in files) / 1e6
                groups = sum(pq.ParquetFile(file).num_row_groups for file in files)
                ratio = statistics.median(seconds[size]) / whole
                assert len(read.files) == len(users)
                print(
                    f"| {layout} | {size:,} | {megabytes:.1f} | {groups} | {read.rows / len(users):,.0f} | "
                    f"{read.bytes / len(users) / 1e3:,.0f} | {read.requests / len(users):.1f} | {ratio:.2f} x |",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
