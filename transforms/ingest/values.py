"""Reads ids, numbers and times, whatever type a column has."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LAST_SECOND = 4_102_444_800
"""2100-01-01 in Unix seconds: no rating is younger, and a millisecond clock passed it in February 1970."""

FIRST_LIKELY_SECOND = 631_152_000
"""1990-01-01 in Unix seconds: few ratings are older."""

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""The units of numeric times, and how many make a second."""


def is_text(dtype: pa.DataType) -> bool:
    """Tells whether a column holds text, however it is laid out."""
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)


def flags_of(mask: pa.Array) -> np.ndarray:
    """Returns [n] bool; null counts as false."""
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def as_text(values: pa.Array) -> pa.Array:
    """Returns values of any type as the text that a person would write, null for null.

    Integers are exact. A float that is a whole number is written as the integer it was before something (pandas, where a
    column has nulls) made it a float.
    """
    if pa.types.is_string(values.type):
        return values
    try:
        if pa.types.is_floating(values.type):
            numbers = values.cast(pa.float64())
            floats = numbers.fill_null(math.nan).to_numpy()
            whole = (np.abs(floats) < 2.0**63) & (np.floor(floats) == floats)
            integers = pa.array(np.where(whole, floats, 0).astype(np.int64)).cast(pa.string())
            return pc.if_else(pa.array(whole), integers, values.cast(pa.string()))
        return values.cast(pa.string())
    except pa.ArrowException:
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())


def read_ids(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Returns ids as text, and which are missing: null, empty, white space or not a number."""
    ids = as_text(values)
    missing = pc.or_(pc.equal(pc.binary_length(ids), 0), pc.utf8_is_space(ids))
    if pa.types.is_floating(values.type):
        missing = pc.or_(missing, pc.is_nan(values.cast(pa.float64())))
    return ids, pc.fill_null(missing, True).to_numpy(zero_copy_only=False)


def _by_distinct(values: pa.Array, parse: Callable[[str], float | int | None], dtype: pa.DataType) -> pa.Array:
    """Applies `parse` to each distinct text once."""
    encoded = values.dictionary_encode()
    parsed = pa.array([parse(text) for text in encoded.dictionary.to_pylist()], dtype)
    return parsed.take(encoded.indices)


def _number(text: str) -> float | None:
    """Reads a number as Python does, ASCII only and without underscores."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def read_numbers(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Returns [n] float64 and which values are not numbers (those that are null, or became null, are null)."""
    dtype = values.type
    if is_text(dtype):
        try:
            return values.cast(pa.float64()), np.zeros(len(values), bool)
        except pa.ArrowInvalid:
            numbers = _by_distinct(values, _number, pa.float64())
    elif pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype) or pa.types.is_null(dtype):
        numbers = values.cast(pa.float64(), safe=False)
    elif pa.types.is_boolean(dtype):
        numbers = values.cast(pa.uint8()).cast(pa.float64())
    else:
        numbers = pa.nulls(len(values), pa.float64())
    return numbers, flags_of(pc.and_(values.is_valid(), numbers.is_null()))


def _iso_seconds(text: str) -> int | None:
    """Reads an ISO 8601 date or time as Unix seconds; in UTC where it names no zone."""
    try:
        time = datetime.fromisoformat(text.strip())
        return math.floor((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Returns [n] int64: float64 rounded down; those too large stay too large; NaN is 0."""
    return np.clip(np.floor(np.nan_to_num(numbers)), -(2.0**62), 2.0**62).astype(np.int64)


class Times(NamedTuple):
    """Times as they were found."""

    values: np.ndarray
    """[n] int64."""
    is_counted: np.ndarray
    """[n] bool: the value counts the units of the rules; elsewhere it is seconds already."""
    is_missing: np.ndarray
    is_unreadable: np.ndarray


def _all_times(values: pa.Array | np.ndarray, nulls: np.ndarray, *, counted: bool) -> Times:
    """Wraps values that were all read in one way."""
    array = values if isinstance(values, np.ndarray) else values.fill_null(0).to_numpy(zero_copy_only=False)
    return Times(array.astype(np.int64), np.full(len(array), counted), nulls, np.zeros(len(array), bool))


def _text_times(values: pa.Array, nulls: np.ndarray) -> Times:
    """Reads times written as text: integers, decimals or ISO 8601; tries to read them all alike first."""
    for dtype, per_second in ((pa.int64(), None), (pa.timestamp("us"), 10**6), (pa.timestamp("us", "UTC"), 10**6)):
        try:
            ticks = values.cast(dtype).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            continue
        return _all_times(ticks // per_second if per_second else ticks, nulls, counted=per_second is None)
    numbers, not_numbers = read_numbers(values)
    floats = numbers.fill_null(0).to_numpy()
    is_counted = ~not_numbers & np.isfinite(floats)
    seconds = _by_distinct(values.filter(pa.array(~is_counted)), _iso_seconds, pa.int64())
    result = _whole(floats)
    # Integers beyond 2^53 do not survive a float.
    large = is_counted & (np.abs(floats) > 2.0**53)
    if large.any():
        result[large] = [_exact(text) for text in values.filter(pa.array(large)).to_pylist()]
    result[~is_counted] = seconds.fill_null(0).to_numpy()
    is_unreadable = np.zeros(len(values), bool)
    is_unreadable[~is_counted] = seconds.is_null().to_numpy(zero_copy_only=False)
    return Times(result, is_counted & ~nulls, nulls, is_unreadable & ~nulls)


def _exact(text: str) -> int:
    """Reads a large number, exactly if it is an integer, and cuts it to 2^62."""
    try:
        value = int(text)
    except ValueError:
        value = int(float(text))
    return max(-(2**62), min(2**62, value))


def read_times(values: pa.Array) -> Times:
    """Reads times of any type."""
    dtype = values.type
    nulls = values.is_null().to_numpy(zero_copy_only=False)
    if is_text(dtype):
        return _text_times(values, nulls)
    if pa.types.is_integer(dtype):
        return _all_times(values, nulls, counted=True)  # An unsigned number above 2^63 wraps and is negative: out of range too.
    if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        floats = values.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy(zero_copy_only=False)
        return _all_times(_whole(floats), np.isnan(floats), counted=True)
    if pa.types.is_timestamp(dtype):
        ticks = values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        return _all_times(ticks // UNITS[dtype.unit], nulls, counted=False)
    if pa.types.is_date(dtype):
        days = values.cast(pa.date32()).cast(pa.int32()).fill_null(0).to_numpy(zero_copy_only=False)
        return _all_times(days.astype(np.int64) * 86_400, nulls, counted=False)
    zeros = np.zeros(len(values), np.int64)
    return Times(zeros, zeros > 0, nulls, ~nulls)
