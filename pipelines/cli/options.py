"""The flags of the job, with their help and defaults, and a parser whose mistakes are one line."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli.command import called_as
from schemas.errors import InputError
from schemas.topk import NESTED
from transforms.evaluate.verdicts import GateSettings
from transforms.index.calibration import REORDER_FACTORS, TARGET_RECALL
from transforms.index.search_plan import MAX_WORKER_BYTES
from transforms.index.tune import THRESHOLDS
from transforms.search.scann_index import QUANTIZATION_THRESHOLD
from transforms.train.training import CHECKPOINT_SECS, L2_OF, TrainingSettings


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
