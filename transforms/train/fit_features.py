"""Learns what the features of items say from the items that were rated: which values, words or numbers become codes."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.errors import InputError
from transforms.train.encode_features import (
    Codes,
    FeatureEncoder,
    Quantiles,
    Standardised,
    Vocabulary,
    Words,
    distinct_pairs,
    hashes_of,
    is_list,
    numbers_of,
    refuse_numbers,
    texts_of,
    values_of,
)
from transforms.train.features import CATEGORIES, CATEGORY, NUMBER, TEXT, Feature

_COMPACT_AT = 1 << 20


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

    def result(self) -> tuple[Codes | None, dict[str, Any]]:
        """Returns the codes, None where the feature has nothing to say, and the report."""
        part, values = self._learn() if self.items_with_value else self._leave_out("no rated item has a value", 0)
        return part, {
            "kind": self.feature.kind,
            "items_with_value": self.items_with_value,
            "values": values,
            "codes": part.num_codes if part else 0,
            "warning": self.warning,
        }

    def _learn(self) -> tuple[Codes | None, int]:
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
            texts = None if is_list(column.type) else texts_of(column, self.feature)
            self._unseparated = texts is not None and not pc.any(pc.match_substring(texts, self.feature.separator)).as_py()
        row, value, values = values_of(column.filter(pa.array(rated)), self.feature)
        kept = distinct_pairs(row, value, len(values))
        counts = np.bincount(value[kept], minlength=len(values)).astype(np.int64)
        self._waiting.append(pa.table({"value": values, "items": pa.array(counts)}))
        if sum(table.num_rows for table in self._waiting) > 2 * self._waiting[0].num_rows + _COMPACT_AT:
            self._compact()
        return len(np.unique(row))

    def _compact(self) -> pa.Table:
        summed = pa.concat_tables(self._waiting).group_by("value").aggregate([("items", "sum")])
        self._waiting = [pa.table({"value": summed["value"], "items": summed["items_sum"]})]
        return self._waiting[0]

    def _learn(self) -> tuple[Codes | None, int]:
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
        return Vocabulary(self.feature, values.take(pc.sort_indices(values))), num_values


class _FitWords(_Fit):
    """Counts how many items have each word's hash."""

    def __init__(self, feature: Feature) -> None:
        super().__init__(feature)
        self._counts = np.zeros(feature.buckets, np.int64)

    def _count(self, column: pa.Array, rated: np.ndarray) -> int:
        row, value, words = values_of(column.filter(pa.array(rated)), self.feature)
        bucket = hashes_of(words, self.feature)[value]
        self._counts += np.bincount(bucket[distinct_pairs(row, bucket, self.feature.buckets)], minlength=self.feature.buckets)
        return len(np.unique(row))

    def _learn(self) -> tuple[Codes | None, int]:
        found = self._counts[self._counts > 0]
        if found.min() == self.items:
            return self._leave_out("every rated item has the same words", len(found))
        hashes = np.flatnonzero(self._counts >= self.feature.min_items)
        if not len(hashes):
            return self._leave_out(f"none of its words is shared by {self.feature.min_items} rated items", len(found))
        return Words(self.feature, hashes), len(found)


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

    def result(self) -> tuple[Codes | None, dict[str, Any]]:
        bad = pa.concat_arrays([pa.array([], pa.string()), *self._bad])
        if len(bad):
            refuse_numbers(self.feature, bad, self._rows)
        return super().result()

    def _learn(self) -> tuple[Codes | None, int]:
        numbers = np.concatenate(self._numbers)
        distinct = len(np.unique(numbers))
        if distinct == 1:
            return self._leave_out("all its values are the same", 1)
        if not self.feature.buckets:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                mean, deviation = float(numbers.mean()), float(numbers.std())
            if not 0 < deviation < math.inf:
                return self._leave_out("its spread is no finite number above 0", distinct)
            return Standardised(self.feature, mean, deviation), distinct
        at = np.arange(1, self.feature.buckets) / self.feature.buckets
        bounds = np.unique(np.quantile(numbers, at, method="inverted_cdf"))
        # A bound begins a bucket; nothing lies below the smallest number. Where nearly all numbers are that one, the rest stay.
        bounds = bounds[bounds > numbers.min()]
        return Quantiles(self.feature, bounds if len(bounds) else np.array([numbers[numbers > numbers.min()].min()])), distinct


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
