"""What comes from outside cannot act on what shows it: no control character reaches a terminal, a page or a chart."""

import io
import logging
import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table

from pipelines.cli import logs
from pipelines.cli.command import MISTAKE, Output, run_command
from schemas.errors import InputError
from schemas.printable import printable
from transforms.charts.draw import escape as in_svg
from transforms.charts.markup import tag

ODD = "\x1b]0;owned\x07\x1b[2Jred\x9b31m\u202egnp.exe\r\ttitle\x00"


def acts(text: str) -> set[str]:
    """Returns the characters that are no marks: control, direction, surrogates, unassigned; not the end of a line."""
    kinds = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")
    return {each for each in text if unicodedata.category(each) in kinds} - set("\n\u200c\u200d")


@given(st.text(), st.text())
def test_nothing_acts_and_what_is_plain_stays(one: str, other: str) -> None:
    assert not acts(printable(one))
    assert "\n" not in printable(one)
    assert printable(printable(one)) == printable(one)
    if one.isprintable():
        assert printable(one) == one
    plain = {each for each in one + other if unicodedata.category(each)[0] != "Z" and each != "\\"}
    if one != other and plain == set(one + other):
        assert printable(one) != printable(other), "two ids stay two"


def test_words_that_need_invisible_characters_keep_them() -> None:
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0631\u0645", "👩\u200d🚀", "e\u0301", "日本語"):
        assert printable(text) == text
    assert printable("全角\u3000空白\xa0") == "全角 空白 "
    assert printable(ODD) == r"\x1b]0;owned\x07\x1b[2Jred\x9b31m\u202egnp.exe\r\ttitle\x00"


def test_what_is_printed_is_printable_whoever_forgot_it(capsys: pytest.CaptureFixture[str]) -> None:
    console = Output(force_terminal=True, width=200)
    table = Table(title=escape(ODD))
    table.add_column("title")
    table.add_row(escape(ODD))
    console.print(table)
    console.print(escape(ODD))
    out = capsys.readouterr().out
    assert not any(code in out for code in ("\x1b[2J", "\x1b]0"))
    assert not set(out) & set("\x07\x9b\u202e\r\t\x00")
    assert r"\x1b]0;owned" in out


def test_neither_errors_nor_log_lines_act(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: object) -> None:
        raise InputError(f"no user {ODD}: check --user")

    assert run_command(command, []) == MISTAKE
    assert not acts(capsys.readouterr().err)

    stream = io.StringIO()
    logs.configure(verbose=False)
    (handler,) = logs.LOGGER.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    logs.LOGGER.warning("item %s", ODD)
    assert r"item \x1b]0;owned" in stream.getvalue()
    assert not acts(stream.getvalue().replace("\t", ""))


def test_pages_and_charts_hold_no_control_character() -> None:
    page = tag("td", ODD, title=ODD)
    assert not acts(page)
    ElementTree.fromstring(f"<svg><text>{in_svg(ODD)}</text></svg>")
