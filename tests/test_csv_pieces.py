"""Cutting and parsing of delimited text, against Python's csv module and against the parse of the whole."""

import codecs
import csv
import io
from typing import Literal

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.errors import InputError
from transforms.ingest import csv_pieces
from transforms.ingest.csv_pieces import CSV, NOT_UTF8, TSV, Dialect, cut, decode_utf8, parse_run, read_header, record_runs

NAMES = ["x", "y"]


def pieces_of(data: bytes, dialect: Dialect, piece_bytes: int) -> list[bytes]:
    return [data[start:end] for start, end in cut(io.BytesIO(data), 0, len(data), dialect, piece_bytes)]


def parse(data: bytes, dialect: Dialect, run_bytes: int) -> tuple[list[tuple], list[str | bytes]]:
    """Returns the rows, and what was set aside."""
    rows: list[tuple] = []
    aside: list[str | bytes] = []
    for run in record_runs(io.BytesIO(data), 0, None, dialect, run_bytes):
        if run.is_open:
            aside.append(run.data)
            continue
        parsed = parse_run(run.data, NAMES, NAMES, dialect)
        rows += [tuple(row.values()) for row in parsed.table.to_pylist()]
        aside += [text for _, text in parsed.malformed]
        assert len(parsed.rows) == parsed.table.num_rows
    return rows, aside


def written(rows: list[tuple], newline: str, quoting: Literal[0, 1]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=newline, quoting=quoting).writerows(rows)
    return text.getvalue().encode()


FIELDS = st.text(st.sampled_from('ab,"\n\r\té😀 \ufeff'), max_size=6)
NASTY = st.text(st.sampled_from('ab,"\n\r'), max_size=40).map(str.encode)


@given(
    st.lists(st.tuples(FIELDS, FIELDS), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.integers(1, 80),
)
def test_valid_csv_is_read_as_pythons_csv_module_reads_it(rows, newline, quoting, run_bytes):
    if newline == "\n" and any("\r" in field for row in rows for field in row):
        quoting = csv.QUOTE_ALL  # Python's writer forgets that a carriage return alone needs quotes too.
    data = written(rows, newline, quoting)
    expected = [tuple(field or None for field in row) for row in csv.reader(io.StringIO(data.decode(), newline=""))]
    assert expected == [tuple(field or None for field in row) for row in rows]
    assert parse(data, CSV, run_bytes) == (expected, [])


@given(NASTY, st.integers(1, 50))
@example(b'"a\n"b,"c\n', 1)
@example(b'a,"\n",b"\n"c,d', 3)
@example(b'"a""b\n""",c\n', 2)
def test_stray_quotes_are_cut_wherever_the_parser_sees_a_record_end(data, run_bytes):
    rows, aside = parse(data, CSV, len(data) + 1)
    assert parse(data, CSV, run_bytes) == (rows, aside)
    if not any(run.is_open for run in record_runs(io.BytesIO(data), 0, None, CSV)) and data.strip(b"\r\n"):
        parsed = parse_run(data, NAMES, NAMES, CSV)  # The parser alone, with all the text before it.
        assert rows == [tuple(row.values()) for row in parsed.table.to_pylist()]


@given(st.one_of(NASTY, st.binary(max_size=60)), st.integers(1, 50), st.sampled_from([CSV, TSV]))
def test_pieces_are_the_file_and_parse_as_it_does(data, piece_bytes, dialect):
    pieces = pieces_of(data, dialect, piece_bytes)
    assert b"".join(pieces) == data
    parsed = [parse(piece, dialect, 8) for piece in pieces]
    rows, aside = parse(data, dialect, 1 << 20)
    assert [row for piece in parsed for row in piece[0]] == rows
    assert [text for piece in parsed for text in piece[1]] == aside


def test_pieces_are_of_about_the_size_asked_for():
    data = b"u1,i1\n" * 10_000
    for dialect in (CSV, TSV):
        sizes = [len(piece) for piece in pieces_of(data, dialect, 1000)]
        assert max(sizes) <= 2000
        assert min(sizes[:-1]) >= 500


def test_an_open_quote_costs_one_line():
    data = b'a,b\nc,"d\ne,f\ng,h\n'
    assert parse(data, CSV, 1 << 20) == ([("a", "b"), ("e", "f"), ("g", "h")], [b'c,"d\n'])


def test_an_open_quote_costs_one_line_of_a_long_file(monkeypatch):
    monkeypatch.setattr(csv_pieces, "MAX_RECORD_BYTES", 1000)
    data = b'c,"d\n' + b"e,f\n" * 1000
    rows, aside = parse(data, CSV, 100)
    assert aside == [b'c,"d\n']
    assert rows == [("e", "f")] * 1000


def test_a_line_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(csv_pieces, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(InputError, match="line at byte 4 is longer than 1000 bytes"):
        parse(b"a,b\n" + b"c" * 5000, TSV, 100)


def test_a_byte_order_mark_within_the_file_is_text():
    data = "\ufeffa,b\n".encode() * 3
    for run_bytes in (1, 100):
        assert parse(data, CSV, run_bytes) == ([("\ufeffa", "b")] * 3, [])


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_every_newline_ends_a_record(newline):
    data = newline.join([b"a,b", b"", b"c,d", b"e,f"])
    for run_bytes in range(1, 20):
        assert parse(data, CSV, run_bytes)[0] == [("a", "b"), ("c", "d"), ("e", "f")]


def test_lines_of_the_wrong_length_keep_their_text_and_their_place():
    parsed = parse_run(b'a,b\n\nc,d,"e\ne"\nf,g\nh\n', NAMES, ["y"], CSV)
    assert parsed.malformed == [(1, 'c,d,"e\ne"'), (3, "h")]
    assert parsed.rows.tolist() == [0, 2]
    assert parsed.table.to_pydict() == {"y": ["b", "g"]}


def test_quotes_mean_nothing_in_tsv():
    assert parse(b'"a\tb"\nc""\t"\n', TSV, 100) == ([('"a', 'b"'), ('c""', '"')], [])


def test_bytes_that_are_not_utf8_are_marked():
    parsed = parse_run(b"a\xff\xfeb,\xc3\xa9\n\xff\n", NAMES, NAMES, CSV)
    assert parsed.has_not_utf8
    assert parsed.table.to_pydict() == {"x": [f"a{NOT_UTF8}b"], "y": ["é"]}
    assert parsed.malformed == [(1, NOT_UTF8)]
    values, has_not_utf8 = decode_utf8(pa.array([b"a\xff", None, b"c"]))
    assert has_not_utf8
    assert values.to_pylist() == [f"a{NOT_UTF8}", None, "c"]


@pytest.mark.parametrize(
    ("data", "names", "rest"),
    [
        (b"a,b\n1,2\n", ["a", "b"], b"1,2\n"),
        (codecs.BOM_UTF8 + b"a,b\r\n1,2\n", ["a", "b"], b"1,2\n"),
        (codecs.BOM_UTF8 + b'"a","b ""x""\n,"\r1,2', ["a", 'b "x"\n,'], b"1,2"),
        (b"a,b", ["a", "b"], b""),
        (b'5" disk,"b"\n1,2', ['5" disk', "b"], b"1,2"),
    ],
)
def test_headers(data, names, rest):
    found, start, has_rows = read_header(io.BytesIO(data), CSV)
    assert (found, data[start:], has_rows) == (names, rest, bool(rest))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (codecs.BOM_UTF8, "is empty"),
        (b"\n\na,b\n", "its first line is"),
        (b'a,"b\n1,2\n', "its quotes closed"),
        (b"a," * 200_000, "no header that ends within"),
        (b'a,"b"c\n1,2\n', "has a header that is not CSV .*: correct its first line, 'a,\"b\"c'"),
        ("a,b\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_headers_that_are_none(data, message):
    with pytest.raises(InputError, match=message):
        read_header(io.BytesIO(data), CSV)


@given(st.binary(max_size=100), st.sampled_from([CSV, TSV]))
def test_a_header_is_read_or_refused(data, dialect):
    try:
        _, start, _ = read_header(io.BytesIO(data), dialect)
    except InputError:
        return
    assert 0 < start <= len(data)
