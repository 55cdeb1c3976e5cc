"""The settings of a job: frozen values that say which flags they come from, checked when they are made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from schemas.errors import InputError
from schemas.flags import ABOVE_0, AT_LEAST_1_MIB, SHARE, Rule, at_least, between, check_fields, flag, one_of
from schemas.storage import check_file_system
from schemas.topk import LAYOUTS, NESTED
from transforms.evaluate.describe_table import MAX_EXAMPLES
from transforms.evaluate.verdicts import GateSettings
from transforms.index.calibration import RECALL, TARGET_RECALL
from transforms.index.search_plan import MAX_WORKER_BYTES, PLANS
from transforms.index.tune import Sweep
from transforms.ingest.split import SplitSettings
from transforms.ingest.validate import RatingRules
from transforms.io.write import MAX_PARTS
from transforms.search.scann_index import BuildSettings
from transforms.search.search import SearchSettings
from transforms.train.settings import CHECKPOINT_SECS, TrainingSettings


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """What to read, and how to judge and split it."""

    ratings: str | None = flag(help="Parquet, CSV, TSV, RecBole .inter (file, folder or glob), or tfds:NAME")
    columns: Mapping[str, str] = flag(
        unset="", help="user_id=…,item_id=…,rating=…,timestamp=…: the names of these columns in the ratings"
    )
    items: str | None = flag(help="the catalogue, in the same formats; without it, the catalogue is what was rated")
    item_columns: Mapping[str, str] = flag(unset="", help="item_id=…,title=…: the names of these columns in the items")
    heldout: str | None = flag(help="ratings to judge by, for --split given: the same formats and columns as the ratings")
    tfds_data_dir: str | None = flag(help="where TensorFlow Datasets keeps prepared datasets")
    rules: RatingRules
    max_rejected_fraction: float = flag(
        unset=0.01, rule=SHARE, help="the largest share of a source's rows that may be rejected"
    )
    recency_half_life_days: float = flag(
        unset=7.0, rule=ABOVE_0, help="days after which a rating counts half towards recent popularity"
    )
    num_buckets: int | None = flag(
        rule=Rule(f"1 to {MAX_PARTS:,}", lambda value: 1 <= value <= MAX_PARTS),
        help="number of files of users and of the table (default: by the size of the ratings)",
    )
    split: SplitSettings

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.split.split == "given") != (self.heldout is not None):
            raise InputError(
                "--split given holds out the ratings of --heldout: give --heldout FILE, or change --split"
                if self.heldout is None
                else f"--heldout {self.heldout} is held out with --split given, got --split {self.split.split}: "
                "use --split given, or leave --heldout out"
            )


@dataclass(frozen=True, kw_only=True)
class ListsSettings:
    """The lists that say whom to serve, and what must not be recommended; each a source or None."""

    users: str | None = flag(help="more users to make lists for, with or without ratings")
    exclude: str | None = flag(help="(user_id, item_id) pairs that must not be recommended")
    block_items: str | None = flag(help="items that must not be recommended to anyone")
    allow_items: str | None = flag(help="the only items that may be recommended")
    columns: Mapping[str, str] = flag(
        name="list_columns", unset="", help="user_id=…,item_id=…: the names of these columns in lists of ids"
    )
    tfds_data_dir: str | None
    max_rejected_fraction: float


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Which trainings to try."""

    trials: str | None = flag(help="a YAML file of trials, or of settings with the values to try: see docs/guides/sweep.md")
    num_trials: int | None = flag(
        rule=at_least(1), help="how many trials to draw (default: 20, or with --trials every combination of its values)"
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How to shard, build and search the index."""

    num_shards: int | None = flag(
        rule=at_least(1, "change --{flag}"), help="number of ScaNN indexes (default: the fewest that fit --max_shard_bytes)"
    )
    max_shard_bytes: int = flag(unset=4 << 30, rule=AT_LEAST_1_MIB, help="the most memory for one shard (default 4 GiB)")
    target_recall: float = flag(
        unset=TARGET_RECALL, rule=RECALL, help="the recall of ScaNN against exact search that must be reached"
    )
    seed: int
    build: BuildSettings
    search: SearchSettings | None
    """Given, as after tuning; None: to be calibrated."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RecommendSettings:
    """What a list holds."""

    k: int = flag(unset=100, rule=at_least(1), help="number of items for each user")
    recommend_seen: bool = flag(help="allow items that the user has already seen")
    plan: str = flag(
        unset="auto",
        rule=one_of("auto", *PLANS),
        help="how shards are searched: fused, by_shard, or auto (by the size of the index; default auto)",
    )
    max_worker_bytes: int = flag(
        unset=MAX_WORKER_BYTES,
        rule=AT_LEAST_1_MIB,
        help="the most memory for the shards that a worker holds (default 4 GiB)",
    )
    as_of: datetime | None = flag(
        help="the value of scored_at in each row: a date or time, UTC (default: that of the newest rating)"
    )
    """With a time zone; None: as the ratings say."""
    layout: str = flag(
        unset=NESTED, rule=one_of(*LAYOUTS), help="nested: one row for each user; long: one row for each user and rank"
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What the report shows."""

    users: int = flag(
        name="report_users",
        unset=3,
        rule=between(0, MAX_EXAMPLES),
        help="number of users shown in the report, with titles; 0 for none (default 3)",
    )
    """How many examples."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A job: everything that was asked for, checked."""

    output: str = flag(help="the output root: a folder or a URI; the only flag that every command needs")
    ingest: IngestSettings
    lists: ListsSettings
    training: TrainingSettings
    sweep: SweepSettings
    index: IndexSettings
    tune: Sweep
    recommend: RecommendSettings
    report: ReportSettings
    gates: GateSettings
    refit: bool = flag(
        help="once the model is evaluated, train another on all ratings, the holdout included, and publish its table"
    )
    export_saved_model: bool = flag(
        help="make a SavedModel for online serving too; trees then have no SOAR, which ScaNN's TensorFlow ops cannot hold"
    )
    checkpoint_secs: float = flag(
        unset=CHECKPOINT_SECS,
        rule=Rule(
            "0 or more",
            lambda value: 0 <= value < math.inf,
            f"leave --{{flag}} out to lose about {CHECKPOINT_SECS:g} seconds at most",
        ),
        help=f"seconds of training between checkpoints, about (default {CHECKPOINT_SECS:g}); 0 keeps one of every epoch",
    )
    json: bool = flag(help="one line of JSON with the results on standard output; the rest to standard error")
    verbose: bool = flag(help="show the logs of Beam and TensorFlow, and tracebacks")
    check: bool = flag(help="read the sources and lists, say what came in and what would be done, and stop (pipelines.run)")
    """Only read the sources, and say what would be done."""
    job: Mapping[str, Any] | None = field(compare=False)
    """The flags as they were given, so that the same can be asked for again; None without ratings. Two may mean the same."""
    reuse_model_from: str | None = flag(
        None,
        metavar="RELEASE",
        help="use the towers of a release, or of LATEST, and make new lists only for users whose lists may have changed",
    )
    """The release whose towers are kept, or LATEST; None trains."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.refit and self.ingest.split.split == "given":
            raise InputError("--refit trains on what was held out, and --split given keeps that apart: leave --refit out")
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
