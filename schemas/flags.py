"""What a field of settings says of itself: the flag that sets it, that flag's help, and the rule that its value obeys."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, NamedTuple, get_args

from schemas.errors import InputError


class Rule(NamedTuple):
    """What a value must be.

    Attributes:
      words: end the sentence that begins with "it must be".
      allows: whether a value is that.
      repair: what to do about one that is not; `{flag}` is the flag's name.
    """

    words: str
    allows: Callable[[Any], bool]
    repair: str = "change --{flag}"


SHARE = Rule("between 0 and 1", lambda value: 0 <= value <= 1)
ABOVE_0 = Rule("a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Rule("a number of at least 0", lambda value: 0 <= value < math.inf)
FINITE = Rule("a finite number", math.isfinite)
AT_LEAST_1_MIB = Rule("at least 1 MiB", lambda value: value >= 1 << 20, "raise --{flag}")


def one_of(*values: str) -> Rule:
    """Returns the rule of a field that takes these words."""
    return Rule(f"one of {', '.join(values)}", lambda value: value in values)


def between(low: float, high: float) -> Rule:
    """Returns the rule of a field that takes numbers between two, both allowed."""
    return Rule(f"between {low} and {high}", lambda value: low <= value <= high)


def at_least(low: int, repair: str = "raise --{flag}") -> Rule:
    """Returns the rule of a field that takes numbers from one on."""
    return Rule(f"at least {low}", lambda value: value >= low, repair)


class Flag(NamedTuple):
    """How a field of settings is set.

    Attributes:
      name: the flag's, without dashes.
      help: what it does; the parser adds the default.
      kind: bool for a flag that takes no value, otherwise what its value is read as.
      default: what the parser returns where the flag is not given.
      rule: what the value must be; None means that the field is used in all that it may be.
      called: what messages call the field.
      metavar: what --help calls the value, where it is not what its kind says.
      several: whether the flag may be repeated.
    """

    name: str
    help: str
    kind: type
    default: Any
    rule: Rule | None
    called: str
    metavar: str | None = None
    several: bool = False


def flag(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    name: str | None = None,
    rule: Rule | None = None,
    called: str | None = None,
    unset: Any = dataclasses.MISSING,
    metavar: str | None = None,
    several: bool = False,
) -> Any:
    """Returns a field of a settings class that a flag sets.

    Args:
      default: of the field.
      help: the flag's.
      name: the flag's, where it is not the field's.
      rule: what the value must be; `check_fields` tells it.
      called: what messages call the field, where that is not the flag's name.
      unset: what the parser returns where the flag is not given, where that is not the field's default.
      metavar: what --help calls the value, where it is not what its kind says.
      several: whether the flag may be repeated.
    """
    said = {"help": help, "name": name, "rule": rule, "called": called, "unset": unset, "metavar": metavar, "several": several}
    metadata = {"flag": said}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flags_of(settings: Any) -> dict[str, Flag]:
    """Returns the flags of a settings class, or of one of its objects, by the names of their fields."""
    return {each.name: _flag_of(each) for each in dataclasses.fields(settings) if "flag" in each.metadata}


def _flag_of(field: dataclasses.Field) -> Flag:
    said = field.metadata["flag"]
    kind = get_args(field.type)[0] if isinstance(field.type, UnionType) else field.type
    name = said["name"] or field.name
    return Flag(
        name=name,
        help=said["help"],
        kind=kind if kind in (bool, int, float) else str,
        default=next((each for each in (said["unset"], field.default) if each is not dataclasses.MISSING), None),
        rule=said["rule"],
        called=said["called"] or name,
        metavar=said["metavar"],
        several=said["several"],
    )


def check_fields(settings: Any) -> None:
    """Checks each field of a settings object by its rule; None is a field that is not set.

    Raises:
      InputError: naming the first value that breaks one, the rule and the repair.
    """
    for field, declared in flags_of(settings).items():
        if declared.rule:
            check_value(declared.called, getattr(settings, field), declared.rule, declared.name)


def check_value(called: str, value: Any, rule: Rule, flag: str) -> None:
    """Checks one value by a rule; None is one that is not set.

    Args:
      called: what the message calls it.
      value: what is checked.
      rule: what it must be.
      flag: the name of the flag that sets it.

    Raises:
      InputError: naming the value, the rule and the repair.
    """
    if value is not None and not rule.allows(value):
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        raise InputError(f"{called} must be {rule.words}, got {shown}: {rule.repair.format(flag=flag)}")
