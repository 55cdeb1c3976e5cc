"""Turns the features of items into numbers: what there is to know is learned from the items that were rated, once.

Every value that is learned (a genre, a word's hash, a decade) is one code, a row of one table of vectors; an item is a bag of
codes with weights, and its vector the weighted sum of their rows:

    class: Comedy Drama, title: Stalker, year: missing      ->      1/2 Comedy + 1/2 Drama + 1 stalker

So that a feature of many values weighs what one of a single value does, the values of a feature share a weight of 1. What is
missing, or was not learned, adds nothing. A standardised number is one code whose weight is the number. Training and embedding
encode with the same functions, a block at a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.errors import InputError
from transforms.io.partition import hash_ids
from transforms.train.features import CATEGORIES, CATEGORY, TEXT, Feature, from_json, to_json

MAX_VALUES_AN_ITEM = 64
"""Of one feature; an item's further values, or words, do not count."""

MAX_DEVIATIONS = 4.0
"""A standardised number further than this from the mean counts as this far."""

_WORD_BREAKS = r"[^\p{L}\p{M}\p{N}]+"
_NUMBER_TEXT = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_WORD_SEED = 4
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
    if is_list(dtype):
        if feature.kind == CATEGORY:
            raise InputError(
                f"the feature {feature.column!r} has lists of values, a category has one: declare it as categories"
            )
        row = pc.list_parent_indices(column).to_numpy().astype(np.int64)
        texts = texts_of(column.flatten(), feature)
    else:
        texts = texts_of(column, feature)
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


def is_list(dtype: pa.DataType) -> bool:
    """Tells whether a column of this type has a list in each row."""
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)


def _explode(row: np.ndarray, lists: pa.Array) -> tuple[np.ndarray, pa.Array]:
    return row[pc.list_parent_indices(lists).to_numpy()], lists.flatten()


def _bools(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def texts_of(column: pa.Array, feature: Feature) -> pa.Array:
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
    texts = texts_of(column, feature)
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


def refuse_numbers(feature: Feature, bad: pa.Array, num_items: int) -> None:
    """Raises InputError, naming texts that are no numbers."""
    examples = ", ".join(repr(each) for each in pc.unique(bad).to_pylist()[:_EXAMPLES])
    raise InputError(
        f"the feature {feature.column!r} must be finite numbers, got {examples} ({len(bad):,} of {num_items:,} items): "
        f"if that means no value, declare missing: [{examples}], or else kind: category"
    )


@dataclass(frozen=True)
class Vocabulary:
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
class Words:
    """Codes of text: which of the learned hashes a word has."""

    feature: Feature
    hashes: np.ndarray
    """[num_codes] int64, ascending, below feature.buckets."""

    @property
    def num_codes(self) -> int:
        return len(self.hashes)

    def encode(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row, value, words = values_of(column, self.feature)
        hashes = hashes_of(words, self.feature)
        at = np.minimum(np.searchsorted(self.hashes, hashes), self.num_codes - 1)
        return _shared(row, np.where(self.hashes[at] == hashes, at, -1)[value], self.num_codes)

    def learned(self) -> dict[str, Any]:
        return {"hashes": self.hashes.tolist()}


@dataclass(frozen=True)
class Quantiles:
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
class Standardised:
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


Codes = Vocabulary | Words | Quantiles | Standardised


def _places(values: pa.Array, among: pa.Array) -> np.ndarray:
    """Returns [n] int64: where each value is in `among`, -1 where it is not."""
    return pc.index_in(values, among).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def hashes_of(words: pa.Array, feature: Feature) -> np.ndarray:
    """Returns [n] int64: the code, below the feature's buckets, that each word is hashed to."""
    return (hash_ids(words, _WORD_SEED) % np.uint64(feature.buckets)).astype(np.int64)


def _known_numbers(column: pa.Array, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
    numbers, bad = numbers_of(column, feature)
    if len(bad):
        refuse_numbers(feature, bad, len(column))
    row = np.flatnonzero(~np.isnan(numbers))
    return row, numbers[row]


def distinct_pairs(row: np.ndarray, code: np.ndarray, num_codes: int) -> np.ndarray:
    """Returns which (row, code) pairs to keep: one of each, the first, in their order; not those of code -1."""
    there = np.flatnonzero(code >= 0)
    _, first = np.unique(row[there] * num_codes + code[there], return_index=True)
    return there[np.sort(first)]


def _starts(row: np.ndarray) -> np.ndarray:
    """Returns [m] int64: where the run of its row begins, for each of ascending rows."""
    return np.searchsorted(row, row, side="left")


def _shared(row: np.ndarray, code: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows, codes and weights: each row's first different codes, which share a weight of 1."""
    kept = distinct_pairs(row, code, num_codes)
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

    parts: tuple[Codes, ...]

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


def _part_from_json(value: dict[str, Any]) -> Codes:
    feature = from_json(value["feature"])
    if feature.kind in (CATEGORY, CATEGORIES):
        return Vocabulary(feature, pa.array(value["values"], pa.string()))
    if feature.kind == TEXT:
        return Words(feature, np.array(value["hashes"], np.int64))
    if "bounds" in value:
        return Quantiles(feature, np.array(value["bounds"], np.float64))
    return Standardised(feature, value["mean"], value["deviation"])


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
