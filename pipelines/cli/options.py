"""The flags of the job, with their help and defaults, and a parser whose mistakes are one line."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli.command import called_as
from schemas.errors import InputError
from schemas.flags import flags_of
from schemas.topk import NESTED
from transforms.evaluate.verdicts import GateSettings
from transforms.index.calibration import REORDER_FACTORS, TARGET_RECALL
from transforms.index.search_plan import MAX_WORKER_BYTES
from transforms.index.tune import THRESHOLDS
from transforms.search.scann_index import QUANTIZATION_THRESHOLD
from transforms.train.settings import CHECKPOINT_SECS, TrainingSettings


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def add_flags(group: argparse._ArgumentGroup, settings: type, names: str) -> None:
    """Adds flags that a settings class declares, in the order of their names."""
    declared = {each.name: each for each in flags_of(settings).values()}
    for each in map(declared.__getitem__, names.split()):
        if each.kind is bool:
            group.add_argument(f"--{each.name}", action="store_true", help=each.help)
        else:
            group.add_argument(f"--{each.name}", type=each.kind, default=each.default, help=each.help)


class ShortlistOptions(PipelineOptions):
    """Every flag of every stage; each command takes them all and uses its own."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        job = parser.add_argument_group("job")
        job.add_argument("--output", help="the output root: a folder or a URI; the only flag that every command needs")
        job.add_argument("--config", help="a YAML file of flags (k: 100, columns: {user_id: uid}); flags given directly win")
        add_flags(job, TrainingSettings, "seed")
        job.add_argument(
            "--refit",
            action="store_true",
            help="once the model is evaluated, train another on all ratings, the holdout included, and publish its table",
        )
        job.add_argument(
            "--reuse_model_from",
            metavar="RELEASE",
            help="use the towers of a release, or of LATEST, and make new lists only for users whose lists may have changed",
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
        job.add_argument("--verbose", action="store_true", help="show the logs of Beam and TensorFlow, and tracebacks")

        data = parser.add_argument_group("data")
        data.add_argument("--ratings", help="Parquet, CSV, TSV, RecBole .inter (file, folder or glob), or tfds:NAME")
        data.add_argument(
            "--columns", default="", help="user_id=…,item_id=…,rating=…,timestamp=…: the names of these columns in the ratings"
        )
        data.add_argument("--items", help="the catalogue, in the same formats; without it, the catalogue is what was rated")
        data.add_argument("--item_columns", default="", help="item_id=…,title=…: the names of these columns in the items")
        data.add_argument("--users", help="more users to make lists for, with or without ratings")
        data.add_argument("--exclude", help="(user_id, item_id) pairs that must not be recommended")
        data.add_argument("--list_columns", default="", help="user_id=…,item_id=…: the names of these columns in lists of ids")
        data.add_argument("--tfds_data_dir", help="where TensorFlow Datasets keeps prepared datasets")
        data.add_argument("--timestamp_unit", default="s", help="the unit of numeric times: s, ms, us or ns (default s)")
        data.add_argument("--rating_range", help="LOW,HIGH: ratings outside are rejected (default: any finite number)")
        data.add_argument(
            "--max_rejected_fraction",
            type=float,
            default=0.01,
            help="the largest share of a source's rows that may be rejected (default 0.01)",
        )
        data.add_argument(
            "--recency_half_life_days",
            type=float,
            default=7.0,
            help="days after which a rating counts half towards recent popularity (default 7)",
        )
        data.add_argument(
            "--num_buckets", type=int, help="number of files of users and of the table (default: by the size of the ratings)"
        )

        split = parser.add_argument_group("split")
        split.add_argument("--split", default="random", help="random, temporal, last or none (default random)")
        split.add_argument(
            "--holdout",
            type=float,
            help="what is held out: a fraction (default: random 0.2, temporal 0.1), or items of each user (default: last 1)",
        )
        split.add_argument("--min_rating", type=float, help="the lowest rating that counts as a positive (default: any)")

        train = parser.add_argument_group("train")
        add_flags(
            train,
            TrainingSettings,
            "user_tower mixed_negatives history_sample item_tower features id_dropout dim learning_rate batch_size l2 "
            "validation_fraction recency max_epochs patience",
        )
        train.add_argument(
            "--checkpoint_secs",
            type=float,
            default=CHECKPOINT_SECS,
            help=f"seconds of training between checkpoints, about (default {CHECKPOINT_SECS:g}); 0 keeps one of every epoch",
        )

        sweep = parser.add_argument_group("sweep")
        sweep.add_argument(
            "--trials", help="a YAML file of trials, or of settings with the values to try: see docs/guides/sweep.md"
        )
        sweep.add_argument(
            "--num_trials",
            type=int,
            help="how many trials to draw (default: 20, or with --trials every combination of its values)",
        )

        index = parser.add_argument_group("index")
        index.add_argument(
            "--num_shards", type=int, help="number of ScaNN indexes (default: the fewest that fit --max_shard_bytes)"
        )
        index.add_argument("--max_shard_bytes", type=int, default=4 << 30, help="the most memory for one shard (default 4 GiB)")
        index.add_argument(
            "--target_recall",
            type=float,
            default=TARGET_RECALL,
            help="the recall of ScaNN against exact search that must be reached (default 0.95)",
        )
        index.add_argument("--index_kind", help="the index of each shard: exact, hashed or tree (default: by its size)")
        index.add_argument("--leaves", type=int, help="number of leaves of each shard's tree (default: by its size)")
        index.add_argument(
            "--quantization_threshold",
            type=float,
            default=QUANTIZATION_THRESHOLD,
            help=f"threshold of ScaNN's anisotropic hashes (default {QUANTIZATION_THRESHOLD})",
        )
        index.add_argument("--no_soar", action="store_true", help="put each vector in one leaf of a tree, not in two")
        index.add_argument("--leaves_to_search", type=int, help="leaves of each shard's tree to search (default: calibrated)")
        index.add_argument(
            "--reorder_per_neighbor",
            type=float,
            help="vectors scored exactly for each neighbor asked for (default: calibrated)",
        )

        tune = parser.add_argument_group("tune (lists with commas)")
        tune.add_argument("--tune_leaves", default="", help="numbers of leaves to try (default: sqrt(n) times 1, 2, 3, 5)")
        tune.add_argument(
            "--tune_leaves_to_search", default="", help="numbers of leaves to search to try (default: from 1 %% to all)"
        )
        tune.add_argument(
            "--tune_reorder",
            default=_listed(REORDER_FACTORS),
            help="numbers of vectors scored exactly for each neighbor, to try",
        )
        tune.add_argument("--tune_thresholds", default=_listed(THRESHOLDS), help="quantization thresholds to try")
        tune.add_argument("--tune_soar", default="both", help="whether to try SOAR: both, yes or no (default both)")
        tune.add_argument(
            "--tune_small", action="store_true", help="tune even if all shards are so small that exact search is used"
        )

        recommend = parser.add_argument_group("recommend")
        recommend.add_argument("--k", type=int, default=100, help="number of items for each user (default 100)")
        recommend.add_argument(
            "--export_saved_model",
            action="store_true",
            help="make a SavedModel for online serving too; trees then have no SOAR, which ScaNN's TensorFlow ops cannot hold",
        )
        recommend.add_argument("--recommend_seen", action="store_true", help="allow items that the user has already seen")
        recommend.add_argument("--block_items", help="items that must not be recommended to anyone")
        recommend.add_argument("--allow_items", help="the only items that may be recommended")
        recommend.add_argument(
            "--layout", default=NESTED, help="nested: one row for each user; long: one row for each user and rank"
        )
        recommend.add_argument(
            "--as_of", help="the value of scored_at in each row: a date or time, UTC (default: that of the newest rating)"
        )
        recommend.add_argument(
            "--plan",
            default="auto",
            help="how shards are searched: fused, by_shard, or auto (by the size of the index; default auto)",
        )
        recommend.add_argument(
            "--max_worker_bytes",
            type=int,
            default=MAX_WORKER_BYTES,
            help="the most memory for the shards that a worker holds (default 4 GiB)",
        )

        report = parser.add_argument_group("report")
        report.add_argument(
            "--report_users",
            type=int,
            default=3,
            help="number of users shown in the report, with titles; 0 for none (default 3)",
        )

        gates = parser.add_argument_group(
            "gates", "what a table must pass to be published; docs/reference/gates.md has them all"
        )
        limits = GateSettings()
        for flag, what in (
            ("max_quality_drop", "how much held-out metrics may drop since the last release, as a share"),
            ("min_lift", "how many times as good as popularity the lists must be on held-out items"),
            ("min_coverage", "the share of the items that could be listed that must be in a list"),
            ("min_overlap", "the least mean Jaccard index with the last release's lists"),
            ("max_empty_lists", "the share of users that may have an empty list"),
            ("max_short_lists", "the share of users that may have a list shorter than half of k"),
            ("min_history_kept", "the mean share of what users had rated in the last release that must still be theirs"),
            ("max_days_older", "days by which the newest rating may be older than the last release's"),
            ("max_growth", "how much the ratings may grow since the last release, as a share"),
            ("max_repeated_rise", "how much the share of repeated ratings may rise since the last release"),
            ("max_shrink", "how much ratings, users or items may shrink since the last release, as a share"),
        ):
            gates.add_argument(f"--{flag}", type=float, default=getattr(limits, flag), help=f"{what} (default %(default)g)")
        gates.add_argument(
            "--force",
            action="append",
            default=[],
            metavar="NAME=REASON",
            help="publish although this gate fails; may be repeated",
        )


_SEVERAL_FILES = "one is read: give a folder or a glob to read several"
_WITH_COMMAS = "one counts: put all into one, with commas between them"
_ONCE = {
    **dict.fromkeys(("ratings", "items", "users", "exclude", "block_items", "allow_items"), _SEVERAL_FILES),
    **dict.fromkeys(("columns", "item_columns", "list_columns", "features"), _WITH_COMMAS),
    **dict.fromkeys(("config", "trials", "release", "to", "users_file", "items_file"), "one is read: give one"),
}
"""Flags that somebody who gives them twice means to add up, and what to do instead."""


class NamesDefaults(argparse.HelpFormatter):
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
        super().__init__(prog=prog or called_as(), **({"formatter_class": NamesDefaults} | settings))

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
