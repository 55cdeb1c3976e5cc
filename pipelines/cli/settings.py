"""The settings of a job: frozen values, checked when they are made from the flags."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pipelines.cli.options import OneLineParser, ShortlistOptions
from schemas.errors import InputError
from schemas.release import Base
from schemas.storage import check_file_system
from schemas.topk import LAYOUTS
from transforms.evaluate.describe_table import MAX_EXAMPLES
from transforms.evaluate.verdicts import GateSettings
from transforms.index.search_plan import PLANS
from transforms.index.tune import Sweep
from transforms.ingest.split import DEFAULT_HOLDOUT, SplitSettings
from transforms.ingest.validate import RatingRules
from transforms.io.write import MAX_PARTS
from transforms.search.scann_index import BuildSettings
from transforms.search.search import SearchSettings
from transforms.train.features import features_of
from transforms.train.settings import CHECKPOINT_SECS, TrainingSettings

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class IngestSettings:
    """What to read, and how to judge and split it."""

    ratings: str | None
    columns: Mapping[str, str]
    items: str | None
    item_columns: Mapping[str, str]
    tfds_data_dir: str | None
    rules: RatingRules
    max_rejected_fraction: float
    recency_half_life_days: float
    num_buckets: int | None
    split: SplitSettings

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_fraction <= 1:
            raise InputError(
                f"max_rejected_fraction must be between 0 and 1, got {self.max_rejected_fraction:g}: "
                "change --max_rejected_fraction"
            )
        if not 0 < self.recency_half_life_days < math.inf:
            raise InputError(
                f"recency_half_life_days must be a number above 0, got {self.recency_half_life_days:g}: "
                "change --recency_half_life_days"
            )
        if self.num_buckets is not None and not 1 <= self.num_buckets <= MAX_PARTS:
            raise InputError(f"num_buckets must be 1 to {MAX_PARTS:,}, got {self.num_buckets}: change --num_buckets")


@dataclass(frozen=True)
class ListsSettings:
    """The lists that say whom to serve, and what must not be recommended; each a source or None."""

    users: str | None
    exclude: str | None
    block_items: str | None
    allow_items: str | None
    columns: Mapping[str, str]
    tfds_data_dir: str | None
    max_rejected_fraction: float


@dataclass(frozen=True)
class SweepSettings:
    """Which trainings to try."""

    trials: str | None
    num_trials: int | None

    def __post_init__(self) -> None:
        if self.num_trials is not None and self.num_trials < 1:
            raise InputError(f"num_trials must be at least 1, got {self.num_trials}: raise --num_trials")


@dataclass(frozen=True)
class IndexSettings:
    """How to shard, build and search the index."""

    num_shards: int | None
    max_shard_bytes: int
    target_recall: float
    seed: int
    build: BuildSettings
    search: SearchSettings | None
    """Given, as after tuning; None: to be calibrated."""

    def __post_init__(self) -> None:
        if self.num_shards is not None and self.num_shards < 1:
            raise InputError(f"num_shards must be at least 1, got {self.num_shards}: change --num_shards")
        if not 0 < self.target_recall <= 1:
            raise InputError(f"target_recall must be above 0 and at most 1, got {self.target_recall:g}: change --target_recall")
        if self.max_shard_bytes < 1 << 20:
            raise InputError(f"max_shard_bytes must be at least 1 MiB, got {self.max_shard_bytes}: raise --max_shard_bytes")


@dataclass(frozen=True)
class RecommendSettings:
    """What a list holds."""

    k: int
    recommend_seen: bool
    plan: str
    max_worker_bytes: int
    as_of: datetime | None
    """With a time zone; None: as the ratings say."""
    layout: str

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k must be at least 1, got {self.k}: raise --k")
        if self.plan not in ("auto", *PLANS):
            raise InputError(f"plan must be one of auto, {', '.join(PLANS)}, got {self.plan!r}: change --plan")
        if self.layout not in LAYOUTS:
            raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}: change --layout")
        if self.max_worker_bytes < 1 << 20:
            raise InputError(f"max_worker_bytes must be at least 1 MiB, got {self.max_worker_bytes}: raise --max_worker_bytes")


@dataclass(frozen=True)
class ReportSettings:
    """What the report shows."""

    users: int
    """How many examples."""

    def __post_init__(self) -> None:
        if not 0 <= self.users <= MAX_EXAMPLES:
            raise InputError(f"report_users must be between 0 and {MAX_EXAMPLES}, got {self.users}: change --report_users")


@dataclass(frozen=True)
class TuneSettings:
    """What tuning tries."""

    sweep: Sweep
    small: bool
    """Whether to try more than the exact index where every shard is so small that it would be exact."""


@dataclass(frozen=True)
class Settings:
    """A job: everything that was asked for, checked."""

    output: str
    ingest: IngestSettings
    lists: ListsSettings
    training: TrainingSettings
    sweep: SweepSettings
    index: IndexSettings
    tune: TuneSettings
    recommend: RecommendSettings
    report: ReportSettings
    gates: GateSettings
    refit: bool
    export_saved_model: bool
    checkpoint_secs: float
    json: bool
    verbose: bool
    check: bool
    """Only read the sources, and say what would be done."""
    job: Mapping[str, Any] | None = field(compare=False)
    """The flags as they were given, so that the same can be asked for again; None without ratings. Two may mean the same."""
    reuse_model_from: str | None = None
    """The release whose towers are kept, or LATEST; None trains."""
    base: Base | None = None
    """The same, once it has been read: see `pipelines.job.reuse`."""

    def __post_init__(self) -> None:
        if not 0 <= self.checkpoint_secs < math.inf:
            raise InputError(
                f"checkpoint_secs must be 0 or more, got {self.checkpoint_secs:g}: leave --checkpoint_secs out to lose "
                f"about {CHECKPOINT_SECS:g} seconds at most"
            )
        if self.refit and self.ingest.split.split == "none":
            raise InputError(
                "--refit trains on what was held out, and --split none holds nothing out: leave --refit out, or change --split"
            )


def check_root(output: str) -> None:
    """Raises InputError if an output root cannot be one on any file system."""
    wild = next((each for each in "*?[" if each in output), None)
    if wild:
        raise InputError(f"the output {output!r} has a {wild!r}, which means a pattern in a path: choose another --output")
    check_file_system(output, "write to")


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
    return SearchSettings(flags.leaves_to_search, flags.reorder_per_neighbor)


_NOT_OF_JOB = ("output", "config", "json", "verbose", "check", "force", "reuse_model_from")
"""Flags that say where, how loudly and under which exceptions a job runs, not what it makes."""


_NEVER_EMPTY = {
    "config": "a YAML file of flags",
    "ratings": "a source",
    "items": "a source",
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
    item_tower = flags.item_tower or ("id+features" if features else "id")
    holdout = DEFAULT_HOLDOUT.get(flags.split, 0) if flags.holdout is None else flags.holdout
    return Settings(
        output=flags.output.rstrip("/") or "/",
        ingest=IngestSettings(
            ratings=flags.ratings,
            columns=columns_of("--columns", flags.columns),
            items=flags.items,
            item_columns=columns_of("--item_columns", flags.item_columns),
            tfds_data_dir=flags.tfds_data_dir,
            rules=RatingRules(rating_range=_range_of(flags.rating_range), timestamp_unit=flags.timestamp_unit),
            max_rejected_fraction=flags.max_rejected_fraction,
            recency_half_life_days=flags.recency_half_life_days,
            num_buckets=flags.num_buckets,
            split=SplitSettings(flags.split, holdout, flags.min_rating, flags.seed),
        ),
        lists=ListsSettings(
            users=flags.users,
            exclude=flags.exclude,
            block_items=flags.block_items,
            allow_items=flags.allow_items,
            columns=columns_of("--list_columns", flags.list_columns),
            tfds_data_dir=flags.tfds_data_dir,
            max_rejected_fraction=flags.max_rejected_fraction,
        ),
        training=TrainingSettings(
            user_tower=flags.user_tower,
            mixed_negatives=flags.mixed_negatives,
            history_sample=flags.history_sample,
            item_tower=item_tower,
            features=features,
            id_dropout=flags.id_dropout,
            dim=flags.dim,
            learning_rate=flags.learning_rate,
            batch_size=flags.batch_size,
            l2=flags.l2,
            validation_fraction=flags.validation_fraction,
            recency=flags.recency,
            max_epochs=flags.max_epochs,
            patience=flags.patience,
            seed=flags.seed,
        ),
        sweep=SweepSettings(flags.trials, flags.num_trials),
        index=IndexSettings(
            num_shards=flags.num_shards,
            max_shard_bytes=flags.max_shard_bytes,
            target_recall=flags.target_recall,
            seed=flags.seed,
            build=BuildSettings(
                kind=flags.index_kind,
                num_leaves=flags.leaves,
                quantization_threshold=flags.quantization_threshold,
                soar=not (flags.no_soar or flags.export_saved_model),
            ),
            search=_search_of(flags),
        ),
        tune=TuneSettings(
            sweep=Sweep(
                leaves=_numbers_of("--tune_leaves", flags.tune_leaves, int),
                thresholds=_numbers_of("--tune_thresholds", flags.tune_thresholds, float),
                soar=flags.tune_soar,
                leaves_to_search=_numbers_of("--tune_leaves_to_search", flags.tune_leaves_to_search, int),
                reorder_factors=_numbers_of("--tune_reorder", flags.tune_reorder, float),
                past_exact=flags.tune_small,
            ),
            small=flags.tune_small,
        ),
        recommend=RecommendSettings(
            k=flags.k,
            recommend_seen=flags.recommend_seen,
            plan=flags.plan,
            max_worker_bytes=flags.max_worker_bytes,
            as_of=time_of("--as_of", flags.as_of) if flags.as_of else None,
            layout=flags.layout,
        ),
        report=ReportSettings(flags.report_users),
        gates=GateSettings(
            max_quality_drop=flags.max_quality_drop,
            min_lift=flags.min_lift,
            min_coverage=flags.min_coverage,
            min_overlap=flags.min_overlap,
            max_empty_lists=flags.max_empty_lists,
            max_short_lists=flags.max_short_lists,
            min_history_kept=flags.min_history_kept,
            max_days_older=flags.max_days_older,
            max_growth=flags.max_growth,
            max_repeated_rise=flags.max_repeated_rise,
            max_shrink=flags.max_shrink,
            max_rejected_fraction=flags.max_rejected_fraction,
            forced=forced_of(flags.force),
        ),
        refit=flags.refit,
        export_saved_model=flags.export_saved_model,
        checkpoint_secs=flags.checkpoint_secs,
        json=flags.json,
        verbose=flags.verbose,
        check=flags.check,
        job=job_of(flags),
        reuse_model_from=flags.reuse_model_from,
    )
