"""The shape of a JSON value: whatever is read from a file that somebody may have altered is held to it before it is used.

A shape is written like the value itself: a mapping of names to shapes, or a list of the one shape of all its entries, or of the
shapes of so many entries as it has. Below those stand types, Text (what a pattern matches), AtLeast, Each (a mapping of any
names) and Maybe (what may be missing or null).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = Any
"""A type, a mapping of names to shapes, a list of one shape, or one of the classes below."""

_SHOWN = 80
"""How much of a value a message shows."""


@dataclass(frozen=True)
class Text:
    """Text that a pattern matches as a whole.

    Attributes:
      what: what it must be, in words.
      pattern: a regular expression.
    """

    what: str
    pattern: str

    def matches(self, value: Any) -> bool:
        """Tells whether a value is such text."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII) is not None

    def check(self, value: Any, where: str) -> None:
        """Raises ValueError unless a value is such text."""
        if not self.matches(value):
            raise _wrong(where, self.what, value)


@dataclass(frozen=True)
class AtLeast:
    """A whole number that is not below another, nor above a third."""

    lowest: int
    highest: int | None = None

    @property
    def what(self) -> str:
        """What it must be, in words."""
        up_to = "or more" if self.highest is None else f"to {self.highest}"
        return f"a whole number, {self.lowest} {up_to}"


@dataclass(frozen=True)
class Each:
    """A mapping whose names are not known beforehand.

    Attributes:
      value: the shape of each value.
      name: of each name.
    """

    value: Shape
    name: Text | None = None


@dataclass(frozen=True)
class Maybe:
    """What may be missing, or null."""

    shape: Shape


def check_shape(value: Any, shape: Shape, where: str = "") -> None:
    """Makes sure that a value read from JSON has a shape; what the shape does not name is not looked at.

    Args:
      value: the value.
      shape: what it must be.
      where: the names that lead to it, for what is wrong.

    Raises:
      ValueError: naming the first value that is not as it must be, and what it must be.
    """
    if isinstance(shape, Maybe):
        if value is not None:
            check_shape(value, shape.shape, where)
    elif isinstance(shape, Text):
        shape.check(value, where)
    elif isinstance(shape, AtLeast):
        if not _is(value, int) or value < shape.lowest or (shape.highest is not None and value > shape.highest):
            raise _wrong(where, shape.what, value)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        if len(shape) > 1 and len(value) != len(shape):
            raise _wrong(where, f"a list of {len(shape)}", value)
        for at, each in enumerate(value):
            check_shape(each, shape[at if len(shape) > 1 else 0], _below(where, str(at)))
    elif isinstance(shape, Each | dict):
        _check_mapping(value, shape, where)
    elif not _is(value, shape):
        raise _wrong(where, _WORDS[shape], value)


def _check_mapping(value: Any, shape: Each | Mapping[str, Shape], where: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    if isinstance(shape, Each):
        for name, each in value.items():
            if shape.name:
                shape.name.check(name, f"a name in {where}" if where else "a name")
            check_shape(each, shape.value, _below(where, name))
        return
    for name, its in shape.items():
        if name not in value and not isinstance(its, Maybe):
            raise ValueError(f"{_below(where, name)} is missing")
        check_shape(value.get(name), its, _below(where, name))


_WORDS: Mapping[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}

_KINDS: Mapping[type, Callable[[Any], bool]] = {
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
}


def _is(value: Any, kind: type) -> bool:
    return _KINDS[kind](value) if kind in _KINDS else isinstance(value, kind)


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, what: str, value: Any) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return ValueError(f"{where or 'it'} must be {what}, got {shown}")
