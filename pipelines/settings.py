"""Flags, and the one frozen settings object that they become at the edge; nothing further in sees a flag."""

import argparse
import difflib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar, cast

from apache_beam.io.filesystem import BeamIOError
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, WorkerOptions
from apache_beam.runners.runner import create_runner

from pipelines.command import called_as
from schemas.errors import InputError
from schemas.release import Base
from schemas.storage import check_file_system, exists, read_bytes
from schemas.topk import LAYOUTS, NESTED
from schemas.yaml_text import read_yaml
from transforms.evaluate.describe_table import MAX_EXAMPLES
from transforms.evaluate.gates import GateSettings
from transforms.index.calibrate import REORDER_FACTORS, TARGET_RECALL
from transforms.index.search_plan import MAX_WORKER_BYTES, PLANS
from transforms.index.tune import THRESHOLDS, Sweep
from transforms.ingest.split import DEFAULT_HOLDOUT, SplitSettings
from transforms.ingest.validate import RatingRules
from transforms.io.write import MAX_PARTS
from transforms.search.scann_index import QUANTIZATION_THRESHOLD, BuildSettings
from transforms.search.search import SearchSettings
from transforms.train.features import features_of
from transforms.train.training import CHECKPOINT_SECS, L2_OF, TrainingSettings

Number = TypeVar("Number", int, float)

LOCAL_RUNNER = "FnApiRunner"
"""Beam's in-process runner: what no --runner, or --runner DirectRunner, means here. Beam's own DirectRunner would first
try to download another one."""


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


class ShortlistOptions(PipelineOptions):
    """Every flag of every stage; each command takes them all and uses its own."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        job = parser.add_argument_group("job")
        job.add_argument("--output", help="the output root: a folder or a URI; the only flag that every command needs")
        job.add_argument("--config", help="a YAML file of flags (k: 100, columns: {user_id: uid}); flags given directly win")
        job.add_argument("--seed", type=int, default=42, help="of everything that draws by chance (default 42)")
        job.add_argument(
            "--refit", action="store_true", help="publish a table of a model trained on the holdout too, once it is evaluated"
        )
        job.add_argument(
            "--reuse_model_from",
            metavar="RELEASE",
            help="keep the towers of a release, or of LATEST, and score again only users whose lists cannot be the same",
        )
        job.add_argument(
            "--json",
            action="store_true",
            help="one line of JSON with the results on standard output; the rest to standard error",
        )
        job.add_argument(
            "--check",
            action="store_true",
            help="read the sources and lists, say what came in and what would be done, and stop (pipelines.run)",
        )
        job.add_argument("--verbose", action="store_true", help="let Beam and TensorFlow speak, and show tracebacks")

        data = parser.add_argument_group("data")
        data.add_argument("--ratings", help="Parquet, CSV, TSV, RecBole .inter (file, folder or glob), or tfds:NAME")
        data.add_argument("--columns", default="", help="user_id=…,item_id=…,rating=…,timestamp=…: what the ratings call them")
        data.add_argument("--items", help="the catalogue, in the same formats; without it, the catalogue is what was rated")
        data.add_argument("--item_columns", default="", help="item_id=…,title=…: what the items call them")
        data.add_argument("--users", help="users to serve beside those of the ratings, whether they have ratings or not")
        data.add_argument("--exclude", help="(user_id, item_id) pairs that must not be recommended")
        data.add_argument("--list_columns", default="", help="user_id=…,item_id=…: what lists of ids call them")
        data.add_argument("--tfds_data_dir", help="where TensorFlow Datasets keeps prepared datasets")
        data.add_argument("--timestamp_unit", default="s", help="of numeric times: s, ms, us or ns (default s)")
        data.add_argument("--rating_range", help="LOW,HIGH: ratings outside are rejected (default: any finite number)")
        data.add_argument("--max_rejected_fraction", type=float, default=0.01, help="of the rows of a source (default 0.01)")
        data.add_argument(
            "--recency_half_life_days", type=float, default=7.0, help="how fast what is popular grows old (default 7)"
        )
        data.add_argument("--num_buckets", type=int, help="files of users and of the table (default: by the text in them)")

        split = parser.add_argument_group("split")
        split.add_argument("--split", default="random", help="random, temporal, last or none (default random)")
        split.add_argument("--holdout", type=float, help="a fraction (random 0.2, temporal 0.1), or items a user (last 1)")
        split.add_argument("--min_rating", type=float, help="the lowest rating that counts as a positive (default: any)")

        train = parser.add_argument_group("train")
        defaults = TrainingSettings()
        train.add_argument("--user_tower", default=defaults.user_tower, help="id, history or id+history")
        train.add_argument(
            "--mixed_negatives", type=int, default=defaults.mixed_negatives, help="uniform candidates added to each batch"
        )
        train.add_argument(
            "--history_sample",
            type=int,
            default=defaults.history_sample,
            help="the most items of a history that a training step looks at",
        )
        train.add_argument("--item_tower", help="id, or id+features (default: id+features where features are declared)")
        train.add_argument(
            "--features",
            default="",
            help="column=kind,…: what of an item its tower looks at; a kind is category, categories, number or text",
        )
        train.add_argument(
            "--id_dropout",
            type=float,
            default=defaults.id_dropout,
            help=f"part of the rows that train on features, or histories, alone (default {defaults.id_dropout:g})",
        )
        train.add_argument("--dim", type=int, default=defaults.dim, help=f"of the embeddings (default {defaults.dim})")
        train.add_argument("--learning_rate", type=float, default=defaults.learning_rate, help="of Adam")
        train.add_argument("--batch_size", type=int, default=defaults.batch_size, help="rows a step, and negatives a row")
        train.add_argument(
            "--l2",
            type=float,
            help="weight of the L2 penalty on a batch's embeddings (default "
            + ", ".join(f"{l2:g} for {tower}" for tower, l2 in L2_OF.items())
            + ")",
        )
        train.add_argument(
            "--validation_fraction", type=float, default=defaults.validation_fraction, help="of the training rows (default 0.1)"
        )
        train.add_argument(
            "--recency",
            default=defaults.recency,
            help="whether items popular of late score higher: auto (as validation says), on or off",
        )
        train.add_argument("--max_epochs", type=int, default=defaults.max_epochs, help="the most epochs")
        train.add_argument("--patience", type=int, default=defaults.patience, help="epochs without a better validation")

        train.add_argument(
            "--checkpoint_secs",
            type=float,
            default=CHECKPOINT_SECS,
            help=f"of training that a broken run loses, about (default {CHECKPOINT_SECS:g}); 0 keeps every epoch",
        )

        sweep = parser.add_argument_group("sweep")
        sweep.add_argument("--trials", help="a YAML file of trials, or of settings with the values to try: see docs/sweep.md")
        sweep.add_argument(
            "--num_trials", type=int, help="how many to draw (default: 20, or with --trials every combination of its values)"
        )

        index = parser.add_argument_group("index")
        index.add_argument("--num_shards", type=int, help="ScaNN indexes (default: the fewest that fit --max_shard_bytes)")
        index.add_argument("--max_shard_bytes", type=int, default=4 << 30, help="the most memory for one shard (default 4 GiB)")
        index.add_argument(
            "--target_recall", type=float, default=TARGET_RECALL, help="of ScaNN against exact search, at least (default 0.95)"
        )
        index.add_argument("--index_kind", help="of each shard: exact, hashed or tree (default: by its size)")
        index.add_argument("--leaves", type=int, help="of each shard's tree (default: by its size)")
        index.add_argument(
            "--quantization_threshold",
            type=float,
            default=QUANTIZATION_THRESHOLD,
            help=f"of ScaNN's anisotropic hashes (default {QUANTIZATION_THRESHOLD})",
        )
        index.add_argument("--no_soar", action="store_true", help="put each vector in one leaf of a tree, not in two")
        index.add_argument(
            "--leaves_to_search", type=int, help="of each shard's tree (default: calibrated, as is what follows)"
        )
        index.add_argument("--reorder_per_neighbor", type=float, help="vectors scored exactly for each neighbor asked for")

        tune = parser.add_argument_group("tune (lists with commas)")
        tune.add_argument("--tune_leaves", default="", help="of each tree (default: sqrt(n) times 1, 2, 3, 5)")
        tune.add_argument("--tune_leaves_to_search", default="", help="of each tree (default: from 1 %% to all)")
        tune.add_argument("--tune_reorder", default=_listed(REORDER_FACTORS), help="vectors scored exactly for each neighbor")
        tune.add_argument("--tune_thresholds", default=_listed(THRESHOLDS), help="quantization thresholds")
        tune.add_argument("--tune_soar", default="both", help="both, yes or no (default both)")
        tune.add_argument("--tune_small", action="store_true", help="tune even where every shard is so small that it is exact")

        recommend = parser.add_argument_group("recommend")
        recommend.add_argument("--k", type=int, default=100, help="items a user (default 100)")
        recommend.add_argument(
            "--export_saved_model",
            action="store_true",
            help="make a SavedModel for online serving too; trees then have no SOAR, which ScaNN's TensorFlow ops cannot hold",
        )
        recommend.add_argument("--recommend_seen", action="store_true", help="keep items that the user has seen")
        recommend.add_argument("--block_items", help="items that must not be recommended to anyone")
        recommend.add_argument("--allow_items", help="the only items that may be recommended")
        recommend.add_argument("--layout", default=NESTED, help="nested: one row a user; long: one row a user and rank")
        recommend.add_argument(
            "--as_of", help="what scored_at says in each row: a date or time, UTC (default: of the newest rating)"
        )
        recommend.add_argument("--plan", default="auto", help="fused, by_shard, or auto: by the index's size (default auto)")
        recommend.add_argument(
            "--max_worker_bytes",
            type=int,
            default=MAX_WORKER_BYTES,
            help="memory for a worker's shards (default 4 GiB)",
        )

        report = parser.add_argument_group("report")
        report.add_argument(
            "--report_users", type=int, default=3, help="users to show in the report, with titles; 0 for none (default 3)"
        )

        gates = parser.add_argument_group("gates", "what a table must pass to be published; docs/gates.md has them all")
        limits = GateSettings()
        for flag, what in (
            ("max_quality_drop", "of held-out metrics since the last release, as a share"),
            ("min_lift", "times as good as popularity on held-out items"),
            ("min_coverage", "of the items that could be listed, at least"),
            ("min_overlap", "mean Jaccard index with the last release's lists, at least"),
            ("max_empty_lists", "of the users may have an empty list, as a share"),
            ("max_short_lists", "of the users may have a list shorter than half of k, as a share"),
            ("min_history_kept", "of what users had rated in the last release must still be theirs, as a mean share"),
            ("max_days_older", "days that the newest rating may be older than the last release's"),
            ("max_growth", "of the ratings since the last release, as a share"),
            ("max_repeated_rise", "of the share of repeated ratings since the last release"),
            ("max_shrink", "of ratings, of users and of items since the last release, as a share"),
        ):
            gates.add_argument(f"--{flag}", type=float, default=getattr(limits, flag), help=f"{what} (default %(default)g)")
        gates.add_argument(
            "--force",
            action="append",
            default=[],
            metavar="NAME=REASON",
            help="publish although this gate fails; may be repeated",
        )


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
    """The same, once it has been read: see `pipelines.reuse`."""

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


_SEVERAL_FILES = "one is read: give a folder or a glob to read several"
_WITH_COMMAS = "one counts: put all into one, with commas between them"
_ONCE = {
    **dict.fromkeys(("ratings", "items", "users", "exclude", "block_items", "allow_items"), _SEVERAL_FILES),
    **dict.fromkeys(("columns", "item_columns", "list_columns", "features"), _WITH_COMMAS),
    **dict.fromkeys(("config", "trials", "release", "to", "users_file", "items_file"), "one is read: give one"),
}
"""Flags that somebody who gives them twice means to add up, and what to do instead."""


class _NamesDefaults(argparse.HelpFormatter):
    """Names the default of a flag whose help does not speak of it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if text is None or "default" in text or action.default in (None, False, "", argparse.SUPPRESS) or action.default == []:
            return text
        value = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
        return f"{text} (default {value.replace('%', '%%')})"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and how the command was called; a flag that is given twice is not dropped unsaid."""

    def __init__(self, prog: str | None = None, **settings: Any) -> None:
        super().__init__(prog=prog or called_as(), **({"formatter_class": _NamesDefaults} | settings))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if namespace is None:
            self._check_repeated(list(sys.argv[1:] if args is None else args))
        return super().parse_known_args(args, namespace)

    def _check_repeated(self, argv: Sequence[str]) -> None:
        """Raises InputError for a flag given twice that is read once; warns where the last one counts."""
        taken = {
            option: action.dest
            for action in self._actions
            if type(action) is argparse._StoreAction
            for option in action.option_strings
        }
        given: dict[str, list[str]] = {}
        for at, word in enumerate(argv):
            option, equals, value = word.partition("=")
            if option in taken:
                given.setdefault(option, []).append(value if equals else next(iter(argv[at + 1 : at + 2]), ""))
        for option, values in given.items():
            if len(values) > 1 and taken[option] in _ONCE:
                raise InputError(
                    f"{option} is given {'twice' if len(values) == 2 else f'{len(values)} times'} "
                    f"({' and '.join(map(repr, values))}), and {_ONCE[taken[option]]}"
                )
            if len(set(values)) > 1:
                print(f"warning: {option} is given as {', then '.join(values)}: the last one counts", file=sys.stderr)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see --help")


def parse_command(argv: Sequence[str], description: str) -> tuple[Settings, PipelineOptions]:
    """Turns a command line into settings and Beam's options.

    Args:
      argv: the flags, without the program.
      description: what the command does, for --help.

    Raises:
      InputError: for an unknown flag or a value that will not do.
    """
    parser = OneLineParser(description=description, allow_abbrev=False, epilog="Any Beam option may follow, such as --runner.")
    ShortlistOptions._add_argparse_args(parser)
    flags, others = parser.parse_known_args(list(argv))
    if not flags.config:
        return settings_of(flags), options_of(others, parser, flags.verbose)
    in_config = flags_of_config(flags.config, parser)
    try:
        flags, of_config = parser.parse_known_args(in_config)
        flags, of_command = parser.parse_known_args(list(argv), flags)
        return settings_of(flags), options_of([*of_config, *of_command], parser, flags.verbose)
    except InputError as error:
        if _is_mistake_without_config(argv, parser, flags.output, error):
            raise
        raise InputError(f"in the config {flags.config}: {error}") from error


def _is_mistake_without_config(argv: Sequence[str], parser: argparse.ArgumentParser, output: str, error: InputError) -> bool:
    """Tells whether what was given directly leads to the same mistake, without the config."""
    flags, others = parser.parse_known_args(list(argv), argparse.Namespace(output=output))
    try:
        settings_of(flags)
        options_of(others, parser, flags.verbose)
    except InputError as other:
        return str(other) == str(error)
    return False


def options_of(argv: Sequence[str], parser: argparse.ArgumentParser, verbose: bool = False) -> PipelineOptions:
    """Turns what is left of a command line into Beam's options.

    Args:
      argv: the flags that `parser` does not know.
      parser: of the command; a flag of it may be what a typing error meant.
      verbose: whether Beam may speak.

    Raises:
      InputError: for a flag that Beam does not know either, or a runner that there is not.
    """
    _refuse_unknown(argv, parser)
    options = PipelineOptions(list(argv))
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = LOCAL_RUNNER
    try:
        create_runner(standard.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"there is no runner {standard.runner!r} ({error}): check --runner") from error
    if not verbose:
        options.view_as(WorkerOptions).default_sdk_harness_log_level = "CRITICAL"
    return options


_WORDS = {"recency": ("on", "off"), "tune_soar": ("yes", "no")}
"""Values that YAML takes for true and false."""


def flags_of_config(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """Reads a YAML file of flags; those that `parser` does not know are left as they are.

    Raises:
      InputError: if there is no such file, or it is no mapping of flags to plain values.
    """
    if not exists(path):
        raise InputError(f"the config {path} does not exist: check --config")
    try:
        text = read_bytes(path)
    except (OSError, BeamIOError) as error:
        raise InputError(f"the config {path} cannot be read ({error}): check --config") from error
    config = read_yaml(text, f"the config {path}")
    if not isinstance(config, dict):
        raise InputError(f"the config {path} must be a mapping of flags to values, got {type(config).__name__}: repair it")
    actions = {option: action for action in parser._actions for option in action.option_strings}
    argv = []
    for name, value in config.items():
        action = actions.get(f"--{name}")
        if isinstance(value, bool) and action and action.nargs != 0:
            if name not in _WORDS:
                raise InputError(f"{name} in the config {path} takes a value, got {str(value).lower()}: repair it, or quote it")
            argv.append(f"--{name}={_WORDS[name][not value]}")
        elif isinstance(value, bool):
            argv += [f"--{name}"] if value else []
        elif value is not None and action and action.nargs == 0:
            raise InputError(f"{name} in the config {path} is true or false, got {value!r}: write {name}: true, without quotes")
        elif isinstance(value, dict) and name == "force":
            argv += [f"--{name}={gate}={reason}" for gate, reason in value.items()]
        elif isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            argv.append(f"--{name}={json.dumps(value, default=str)}")  # Which is YAML too.
        elif isinstance(value, dict):
            argv.append(f"--{name}=" + ",".join(f"{key}={column}" for key, column in value.items()))
        elif isinstance(value, list) and action and not isinstance(action, argparse._AppendAction):
            raise InputError(f"{name} in the config {path} takes one value, got a list: put its parts into one text")
        elif isinstance(value, list):
            argv += [f"--{name}={each}" for each in value]
        elif value is not None:
            argv.append(f"--{name}={value}")
    return argv


def _refuse_unknown(argv: Sequence[str], ours: argparse.ArgumentParser) -> None:
    """Beam drops flags that it does not know; a typing error must not go unnoticed."""
    beam_parser = _BeamFlags(allow_abbrev=False, add_help=False, conflict_handler="resolve")
    for cls in PipelineOptions.__subclasses__():
        if cls is not ShortlistOptions:
            cls._add_argparse_args(cast(Any, beam_parser))
    _, unknown = beam_parser.parse_known_args(list(argv))
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [name for parser in (ours, beam_parser) for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(flag, known, n=1)
        repair = f"did you mean {near[0]}?" if near else "see --help"
        raise InputError(f"unknown flag {flag}: {repair}")


class _BeamFlags(OneLineParser):
    """A plain parser that Beam's option classes can add their flags to."""

    def add_value_provider_argument(self, *names: str, **settings: Any) -> None:
        self.add_argument(*names, **settings)


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
        if not (equals and reason):
            raise InputError(f"--force takes the name of a gate and a reason, got {text!r}: write it as --force {name}=REASON")
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
