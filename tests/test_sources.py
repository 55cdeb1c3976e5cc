"""From URIs to raw blocks: every format against the rows that were written, every mistake against its message."""

import csv
import dataclasses
import gzip
import importlib.metadata
import io
import json
import os
import re
from decimal import Decimal
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from pipelines.stages import ingest
from schemas import storage
from schemas.blocks import MAX_ROWS, Block
from schemas.errors import InputError
from schemas.rejected import REJECTED
from transforms.ingest.columns import RATING_ROLES, Roles, map_columns
from transforms.ingest.read_source import PIECE_BYTES, ReadBlocks, cut_file, read_piece
from transforms.ingest.sources import Source, find_files, resolve, resolve_items, resolve_ratings, text_bytes_of

BEAM = importlib.metadata.version("apache-beam")

HEADER = ["user_id", "item_id", "rating", "timestamp"]
ROWS = [
    ("0002844", "i,1", "4.5", "881250949"),
    ('u"2"', "two\nlines", "3", None),
    ("😀 é", " spaced ", None, "1"),
    ("x" * 10_000, "i4", "1", "2"),
]
PLAIN_ROWS = [tuple(None if field is None else field.replace("\n", " ").replace('"', "'") for field in row) for row in ROWS]


def write(path: Path, text: str | bytes) -> str:
    """Writes a file, gzipped where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def write_csv(path: Path, rows=ROWS, header=HEADER) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return write(path, text.getvalue())


def write_tsv(path: Path, rows=PLAIN_ROWS, header=HEADER) -> str:
    lines = ["\t".join("" if field is None else field for field in row) for row in [header, *rows]]
    return write(path, "\n".join(lines) + "\n")


def write_parquet(path: Path, columns, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def read(source: Source, piece_bytes: int = PIECE_BYTES) -> tuple[pa.Table, list[dict]]:
    """Reads a source without Beam: all its rows, and what was set aside."""
    blocks, malformed = [], []
    for ordinal in range(len(source.files)):
        for piece in cut_file(ordinal, source, piece_bytes):
            for block in read_piece(piece, source):
                if isinstance(block, beam.pvalue.TaggedOutput):
                    assert block.value.schema.equals(REJECTED, check_metadata=True)
                    block.value.validate(full=True)
                    malformed += block.value.to_pylist()
                else:
                    assert 0 < block.num_rows <= MAX_ROWS
                    block.validate(full=True)
                    blocks.append(block)
    return pa.Table.from_batches(blocks).unify_dictionaries(), malformed


def rows_of(table: pa.Table, names=HEADER) -> list[tuple]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def mistake(uri, columns=None, resolve=resolve_ratings) -> str:
    with pytest.raises(InputError) as error:
        resolve(str(uri), columns)
    return str(error.value)


# Formats


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "R.CSV"])
@pytest.mark.parametrize("piece_bytes", [1, 30, PIECE_BYTES])
def test_csv(tmp_path, name, piece_bytes):
    table, malformed = read(resolve_ratings(write_csv(tmp_path / name)), piece_bytes)
    assert rows_of(table) == ROWS
    assert malformed == []


@pytest.mark.parametrize("name", ["r.tsv", "r.tsv.gz", "r.inter"])
@pytest.mark.parametrize("piece_bytes", [1, 30, PIECE_BYTES])
def test_tab_separated_text(tmp_path, name, piece_bytes):
    header = [f"{column}:token" for column in HEADER] if name.endswith("inter") else HEADER
    table, malformed = read(resolve_ratings(write_tsv(tmp_path / name, header=header)), piece_bytes)
    assert rows_of(table) == PLAIN_ROWS
    assert malformed == []


def test_large_files_are_cut_and_their_rows_keep_their_order(tmp_path):
    rows = [(f"u{row}", f"i{row}", "1", str(row)) for row in range(200_000)]
    source = resolve_ratings(write_csv(tmp_path / "r.csv", rows))
    pieces = list(cut_file(0, source, 1 << 20))
    assert len(pieces) > 3
    table, _ = read(source, 1 << 20)
    assert rows_of(table) == rows
    assert (np.diff(table["position"].to_numpy()) > 0).all()


IDS = {
    "int64": pa.array([2**53 + 1, -5, None]),
    "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "float": pa.array([1.0, 2.0, None]),
    "decimal": pa.array([Decimal("12"), Decimal("3"), None]),
    "binary": pa.array([b"a", "é".encode(), None]),
    "fixed": pa.array([b"aa", b"bb", None], pa.binary(2)),
    "large": pa.array(["007", "b", None], pa.large_string()),
    "dictionary": pa.array(["a", "b", None]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", IDS)
def test_parquet_of_any_id_type(tmp_path, kind):
    ids = IDS[kind]
    path = write_parquet(
        tmp_path / "r.parquet", {"uid": ids, "item_id": ["a", "b", "c"], "rating": [1.5, None, 2.0]}, row_group_size=2
    )
    table, malformed = read(resolve_ratings(path), piece_bytes=1)
    expected = [value.decode() if isinstance(value, bytes) else value for value in ids.to_pylist()]
    assert table["user_id"].to_pylist() == expected
    assert table["rating"].to_pylist() == [1.5, None, 2.0]
    assert table["position"].to_pylist() == [0, 1, 2]
    assert table.column_names == ["user_id", "item_id", "rating", "position", "source"]
    assert malformed == []


def test_row_groups_are_the_pieces_of_parquet(tmp_path):
    path = write_parquet(
        tmp_path / "r.pq", {"user_id": list(range(100_000)), "item_id": list(range(100_000))}, row_group_size=30_000
    )
    source = resolve_ratings(path)
    assert list(cut_file(0, source, 1)) == [(0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4)]
    assert list(cut_file(0, source)) == [(0, 0, 4)]
    for piece_bytes in (1, PIECE_BYTES):
        table, _ = read(source, piece_bytes)
        assert table["user_id"].to_pylist() == table["position"].to_pylist() == list(range(100_000))


def test_items_keep_their_other_columns(tmp_path):
    columns = {
        "movieId": pa.array([1, 2]),
        "title": ["A", None],
        "genres": pa.array([["x"], []]),
        "kind": pa.array(["k", "k"]).dictionary_encode(),
        "cover": pa.array([b"\xff", b""]),
        "year": pa.array([1990, None], pa.int16()),
    }
    source = resolve_items(write_parquet(tmp_path / "i.parquet", columns))
    assert source.columns == {"item_id": "movieId", "title": "title"}
    table, _ = read(source)
    assert table.column_names == ["item_id", "title", "genres", "kind", "cover", "year", "position", "source"]
    assert table.select(source.other_columns.names).schema.types == source.other_columns.types
    assert table["genres"].to_pylist() == [["x"], []]
    assert table["kind"].to_pylist() == ["k", "k"]
    assert table["cover"].to_pylist() == [b"\xff", b""]
    text = resolve_items(
        write_csv(tmp_path / "i.csv", [("0", "1", "A", "x|y"), ("1", "2", "", "")], ["", "movieId", "title", "genres"])
    )
    assert rows_of(read(text)[0], ["item_id", "title", "genres"]) == [("1", "A", "x|y"), ("2", None, None)]
    assert text.other_columns.names == ["genres"]  # An unnamed column is a data frame's index.


def test_recbole_items(tmp_path):
    path = write(tmp_path / "m.item", "item_id:token\tmovie_title:token_seq\trelease_year:token\n1\tToy Story\t1995\n")
    table, _ = read(resolve_items(path))
    assert rows_of(table, ["item_id", "title", "release_year"]) == [("1", "Toy Story", "1995")]


def test_other_lists_of_ids_need_only_their_roles(tmp_path):
    roles = Roles("users", "--user_columns", {"user_id": ("userId",)}, {})
    table, _ = read(resolve(write_csv(tmp_path / "u.csv", [("007", "x")], ["userId", "note"]), roles))
    assert table.select(["user_id"]).to_pylist() == [{"user_id": "007"}]
    with pytest.raises(InputError, match="--user_columns user_id=NAME"):
        resolve(write_csv(tmp_path / "v.csv", [("007",)], ["id"]), roles)


# What is wrong in a file's rows


def test_malformed_lines_are_kept_with_their_text_and_place(tmp_path):
    text = 'user_id,item_id\na,b\nc,d,"e\ne"\nf\ng,"h\ni,j\n'
    path = write(tmp_path / "r.csv", text)
    for piece_bytes in (1, PIECE_BYTES):
        table, malformed = read(resolve_ratings(path), piece_bytes)
        assert rows_of(table, ["user_id", "item_id"]) == [("a", "b"), ("i", "j")]
        assert [(row["reason"], row["text"]) for row in malformed] == [
            ("line has the wrong number of columns", 'c,d,"e\ne"'),
            ("line has the wrong number of columns", "f"),
            ("line has a quote that is never closed", 'g,"h'),
        ]
        assert {row["source"] for row in malformed} == {path}
        places = [*[row["position"] for row in malformed], *table["position"].to_pylist()]
        assert len(set(places)) == 5
        assert malformed[2]["position"] == text.index("g,")


@pytest.mark.parametrize("name", ["r.csv", "r.tsv.gz", "r.parquet"])
def test_ids_that_are_not_utf8_are_set_aside_and_titles_are_mended(tmp_path, name):
    rows = [(b"a\xe9", b"t"), (b"b", b"caf\xe9"), (b"c", "é".encode())]
    if name.endswith("parquet"):
        path = write_parquet(tmp_path / name, {"item_id": [a for a, _ in rows], "title": [b for _, b in rows]})
    else:
        delimiter = b"," if "csv" in name else b"\t"
        path = write(tmp_path / name, b"\n".join(delimiter.join(row) for row in [(b"item_id", b"title"), *rows]))
    table, malformed = read(resolve_items(path))
    assert rows_of(table, ["item_id", "title"]) == [("b", "caf\ufffd"), ("c", "é")]
    assert [(row["reason"], row["item_id"], row["dataset"]) for row in malformed] == [
        ("id is not UTF-8 text", "a\ufffd", "items")
    ]


def test_strings_in_parquet_that_are_not_utf8(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff")])
    path = write_parquet(tmp_path / "i.parquet", {"item_id": ["x"], "note": bad})
    assert read(resolve_items(path))[0]["note"].to_pylist() == ["a\ufffd"]


# Files


def test_folders_are_read_in_the_order_of_their_paths(tmp_path):
    for day, user in (("2", "c"), ("1", "a")):
        write_csv(tmp_path / f"data/day={day}/part-0.csv", [(user, "i", "1", "1")])
    write_csv(tmp_path / "data/day=1/part-1.csv", [("i", "b", "1", "1")], ["item_id", "user_id", "rating", "timestamp"])
    write(tmp_path / "data/_SUCCESS", "")
    write(tmp_path / "data/day=1/.part-0.csv.crc", "x")
    write(tmp_path / "data/_temporary/0/part-9.csv", "x")
    for uri in (tmp_path / "data", f"{tmp_path}/data/", tmp_path / "data/day=*", tmp_path / "data/**.csv", tmp_path / "da*"):
        source = resolve_ratings(str(uri))
        table, _ = read(source)
        assert table["user_id"].to_pylist() == ["a", "b", "c"], uri
        assert [path.removeprefix(str(tmp_path)) for path in table["source"].to_pylist()] == [
            "/data/day=1/part-0.csv",
            "/data/day=1/part-1.csv",
            "/data/day=2/part-0.csv",
        ]
        assert [position >> 40 for position in table["position"].to_pylist()] == [0, 1, 2]


def test_a_file_may_be_named_like_a_glob_or_lie_under_a_hidden_folder(tmp_path):
    path = write_csv(tmp_path / ".cache" / "r[1].csv")
    assert [metadata.path for metadata in find_files(path)] == [path]
    write_csv(tmp_path / ".cache" / "r2.csv")
    folder = Path(write_csv(tmp_path / "d[1]" / "r.csv")).parent
    assert len(find_files(str(folder))) == 1
    assert len(find_files(str(tmp_path / ".cache" / "*.csv"))) == 2


def test_parquet_parts_without_rows_are_fine_as_long_as_one_has_rows(tmp_path):
    write_parquet(tmp_path / "d/0.parquet", {"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())})
    assert "has no rows" in mistake(tmp_path / "d")
    write_parquet(tmp_path / "d/1.parquet", {"user_id": ["u"], "item_id": ["i"]})
    assert read(resolve_ratings(str(tmp_path / "d")))[0].num_rows == 1


def test_the_description_changes_with_what_is_read(tmp_path):
    path = write_csv(tmp_path / "r.csv")
    source = resolve_ratings(path)
    description = json.loads(json.dumps(source.description()))
    assert description["files"] == [
        {"path": path, "size": Path(path).stat().st_size, "mtime": pytest.approx(os.stat(path).st_mtime)}
    ]
    assert resolve_ratings(path).description() == description
    assert resolve_ratings(path, {"rating": ""}).description() != description
    os.utime(path, (1, 1))
    assert resolve_ratings(path).description() != description
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.uri = "x"  # type: ignore[misc]


# Mistakes


def test_nothing_there(tmp_path):
    assert "there is no such file" in mistake(tmp_path / "none.csv")
    assert "no file matches" in mistake(tmp_path / "*.csv")
    (tmp_path / "empty").mkdir()
    assert "the folder holds no files" in mistake(tmp_path / "empty")
    write(tmp_path / "empty/_SUCCESS", "")
    assert "the folder holds no files" in mistake(tmp_path / "empty")


def test_formats_unknown_or_mixed(tmp_path):
    text = mistake(write(tmp_path / "r.txt", "x"))
    assert "r.txt" in text
    assert ".parquet, .pq, .csv, .csv.gz" in text
    write_csv(tmp_path / "d/r.csv")
    write(tmp_path / "d/README.md", "x")
    assert "folder/*.csv" in mistake(tmp_path / "d")
    write_tsv(tmp_path / "e/r.tsv")
    write_csv(tmp_path / "e/r.csv")
    write(tmp_path / "f/m.item", "item_id:token\n1\n")
    write_tsv(tmp_path / "f/m.inter")
    assert "mixes formats: inter" in mistake(tmp_path / "f")
    assert re.search(r"mixes formats: csv \(.*r.csv\), tsv \(.*r.tsv\)", mistake(tmp_path / "e"))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("r.csv", b"", "is empty (0 bytes)"),
        ("r.csv", b"\n\n", "its first line is"),
        ("r.csv", b"user_id,item_id\n\n", "has no rows"),
        ("r.csv", b"user_id,item_id,user_id\n1,2,3\n", "more than one column named 'user_id'"),
        ("r.csv", "user_id,item_id\n1,2\n".encode("utf-16"), "is UTF-16"),
        ("r.parquet", b"PAR1 is not enough PAR1", "is damaged, or not Parquet"),
        ("r.csv", b"196,242,3,881250949\n186,302,3,891717742\n", "the first line of a text file must name its columns"),
        ("r.csv", b"user_id,movie,rating\n1,2,3\n", "no column for item_id (looked for item_id, itemId"),
        (
            "r.csv",
            b"user_id,movie_id,item\n1,2,3\n",
            "'item', 'movie_id', each of which could be item_id: choose with --columns item_id=NAME",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, data, expected):
    text = mistake(write(tmp_path / name, data))
    assert expected in text
    assert name in text or "has no rows" in text


@pytest.mark.parametrize("data", [gzip.compress(b"user_id,item_id\n1,2\n", mtime=0)[:-12], b"\x1f\x8bxxxxxxxxxxxxxxxxxxx"])
def test_damaged_gzip(tmp_path, data):
    path = tmp_path / "r.csv.gz"
    path.write_bytes(data)
    assert "is damaged, or not gzip" in mistake(path)


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"]}), sink)
    return sink.getvalue()


TEXT = b"user_id,item_id\n1,2\n"


def test_a_column_may_be_called_as_parquet_begins(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("PAR1,user_id,item_id\n9,u,i\n")
    assert resolve_ratings(str(tmp_path / "r.csv")).columns == {"user_id": "user_id", "item_id": "item_id"}


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("r.csv", parquet_bytes(), "r.csv is Parquet, though its name ends in .csv: rename it to {folder}/r.parquet"),
        ("R.TSV", parquet_bytes(), "R.TSV is Parquet, though its name ends in .tsv: rename it to {folder}/R.parquet"),
        ("r.csv.gz", parquet_bytes(), "r.csv.gz is Parquet, though its name ends in .csv.gz: rename it to {folder}/r.parquet"),
        ("r.csv", gzip.compress(TEXT, mtime=0), "r.csv is gzip, though its name ends in .csv: rename it to {folder}/r.csv.gz"),
        ("r.inter", gzip.compress(TEXT, mtime=0), "r.inter is gzip, though its name ends in .inter: unpack it"),
        (
            "r.parquet",
            gzip.compress(parquet_bytes(), mtime=0),
            "r.parquet is gzip, though its name ends in .parquet: unpack it",
        ),
        ("r.csv.gz", TEXT, "r.csv.gz is not compressed, though its name ends in .csv.gz: rename it to {folder}/r.csv"),
        ("r.csv", b"PK\x03\x04 and so on", "r.csv is a zip archive (as .xlsx is), though its name ends in .csv: unpack it"),
        ("r.csv", b"\x28\xb5\x2f\xfd and so on", "r.csv is Zstandard, though its name ends in .csv: unpack it"),
    ],
)
def test_a_file_of_another_format_than_its_name_says_is_told_its_right_name(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    assert expected.format(folder=tmp_path) in mistake(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "header", "expected"),
    [
        (
            "r.csv",
            "user_id;item_id;rating",
            "r.csv has no column for user_id; its only column, 'user_id;item_id;rating', has a semi",
        ),
        ("r.csv", "user_id\titem_id\trating", "has a tab: if that is what separates its columns, rename it to end in .tsv"),
        ("r.tsv", "user_id,item_id,rating", "has a comma: if that is what separates its columns, rename it to end in .csv"),
        ("r.csv", "user_id|item_id|rating", "has a bar: if that is what separates its columns, write it again with commas"),
        (
            "r.csv",
            '"user_id";"item_id";"rating"',
            """its only column, '"user_id";"item_id";"rating"', has a semicolon: if that is what separates its""",
        ),
        ("r.csv", '"user_id"\t"item_id"', "has a tab: if that is what separates its columns, rename it to end in .tsv"),
    ],
)
def test_another_delimiter_is_named(tmp_path, name, header, expected):
    text = mistake(write(tmp_path / name, f"{header}\n1,2,3\n"))
    assert expected in text
    assert "the first line" not in text


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "https://host/ratings.csv",
            "Beam has no file system for https://: download it (curl -LO URL), and give the file's path",
        ),
        ("file:///data/ratings.csv", "Beam has no file system for file://: give the path alone, /data/ratings.csv"),
        ("s3://bucket/r.csv", f"s3:// needs a package that is not installed: pip install 'apache-beam[aws]=={BEAM}'"),
        ("gs://bucket/d/*.csv", f"gs:// needs a package that is not installed: pip install 'apache-beam[gcp]=={BEAM}'"),
        ("hdfs://host/r.csv", f"hdfs:// needs a package that is not installed: pip install 'apache-beam[hadoop]=={BEAM}'"),
        ("azfs://a/b/r.csv", f"azfs:// needs a package that is not installed: pip install 'apache-beam[azure]=={BEAM}'"),
        ("zz://x/r.csv", "it is on no file system that is installed: zz:// is none of s3://, gs://, azfs://, hdfs://"),
    ],
)
def test_a_file_system_that_is_not_there_is_told_what_to_install(monkeypatch, uri, expected):
    monkeypatch.setattr(storage, "_is_installed", lambda module: False)
    assert mistake(uri) == f"cannot read {uri!r}: {expected}" + (": check what stands before ://" if uri[:2] == "zz" else "")


def test_gzip_that_is_damaged_further_on(tmp_path):
    path = Path(write(tmp_path / "r.csv.gz", b"user_id,item_id\n" + os.urandom(1 << 20).hex().encode()))
    path.write_bytes(path.read_bytes()[:-100_000])
    source = resolve_ratings(str(path))
    with pytest.raises(InputError, match=r"r\.csv\.gz is damaged"):
        read(source)


NAMES = ["userId", "movieId", "rating", "time", "date"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "time"}),
        ({"timestamp": "date"}, {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "date"}),
        ({"rating": "", "timestamp": ""}, {"user_id": "userId", "item_id": "movieId"}),
        ({"rating": "time"}, {"user_id": "userId", "item_id": "movieId", "rating": "time"}),
        ({"item_id": "rating"}, {"user_id": "userId", "item_id": "rating", "timestamp": "time"}),
    ],
)
def test_map_columns(given, expected):
    assert map_columns(RATING_ROLES, NAMES, given, "f") == expected


def test_a_roles_own_name_wins_over_its_aliases():
    assert map_columns(RATING_ROLES, ["user_id", "user", "item_id", "movie_id"], {}, "f") == {
        "user_id": "user_id",
        "item_id": "item_id",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"raiting": "x"}, "there is no role 'raiting'; the roles are user_id, item_id, rating, timestamp"),
        ({"rating": "x"}, "f has no column 'x' for --columns rating=x; it has 'userId', 'movieId'"),
        ({"user_id": ""}, "user_id is required"),
        ({"rating": "time", "timestamp": "time"}, "maps column 'time' to both rating and timestamp"),
    ],
)
def test_mappings_that_cannot_be(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        map_columns(RATING_ROLES, NAMES, given, "f")


def test_messages_stay_short_where_columns_are_many():
    with pytest.raises(InputError) as error:
        map_columns(RATING_ROLES, [f"column {number}" for number in range(5000)], {}, "f")
    assert "and 4980 more" in str(error.value)


def test_files_of_a_folder_must_be_alike(tmp_path):
    write_csv(tmp_path / "d/0.csv")
    write_csv(tmp_path / "d/1.csv", [("u", "i")], ["user_id", "item_id"])
    text = mistake(tmp_path / "d")
    assert re.search(r"1\.csv has no column 'rating'", text)
    assert re.search(r", as .*0\.csv has; it has 'user_id', 'item_id': make the files alike, or name those to read", text)
    assert "--columns" not in text
    write_parquet(tmp_path / "e/0.parquet", {"item_id": [1], "year": [1]})
    write_parquet(tmp_path / "e/1.parquet", {"item_id": ["1"], "year": ["1"]})
    assert "has no column 'year' of type int64" in mistake(tmp_path / "e", resolve=resolve_items)


def test_columns_that_cannot_be_used(tmp_path):
    path = write_parquet(tmp_path / "r.parquet", {"user_id": [[1]], "item_id": ["i"]})
    assert "has type list" in mistake(path)
    for name in ("position", "source", "code", "train_count"):
        path = write_parquet(tmp_path / "i.parquet", {"item_id": ["i"], name: [1]})
        assert f"has a column '{name}'" in mistake(path, resolve=resolve_items)
    path = write_csv(tmp_path / "i.csv", [("1", "2")], ["id", "x"])
    assert "--item_columns item_id=NAME" in mistake(path, resolve=resolve_items)


# The transform


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
def test_read_blocks(tmp_path, name):
    write_csv(tmp_path / f"d0/{name}", ROWS)
    write_csv(tmp_path / f"d1/{name}", [("v", "j", "1"), ("w", "k", "2", "3")])
    source = resolve_ratings(str(tmp_path / "d*"))
    with TestPipeline("FnApiRunner") as pipeline:
        raw = pipeline | ReadBlocks(source, piece_bytes=40)
        assert raw.blocks.element_type == raw.malformed.element_type == Block
        rows = raw.blocks | "Rows" >> beam.FlatMap(lambda block: rows_of(block))
        assert_that(rows, equal_to([*ROWS, ("w", "k", "2", "3")]), "Blocks")
        texts = raw.malformed | "Texts" >> beam.FlatMap(lambda block: block["text"].to_pylist())
        assert_that(texts, equal_to(["v,j,1"]), "Malformed")


def test_pieces_must_have_bytes(tmp_path):
    with pytest.raises(InputError, match="piece_bytes must be positive, got 0"):
        ReadBlocks(resolve_ratings(write_csv(tmp_path / "r.csv")), 0)


@pytest.mark.parametrize("stored", ["dictionary", "plain", "csv", "numbers"])
def test_text_is_estimated_by_what_it_comes_to_and_not_by_how_it_is_stored(tmp_path, stored):
    """Ids that repeat take next to nothing in Parquet, and their full length in a bucket."""
    ids = [f"{i % 7:036d}" for i in range(20_000)]
    table = pa.table({"user_id": ids, "item_id": ids, "rating": np.ones(len(ids), np.float32)})
    if stored == "dictionary":
        table = table.set_column(0, "user_id", table["user_id"].dictionary_encode())
    if stored == "numbers":
        table = table.set_column(0, "user_id", pa.array(range(len(ids)), pa.int64()))
    path = tmp_path / f"ratings.{'csv' if stored == 'csv' else 'parquet'}"
    if stored == "csv":
        pa_csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
        assert path.stat().st_size < 200_000
    expected = len(ids) * ((8 if stored == "numbers" else 36) + 36 + 8)
    assert text_bytes_of(resolve_ratings(str(path))) == pytest.approx(expected, rel=0.1)


def test_buckets_are_sized_by_the_text_of_the_ratings(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "BUCKET_BYTES", 100_000)
    (tmp_path / "few.csv").write_text("user_id,item_id\nu,i\n")
    (tmp_path / "many.csv").write_text("user_id,item_id\n" + "u,i\n" * 100_000)
    assert ingest.default_buckets(resolve_ratings(str(tmp_path / "few.csv"))) == 1
    assert ingest.default_buckets(resolve_ratings(str(tmp_path / "many.csv"))) == 5
