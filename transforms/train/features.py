"""Declares what of an item its tower looks at: columns of the catalogue, each of a kind.

    class: {kind: categories, separator: " "}
    release_year: {kind: number, missing: [V, unkonwn]}
    title: text

The kinds: `category`, one value; `categories`, several, as a list or as separated text; `number`; `text`, its words.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from schemas.errors import InputError
from schemas.yaml_text import read_yaml

CATEGORY, CATEGORIES, NUMBER, TEXT = KINDS = ("category", "categories", "number", "text")

_OPTIONS = {
    CATEGORY: ("missing", "min_items", "max_values"),
    CATEGORIES: ("missing", "min_items", "max_values", "separator"),
    NUMBER: ("missing", "buckets"),
    TEXT: ("missing", "min_items", "buckets"),
}
"""What can be said of each kind beside its name."""

_DEFAULTS: dict[str, dict[str, int]] = {NUMBER: {"buckets": 10}, TEXT: {"buckets": 4096, "min_items": 10}}
"""Where kinds differ. Rare words mislead: see docs/explanation/model.md."""
_MAX_BUCKETS = 1 << 24


@dataclass(frozen=True)
class Feature:
    """A column of the catalogue, and what its values are.

    Attributes:
      column: its name.
      kind: one of KINDS.
      missing: values that mean that there is none, beside null and empty text.
      separator: between the values of `categories` that are one text; lists need none.
      min_items: a value is learned when so many items that were rated have it (default 2, of words 10): what one item alone
        has, its id can say, and what few have says little of others.
      max_values: of a category: the most frequent so many are learned, the others count as missing.
      buckets: of a number, by quantiles, 0 learns one direction for the standardised number instead (default 10); of text,
        how many hashes its words fall into (default 4096). 0 for categories, which have none.
    """

    column: str
    kind: str
    missing: tuple[str, ...] = ()
    separator: str = "|"
    min_items: int = 2
    max_values: int = 10_000
    buckets: int = 0

    def __post_init__(self) -> None:
        where = f"feature {self.column!r}"
        for name, low, high in [("min_items", 1, 1_000_000_000), ("max_values", 1, 10_000_000)]:
            if not low <= getattr(self, name) <= high:
                raise InputError(
                    f"{name} of {where} must be between {low} and {high}, got {getattr(self, name)}: change --features"
                )
        low, high = {NUMBER: (0, 1_000), TEXT: (2, _MAX_BUCKETS)}.get(self.kind, (0, 0))
        if not low <= self.buckets <= high or (self.kind == NUMBER and self.buckets == 1):
            rule = "0, or between 2 and 1000" if self.kind == NUMBER else f"between {low} and {high}"
            raise InputError(f"buckets of {where} must be {rule}, got {self.buckets}: change --features")
        if not self.separator:
            raise InputError(
                f"the separator of {where} must be at least one character, got '': write separator: ' ' for a space"
            )


def feature_of(column: str, declared: Any) -> Feature:
    """Reads what was declared of one column: a kind, or a mapping of `kind` and its options.

    Raises:
      InputError: for a kind or an option that does not exist, or a value of the wrong type.
    """
    if isinstance(declared, str):
        declared = {"kind": declared}
    if not isinstance(declared, Mapping) or not isinstance(declared.get("kind"), str):
        raise InputError(
            f"the feature {column!r} must be a kind or a mapping with one, got {declared!r}: "
            f"write {column}: category, or {column}: {{kind: category}}"
        )
    kind = declared["kind"]
    if kind not in KINDS:
        raise InputError(
            f"the kind of feature {column!r} must be one of {', '.join(KINDS)}, got {kind!r}: {_near(kind, KINDS)}"
        )
    options = {name: value for name, value in declared.items() if name != "kind"}
    for name, value in options.items():
        if name not in _OPTIONS[kind]:
            raise InputError(
                f"{kind} takes the options {', '.join(_OPTIONS[kind])}, got {name!r} for feature {column!r}: "
                f"{_near(str(name), _OPTIONS[kind])}"
            )
        if name == "missing":
            values = value if isinstance(value, list) else [value]
            if any(isinstance(each, list | dict) or each is None for each in values):
                raise InputError(
                    f"missing of feature {column!r} must be a list of values, got {value!r}: write missing: [unknown]"
                )
            options[name] = tuple(str(each) for each in values)
        elif name == "separator":
            if not isinstance(value, str):
                raise InputError(f"the separator of feature {column!r} must be text, got {value!r}: write separator: '|'")
        elif isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} of feature {column!r} must be a whole number, got {value!r}: change --features")
    return Feature(column, kind, **{**_DEFAULTS.get(kind, {}), **options})


def features_of(text: str) -> tuple[Feature, ...]:
    """Reads a declaration: 'genres=categories, year=number', or YAML's '{genres: {kind: categories, separator: " "}}'.

    Raises:
      InputError: if it is neither, or names a column twice, or for what `feature_of` refuses.
    """
    declared: dict[str, Any] = {}
    if text.lstrip().startswith("{"):
        declared = read_yaml(text, "--features")
    else:
        for pair in filter(None, (each.strip() for each in text.split(","))):
            column, equals, kind = (each.strip() for each in pair.rpartition("="))
            if not (column and equals):
                raise InputError(f"--features takes column=kind pairs, got {pair!r}: write it as --features genres=categories")
            if column in declared:
                raise InputError(f"--features names the column {column!r} twice: keep one")
            declared[column] = kind
    return tuple(feature_of(str(column), what) for column, what in declared.items())


def in_catalogue(features: Sequence[Feature], items: Mapping[str, Any] | None) -> tuple[Feature, ...]:
    """Returns the features by the catalogue's names, after checking that the source of the items has them.

    Args:
      features: as declared, by the source's names or the catalogue's.
      items: the source's description: `columns`, role -> column, and `other_columns`; None where there is no source.

    Raises:
      InputError: for a column that there is not, or that is declared under two names, or where there is no source.
    """
    if items is None:
        raise InputError(f"the feature {features[0].column!r} needs items: give --items, or use --item_tower id")
    renamed = {column: role for role, column in items["columns"].items() if role != "item_id"}
    columns = [*renamed.values(), *items["other_columns"]]
    known = [*renamed, *items["other_columns"]]
    found: dict[str, Feature] = {}
    for feature in features:
        column = feature.column if feature.column in columns else renamed.get(feature.column, feature.column)
        if column not in columns:
            raise InputError(
                f"the items have no column {feature.column!r} for a feature, they have {', '.join(known) or 'none'}: "
                f"{_near(feature.column, known)}"
            )
        if column in found:
            raise InputError(f"--features names the column {column!r} twice, also as {feature.column!r}: keep one")
        found[column] = replace(feature, column=column)
    return tuple(found.values())


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else "change --features"


def declaration_of(feature: Feature) -> dict[str, Any]:
    """Returns what `feature_of` reads a feature from."""
    values = {"missing": list(feature.missing)} | {name: getattr(feature, name) for name in _OPTIONS[feature.kind][1:]}
    return {"kind": feature.kind, **values}


def to_json(feature: Feature) -> dict[str, Any]:
    """Returns what `from_json` makes a feature of."""
    return asdict(feature)


def from_json(value: Mapping[str, Any]) -> Feature:
    """Returns the feature that `to_json` wrote."""
    return Feature(**{**value, "missing": tuple(value["missing"])})
