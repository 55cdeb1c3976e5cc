"""Text from outside, such as a title or an id, made fit to be seen: no character of it can act on what shows it."""

import unicodedata

_JOINERS = "\u200c\u200d"
"""Invisible, yet Persian words, many of India's, and joined emojis are not spelt without them."""


def printable(text: str, kept: str = "") -> str:
    """Returns text for a terminal or a page: what is no mark on it is written out, as in `\\x1b`, so that two ids stay two.

    Control characters would move the cursor, recolour a terminal or retitle its window, and those that change the direction of
    writing would show one id as another.

    Args:
      text: anything.
      kept: characters to leave as they are, such as the end of a line.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in kept else _written(each) for each in text)


def _written(character: str) -> str:
    if character in _JOINERS:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode("ascii")
