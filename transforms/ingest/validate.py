"""Checks raw rows, a block at a time: what passes goes on in one schema, what does not is kept with its reason.

Nothing here raises because of what a row says. Every check is a few Arrow kernels on a whole column; only values that a
kernel cannot read are looked at by Python, each distinct one once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypedDict

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.interactions import VALID
from schemas.rejected import REJECTED
from schemas.words import counted
from transforms.ingest.id_forms import Forms, MergeForms, forms_of_block

LAST_SECOND = 4_102_444_800
"""2100-01-01 in Unix seconds: no rating is younger, and a millisecond clock passed it in February 1970."""

FIRST_LIKELY_SECOND = 631_152_000
"""1990-01-01 in Unix seconds: few ratings are older."""

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""The units of numeric times, and how many make a second."""

_UNIT_NAMES = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


class RawBlocks(NamedTuple):
    """What reading a source gives."""

    blocks: beam.PCollection[Block]
    """Columns named by role, in the source's own types; `position` int64; `source` dictionary<int32, string>."""
    malformed: beam.PCollection[Block]
    """REJECTED: what could not be split into columns."""


class ReasonSummary(TypedDict):
    """How often a rule was broken, and the first row that broke it."""

    count: int
    position: int
    source: str
    example: dict[str, str | None]


class Summary(TypedDict):
    """What became of the rows of a source; JSON, so that a manifest can hold it."""

    rows: int
    reasons: dict[str, ReasonSummary]


class Validated(NamedTuple):
    """What validation gives."""

    valid: beam.PCollection[Block]
    rejected: beam.PCollection[Block]
    """REJECTED, malformed lines included."""
    summary: beam.PCollection[Summary]
    """One element."""
    forms: beam.PCollection[Forms]
    """One element: what the ids that passed look like."""


@dataclass(frozen=True)
class RatingRules:
    """What a row of ratings must obey.

    Raises:
      InputError: if a rule makes no sense.
    """

    rating_range: tuple[float, float] | None = None
    """The lowest and the highest rating, both allowed; None allows every finite number."""
    timestamp_unit: str = "s"
    """The unit of times that are plain numbers: 's', 'ms', 'us' or 'ns'.

    ISO 8601 text, which is UTC where it names no zone, and Arrow timestamps and dates need none.
    """

    def __post_init__(self) -> None:
        if self.timestamp_unit not in UNITS:
            raise InputError(f"--timestamp_unit must be one of {', '.join(UNITS)}, got {self.timestamp_unit!r}")
        if self.rating_range is not None and not -math.inf < self.rating_range[0] <= self.rating_range[1] < math.inf:
            raise InputError(f"--rating_range must be two finite numbers, the lower first, got {self.rating_range}")


@dataclass
class _Verdicts:
    """The first rule that each row breaks, in the order in which the rules are applied."""

    codes: np.ndarray
    """[n] int64: an index into `reasons`, -1 where no rule is broken."""
    reasons: list[str] = field(default_factory=list)

    def reject(self, reason: str, broken: np.ndarray) -> None:
        """Notes that the rows of a [n] bool mask break a rule."""
        if broken.any():
            self.codes[broken & (self.codes < 0)] = len(self.reasons)
            self.reasons.append(reason)


def is_text(dtype: pa.DataType) -> bool:
    """Tells whether a column holds text, however it is laid out."""
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)


def _flags(mask: pa.Array) -> np.ndarray:
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


def _ids(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
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


def _ratings(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
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
    return numbers, _flags(pc.and_(values.is_valid(), numbers.is_null()))


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


class _Times(NamedTuple):
    """Times as they were found."""

    values: np.ndarray
    """[n] int64."""
    is_counted: np.ndarray
    """[n] bool: the value counts the units of the rules; elsewhere it is seconds already."""
    is_missing: np.ndarray
    is_unreadable: np.ndarray


def _all_times(values: pa.Array | np.ndarray, nulls: np.ndarray, *, counted: bool) -> _Times:
    """Wraps values that were all read in one way."""
    array = values if isinstance(values, np.ndarray) else values.fill_null(0).to_numpy(zero_copy_only=False)
    return _Times(array.astype(np.int64), np.full(len(array), counted), nulls, np.zeros(len(array), bool))


def _text_times(values: pa.Array, nulls: np.ndarray) -> _Times:
    """Reads times written as text: integers, decimals or ISO 8601; tries to read them all alike first."""
    for dtype, per_second in ((pa.int64(), None), (pa.timestamp("us"), 10**6), (pa.timestamp("us", "UTC"), 10**6)):
        try:
            ticks = values.cast(dtype).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            continue
        return _all_times(ticks // per_second if per_second else ticks, nulls, counted=per_second is None)
    numbers, not_numbers = _ratings(values)
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
    return _Times(result, is_counted & ~nulls, nulls, is_unreadable & ~nulls)


def _exact(text: str) -> int:
    """Reads a large number, exactly if it is an integer, and cuts it to 2^62."""
    try:
        value = int(text)
    except ValueError:
        value = int(float(text))
    return max(-(2**62), min(2**62, value))


def _times(values: pa.Array) -> _Times:
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
    return _Times(zeros, zeros > 0, nulls, ~nulls)


def _check_times(times: _Times, unit: str, verdicts: _Verdicts) -> np.ndarray:
    """Applies the rules of times; returns [n] int64 seconds."""
    per_second = UNITS[unit]
    counted = per_second > 1
    seconds = np.where(times.is_counted, times.values // per_second, times.values) if counted else times.values
    verdicts.reject("timestamp is missing", times.is_missing)
    verdicts.reject("timestamp is not a time", times.is_unreadable)
    if counted:
        # 1990, counted in seconds, is in January 1970 when it is read in milliseconds.
        as_seconds = times.is_counted & (times.values >= FIRST_LIKELY_SECOND) & (times.values <= LAST_SECOND)
        verdicts.reject("timestamp looks like seconds", as_seconds)
    out_of_range = (seconds < 0) | (seconds > LAST_SECOND)
    if out_of_range.any():
        for finer, name in _UNIT_NAMES.items():
            if UNITS[finer] > per_second:
                fits = times.is_counted & (times.values > 0) & (times.values // UNITS[finer] <= LAST_SECOND)
                verdicts.reject(f"timestamp looks like {name}", out_of_range & fits)
        verdicts.reject("timestamp is out of range", out_of_range)
    return seconds


def rejected_block(dataset: str, reasons: pa.Array, rows: Mapping[str, pa.Array]) -> Block:
    """Returns a REJECTED block.

    Args:
      dataset: 'ratings' or 'items'.
      reasons: [n] string.
      rows: [n] arrays: `source`, `position`, and whichever of the other columns are known, in any type.
    """
    known = {"dataset": pa.repeat(dataset, len(reasons)), "reason": reasons, **rows}
    columns = [
        (as_text(known[name]) if pa.types.is_string(dtype) else known[name]) if name in known else pa.nulls(len(reasons), dtype)
        for name, dtype in zip(REJECTED.names, REJECTED.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REJECTED)


def _rejected(block: Block, dataset: str, verdicts: _Verdicts) -> Block:
    """Returns the rows of a raw block that broke a rule, as they were found."""
    if not verdicts.reasons:
        return pa.RecordBatch.from_pylist([], REJECTED)
    rows = np.flatnonzero(verdicts.codes >= 0)
    reasons = pa.array(verdicts.reasons, pa.string()).take(pa.array(verdicts.codes[rows]))
    found = block.take(pa.array(rows))
    return rejected_block(dataset, reasons, {name: found[name] for name in found.schema.names if name in REJECTED.names})


def validate_ratings(block: Block, rules: RatingRules) -> tuple[Block, Block]:
    """Checks a raw block of ratings.

    Ids are kept exactly as they are; one that is null, empty or white space is missing. A source without ratings or without
    times is no mistake: the column is null.

    Args:
      block: user_id, item_id, position, source, and rating and timestamp where the source has them.
      rules: What to check.

    Returns:
      The valid rows (VALID) and the others (REJECTED), each in their order.
    """
    names = block.schema.names
    verdicts = _Verdicts(np.full(block.num_rows, -1))
    ids = {}
    for name in ("user_id", "item_id"):
        ids[name], missing = _ids(block[name])
        verdicts.reject(f"{name} is missing", missing)
    ratings = pa.nulls(block.num_rows, pa.float32())
    if "rating" in names:
        numbers, not_numbers = _ratings(block["rating"])
        verdicts.reject("rating is not a number", not_numbers)
        verdicts.reject("rating is missing", _flags(numbers.is_null()))
        low, high = rules.rating_range or (-math.inf, math.inf)
        ratings = numbers.cast(pa.float32(), safe=False)
        finite = _flags(pc.is_finite(ratings))
        if not finite.all():
            verdicts.reject("rating is NaN or infinite", ~finite)
        if rules.rating_range:
            verdicts.reject("rating is out of range", _flags(pc.or_(pc.less(numbers, low), pc.greater(numbers, high))))
    timestamps = pa.nulls(block.num_rows, pa.int64())
    if "timestamp" in names:
        timestamps = pa.array(_check_times(_times(block["timestamp"]), rules.timestamp_unit, verdicts))
    valid = pa.RecordBatch.from_arrays([*ids.values(), ratings, timestamps, block["position"]], names=VALID.names)
    if verdicts.reasons:
        valid = valid.filter(pa.array(verdicts.codes < 0))
    return pa.RecordBatch.from_arrays(valid.columns, schema=VALID), _rejected(block, "ratings", verdicts)


def validate_items(block: Block) -> tuple[Block, Block]:
    """Checks a raw block of items.

    Args:
      block: item_id, position, source, title where the source has one, and any further columns.

    Returns:
      The valid rows: item_id, title, position, then the further columns; and the others (REJECTED).
    """
    verdicts = _Verdicts(np.full(block.num_rows, -1))
    ids, missing = _ids(block["item_id"])
    verdicts.reject("item_id is missing", missing)
    names = block.schema.names
    title = as_text(block["title"]) if "title" in names else pa.nulls(block.num_rows, pa.string())
    columns = {"item_id": ids, "title": title, "position": block["position"]}
    columns |= {name: block[name] for name in names if name not in columns and name != "source"}
    valid = pa.RecordBatch.from_pydict(columns)
    if verdicts.reasons:
        valid = valid.filter(pa.array(verdicts.codes < 0))
    return valid, _rejected(block, "items", verdicts)


def validate_ids(block: Block, schema: pa.Schema, dataset: str) -> tuple[Block, Block]:
    """Checks a raw block of nothing but ids.

    Args:
      block: the columns of `schema`, position and source.
      schema: SERVED_USERS, EXCLUSIONS or another of id columns.
      dataset: its name, for what is rejected.

    Returns:
      The valid rows (`schema`), and the others (REJECTED).
    """
    verdicts = _Verdicts(np.full(block.num_rows, -1))
    columns = []
    for name in schema.names:
        ids, missing = _ids(block[name])
        verdicts.reject(f"{name} is missing", missing)
        columns.append(ids)
    valid = pa.RecordBatch.from_arrays(columns, names=schema.names).filter(pa.array(verdicts.codes < 0))
    return pa.RecordBatch.from_arrays(valid.columns, schema=schema), _rejected(block, dataset, verdicts)


def summarise_rejected(rows: int, rejected: Block) -> Summary:
    """Summarises a block: `rows` were read, `rejected` is those of them that broke a rule."""
    reasons: dict[str, ReasonSummary] = {}
    for reason in rejected["reason"].unique().to_pylist():
        group = rejected.filter(pc.equal(rejected["reason"], reason))
        first = group.slice(int(np.argmin(group["position"].to_numpy())), 1).to_pylist()[0]
        example = {
            name: first[name] for name in ("user_id", "item_id", "rating", "timestamp", "text") if first[name] is not None
        }
        reasons[reason] = {
            "count": group.num_rows,
            "position": first["position"],
            "source": first["source"],
            "example": example,
        }
    return {"rows": rows, "reasons": reasons}


def _as_found_first(reason: ReasonSummary) -> tuple[int, str, str]:
    return reason["position"], reason["source"], str(sorted(reason["example"].items()))


def merge_summaries(summaries: Iterable[Summary]) -> Summary:
    """Adds summaries up; of the examples the one that stands first in the source stays."""
    rows = 0
    reasons: dict[str, ReasonSummary] = {}
    for summary in summaries:
        rows += summary["rows"]
        for name, new in summary["reasons"].items():
            old = reasons.get(name)
            if old is None:
                reasons[name] = new
            else:
                first = min(old, new, key=_as_found_first)
                reasons[name] = {**first, "count": old["count"] + new["count"]}
    return {"rows": rows, "reasons": reasons}


class MergeSummaries(beam.CombineFn):
    """`merge_summaries` as a combiner: in any order, in any grouping."""

    def create_accumulator(self) -> Summary:
        return {"rows": 0, "reasons": {}}

    def add_input(self, accumulator: Summary, element: Summary) -> Summary:
        return merge_summaries([accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Summary]) -> Summary:
        return merge_summaries(accumulators)

    def extract_output(self, accumulator: Summary) -> Summary:
        return accumulator


def _repair(reason: str, dataset: str) -> str:
    """Says what to do about the commonest reason."""
    flag = {"ratings": "--columns", "items": "--item_columns"}.get(dataset, "--list_columns")
    if reason == "timestamp looks like seconds":
        return "leave --timestamp_unit out"
    for unit, name in _UNIT_NAMES.items():
        if reason == f"timestamp looks like {name}":
            return f"pass --timestamp_unit {unit}"
    if reason == "id is not UTF-8 text":
        return "convert the file to UTF-8"
    if reason.startswith("line "):
        return "mend the lines, or quote the fields that hold the delimiter"
    if reason == "rating is out of range":
        return "widen --rating_range"
    role = reason.split()[0]
    return f"check that {flag} {role}=NAME names the right column"


def check_rejected(summary: Summary, max_rejected_fraction: float, dataset: str = "ratings") -> None:
    """Refuses a source of which too much was rejected, or nothing is left.

    Args:
      summary: What became of its rows.
      max_rejected_fraction: The largest share of rejected rows that is put up with, 0 to 1.
      dataset: 'ratings' or 'items', for the message.

    Raises:
      InputError: naming the commonest reasons, the first row of the commonest, and the repair.
    """
    rows = summary["rows"]
    if not rows:
        raise InputError(f"the {dataset} hold no rows: check the path")
    rejected = sum(reason["count"] for reason in summary["reasons"].values())
    if rejected < rows and rejected <= max_rejected_fraction * rows:
        return
    commonest = sorted(summary["reasons"].items(), key=lambda item: (-item[1]["count"], item[0]))
    counts = ", ".join(f"{name} ({reason['count']})" for name, reason in commonest[:3])
    first = commonest[0][1]
    shown = ", ".join(f"{name}={_shortened(value)}" for name, value in first["example"].items())
    repair = _repair(commonest[0][0], dataset)
    allowed = "" if rejected == rows else f", or raise --max_rejected_fraction (now {max_rejected_fraction:g})"
    raise InputError(
        f"{rejected} of {counted(rows, 'row')} of the {dataset} were rejected: {counts}; "
        f"for example {shown or 'an empty row'} in {first['source']}: {repair}{allowed}"
    )


def _shortened(value: str | None) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _ValidateBlock(beam.DoFn):
    """Splits raw blocks into valid and rejected ones, and counts."""

    def __init__(self, validate: Callable[..., tuple[Block, Block]], dataset: str, *arguments: Any) -> None:
        self._validate = validate
        self._dataset = dataset
        self._arguments = arguments

    def process(self, element: Block) -> Iterator[Any]:
        valid, rejected = self._validate(element, *self._arguments)
        Metrics.counter(self._dataset, "valid").inc(valid.num_rows)
        yield from _noted(self._dataset, element.num_rows, rejected)
        if valid.num_rows:
            yield beam.pvalue.TaggedOutput("forms", forms_of_block(valid))
            yield valid


def _noted(dataset: str, rows: int, rejected: Block) -> Iterator[Any]:
    """Counts rejected rows by reason, and yields them with their summary."""
    summary = summarise_rejected(rows, rejected)
    for name, reason in summary["reasons"].items():
        Metrics.counter(dataset, f"rejected: {name}").inc(reason["count"])
    yield beam.pvalue.TaggedOutput("summaries", summary)
    if rejected.num_rows:
        yield beam.pvalue.TaggedOutput("rejected", rejected)


def _note_malformed(block: Block, dataset: str) -> Iterator[Any]:
    yield from _noted(dataset, block.num_rows, block)


def _validated(raw: RawBlocks, dataset: str, validate: Callable[..., tuple[Block, Block]], *arguments: Any) -> Validated:
    """Wires a validation."""
    checked = raw.blocks | "Validate" >> beam.ParDo(_ValidateBlock(validate, dataset, *arguments)).with_output_types(
        Block, rejected=Block, summaries=dict[str, Any], forms=dict[str, Any]
    ).with_outputs("rejected", "summaries", "forms", main="valid")
    malformed = raw.malformed | "NoteMalformed" >> beam.FlatMap(_note_malformed, dataset).with_output_types(
        Block, rejected=Block, summaries=dict[str, Any]
    ).with_outputs("rejected", "summaries", main="none")
    rejected = (checked.rejected, malformed.rejected) | "AllRejected" >> beam.Flatten()
    summary = (
        (checked.summaries, malformed.summaries)
        | "AllSummaries" >> beam.Flatten()
        | "Summarise" >> beam.CombineGlobally(MergeSummaries())
    )
    forms = checked.forms | "DescribeIds" >> beam.CombineGlobally(MergeForms())
    return Validated(checked.valid, rejected, summary, forms)


@dataclass
class ValidateRatings(beam.PTransform):
    """Validates what was read of a source of ratings."""

    rules: RatingRules

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, raw: RawBlocks) -> Validated:
        return _validated(raw, "ratings", validate_ratings, self.rules)


@dataclass
class ValidateItems(beam.PTransform):
    """Validates what was read of a source of items."""

    def expand(self, raw: RawBlocks) -> Validated:
        return _validated(raw, "items", validate_items)


@dataclass
class ValidateIds(beam.PTransform):
    """Validates what was read of a list of ids.

    Attributes:
      schema: of the list: id columns.
      dataset: its name.
    """

    schema: pa.Schema
    dataset: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, raw: RawBlocks) -> Validated:
        return _validated(raw, self.dataset, validate_ids, self.schema, self.dataset)
