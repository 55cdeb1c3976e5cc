"""Counts the rows that cannot be used, by reason, and says when they are too many."""

from collections.abc import Iterable, Mapping
from typing import TypedDict

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.rejected import REJECTED
from schemas.words import counted
from transforms.ingest.values import as_text

UNIT_NAMES = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


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


_WRITTEN_AS = {
    "timestamp is not a time": "times as Unix seconds, or as 2026-01-31 09:30:00",
    "rating is not a number": "numbers with a point, as 3.5",
}
"""How what cannot be read should be written, by the reason why it is rejected."""


def _repair(reason: str, dataset: str) -> str:
    """Says what to do about the commonest reason."""
    flag = {"ratings": "--columns", "items": "--item_columns"}.get(dataset, "--list_columns")
    if reason == "timestamp looks like seconds":
        return "leave --timestamp_unit out"
    for unit, name in UNIT_NAMES.items():
        if reason == f"timestamp looks like {name}":
            return f"pass --timestamp_unit {unit}"
    if reason == "id is not UTF-8 text":
        return "convert the file to UTF-8"
    if reason.startswith("line "):
        return "correct the lines, or quote the fields that hold the delimiter"
    if reason == "rating is out of range":
        return "widen --rating_range"
    role = reason.split()[0]
    if reason in _WRITTEN_AS:
        return f"write {_WRITTEN_AS[reason]}, or name the right column with {flag} {role}=NAME"
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
    counts = ", ".join(f"{name} ({reason['count']:,})" for name, reason in commonest[:3])
    first = commonest[0][1]
    shown = ", ".join(f"{name}={_shortened(value)}" for name, value in first["example"].items())
    repair = _repair(commonest[0][0], dataset)
    allowed = "" if rejected == rows else f", or raise --max_rejected_fraction (now {max_rejected_fraction:g})"
    raise InputError(
        f"{rejected:,} of {counted(rows, 'row')} of the {dataset} {'was' if rejected == 1 else 'were'} rejected: {counts}; "
        f"for example {shown or 'an empty row'} in {first['source']}: {repair}{allowed}"
    )


def _shortened(value: str | None) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
