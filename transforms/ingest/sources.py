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
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, FileMetadata

from schemas.blocks import text_lengths
from schemas.errors import InputError
from schemas.storage import checksum_of, exists, is_local, list_files, metadata_of
from transforms.ingest import tfds_blocks
from transforms.ingest.columns import (
    HELD_OUT_ROLES,
    ITEM_ROLES,
    RATING_ROLES,
    Roles,
    listed,
    map_columns,
    other_columns,
    stored_type,
)
from transforms.ingest.formats import TFDS, Format, check_begins_as, one_format, opened, opened_parquet, text_header

POSITION_BITS = 40
"""A row's position is its file's ordinal shifted by this, plus a number that grows along the file."""

_CHECKED_AT_ONCE = 16


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


def resolve_held_out(uri: str, columns: Mapping[str, str] | None = None, tfds_data_dir: str | None = None) -> Source:
    """Finds ratings that are held out as they are; see `resolve_ratings`. Of `columns`, those that it has count."""
    return resolve(uri, HELD_OUT_ROLES, columns, tfds_data_dir)


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
    file_format = one_format(uri, [metadata.path for metadata in found])
    with ThreadPoolExecutor(_CHECKED_AT_ONCE) as pool:
        contents = list(pool.map(lambda metadata: _look_into(metadata, file_format), found))
        files = list(pool.map(_source_file, found, contents))
    if not may_be_empty and not any(content.has_rows for content in contents):
        raise InputError(f"{uri} has no rows: there is nothing to read")
    first = contents[0].schema
    mapping = map_columns(roles, first.names, columns, found[0].path)
    others = other_columns(roles, first, mapping, found[0].path)
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
        return [metadata_of(root)]
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
    with opened_parquet(first.path) as parquet:
        rows = next(parquet.iter_batches(_MEASURED_ROWS, columns=list(source.columns.values()), use_threads=False))
    columns = [column.cast(stored_type(column.type)) for column in rows.columns]
    measured = sum(int(text_lengths(column).sum()) or 8 * len(rows) for column in columns)
    return math.ceil(measured / len(rows) * sum(file.rows or 0 for file in source.files))


def _source_file(metadata: FileMetadata, contents: _Contents) -> SourceFile:
    """Notes what identifies a file's contents."""
    etag = None if is_local(metadata.path) else checksum_of(metadata.path)
    return SourceFile(metadata.path, metadata.size_in_bytes, metadata.last_updated_in_seconds or None, etag, contents.rows)


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
    check_begins_as(path, file_format)
    if file_format.dialect is None:
        with opened_parquet(path) as parquet:
            rows = parquet.metadata.num_rows
            return _Contents(parquet.schema_arrow, rows > 0, rows)
    with opened(path, file_format) as file:
        names, _, has_rows = text_header(file, file_format)
    return _Contents(pa.schema([(name, pa.string()) for name in names]), has_rows)


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
            f"{path} has no column {listed(missing)}, as {first} has; it has {listed(schema.names)}: make the files alike, "
            "or name those to read, as in folder/*.csv"
        )
    map_columns(roles, schema.names, {role: mapping.get(role, "") for role in roles.aliases}, path)
    for role, column in mapping.items():
        dtype = stored_type(schema.field(column).type)
        if pa.types.is_nested(dtype) or isinstance(dtype, pa.BaseExtensionType):
            raise InputError(f"column {column!r} of {path} has type {dtype}: {role} must be text, a number or a time")
    for column in others:
        found = stored_type(schema.field(column.name).type)
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
    others = other_columns(roles, schema, mapping, uri)
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
