"""Cuts delimited text into runs of whole records, at the speed of a scan of its bytes, and parses them into Arrow.

The CSV understood here is RFC 4180, read as Arrow's parser reads it: a quote opens a quoted field only at the field's start,
`""` inside one is a quote, a newline inside one belongs to the field. TSV has no quoting: a quote is a character like others.

    user,item,note        a record ends at a newline that is in no quoted field, so a file can be cut there,
    u1,i1,"two            and nowhere else; whether a newline is in a quoted field depends on all the text
    lines"                before it, hence one sequential scan for CSV and none for TSV
    u2,i2,5" disk
"""

import codecs
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from schemas.errors import InputError

RUN_BYTES = 1 << 22
"""How much text is parsed at a time: it fits the processor's cache, and is some 100,000 ratings."""

MAX_RECORD_BYTES = 1 << 24
"""Where no record ends within so many bytes, a quote was left open, or the file is not text."""

NOT_UTF8 = "\U0010ffff"
"""Stands for bytes that are not UTF-8 while a run is parsed; Unicode keeps this code point for such private uses."""

_MAX_HEADER_BYTES = 1 << 18
_QUOTE = ord('"')
_NEWLINE = re.compile(rb"\r\n|\r|\n")
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Dialect:
    """How a delimited text is written."""

    name: str
    delimiter: str
    quoted: bool


CSV = Dialect("CSV", ",", quoted=True)
TSV = Dialect("TSV", "\t", quoted=False)


class Run(NamedTuple):
    """Whole records that follow each other in a file."""

    start: int
    """The offset of the first byte."""
    data: bytes
    is_open: bool
    """Whether this is a single line with a quote that nothing closes."""


class ParsedRun(NamedTuple):
    """The rows of a run."""

    table: pa.Table
    """[n] rows of string columns; empty fields are null."""
    rows: np.ndarray
    """[n] int64: the row number of each in the run, empty lines not counted."""
    malformed: list[tuple[int, str]]
    """Row number and text of the records whose number of columns is wrong."""
    has_not_utf8: bool
    """Whether NOT_UTF8 may occur in the table."""


def _quoted_spans(data: bytes, delimiter: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns where quoted fields open and close in `data`, which starts at the start of a record.

    Where every other quote, the first included, stands at the start of a field or right after another quote, quotes open and
    close in turn. (A doubled quote closes and opens again, which is the same to one who looks for newlines.) That is checked
    for all quotes at once. Text with stray quotes, as in `5" disk`, fails the check and is searched field by field.

    Returns:
      ([n], [n]) int64, ascending: the quote that opens each field, and the one that closes it, len(data) where none does.
    """
    codes = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(codes == _QUOTE)
    opening, closing = quotes[::2], quotes[1::2]
    may_precede = np.zeros(256, bool)
    may_precede[[ord(delimiter), ord("\n"), ord("\r"), _QUOTE]] = True
    before = opening[1:] if len(opening) and opening[0] == 0 else opening
    if not may_precede[codes[before - 1]].all():
        field = re.compile(rb'"(?<![^\r\n%b]")[^"]*(?:""[^"]*)*("?)' % re.escape(delimiter.encode()))
        spans = [(match.start(), match.end() - 1 if match[1] else len(data)) for match in field.finditer(data)]
        opening, closing = np.array(spans, np.int64).reshape(-1, 2).T
    if len(closing) < len(opening):
        closing = np.append(closing, len(data))
    return opening, closing


def _last_outside(data: bytes, newline: bytes, stop: int, opening: np.ndarray, closing: np.ndarray) -> int:
    """Returns the offset of the last `newline` before `stop` that is in no quoted field, or -1."""
    found = data.rfind(newline, 0, stop)
    while found >= 0:
        field = int(np.searchsorted(opening, found)) - 1
        if field < 0 or closing[field] < found:
            break
        found = data.rfind(newline, 0, int(opening[field]))
    return found


def last_record_end(data: bytes, dialect: Dialect) -> tuple[int, bool]:
    """Finds the end of the last whole record of `data`, which starts at the start of a record.

    Returns:
      The offset after its newline, 0 where no record ends in `data`; and whether `data` ends inside a quoted field.
    """
    opening, closing = _quoted_spans(data, dialect.delimiter) if dialect.quoted and b'"' in data else (_NONE, _NONE)
    is_open = bool(len(closing)) and int(closing[-1]) == len(data)
    end = _last_outside(data, b"\n", len(data), opening, closing) + 1
    # Files of the old Mac end records with a carriage return alone; the last byte may be the first half of \r\n.
    return end or _last_outside(data, b"\r", len(data) - 1, opening, closing) + 1, is_open


def record_runs(file: BinaryIO, start: int, end: int | None, dialect: Dialect, run_bytes: int = RUN_BYTES) -> Iterator[Run]:
    """Yields the records of `file` between two offsets, each once and in order, in runs of about `run_bytes`.

    A line with a quote that nothing closes is a run of its own, so that it does not swallow the rest of the file.

    Args:
      file: Bytes that can be read and sought.
      start: The offset of a record.
      end: The offset of another, or None: the end of the file.
      dialect: How the text is written.
      run_bytes: How much is read at a time.

    Raises:
      InputError: if a line is longer than MAX_RECORD_BYTES.
    """
    file.seek(start)
    unread = None if end is None else end - start
    buffer = b""
    while True:
        data = file.read(run_bytes if unread is None else min(run_bytes, unread))
        if unread is not None:
            unread -= len(data)
        at_end = not data
        buffer += data
        while buffer:
            length, is_open = last_record_end(buffer, dialect)
            if at_end and not is_open:
                length = len(buffer)
            if length:
                yield Run(start, buffer[:length], False)
            elif is_open and (at_end or len(buffer) > MAX_RECORD_BYTES):
                length = buffer.find(b"\n") + 1 or len(buffer)
                yield Run(start, buffer[:length], True)
            elif len(buffer) > MAX_RECORD_BYTES:
                raise InputError(f"the line at byte {start} is longer than {MAX_RECORD_BYTES} bytes: is this file text?")
            start, buffer = start + length, buffer[length:]
            if not length or not (at_end or len(buffer) > MAX_RECORD_BYTES):
                break
        if at_end:
            return


def cut(file: BinaryIO, start: int, size: int, dialect: Dialect, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Yields the (start, end) offsets of pieces of about `piece_bytes` that hold whole records, and together all of them.

    Args:
      file: Bytes that can be read and sought.
      start: The offset of the first record.
      size: The file's size.
      dialect: How the text is written.
      piece_bytes: How long a piece should be.
    """
    piece = start
    if dialect.quoted:
        for run in record_runs(file, start, size, dialect, min(RUN_BYTES, piece_bytes)):
            if piece < run.start and (run.is_open or run.start + len(run.data) - piece > piece_bytes):
                yield piece, run.start
                piece = run.start
            if run.is_open:
                yield piece, piece + len(run.data)
                piece += len(run.data)
    else:
        while size - piece > piece_bytes:
            newline = _next_newline(file, piece + piece_bytes - 1)
            if newline is None:
                break
            yield piece, newline + 1
            piece = newline + 1
    if piece < size:
        yield piece, size


def _next_newline(file: BinaryIO, start: int) -> int | None:
    """Returns the offset of the first line feed at or after `start`."""
    file.seek(start)
    while data := file.read(1 << 16):
        found = data.find(b"\n")
        if found >= 0:
            return start + found
        start += len(data)
    return None


def _first_record_end(data: bytes, dialect: Dialect) -> int | None:
    """Returns the offset after the first record of `data`; None where it does not end in the first _MAX_HEADER_BYTES."""
    opening, closing = _quoted_spans(data, dialect.delimiter) if dialect.quoted else (_NONE, _NONE)
    start = 0
    for open_quote, close_quote in zip(opening.tolist(), closing.tolist(), strict=True):
        newline = _NEWLINE.search(data, start, open_quote)
        if newline:
            return newline.end()
        start = close_quote + 1
    newline = _NEWLINE.search(data, min(start, len(data)))
    if newline:
        return newline.end()
    return len(data) if start <= len(data) < _MAX_HEADER_BYTES else None


def read_header(file: BinaryIO, dialect: Dialect) -> tuple[list[str], int, bool]:
    """Reads the names of the columns, and leaves `file` anywhere.

    Returns:
      The names; the offset of the first record after them; and whether anything but empty lines follows.

    Raises:
      InputError: if there is no header, or none that can be read; the message goes on from the file's name.
    """
    data = file.read(_MAX_HEADER_BYTES)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError("is UTF-16: convert it to UTF-8")
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
        start = len(codecs.BOM_UTF8)
    else:
        start = 0
    end = _first_record_end(data, dialect)
    if end is None:
        raise InputError(f"has no header that ends within {_MAX_HEADER_BYTES} bytes, its quotes closed: is it {dialect.name}?")
    line = data[:end].decode("utf-8", "replace").rstrip("\r\n")
    if not line.strip():
        raise InputError("is empty, or its first line is: the first line must name the columns")
    try:
        names = next(csv.reader([line], strict=True)) if dialect.quoted else line.split(dialect.delimiter)
    except csv.Error as error:
        if dialect.delimiter in line:
            raise InputError(f"has a header that is not CSV ({error}): correct its first line, {line[:100]!r}") from error
        names = [line]  # Something else separates its columns, which is for whoever looks for a column to say.
    return names, start + end, bool(data[end:].strip(b"\r\n"))


def is_utf8(data: bytes) -> bool:
    """Tells whether `data` is UTF-8, without a copy."""
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def mend_utf8(data: bytes) -> bytes:
    """Replaces every stretch of bytes that is not UTF-8 by NOT_UTF8."""
    return re.sub("[\udc80-\udcff]+", NOT_UTF8, data.decode("utf-8", "surrogateescape")).encode()


def decode_utf8(values: pa.Array) -> tuple[pa.Array, bool]:
    """Decodes [n] binary values; returns [n] string, and whether NOT_UTF8 stands for anything in them."""
    try:
        return values.cast(pa.string()), False
    except pa.ArrowInvalid:
        mended = [value if value is None else mend_utf8(value).decode() for value in values.to_pylist()]
        return pa.array(mended, pa.string()), True


def parse_run(data: bytes, names: list[str], wanted: list[str], dialect: Dialect) -> ParsedRun:
    """Parses whole records, whatever bytes they are made of.

    Args:
      data: The records.
      names: What the columns are called, in order.
      wanted: The columns to return.
      dialect: How the text is written.
    """
    malformed: list[tuple[int, str]] = []

    def set_aside(row: arrow_csv.InvalidRow) -> str:
        malformed.append((row.number - 1, row.text))
        return "skip"

    has_not_utf8 = not is_utf8(data)
    if has_not_utf8:
        data = mend_utf8(data)
    if data.startswith(codecs.BOM_UTF8):
        data = b"\n" + data  # Arrow would drop these three bytes wherever a run starts with them.
    table = arrow_csv.read_csv(
        pa.BufferReader(data),
        arrow_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
        arrow_csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char='"' if dialect.quoted else False,
            double_quote=dialect.quoted,
            newlines_in_values=dialect.quoted,
            invalid_row_handler=set_aside,
        ),
        arrow_csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )
    rows = np.arange(table.num_rows + len(malformed))
    return ParsedRun(table, np.delete(rows, [row for row, _ in malformed]), malformed, has_not_utf8)
