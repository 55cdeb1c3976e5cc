"""Turns the features of items into numbers: what there is to know is learned from the items that were rated, once.

Every value that is learned (a genre, a word's hash, a decade) is one code, a row of one table of vectors; an item is a bag of
codes with weights, and its vector the weighted sum of their rows:

    class: Comedy Drama, title: Stalker, year: missing      ->      1/2 Comedy + 1/2 Drama + 1 stalker

So that a feature of many values weighs what one of a single value does, the values of a feature share a weight of 1. What is
missing, or was not learned, adds nothing. A standardised number is one code whose weight is the number. Training and embedding
encode with the same functions, a block at a time.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.errors import InputError
from transforms.io.partition import hash_ids
from transforms.train.features import CATEGORIES, CATEGORY, NUMBER, TEXT, Feature, from_json, to_json

"""What encodes the features of an item, beside the tower that takes them."""

MAX_VALUES_AN_ITEM = 64
"""Of one feature; an item's further values, or words, do not count."""

MAX_DEVIATIONS = 4.0
"""A standardised number further than this from the mean counts as this far."""

_WORD_BREAKS = r"[^\p{L}\p{M}\p{N}]+"
_NUMBER_TEXT = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_WORD_SEED = 4
_COMPACT_AT = 1 << 20
_EXAMPLES = 5


class Bags(NamedTuple):
    """A bag of codes for each item, one after the other.

    Attributes:
      codes: [m] int32.
      weights: [m] float32.
      lengths: [n] int32: how many of them are each item's.
    """

    codes: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray


class ItemFeatures(NamedTuple):
    """What training knows of the features of the rated items.

    Attributes:
      encoder: what the codes mean.
      bags: of the items, by the items' codes.
    """

    encoder: "FeatureEncoder"
    bags: Bags


class Values(NamedTuple):
    """What the rows of a column say, one after the other, a row without a value left out.

    Attributes:
      row: [m] int64, ascending.
      value: [m] int64: which of `values` it has.
      values: [v] string, different ones.
    """

    row: np.ndarray
    value: np.ndarray
    values: pa.Array


def values_of(column: pa.Array, feature: Feature) -> Values:
    """Reads a column of category, categories or text.

    Raises:
      InputError: if its type will not do.
    """
    dtype = column.type
    row = np.arange(len(column))
    if _is_list(dtype):
        if feature.kind == CATEGORY:
            raise InputError(
                f"the feature {feature.column!r} has lists of values, a category has one: declare it as categories"
            )
        row = pc.list_parent_indices(column).to_numpy().astype(np.int64)
        texts = _texts(column.flatten(), feature)
    else:
        texts = _texts(column, feature)
        if feature.kind == CATEGORIES:
            row, texts = _explode(row, pc.split_pattern(texts, feature.separator))
            texts = _without_missing(texts, feature)
    if feature.kind == TEXT:
        words = pc.split_pattern_regex(pc.utf8_lower(pc.utf8_normalize(texts, "NFKC")), _WORD_BREAKS)
        row, texts = _explode(row, words)
        texts = pc.if_else(pc.equal(texts, ""), None, texts)
    there = texts.is_valid()
    found = texts.filter(there).dictionary_encode()
    return Values(row[_bools(there)], found.indices.to_numpy().astype(np.int64), found.dictionary)


def _is_list(dtype: pa.DataType) -> bool:
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)


def _explode(row: np.ndarray, lists: pa.Array) -> tuple[np.ndarray, pa.Array]:
    return row[pc.list_parent_indices(lists).to_numpy()], lists.flatten()


def _bools(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def _texts(column: pa.Array, feature: Feature) -> pa.Array:
    """Returns a column as text, null where there is no value."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        texts = column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise InputError(
            f"the feature {feature.column!r} has values of type {column.type}, which are no {feature.kind}: "
            "leave it out of --features"
        ) from error
    return _without_missing(texts, feature)


def _without_missing(texts: pa.Array, feature: Feature) -> pa.Array:
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.is_in(texts, pa.array(["", *feature.missing], pa.string())), None, texts)


def numbers_of(column: pa.Array, feature: Feature) -> tuple[np.ndarray, pa.Array]:
    """Reads a column of numbers, or of times, as seconds.

    Returns:
      [n] float64, nan where there is none; and the texts that are no finite number.
    """
    dtype = column.type
    if pa.types.is_temporal(dtype) and not (pa.types.is_time(dtype) or pa.types.is_duration(dtype)):
        times = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return pc.divide(times.cast(pa.float64(), safe=False), 1e6).to_numpy(zero_copy_only=False), pa.array([], pa.string())
    texts = _texts(column, feature)
    if pa.types.is_floating(dtype):
        texts = pc.if_else(pc.is_nan(column), None, texts)
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype) or pa.types.is_boolean(dtype):
        exact = column.cast(pa.int8() if pa.types.is_boolean(dtype) else dtype).cast(pa.float64(), safe=False)
        numbers = pc.if_else(texts.is_valid(), exact, None)
    else:
        numbers = pc.if_else(pc.match_substring_regex(texts, _NUMBER_TEXT), texts, None).cast(pa.float64())
    found = numbers.to_numpy(zero_copy_only=False)
    bad = _bools(texts.is_valid()) & ~np.isfinite(found)
    return np.where(bad, np.nan, found), texts.filter(pa.array(bad))


def _refuse(feature: Feature, bad: pa.Array, num_items: int) -> None:
    """Raises InputError, naming texts that are no numbers."""
    examples = ", ".join(repr(each) for each in pc.unique(bad).to_pylist()[:_EXAMPLES])
    raise InputError(
        f"the feature {feature.column!r} must be finite numbers, got {examples} ({len(bad):,} of {num_items:,} items): "
        f"if that means no value, declare missing: [{examples}], or else kind: category"
    )


@dataclass(frozen=True)
class _Vocabulary:
    """Codes of a feature of one or several values: the rank of the value."""

    feature: Feature
    values: pa.Array
    """[num_codes] string, ascending."""

    @property
    def num_codes(self) -> int:
        return len(self.values)

    def encode(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row, value, values = values_of(column, self.feature)
        return _shared(row, _places(values, self.values)[value], self.num_codes)

    def learned(self) -> dict[str, Any]:
        return {"values": self.values.to_pylist()}


@dataclass(frozen=True)
class _Words:
    """Codes of text: which of the learned hashes a word has."""

    feature: Feature
    hashes: np.ndarray
    """[num_codes] int64, ascending, below feature.buckets."""

    @property
    def num_codes(self) -> int:
        return len(self.hashes)

    def encode(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row, value, words = values_of(column, self.feature)
        hashes = _hashes(words, self.feature)
        at = np.minimum(np.searchsorted(self.hashes, hashes), self.num_codes - 1)
        return _shared(row, np.where(self.hashes[at] == hashes, at, -1)[value], self.num_codes)

    def learned(self) -> dict[str, Any]:
        return {"hashes": self.hashes.tolist()}


@dataclass(frozen=True)
class _Quantiles:
    """Codes of a number: the bucket between two quantiles that it falls in."""

    feature: Feature
    bounds: np.ndarray
    """[num_codes - 1] float64, ascending: where one bucket ends, and the next begins, with the bound itself."""

    @property
    def num_codes(self) -> int:
        return len(self.bounds) + 1

    def encode(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row, numbers = _known_numbers(column, self.feature)
        return row, np.searchsorted(self.bounds, numbers, side="right"), np.ones(len(row), np.float32)

    def learned(self) -> dict[str, Any]:
        return {"bounds": self.bounds.tolist()}


@dataclass(frozen=True)
class _Standardised:
    """One code, whose weight is the number, less the mean, in standard deviations."""

    feature: Feature
    mean: float
    deviation: float
    num_codes: int = field(default=1, init=False)

    def encode(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row, numbers = _known_numbers(column, self.feature)
        weights = np.clip((numbers - self.mean) / self.deviation, -MAX_DEVIATIONS, MAX_DEVIATIONS)
        return row, np.zeros(len(row), np.int64), weights.astype(np.float32)

    def learned(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation}


_Codes = _Vocabulary | _Words | _Quantiles | _Standardised


def _places(values: pa.Array, among: pa.Array) -> np.ndarray:
    """Returns [n] int64: where each value is in `among`, -1 where it is not."""
    return pc.index_in(values, among).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _hashes(words: pa.Array, feature: Feature) -> np.ndarray:
    return (hash_ids(words, _WORD_SEED) % np.uint64(feature.buckets)).astype(np.int64)


def _known_numbers(column: pa.Array, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
    numbers, bad = numbers_of(column, feature)
    if len(bad):
        _refuse(feature, bad, len(column))
    row = np.flatnonzero(~np.isnan(numbers))
    return row, numbers[row]


def _distinct(row: np.ndarray, code: np.ndarray, num_codes: int) -> np.ndarray:
    """Returns which (row, code) pairs to keep: one of each, the first, in their order; not those of code -1."""
    there = np.flatnonzero(code >= 0)
    _, first = np.unique(row[there] * num_codes + code[there], return_index=True)
    return there[np.sort(first)]


def _starts(row: np.ndarray) -> np.ndarray:
    """Returns [m] int64: where the run of its row begins, for each of ascending rows."""
    return np.searchsorted(row, row, side="left")


def _shared(row: np.ndarray, code: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows, codes and weights: each row's first different codes, which share a weight of 1."""
    kept = _distinct(row, code, num_codes)
    row, code = row[kept], code[kept]
    few = np.arange(len(row)) - _starts(row) < MAX_VALUES_AN_ITEM
    row, code = row[few], code[few]
    counts = np.searchsorted(row, row, side="right") - _starts(row)
    return row, code, (1 / counts).astype(np.float32)


@dataclass(frozen=True)
class FeatureEncoder:
    """What was learned of every feature; encodes blocks.

    Args:
      parts: of each feature, in order: codes follow one another.
    """

    parts: tuple[_Codes, ...]

    @property
    def num_codes(self) -> int:
        """How many codes there are: the rows of the table of vectors."""
        return sum(part.num_codes for part in self.parts)

    @property
    def columns(self) -> list[str]:
        """The columns that a block must have."""
        return [part.feature.column for part in self.parts]

    def encode(self, block: Block) -> Bags:
        """Returns the bags of the items of a block; a bag is empty where nothing known is said of an item.

        Raises:
          InputError: if a column is missing, or a number is none.
        """
        missing = [column for column in self.columns if column not in block.schema.names]
        if missing:
            raise InputError(f"the items lack the column {missing[0]!r}, which their tower was trained on: add it")
        found, first = [], 0
        for part in self.parts:
            row, code, weight = part.encode(block[part.feature.column])
            found.append((row, code + first, weight))
            first += part.num_codes
        row, code, weight = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.argsort(row, kind="stable")
        lengths = np.bincount(row, minlength=block.num_rows).astype(np.int32)
        return Bags(code[order].astype(np.int32), weight[order].astype(np.float32), lengths)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns what `encoder_from_json` makes an encoder of."""
        return [{"feature": to_json(part.feature), **part.learned()} for part in self.parts]


def encoder_from_json(value: Sequence[dict[str, Any]]) -> FeatureEncoder:
    """Returns the encoder that `FeatureEncoder.to_json` described."""
    return FeatureEncoder(tuple(_part_from_json(each) for each in value))


def _part_from_json(value: dict[str, Any]) -> _Codes:
    feature = from_json(value["feature"])
    if feature.kind in (CATEGORY, CATEGORIES):
        return _Vocabulary(feature, pa.array(value["values"], pa.string()))
    if feature.kind == TEXT:
        return _Words(feature, np.array(value["hashes"], np.int64))
    if "bounds" in value:
        return _Quantiles(feature, np.array(value["bounds"], np.float64))
    return _Standardised(feature, value["mean"], value["deviation"])


class FittedFeatures(NamedTuple):
    """An encoder, and what was found of each declared column: `report` by column.

    A report has the `kind`; `items_with_value`, of the rated ones; `values`, the different ones they have (words' hashes for
    text); `codes`, how many were learned; `warning`, what its owner should know, or None.
    """

    encoder: FeatureEncoder
    report: dict[str, dict[str, Any]]


class _Fit:
    """Sees a column of the rated items, block after block."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.items = self.items_with_value = 0
        self.warning: str | None = None

    def add(self, column: pa.Array, rated: np.ndarray) -> None:
        """Takes in a block's column; what nobody rated ([n] bool) is only checked."""
        self.items += int(rated.sum())
        self.items_with_value += self._count(column, rated)

    def _count(self, column: pa.Array, rated: np.ndarray) -> int:
        raise NotImplementedError

    def result(self) -> tuple[_Codes | None, dict[str, Any]]:
        """Returns the codes, None where the feature has nothing to say, and the report."""
        part, values = self._learn() if self.items_with_value else self._leave_out("no rated item has a value", 0)
        return part, {
            "kind": self.feature.kind,
            "items_with_value": self.items_with_value,
            "values": values,
            "codes": part.num_codes if part else 0,
            "warning": self.warning,
        }

    def _learn(self) -> tuple[_Codes | None, int]:
        """Returns the codes, and how many different values there are."""
        raise NotImplementedError

    def _leave_out(self, reason: str, num_values: int) -> tuple[None, int]:
        self.warning = f"left out: {reason}"
        return None, num_values


class _FitValues(_Fit):
    """Counts how many items have each value."""

    def __init__(self, feature: Feature) -> None:
        super().__init__(feature)
        self._waiting = [pa.table({"value": pa.array([], pa.string()), "items": pa.array([], pa.int64())})]
        self._unseparated = feature.kind == CATEGORIES

    def _count(self, column: pa.Array, rated: np.ndarray) -> int:
        if self._unseparated:
            texts = None if _is_list(column.type) else _texts(column, self.feature)
            self._unseparated = texts is not None and not pc.any(pc.match_substring(texts, self.feature.separator)).as_py()
        row, value, values = values_of(column.filter(pa.array(rated)), self.feature)
        kept = _distinct(row, value, len(values))
        counts = np.bincount(value[kept], minlength=len(values)).astype(np.int64)
        self._waiting.append(pa.table({"value": values, "items": pa.array(counts)}))
        if sum(table.num_rows for table in self._waiting) > 2 * self._waiting[0].num_rows + _COMPACT_AT:
            self._compact()
        return len(np.unique(row))

    def _compact(self) -> pa.Table:
        summed = pa.concat_tables(self._waiting).group_by("value").aggregate([("items", "sum")])
        self._waiting = [pa.table({"value": summed["value"], "items": summed["items_sum"]})]
        return self._waiting[0]

    def _learn(self) -> tuple[_Codes | None, int]:
        counts = self._compact()
        num_values = counts.num_rows
        if pc.min(counts["items"]).as_py() == self.items:
            return self._leave_out("every rated item has the same value", num_values)
        shared = counts.filter(pc.greater_equal(counts["items"], self.feature.min_items))
        if not shared.num_rows:
            return self._leave_out(f"none of its values is shared by {self.feature.min_items} rated items", num_values)
        most = self.feature.max_values
        if shared.num_rows > most:
            self.warning = f"has {shared.num_rows:,} values, of which the {most:,} most frequent are learned: see max_values"
        elif self._unseparated:
            self.warning = (
                f"no text has the separator {self.feature.separator!r} in it, so each counts as one value: see separator"
            )
        order = pc.sort_indices(shared, [("items", "descending"), ("value", "ascending")])[:most]
        values = shared["value"].take(order).combine_chunks()
        return _Vocabulary(self.feature, values.take(pc.sort_indices(values))), num_values


class _FitWords(_Fit):
    """Counts how many items have each word's hash."""

    def __init__(self, feature: Feature) -> None:
        super().__init__(feature)
        self._counts = np.zeros(feature.buckets, np.int64)

    def _count(self, column: pa.Array, rated: np.ndarray) -> int:
        row, value, words = values_of(column.filter(pa.array(rated)), self.feature)
        bucket = _hashes(words, self.feature)[value]
        self._counts += np.bincount(bucket[_distinct(row, bucket, self.feature.buckets)], minlength=self.feature.buckets)
        return len(np.unique(row))

    def _learn(self) -> tuple[_Codes | None, int]:
        found = self._counts[self._counts > 0]
        if found.min() == self.items:
            return self._leave_out("every rated item has the same words", len(found))
        hashes = np.flatnonzero(self._counts >= self.feature.min_items)
        if not len(hashes):
            return self._leave_out(f"none of its words is shared by {self.feature.min_items} rated items", len(found))
        return _Words(self.feature, hashes), len(found)


class _FitNumbers(_Fit):
    """Keeps the numbers."""

    def __init__(self, feature: Feature) -> None:
        super().__init__(feature)
        self._numbers = [np.empty(0)]
        self._bad: list[pa.Array] = []
        self._rows = 0

    def _count(self, column: pa.Array, rated: np.ndarray) -> int:
        numbers, bad = numbers_of(column, self.feature)
        self._rows += len(numbers)
        self._bad.append(bad)
        self._numbers.append(numbers[rated & ~np.isnan(numbers)])
        return len(self._numbers[-1])

    def result(self) -> tuple[_Codes | None, dict[str, Any]]:
        bad = pa.concat_arrays([pa.array([], pa.string()), *self._bad])
        if len(bad):
            _refuse(self.feature, bad, self._rows)
        return super().result()

    def _learn(self) -> tuple[_Codes | None, int]:
        numbers = np.concatenate(self._numbers)
        distinct = len(np.unique(numbers))
        if distinct == 1:
            return self._leave_out("all its values are the same", 1)
        if not self.feature.buckets:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                mean, deviation = float(numbers.mean()), float(numbers.std())
            if not 0 < deviation < math.inf:
                return self._leave_out("its spread is no finite number above 0", distinct)
            return _Standardised(self.feature, mean, deviation), distinct
        at = np.arange(1, self.feature.buckets) / self.feature.buckets
        bounds = np.unique(np.quantile(numbers, at, method="inverted_cdf"))
        # A bound begins a bucket; nothing lies below the smallest number. Where nearly all numbers are that one, the rest stay.
        bounds = bounds[bounds > numbers.min()]
        return _Quantiles(self.feature, bounds if len(bounds) else np.array([numbers[numbers > numbers.min()].min()])), distinct


_FITS = {CATEGORY: _FitValues, CATEGORIES: _FitValues, TEXT: _FitWords, NUMBER: _FitNumbers}


def fit_features(blocks: Iterable[Block], features: Sequence[Feature]) -> FittedFeatures:
    """Learns the codes of the features from the items that were rated; a column that cannot tell items apart is left out.

    Values that only unrated items have are not learned: nothing could tell what they mean. The numbers of all items are
    checked.

    Args:
      blocks: of ITEMS, with `train_count` and the features' columns.
      features: what is declared.

    Raises:
      InputError: for a number that is none, a type that will not do, or if every column is left out.
    """
    fits = [_FITS[feature.kind](feature) for feature in features]
    for block in blocks:
        rated = block["train_count"].to_numpy() > 0
        for fit in fits:
            fit.add(block[fit.feature.column], rated)
    parts, report = [], {}
    for fit in fits:
        part, report[fit.feature.column] = fit.result()
        if part:
            parts.append(part)
    if not parts:
        reasons = "; ".join(f"{column} is {found['warning']}" for column, found in report.items())
        raise InputError(f"no feature can tell items apart ({reasons}): declare others, or use --item_tower id")
    return FittedFeatures(FeatureEncoder(tuple(parts)), report)


def encode_rated(blocks: Iterable[Block], encoder: FeatureEncoder, item_ids: pa.Array) -> Bags:
    """Returns the bags of the items that were rated.

    Args:
      blocks: as in `fit_features`, in the catalogue's order.
      encoder: what was learned from them.
      item_ids: [num_items] string: the rated items, ascending.

    Raises:
      RuntimeError: if the blocks' rated items are others.
    """
    found, ids = [], []
    for block in blocks:
        rated = block.filter(pc.greater(block["train_count"], 0))
        ids.append(rated["item_id"])
        found.append(encoder.encode(rated))
    if not pa.chunked_array(ids, pa.string()).equals(pa.chunked_array([item_ids], pa.string())):
        raise RuntimeError("the catalogue's rated items are not those of the training interactions")
    return Bags(*(np.concatenate(each) for each in zip(*found, strict=True)))
