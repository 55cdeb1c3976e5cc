"""Writes HTML: text is escaped unless a function of this module made it, so that no title or id can become part of the page."""

from collections.abc import Iterable
from html import escape

from schemas.printable import printable

_EMPTY = frozenset(["meta", "br", "hr"])
_LONGEST = 80


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """Returns an element.

    Args:
      name: such as 'td'.
      children: inside it: text, which is escaped, or Html, which is not.
      attributes: a '_' in a name is written as '-', and one at its end is left out: class_, aria_label.
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_safe(value)}"' for key, value in attributes.items())
    if name in _EMPTY:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Html:
    """Returns text and HTML, one after the other, as HTML."""
    return Html("".join(child if isinstance(child, Html) else _safe(child) for child in children))


def _safe(text: str) -> str:
    return escape(printable(text, "\n"))


def foreign(text: str) -> Html:
    """Returns text from outside, such as a title, cut to a sensible length; the direction it is written in ends with it."""
    clean = "".join(each if each.isprintable() else " " for each in text)
    return tag("bdi", clean if len(clean) <= _LONGEST else f"{clean[: _LONGEST - 1]}…")
