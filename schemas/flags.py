"""What a field of settings says of itself: the flag that sets it, that flag's help, and the rule that its value obeys."""

import dataclasses
import math
from collections.abc import Callable
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


ABOVE_0 = Rule("a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Rule("a number of at least 0", lambda value: 0 <= value < math.inf)


def one_of(*values: str) -> Rule:
    """Returns the rule of a field that takes these words."""
    return Rule(f"one of {', '.join(values)}", lambda value: value in values)


def between(low: float, high: float) -> Rule:
    """Returns the rule of a field that takes numbers between two, both allowed."""
    return Rule(f"between {low} and {high}", lambda value: low <= value <= high)


class Flag(NamedTuple):
    """How a field of settings is set.

    Attributes:
      name: the flag's, without dashes.
      help: what it does; the parser adds the default.
      kind: bool for a flag that takes no value, otherwise what its value is read as.
      default: what the parser returns where the flag is not given.
      rule: what the value must be; None means that the field is used in all that it may be.
      called: what messages call the field.
    """

    name: str
    help: str
    kind: type
    default: Any
    rule: Rule | None
    called: str


def flag(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    name: str | None = None,
    rule: Rule | None = None,
    called: str | None = None,
    unset: Any = dataclasses.MISSING,
) -> Any:
    """Returns a field of a settings class that a flag sets.

    Args:
      default: of the field.
      help: the flag's.
      name: the flag's, where it is not the field's.
      rule: what the value must be; `check_fields` tells it.
      called: what messages call the field, where that is not the flag's name.
      unset: what the parser returns where the flag is not given, where that is not the field's default.
    """
    said = {"help": help, "name": name, "rule": rule, "called": called, "unset": unset}
    return dataclasses.field(default=default, metadata={"flag": said})


def flags_of(settings: Any) -> dict[str, Flag]:
    """Returns the flags of a settings class, or of one of its objects, by the names of their fields."""
    return {each.name: _flag_of(each) for each in dataclasses.fields(settings) if "flag" in each.metadata}


def _flag_of(field: dataclasses.Field) -> Flag:
    said = field.metadata["flag"]
    kind = (get_args(field.type) or (field.type,))[0]
    default = next((each for each in (said["unset"], field.default) if each is not dataclasses.MISSING), None)
    name = said["name"] or field.name
    return Flag(name, said["help"], kind if kind in (bool, int, float) else str, default, said["rule"], said["called"] or name)


def check_fields(settings: Any) -> None:
    """Checks each field of a settings object by its rule; None is a field that is not set.

    Raises:
      InputError: naming the first value that breaks one, the rule and the repair.
    """
    for field, declared in flags_of(settings).items():
        value = getattr(settings, field)
        if declared.rule and value is not None and not declared.rule.allows(value):
            shown = f"{value:g}" if isinstance(value, float) else repr(value)
            repair = declared.rule.repair.format(flag=declared.name)
            raise InputError(f"{declared.called} must be {declared.rule.words}, got {shown}: {repair}")
