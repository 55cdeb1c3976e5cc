"""The flags of the job, with their help and defaults, and a parser whose mistakes are one line."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli.command import called_as
from pipelines.cli.settings import (
    IndexSettings,
    IngestSettings,
    ListsSettings,
    RecommendSettings,
    ReportSettings,
    Settings,
    SweepSettings,
)
from schemas.errors import InputError
from schemas.flags import Flag, flags_of
from transforms.evaluate.verdicts import GateSettings
from transforms.index.tune import Sweep
from transforms.ingest.split import SplitSettings
from transforms.ingest.validate import RatingRules
from transforms.search.scann_index import BuildSettings
from transforms.search.search import SearchSettings
from transforms.train.settings import TrainingSettings

_OWNERS = (
    Settings,
    IngestSettings,
    RatingRules,
    SplitSettings,
    ListsSettings,
    TrainingSettings,
    SweepSettings,
    IndexSettings,
    BuildSettings,
    SearchSettings,
    Sweep,
    RecommendSettings,
    ReportSettings,
    GateSettings,
)
"""The settings that declare flags."""

_GROUPS = {
    "job": "output config seed refit reuse_model_from json check verbose runner_option",
    "data": (
        "ratings columns items item_columns users exclude list_columns tfds_data_dir timestamp_unit rating_range "
        "max_rejected_fraction recency_half_life_days num_buckets"
    ),
    "split": "split heldout holdout min_rating",
    "train": (
        "user_tower mixed_negatives history_sample item_tower features id_dropout dim l2 learning_rate batch_size candidates "
        "validation_fraction recency epochs popularity_exponent checkpoint_secs"
    ),
    "sweep": "trials num_trials",
    "index": (
        "num_shards max_shard_bytes target_recall index_kind leaves quantization_threshold no_soar leaves_to_search "
        "reorder_per_neighbor"
    ),
    "tune (lists with commas)": "tune_leaves tune_leaves_to_search tune_reorder tune_thresholds tune_soar tune_small",
    "recommend": ("k export_saved_model recommend_seen block_items allow_items layout as_of plan max_worker_bytes"),
    "report": "report_users",
    "gates": (
        "max_quality_drop min_lift min_coverage min_overlap max_empty_lists max_short_lists min_history_kept max_days_older "
        "max_growth max_repeated_rise max_shrink force"
    ),
}
"""The flags in the order in which --help has them."""

_ABOUT = {"gates": "what a table must pass to be published; docs/reference/gates.md has them all"}
_CONFIG = Flag(
    "config", "a YAML file of flags (k: 100, columns: {user_id: uid}); flags given directly win", str, None, None, "config"
)


_RUNNER_OPTION = Flag(
    "runner_option",
    "an option that only the runner's job server knows, such as checkpointing_interval=60000; may be repeated",
    str,
    None,
    None,
    "runner_option",
    "NAME=VALUE",
    several=True,
)


class ShortlistOptions(PipelineOptions):
    """Every flag of every stage; each command takes them all and uses its own."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        declared = {each.name: each for owner in _OWNERS for each in flags_of(owner).values()} | {
            each.name: each for each in (_CONFIG, _RUNNER_OPTION)
        }
        for title, names in _GROUPS.items():
            group = parser.add_argument_group(title, _ABOUT.get(title))
            for name in names.split():
                _add_flag(group, declared[name])


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    option = f"--{flag.name}"
    if flag.kind is bool:
        group.add_argument(option, action="store_true", help=flag.help)
    elif flag.several:
        group.add_argument(option, action="append", default=[], metavar=flag.metavar, help=flag.help)
    else:
        group.add_argument(option, type=flag.kind, default=flag.default, metavar=flag.metavar, help=flag.help)


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
