"""Files are complete or absent, on a local disk and on a second file system alike."""

import hashlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from schemas import parquet_files, storage
from schemas.blocks import BlockCoder, in_blocks, one_block
from schemas.storage import WrittenFile
from schemas.stored import checked_folder

TABLE = pa.table({"id": [f"{i:03d}" for i in range(10)], "n": range(10)})


def test_json_round_trips_and_is_replaced_in_one_piece(root: str) -> None:
    path = storage.join(root, "a", "b.json")
    storage.write_json(path, {"title": "Misérables 🙂"})
    storage.write_json(path, {"title": "second"})
    assert storage.read_json(path) == {"title": "second"}
    assert [file.path for file in storage.list_files(storage.join(root, "a", "*"))] == [path]


def write_half(path: str) -> None:
    with storage.replacing(path) as file:
        file.write(b"half")
        raise OSError("no space")


def test_nothing_appears_when_writing_fails(root: str) -> None:
    path = storage.join(root, "file")
    storage.write_json(path, {"kept": True})
    with pytest.raises(OSError, match="no space"):
        write_half(path)
    assert storage.read_json(path) == {"kept": True}
    assert [each.path for each in storage.list_files(storage.join(root, "*"))] == [path]


def test_parquet_keeps_rows_row_groups_bytes_and_hash(root: str) -> None:
    written: list[WrittenFile] = []
    with parquet_files.parquet_writer(root, "t/part.parquet", TABLE.schema, written) as writer:
        for block in in_blocks(TABLE, 4):
            writer.write_batch(block)
    path = storage.join(root, "t/part.parquet")
    data = storage.read_bytes(path)
    assert written == [WrittenFile("t/part.parquet", 10, len(data), hashlib.sha256(data).hexdigest())]
    assert storage.sha256_of(path) == written[0].sha256
    blocks = list(parquet_files.read_parquet_blocks(path))
    assert [block.num_rows for block in blocks] == [4, 4, 2]
    assert pa.Table.from_batches(blocks) == TABLE
    assert [block.num_rows for block in parquet_files.read_parquet_blocks(path, max_rows=3)] == [3, 1, 3, 1, 2]


def test_parquet_is_read_by_another_engine(tmp_path: Path) -> None:
    with parquet_files.parquet_writer(str(tmp_path), "part.parquet", TABLE.schema, []) as writer:
        writer.write_batch(one_block(TABLE.to_batches(), TABLE.schema))
    found = duckdb.execute("SELECT sum(n), max(id) FROM read_parquet(?)", [f"{tmp_path}/part.parquet"]).fetchall()
    assert found == [(45, "009")]


def test_folders_travel_to_storage_and_back(root: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "variables").mkdir()
    (folder / "variables" / "data").write_bytes(b"weights")
    (folder / "saved_model.pb").write_bytes(b"graph")
    written = storage.upload_folder(folder, root, "tower")
    assert [file.path for file in written] == ["tower/saved_model.pb", "tower/variables/data"]
    with checked_folder(root, written) as local:
        assert (local / "tower/variables/data").read_bytes() == b"weights"


def test_missing_files_are_an_empty_list(root: str) -> None:
    assert storage.list_files(storage.join(root, "none", "*")) == []
    assert not storage.exists(storage.join(root, "none"))
    storage.delete(storage.join(root, "none"))


def test_block_coder_round_trips_a_slice_at_the_cost_of_the_slice() -> None:
    block = one_block(TABLE.to_batches(), TABLE.schema)
    coder = BlockCoder()
    piece = block.slice(2, 3)
    assert coder.decode(coder.encode(piece)).equals(piece)
    long = pa.record_batch({"id": ["x" * 100] * 10_000})
    assert len(coder.encode(long.slice(0, 10))) < 5_000
    assert coder.is_deterministic()


def test_one_block_of_nothing_is_empty() -> None:
    assert one_block([], TABLE.schema).num_rows == 0
    assert list(in_blocks(TABLE.slice(0, 0))) == []


def test_find_rows_reads_only_the_row_groups_that_can_hold_them(root: str) -> None:
    with parquet_files.parquet_writer(root, "t.parquet", TABLE.schema, []) as writer:
        for block in in_blocks(TABLE, 3):
            writer.write_batch(block)
    path = storage.join(root, "t.parquet")
    found = parquet_files.find_rows([path], "id", pa.array(["004", "999", "000"]), ["n"])
    assert found["n"].to_pylist() == [0, 4]
    nothing = parquet_files.find_rows([path], "id", pa.array(["zzz"]))
    assert nothing.num_rows == 0
    assert nothing.schema.names == ["id", "n"]
