"""Reads a job's settings from flags that were given, and the flags of a job that is to be made again."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pipelines.cli.options import OneLineParser, ShortlistOptions
from pipelines.cli.settings import (
    IndexSettings,
    IngestSettings,
    ListsSettings,
    RecommendSettings,
    ReportSettings,
    Settings,
    SweepSettings,
    check_root,
)
from schemas.errors import InputError
from schemas.flags import flags_of
from transforms.evaluate.verdicts import GateSettings
from transforms.index.tune import Sweep
from transforms.ingest.split import DEFAULT_HOLDOUT, SplitSettings
from transforms.ingest.validate import RatingRules
from transforms.search.scann_index import BuildSettings
from transforms.search.search import SearchSettings
from transforms.train.features import features_of
from transforms.train.settings import TrainingSettings

Number = TypeVar("Number", int, float)
Owner = TypeVar("Owner")


def columns_of(flag: str, text: str) -> dict[str, str]:
    """Reads 'role=column,role=column'; 'role=' leaves an optional role out.

    Raises:
      InputError: for a pair that is none, or a role that is named twice.
    """
    columns: dict[str, str] = {}
    for pair in filter(None, (each.strip() for each in text.split(","))):
        role, equals, column = (each.strip() for each in pair.partition("="))
        if not (role and equals):
            raise InputError(f"{flag} takes role=column pairs, got {pair!r}: write it as {flag} user_id=uid,item_id=iid")
        if role in columns:
            raise InputError(f"{flag} names the column of {role} twice ({columns[role]!r} and {column!r}): keep one")
        columns[role] = column
    return columns


def time_of(flag: str, text: str) -> datetime:
    """Reads a date or a time in ISO 8601; without a zone it is UTC, and a date is its first moment.

    Raises:
      InputError: if it is neither.
    """
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(
            f"{flag} takes a date or a time, got {text!r}: write it as {flag} 2026-11-24 or {flag} 2026-11-24T05:00:00Z"
        ) from None


def forced_of(texts: Sequence[str]) -> dict[str, str]:
    """Reads what --force was given, NAME=REASON each.

    Raises:
      InputError: for one without a reason, or a name that is given twice.
    """
    forced: dict[str, str] = {}
    for text in texts:
        name, equals, reason = (each.strip() for each in text.partition("="))
        if not (name and equals and reason):
            repair = f"write it as --force {name or 'GATE'}=REASON"
            raise InputError(f"--force takes the name of a gate and a reason, got {text!r}: {repair}")
        if name in forced:
            raise InputError(f"--force names the gate {name} twice: keep one")
        forced[name] = reason
    return forced


def _numbers_of(flag: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(each) for each in text.split(",") if each.strip())
    except ValueError:
        raise InputError(f"{flag} takes numbers with commas between them, got {text!r}: write it as {flag} 1,2,3") from None


def _range_of(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(each) for each in text.split(","))
    except ValueError:
        raise InputError(f"rating_range must be LOW,HIGH, got {text!r}: write it as --rating_range=0,10") from None
    if not low < high:
        raise InputError(f"rating_range must go from low to high, got {text!r}: swap its ends")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"rating_range must be two finite numbers, got {text!r}: leave --rating_range out to allow any rating")
    return low, high


def _search_of(flags: argparse.Namespace) -> SearchSettings | None:
    if flags.reorder_per_neighbor is None:
        if flags.leaves_to_search is not None:
            raise InputError(
                "leaves_to_search alone says too little of a search: give --reorder_per_neighbor too, or leave both out"
            )
        return None
    return _made(SearchSettings, flags)


_NOT_OF_JOB = ("output", "config", "json", "verbose", "runner_option", "check", "force", "reuse_model_from")
"""Flags that say where, how loudly and under which exceptions a job runs, not what it makes."""


_NEVER_EMPTY = {
    "config": "a YAML file of flags",
    "ratings": "a source",
    "items": "a source",
    "heldout": "a source",
    "users": "a list of users",
    "exclude": "a list of pairs",
    "block_items": "a list of items",
    "allow_items": "a list of items",
    "tfds_data_dir": "a folder",
    "reuse_model_from": "a release",
    "trials": "a file",
    "as_of": "a date or a time",
    "item_tower": "a kind of tower",
}
"""Flags whose value a script may have lost, such as `--block_items "$BLOCKED"`, after which nothing would be blocked."""


def _defaults() -> argparse.Namespace:
    parser = OneLineParser(allow_abbrev=False)
    ShortlistOptions._add_argparse_args(parser)
    return parser.parse_args([])


def job_of(flags: argparse.Namespace) -> dict[str, Any] | None:
    """Returns what of a job's flags is not as it is by default, as JSON: enough to ask for the same again.

    It is None without ratings: the flags of a single stage do not say what a table is made of.
    """
    if not flags.ratings:
        return None
    defaults = vars(_defaults())
    return {name: value for name, value in vars(flags).items() if name not in _NOT_OF_JOB and value != defaults[name]}


def settings_of_job(job: Mapping[str, Any], output: str, **flags: Any) -> Settings:
    """Returns the settings that ask for a job again.

    Args:
      job: what `job_of` returned then.
      output: the output root.
      **flags: those that are no part of a job, such as `force`.

    Raises:
      InputError: if this version has no such flag any more, or a value will not do any more.
    """
    asked = _defaults()
    unknown = next((name for name in job if name not in asked), None)
    if unknown:
        raise InputError(f"the job was given --{unknown}, which this version does not know: run its command, as it is now")
    for name, value in {**job, **flags, "output": output}.items():
        setattr(asked, name, value)
    return settings_of(asked)


def settings_of(flags: argparse.Namespace) -> Settings:
    """Checks the flags' values and returns them as settings.

    Raises:
      InputError: naming the flag, the rule and the repair.
    """
    if not flags.output:
        raise InputError("no output root: give --output DIR")
    for name in _NEVER_EMPTY:
        if getattr(flags, name) == "":
            raise InputError(f"--{name} is empty, and must name {_NEVER_EMPTY[name]}: give it, or leave --{name} out")
    check_root(flags.output)
    features = features_of(flags.features)
    return _made(
        Settings,
        flags,
        output=flags.output.rstrip("/") or "/",
        ingest=_made(
            IngestSettings,
            flags,
            columns=columns_of("--columns", flags.columns),
            item_columns=columns_of("--item_columns", flags.item_columns),
            rules=_made(RatingRules, flags, rating_range=_range_of(flags.rating_range)),
            split=_made(
                SplitSettings,
                flags,
                holdout=DEFAULT_HOLDOUT.get(flags.split, 0) if flags.holdout is None else flags.holdout,
                seed=flags.seed,
            ),
        ),
        lists=_made(
            ListsSettings,
            flags,
            columns=columns_of("--list_columns", flags.list_columns),
            tfds_data_dir=flags.tfds_data_dir,
            max_rejected_fraction=flags.max_rejected_fraction,
        ),
        training=_made(
            TrainingSettings,
            flags,
            item_tower=flags.item_tower or ("id+features" if features else "id"),
            features=features,
        ),
        sweep=_made(SweepSettings, flags),
        index=_made(
            IndexSettings,
            flags,
            seed=flags.seed,
            build=_made(BuildSettings, flags, soar=not (flags.no_soar or flags.export_saved_model)),
            search=_search_of(flags),
        ),
        tune=_made(
            Sweep,
            flags,
            leaves=_numbers_of("--tune_leaves", flags.tune_leaves, int),
            thresholds=_numbers_of("--tune_thresholds", flags.tune_thresholds, float),
            leaves_to_search=_numbers_of("--tune_leaves_to_search", flags.tune_leaves_to_search, int),
            reorder_factors=_numbers_of("--tune_reorder", flags.tune_reorder, float),
        ),
        recommend=_made(RecommendSettings, flags, as_of=time_of("--as_of", flags.as_of) if flags.as_of else None),
        report=_made(ReportSettings, flags),
        gates=_made(GateSettings, flags, max_rejected_fraction=flags.max_rejected_fraction, forced=forced_of(flags.force)),
        job=job_of(flags),
    )


def _made(owner: type[Owner], flags: argparse.Namespace, **others: Any) -> Owner:
    """Returns settings whose fields are what their flags were given, but for those that are more than that."""
    given = {field: getattr(flags, each.name) for field, each in flags_of(owner).items() if field not in others}
    return owner(**given, **others)
