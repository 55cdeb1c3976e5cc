"""Checks raw rows, a block at a time: what passes goes on in one schema, what does not is kept with its reason.

Nothing here raises because of what a row says. Every check is a few Arrow kernels on a whole column; only values that a
kernel cannot read are looked at by Python, each distinct one once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.flags import flag
from schemas.interactions import VALID
from schemas.rejected import REJECTED
from transforms.ingest.id_forms import Forms, MergeForms, forms_of_block
from transforms.ingest.rejects import UNIT_NAMES, MergeSummaries, Summary, rejected_block, summarise_rejected
from transforms.ingest.values import (
    FIRST_LIKELY_SECOND,
    LAST_SECOND,
    UNITS,
    Times,
    as_text,
    flags_of,
    read_ids,
    read_numbers,
    read_times,
)


class RawBlocks(NamedTuple):
    """What reading a source gives."""

    blocks: beam.PCollection[Block]
    """Columns named by role, in the source's own types; `position` int64; `source` dictionary<int32, string>."""
    malformed: beam.PCollection[Block]
    """REJECTED: what could not be split into columns."""


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

    rating_range: tuple[float, float] | None = flag(
        None, help="LOW,HIGH: ratings outside are rejected (default: any finite number)"
    )
    """The lowest and the highest rating, both allowed; None allows every finite number."""
    timestamp_unit: str = flag("s", help="the unit of numeric times: s, ms, us or ns")
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


def _check_times(times: Times, unit: str, verdicts: _Verdicts) -> np.ndarray:
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
        for finer, name in UNIT_NAMES.items():
            if UNITS[finer] > per_second:
                fits = times.is_counted & (times.values > 0) & (times.values // UNITS[finer] <= LAST_SECOND)
                verdicts.reject(f"timestamp looks like {name}", out_of_range & fits)
        verdicts.reject("timestamp is out of range", out_of_range)
    return seconds


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
        ids[name], missing = read_ids(block[name])
        verdicts.reject(f"{name} is missing", missing)
    ratings = pa.nulls(block.num_rows, pa.float32())
    if "rating" in names:
        numbers, not_numbers = read_numbers(block["rating"])
        verdicts.reject("rating is not a number", not_numbers)
        verdicts.reject("rating is missing", flags_of(numbers.is_null()))
        low, high = rules.rating_range or (-math.inf, math.inf)
        ratings = numbers.cast(pa.float32(), safe=False)
        finite = flags_of(pc.is_finite(ratings))
        if not finite.all():
            verdicts.reject("rating is NaN or infinite", ~finite)
        if rules.rating_range:
            verdicts.reject("rating is out of range", flags_of(pc.or_(pc.less(numbers, low), pc.greater(numbers, high))))
    timestamps = pa.nulls(block.num_rows, pa.int64())
    if "timestamp" in names:
        timestamps = pa.array(_check_times(read_times(block["timestamp"]), rules.timestamp_unit, verdicts))
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
    ids, missing = read_ids(block["item_id"])
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
        ids, missing = read_ids(block[name])
        verdicts.reject(f"{name} is missing", missing)
        columns.append(ids)
    valid = pa.RecordBatch.from_arrays(columns, names=schema.names).filter(pa.array(verdicts.codes < 0))
    return pa.RecordBatch.from_arrays(valid.columns, schema=schema), _rejected(block, dataset, verdicts)


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
