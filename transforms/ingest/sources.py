"""Sources: from a URI to raw blocks, whatever the format.

    ratings.csv  ratings.tsv.gz  folder/  day=*/part-*.parquet  ml-100k.inter  tfds:movielens/100k-ratings
         |  resolve_ratings, in the main process: finds the files, reads headers, settles which column is which
      Source
         |  ReadBlocks, on the workers: cuts the files into pieces, reads the pieces side by side
    raw blocks, and what could not be split into columns

CSV is RFC 4180; TSV and RecBole's atomic files have no quoting. Text is UTF-8: a line whose id is not UTF-8 is set aside with
that reason; in other columns the bytes that are not become U+FFFD, since a title in Latin-1 is no reason to lose an item.
Keys in folder names (`day=2024-01-01`) are no columns.
"""

import glob
import gzip
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems

from schemas.blocks import MAX_ROWS, Block, in_blocks, text_lengths
from schemas.errors import InputError
from schemas.items import ITEMS
from schemas.rejected import REJECTED
from schemas.storage import exists, is_local, list_files, open_file
from transforms.ingest import tfds_blocks
from transforms.ingest.csv_pieces import CSV, NOT_UTF8, TSV, Dialect, cut, decode_utf8, parse_run, read_header, record_runs
from transforms.ingest.id_forms import without_zero_fraction
from transforms.ingest.validate import RawBlocks, is_text, rejected_block

TFDS = "tfds:"

PIECE_BYTES = 64 << 20
"""How much of a file one worker reads at a time."""

POSITION_BITS = 40
"""A row's position is its file's ordinal shifted by this, plus a number that grows along the file."""

_CHECKED_AT_ONCE = 16


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

_BY_NAME = {known.name: known for known in (*FORMATS.values(), Format("tfds"))}


@dataclass(frozen=True)
class Roles:
    """The columns that a dataset is made of, and the names that each is known by."""

    dataset: str
    flag: str
    """The flag that maps columns to roles."""
    required: Mapping[str, tuple[str, ...]]
    """Role -> other names that it is taken from when no column has the role's own name."""
    optional: Mapping[str, tuple[str, ...]]
    keeps_other_columns: bool = False

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        return {**self.required, **self.optional}


_USER_ID = ("userId", "user", "uid")
_ITEM_ID = ("itemId", "item", "movie_id", "movieId", "product_id", "productId")

RATING_ROLES = Roles(
    "ratings",
    "--columns",
    {"user_id": _USER_ID, "item_id": _ITEM_ID},
    {"rating": ("user_rating", "stars"), "timestamp": ("time", "ts", "datetime")},
)

ITEM_ROLES = Roles(
    "items", "--item_columns", {"item_id": _ITEM_ID}, {"title": ("movie_title", "name")}, keeps_other_columns=True
)


SERVED_USERS_ROLES = Roles("served users", "--list_columns", {"user_id": _USER_ID}, {})
EXCLUSIONS_ROLES = Roles("exclusions", "--list_columns", {"user_id": _USER_ID, "item_id": _ITEM_ID}, {})
BLOCKED_ITEMS_ROLES = Roles("blocked items", "--list_columns", {"item_id": _ITEM_ID}, {})
ALLOWED_ITEMS_ROLES = Roles("allowed items", "--list_columns", {"item_id": _ITEM_ID}, {})


@dataclass(frozen=True)
class SourceFile:
    """A file, or a split of a TFDS dataset, as it was when the source was resolved."""

    path: str
    size: int
    """Bytes of a file, examples of a split."""
    mtime: float | None = None
    """Unix seconds."""
    etag: str | None = None
    """What the file system says identifies the contents, where it says so."""
    rows: int | None = None
    """Of a Parquet file."""

    def description(self) -> dict[str, Any]:
        """Returns what identifies the contents, for a manifest."""
        found = {"path": self.path, "size": self.size, "mtime": self.mtime, "etag": self.etag}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Source:
    """All that workers need to read a source, and all that a fingerprint needs to tell it from another."""

    dataset: str
    """'ratings' or 'items'."""
    uri: str
    format: str
    files: tuple[SourceFile, ...]
    """By path; a file's place here is its ordinal."""
    columns: dict[str, str]
    """Role -> column, for the roles that the source has."""
    other_columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """Columns that travel along under their own names, with their types."""
    tfds_name: str | None = None
    """With its version."""
    tfds_data_dir: str | None = None

    def description(self) -> dict[str, Any]:
        """Returns JSON that changes whenever what is read changes."""
        return {
            "dataset": self.dataset,
            "format": self.format,
            "columns": self.columns,
            "other_columns": {column.name: str(column.type) for column in self.other_columns},
            "files": [file.description() for file in self.files],
        }

    @property
    def wanted(self) -> list[str]:
        """The columns to read, the roles' first."""
        return [*self.columns.values(), *self.other_columns.names]


@dataclass(frozen=True)
class _Contents:
    """What a look into a file shows."""

    schema: pa.Schema
    has_rows: bool
    rows: int | None = None
    """Of a Parquet file."""


def resolve_ratings(uri: str, columns: Mapping[str, str] | None = None, tfds_data_dir: str | None = None) -> Source:
    """Finds the ratings behind a URI: user_id and item_id, and rating and timestamp where there are such columns.

    Args:
      uri: A file, a folder, a glob, or `tfds:name`.
      columns: Role -> column, where names differ from the roles and their usual aliases; '' leaves an optional role out.
      tfds_data_dir: Where TFDS datasets are prepared.

    Raises:
      InputError: if there is nothing there, or nothing that can be read so.
    """
    return resolve(uri, RATING_ROLES, columns, tfds_data_dir)


def resolve_items(uri: str, columns: Mapping[str, str] | None = None, tfds_data_dir: str | None = None) -> Source:
    """Finds the items behind a URI: item_id, title where there is one, and every other column under its own name.

    Args:
      uri: A file, a folder, a glob, or `tfds:name`.
      columns: Role -> column, as for `resolve_ratings`.
      tfds_data_dir: Where TFDS datasets are prepared.

    Raises:
      InputError: if there is nothing there, or nothing that can be read so.
    """
    return resolve(uri, ITEM_ROLES, columns, tfds_data_dir)


def resolve_list(uri: str, roles: Roles, columns: Mapping[str, str] | None = None, tfds_data_dir: str | None = None) -> Source:
    """Finds a list of ids behind a URI; of `columns`, only the roles that the list has count. A list may have no rows.

    Raises:
      InputError: if there is nothing there, or nothing that can be read so.
    """
    known = {role: name for role, name in (columns or {}).items() if role in roles.aliases}
    return resolve(uri, roles, known, tfds_data_dir, may_be_empty=True)


def resolve(
    uri: str,
    roles: Roles,
    columns: Mapping[str, str] | None = None,
    tfds_data_dir: str | None = None,
    may_be_empty: bool = False,
) -> Source:
    """Finds what a URI names, and which column plays which role; `resolve_ratings` and `resolve_items` for any roles.

    Raises:
      InputError: if there is nothing there, or nothing that can be read so; no rows, unless it may be empty.
    """
    columns = columns or {}
    if uri.startswith(TFDS):
        if not uri.removeprefix(TFDS).strip("/"):
            raise InputError(f"{uri} names no dataset: write it as tfds:movielens/100k-ratings")
        return _resolve_tfds(uri, roles, columns, tfds_data_dir)
    found = find_files(uri)
    file_format = _one_format(uri, [metadata.path for metadata in found])
    with ThreadPoolExecutor(_CHECKED_AT_ONCE) as pool:
        contents = list(pool.map(lambda metadata: _look_into(metadata, file_format), found))
        files = list(pool.map(_source_file, found, contents))
    if not may_be_empty and not any(content.has_rows for content in contents):
        raise InputError(f"{uri} has no rows: there is nothing to read")
    first = contents[0].schema
    mapping = map_columns(roles, first.names, columns, found[0].path)
    others = _other_columns(roles, first, mapping, found[0].path)
    for metadata, content in zip(found, contents, strict=True):
        _check_schema(roles, mapping, others, content.schema, metadata.path, found[0].path)
    return Source(roles.dataset, uri, file_format.name, tuple(files), mapping, others)


def find_files(uri: str) -> list[FileMetadata]:
    """Returns the files that a file's name, a folder or a glob stands for, by path.

    Below a folder, and wherever a glob matches, names that start with `_` or `.` are skipped (`_SUCCESS`, `.crc` files).

    Raises:
      InputError: if there are none.
    """
    try:
        return _find_files(uri)
    except (BeamIOError, ValueError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {uri!r} ({error}): check the path, and that its file system is installed") from error


def _find_files(uri: str) -> list[FileMetadata]:
    root = uri.rstrip("/") or "/"
    is_folder = is_local(root) and Path(root).is_dir()
    if not is_folder and exists(root) and not list_files(f"{root}/**"):
        return [FileSystems.get_filesystem(root).metadata(root)]
    patterns = [f"{glob.escape(root)}/**"] if is_folder else [root, f"{root}/**"]
    found = {metadata.path: metadata for pattern in patterns for metadata in list_files(pattern)}
    fixed = len(root if is_folder else _fixed_part(root))
    kept = [
        found[path] for path in sorted(found) if not any(part[:1] in ("_", ".") for part in PurePosixPath(path[fixed:]).parts)
    ]
    if not kept:
        rule = "the folder holds no files" if is_folder else "no file matches" if fixed < len(root) else "there is no such file"
        raise InputError(f"cannot read {uri!r}: {rule}: check the path")
    return kept


def _fixed_part(root: str) -> str:
    """Returns the part of a glob before the folder or name with the first special character."""
    special = min((root.find(character) for character in "*?[" if character in root), default=-1)
    return root if special < 0 else root[: root.rfind("/", 0, special) + 1]


_TEXT_BYTES_A_BYTE = {"csv": 1, "tsv": 1, "inter": 1, "item": 1, "user": 1, "tfds": 25}
"""How much text a byte of a source stands for; 4 for what is compressed. A TFDS split's size is in examples."""
_MEASURED_ROWS = 4_096


def text_bytes_of(source: Source) -> int:
    """Returns about how much text the roles' columns of a source come to, a number or a time counting as eight bytes.

    What Parquet stores says little of it, since an id that is repeated is stored once: a few rows are measured.
    """
    if source.format != "parquet":
        return sum(file.size for file in source.files) * _TEXT_BYTES_A_BYTE.get(source.format, 4)
    first = next(file for file in source.files if file.rows)
    with _reading_parquet(first.path) as parquet:
        rows = next(parquet.iter_batches(_MEASURED_ROWS, columns=list(source.columns.values()), use_threads=False))
    columns = [column.cast(_stored_type(column.type)) for column in rows.columns]
    measured = sum(int(text_lengths(column).sum()) or 8 * len(rows) for column in columns)
    return math.ceil(measured / len(rows) * sum(file.rows or 0 for file in source.files))


def _one_format(uri: str, paths: list[str]) -> Format:
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
    return _BY_NAME[next(iter(formats))]


def _source_file(metadata: FileMetadata, contents: _Contents) -> SourceFile:
    """Notes what identifies a file's contents."""
    etag = None if is_local(metadata.path) else str(FileSystems.checksum(metadata.path))
    return SourceFile(metadata.path, metadata.size_in_bytes, metadata.last_updated_in_seconds or None, etag, contents.rows)


@contextmanager
def _reading(path: str, file_format: Format) -> Iterator[BinaryIO]:
    """Opens a text file, decompressed, and says which file is damaged if it is."""
    with open_file(path) as file:
        try:
            yield gzip.GzipFile(fileobj=file) if file_format.is_gzip else file  # type: ignore[misc]
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{path} is damaged, or not gzip ({error}): copy it again") from error
        except InputError as error:
            raise InputError(f"{path} {error}") from error


@contextmanager
def _reading_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file, and says which file is damaged if it is."""
    with open_file(path) as file:
        try:
            yield pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged, or not Parquet ({error}): write it again") from error


def _text_header(file: BinaryIO, file_format: Format) -> tuple[list[str], int, bool]:
    """Returns the columns' names, where the records start, and whether there are any."""
    assert file_format.dialect is not None
    names, start, has_rows = read_header(file, file_format.dialect)
    if file_format.is_typed:
        names = [name.rsplit(":", 1)[0] for name in names]
    return [name.strip() for name in names], start, has_rows


def _look_into(metadata: FileMetadata, file_format: Format) -> _Contents:
    """Reads a file's header or footer.

    Raises:
      InputError: if it has none, or is too large.
    """
    path = metadata.path
    if metadata.size_in_bytes >= 1 << POSITION_BITS:
        raise InputError(f"{path} has {metadata.size_in_bytes} bytes, a file may have {1 << POSITION_BITS}: split it")
    if not metadata.size_in_bytes:
        raise InputError(f"{path} is empty (0 bytes): write it again, or leave it out")
    _check_begins_as(path, file_format)
    if file_format.dialect is None:
        with _reading_parquet(path) as parquet:
            rows = parquet.metadata.num_rows
            return _Contents(parquet.schema_arrow, rows > 0, rows)
    with _reading(path, file_format) as file:
        names, _, has_rows = _text_header(file, file_format)
    return _Contents(pa.schema([(name, pa.string()) for name in names]), has_rows)


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


def _check_begins_as(path: str, file_format: Format) -> None:
    """Raises InputError if a file begins as one of another format than its name says, naming the name that it should have."""
    expected = "parquet" if file_format.name == "parquet" else "gzip" if file_format.is_gzip else "text"
    with open_file(path) as file:
        beginning = file.read(8)
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_PARQUET)))
        is_parquet = beginning.startswith(_PARQUET) and file.read() == _PARQUET  # The name of a column may be PAR1.
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


def _wrong_delimiter(names: list[str]) -> str | None:
    """Returns what to do where a header came out as one column because something else separates its columns, or None."""
    if len(names) != 1:
        return None
    found = max(_DELIMITERS, key=names[0].count)
    return f"its only column, {names[0][:100]!r}, has {_DELIMITERS[found]}" if found in names[0] else None


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


def map_columns(roles: Roles, names: list[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Settles which column plays which role.

    A mapping that is given wins; then the column with the role's own name; then the only one of its aliases that is there.

    Args:
      roles: The dataset's.
      names: The columns there are.
      given: Role -> column; '' leaves an optional role out.
      where: The file, for messages.

    Raises:
      InputError: if a role is unknown, has no column although it must, could have several, or shares its column with another.
    """
    flag, aliases = roles.flag, roles.aliases
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if twice:
        raise InputError(f"{where} has more than one column named {_listed(twice)}: rename or drop one in the file")
    for role, column in given.items():
        if role not in aliases:
            raise InputError(f"{flag} {role}={column}: there is no role {role!r}; the roles are {', '.join(aliases)}")
        if not column and role in roles.required:
            raise InputError(f"{flag} {role}=: {role} is required: name its column; {where} has {_listed(names)}")
        if column and column not in names:
            raise InputError(f"{where} has no column {column!r} for {flag} {role}={column}; it has {_listed(names)}")
    mapping = {}
    for role, others in aliases.items():
        taken = [column for other, column in given.items() if other != role]
        present = [name for name in others if name in names and name not in taken]
        if role in given:
            candidates = [given[role]] if given[role] else []
        elif role in names and role not in taken:
            candidates = [role]
        else:
            candidates = present
        if len(candidates) > 1:
            raise InputError(
                f"{where} has {_listed(candidates)}, each of which could be {role}: choose with {flag} {role}=NAME"
            )
        if candidates:
            mapping[role] = candidates[0]
        elif role in roles.required:
            wrong = _wrong_delimiter(names)
            if wrong:
                raise InputError(f"{where} has no column for {role}; {wrong}")
            raise InputError(
                f"{where} has no column for {role} (looked for {', '.join((role, *others))}); it has {_listed(names)}: "
                f"name it with {flag} {role}=NAME; the first line of a text file must name its columns"
            )
    for role, column in mapping.items():
        double = [other for other, its_column in mapping.items() if its_column == column and other != role]
        if double:
            raise InputError(f"{flag} maps column {column!r} to both {role} and {double[0]}: a column plays one role")
    return {role: mapping[role] for role in aliases if role in mapping}


def _stored_type(dtype: pa.DataType) -> pa.DataType:
    """Returns a column's type once dictionaries are decoded, and views are text."""
    stored = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return pa.string() if pa.types.is_string_view(stored) else stored


def _other_columns(roles: Roles, schema: pa.Schema, mapping: Mapping[str, str], where: str) -> pa.Schema:
    """Returns the columns that travel along; unnamed ones, and pandas' index, do not.

    Raises:
      InputError: if one has a name that is needed for something else.
    """
    if not roles.keeps_other_columns:
        return pa.schema([])
    others = [
        pa.field(column.name, _stored_type(column.type))
        for column in schema
        if column.name and column.name not in mapping.values() and not column.name.startswith("__index_level_")
    ]
    reserved = {*ITEMS.names, *roles.aliases, "position", "source"}
    for column in others:
        if column.name in reserved:
            raise InputError(f"{where} has a column {column.name!r}, a name that is needed for another: rename it in the file")
    return pa.schema(others)


def _check_schema(
    roles: Roles, mapping: Mapping[str, str], others: pa.Schema, schema: pa.Schema, path: str, first: str
) -> None:
    """Checks that a file has the columns that the first file has, in types that can be used.

    Raises:
      InputError: if not.
    """
    missing = [name for name in [*mapping.values(), *others.names] if name not in schema.names]
    if missing:
        raise InputError(
            f"{path} has no column {_listed(missing)}, as {first} has; it has {_listed(schema.names)}: make the files alike, "
            "or name those to read, as in folder/*.csv"
        )
    map_columns(roles, schema.names, {role: mapping.get(role, "") for role in roles.aliases}, path)
    for role, column in mapping.items():
        dtype = _stored_type(schema.field(column).type)
        if pa.types.is_nested(dtype) or isinstance(dtype, pa.BaseExtensionType):
            raise InputError(f"column {column!r} of {path} has type {dtype}: {role} must be text, a number or a time")
    for column in others:
        found = _stored_type(schema.field(column.name).type)
        if found != column.type:
            raise InputError(
                f"{path} has no column {column.name!r} of type {column.type}, as {first} has, but one of {found}: "
                "make the files alike"
            )


def _resolve_tfds(uri: str, roles: Roles, columns: Mapping[str, str], data_dir: str | None) -> Source:
    """Resolves a TFDS dataset: all its splits, one after the other, since splits are made anew here."""
    builder = tfds_blocks.prepared_builder(uri.removeprefix(TFDS), data_dir)
    info = builder.info
    schema = tfds_blocks.table_schema(builder)
    mapping = map_columns(roles, schema.names, columns, uri)
    others = _other_columns(roles, schema, mapping, uri)
    _check_schema(roles, mapping, others, schema, uri, uri)
    name, _, version = info.full_name.rpartition("/")
    files = tuple(
        SourceFile(f"{TFDS}{info.full_name}/{split}", info.splits[split].num_examples)
        for split in sorted(info.splits)
        if info.splits[split].num_examples
    )
    if not files:
        raise InputError(f"{uri} has no rows: there is nothing to read")
    return Source(roles.dataset, uri, "tfds", files, mapping, others, f"{name}:{version}", data_dir)


Piece = tuple[int, int, int]
"""A file's ordinal, and a range of it: bytes of text (to the end: -1), row groups of Parquet, examples of TFDS."""

_TO_THE_END = -1


def cut_file(ordinal: int, source: Source, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yields the pieces of a file: whole records, all of them, each once."""
    path, size, file_format = source.files[ordinal].path, source.files[ordinal].size, _BY_NAME[source.format]
    if source.format == "tfds":
        # `size` counts examples; about 64 bytes of a column's values each.
        step = max(1, piece_bytes // 64)
        yield from ((ordinal, start, min(start + step, size)) for start in range(0, size, step))
    elif file_format.dialect is None:
        with _reading_parquet(path) as parquet:
            start, total = 0, 0
            for group in range(parquet.num_row_groups):
                total += parquet.metadata.row_group(group).total_byte_size
                if total >= piece_bytes or group + 1 == parquet.num_row_groups:
                    yield ordinal, start, group + 1
                    start, total = group + 1, 0
    else:
        with _reading(path, file_format) as file:
            _, start, _ = _text_header(file, file_format)
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
    with _reading_parquet(source.files[ordinal].path) as parquet:
        start = sum(parquet.metadata.row_group(group).num_rows for group in range(first))
        groups = list(range(first, stop))
        for block in parquet.iter_batches(MAX_ROWS, row_groups=groups, columns=source.wanted, use_threads=False):
            yield from _raw(*_decoded_block(block, source), source, ordinal, np.arange(start, start + block.num_rows))
            start += block.num_rows


def _read_text(piece: Piece, source: Source) -> Iterator[Any]:
    ordinal, first, stop = piece
    file_format = _BY_NAME[source.format]
    dialect = file_format.dialect
    assert dialect is not None
    with _reading(source.files[ordinal].path, file_format) as file:
        names, _, _ = _text_header(file, file_format)
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
            columns[name] = without_zero_fraction(columns[name])
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
        if _BY_NAME[self.source.format].is_gzip:
            blocks |= "SpreadBlocks" >> beam.Reshuffle()
        return RawBlocks(blocks, read.malformed)
