"""The formats of files: how they are named, how they begin, and how they are opened."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError
from schemas.storage import open_file
from transforms.ingest.csv_pieces import CSV, TSV, Dialect, read_header

TFDS = "tfds:"


@dataclass(frozen=True)
class Format:
    """A way to lay out rows in a file."""

    name: str
    dialect: Dialect | None = None
    """How text is written; None for Parquet and TFDS."""
    is_gzip: bool = False
    is_typed: bool = False
    """Whether the header's names carry a type, as in `user_id:token`."""


FORMATS = {
    ".parquet": Format("parquet"),
    ".pq": Format("parquet"),
    ".csv": Format("csv", CSV),
    ".csv.gz": Format("csv.gz", CSV, is_gzip=True),
    ".tsv": Format("tsv", TSV),
    ".tsv.gz": Format("tsv.gz", TSV, is_gzip=True),
    ".inter": Format("inter", TSV, is_typed=True),
    ".item": Format("item", TSV, is_typed=True),
    ".user": Format("user", TSV, is_typed=True),
}
"""Formats by the ending of a file's name, in either case."""

BY_NAME = {known.name: known for known in (*FORMATS.values(), Format("tfds"))}


def one_format(uri: str, paths: list[str]) -> Format:
    """Returns the format that all files share.

    Raises:
      InputError: if an ending is unknown, or there are several formats.
    """
    formats: dict[str, str] = {}
    for path in paths:
        name = path.lower()
        endings = [ending for ending in FORMATS if name.endswith(ending)]
        if not endings:
            among = (
                "" if len(paths) == 1 else f" among the {len(paths)} files of {uri}, name those to read, as in folder/*.csv;"
            )
            raise InputError(f"cannot tell the format of {path}:{among} known endings are {', '.join(FORMATS)}, and tfds:NAME")
        formats.setdefault(FORMATS[endings[0]].name, path)
    if len(formats) > 1:
        examples = ", ".join(f"{name} ({path})" for name, path in sorted(formats.items()))
        raise InputError(f"{uri} mixes formats: {examples}: name those to read, as in folder/*.csv")
    return BY_NAME[next(iter(formats))]


@contextmanager
def opened(path: str, file_format: Format) -> Iterator[BinaryIO]:
    """Opens a text file, decompressed, and says which file is damaged if it is."""
    with open_file(path) as file:
        try:
            yield gzip.GzipFile(fileobj=file) if file_format.is_gzip else file  # type: ignore[misc]
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{path} is damaged, or not gzip ({error}): copy it again") from error
        except InputError as error:
            raise InputError(f"{path} {error}") from error


@contextmanager
def opened_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file, and says which file is damaged if it is."""
    with open_file(path) as file:
        try:
            yield pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged, or not Parquet ({error}): write it again") from error


def text_header(file: BinaryIO, file_format: Format) -> tuple[list[str], int, bool]:
    """Returns the columns' names, where the records start, and whether there are any."""
    assert file_format.dialect is not None
    names, start, has_rows = read_header(file, file_format.dialect)
    if file_format.is_typed:
        names = [name.rsplit(":", 1)[0] for name in names]
    return [name.strip() for name in names], start, has_rows


_PARQUET = b"PAR1"

_BEGINNINGS = {
    _PARQUET: ("parquet", "Parquet"),
    b"\x1f\x8b": ("gzip", "gzip"),
    b"PK\x03\x04": (None, "a zip archive (as .xlsx is)"),
    b"\x28\xb5\x2f\xfd": (None, "Zstandard"),
    b"BZh": (None, "bzip2"),
    b"\xfd7zXZ": (None, "xz"),
}
"""What files begin with: the kind, where such a file can be read under another name, and what people call it."""


def _end_of(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read()


def check_begins_as(path: str, file_format: Format) -> None:
    """Raises InputError if a file begins as one of another format than its name says, naming the name that it should have."""
    expected = "parquet" if file_format.name == "parquet" else "gzip" if file_format.is_gzip else "text"
    with open_file(path) as file:
        beginning = file.read(8)
        is_parquet = beginning.startswith(_PARQUET) and _end_of(file, len(_PARQUET)) == _PARQUET  # A column may be called PAR1.
    kind, said = next(
        (known for start, known in _BEGINNINGS.items() if beginning.startswith(start)), ("text", "not compressed")
    )
    if kind == "parquet" and expected == "text" and not is_parquet:
        return
    if kind == expected:
        return
    ending = next(each for each in FORMATS if path.lower().endswith(each))
    stem = path[: -len(ending)]
    if kind == "parquet":
        repair = f"rename it to {stem}.parquet"
    elif kind == "gzip" and expected == "text" and f"{ending}.gz" in FORMATS:
        repair = f"rename it to {path}.gz"
    elif kind == "text" and file_format.is_gzip:
        repair = f"rename it to {path[: -len('.gz')]}"
    elif kind == "text":
        return  # It may be a damaged Parquet file as well, and is read as one.
    else:
        repair = "unpack it, and give the file that comes out of it"
    raise InputError(f"{path} is {said}, though its name ends in {ending}: {repair}")


_DELIMITERS = {
    ",": "a comma: if that is what separates its columns, rename it to end in .csv",
    "\t": "a tab: if that is what separates its columns, rename it to end in .tsv",
    ";": "a semicolon: if that is what separates its columns, write it again with commas",
    "|": "a bar: if that is what separates its columns, write it again with commas",
}


def wrong_delimiter(names: list[str]) -> str | None:
    """Returns what to do where a header came out as one column because something else separates its columns, or None."""
    if len(names) != 1:
        return None
    found = max(_DELIMITERS, key=names[0].count)
    return f"its only column, {names[0][:100]!r}, has {_DELIMITERS[found]}" if found in names[0] else None
