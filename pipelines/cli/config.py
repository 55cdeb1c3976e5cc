"""Turns a command line, and a config file, into settings and Beam's options."""

import argparse
import difflib
import json
import os
import re
from collections.abc import Sequence
from typing import Any, cast

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, WorkerOptions
from apache_beam.runners.runner import create_runner

from pipelines.cli.given_yaml import read_given_yaml
from pipelines.cli.options import OneLineParser, ShortlistOptions
from pipelines.cli.read_flags import settings_of
from pipelines.cli.settings import Settings
from schemas.errors import InputError
from transforms.ingest.formats import TFDS

LOCAL_RUNNER = "FnApiRunner"
"""Beam's in-process runner: what no --runner, or --runner DirectRunner, means here. Beam's own DirectRunner would first
try to download another one."""


_PATHS = ("output", "ratings", "items", "heldout", "users", "exclude", "block_items", "allow_items", "tfds_data_dir")
"""Flags whose values workers open."""


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
        return _settings_and_options(flags, others, parser)
    in_config = flags_of_config(flags.config, parser)
    try:
        flags, of_config = parser.parse_known_args(in_config)
        flags, of_command = parser.parse_known_args(list(argv), flags)
        return _settings_and_options(flags, [*of_config, *of_command], parser)
    except InputError as error:
        if _is_mistake_without_config(argv, parser, flags.output, error):
            raise
        raise InputError(f"in the config {flags.config}: {error}") from error


def _is_mistake_without_config(argv: Sequence[str], parser: argparse.ArgumentParser, output: str, error: InputError) -> bool:
    """Tells whether what was given directly leads to the same mistake, without the config."""
    flags, others = parser.parse_known_args(list(argv), argparse.Namespace(output=output))
    try:
        _settings_and_options(flags, others, parser)
    except InputError as other:
        return str(other) == str(error)
    return False


def _settings_and_options(
    flags: argparse.Namespace, others: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[Settings, PipelineOptions]:
    """Returns the settings, and Beam's options; where work is done elsewhere, the settings name no path from here on."""
    options = options_of(others, parser, flags.verbose, flags.runner_option)
    if options.view_as(StandardOptions).runner != LOCAL_RUNNER:
        for name in _PATHS:
            setattr(flags, name, absolute(getattr(flags, name)))
    return settings_of(flags), options


def absolute(path: str | None) -> str | None:
    """Returns a path that means the same to every process of this machine; a URI, or a dataset of TFDS, as it is."""
    if not path or "://" in path or path.startswith(TFDS):
        return path
    ending = "/" if path.endswith("/") else ""  # A folder may be asked for.
    return os.path.abspath(path).rstrip("/") + ending


def runner_options_of(texts: Sequence[str]) -> list[str]:
    """Returns what --runner_option was given, NAME=VALUE each, as flags.

    Raises:
      InputError: for a text that is something else.
    """
    for text in texts:
        name, equals, _ = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z]\w*", name):
            raise InputError(
                f"--runner_option takes the name of an option of the runner's and its value, got {text!r}: "
                "write it as --runner_option NAME=VALUE, without dashes"
            )
    return [f"--{text}" for text in texts]


def options_of(
    argv: Sequence[str], parser: argparse.ArgumentParser, verbose: bool = False, runner_options: Sequence[str] = ()
) -> PipelineOptions:
    """Turns what is left of a command line into Beam's options.

    Args:
      argv: the flags that `parser` does not know.
      parser: of the command; a flag of it may be what a typing error meant.
      verbose: whether Beam may speak.
      runner_options: options that only the runner's job server knows, NAME=VALUE each.

    Raises:
      InputError: for a flag that Beam does not know either, or a runner that there is not.
    """
    _refuse_unknown(argv, parser)
    options = PipelineOptions([*argv, *runner_options_of(runner_options)])
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = LOCAL_RUNNER
    try:
        create_runner(standard.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"there is no runner {standard.runner!r} ({error}): check --runner") from error
    if not verbose:
        # Job servers written in Java know no CRITICAL, and refuse a pipeline that asks for it.
        quiet = "CRITICAL" if standard.runner == LOCAL_RUNNER else "ERROR"
        options.view_as(WorkerOptions).default_sdk_harness_log_level = quiet
    return options


_WORDS = {"recency": ("on", "off"), "tune_soar": ("yes", "no")}
"""Values that YAML takes for true and false."""


_NO = ("no", "n", "off", "false", "f", "0", "")
"""What people write for false where YAML sees a text or a number."""


_INSTEAD_OF_LIST = {
    **dict.fromkeys(("ratings", "items", "users", "exclude", "block_items", "allow_items"), "name a folder or a glob"),
    **dict.fromkeys(("columns", "item_columns", "list_columns", "features"), "write it as a mapping"),
    **dict.fromkeys(
        ("tune_leaves", "tune_thresholds", "tune_leaves_to_search", "tune_reorder", "rating_range"),
        "put its parts into one text, with commas between them",
    ),
}
"""What to write where somebody gave a list."""


def flags_of_config(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """Reads a YAML file of flags; those that `parser` does not know are left as they are.

    Raises:
      InputError: if there is no such file, or it is no mapping of flags to plain values.
    """
    config = read_given_yaml("--config", "the config", path)
    if not isinstance(config, dict):
        raise InputError(f"the config {path} must be a mapping of flags to values, got {type(config).__name__}: repair it")
    actions = {option: action for action in parser._actions for option in action.option_strings}
    if "config" in config:
        raise InputError(f"the config {path} names another config ({config['config']!r}): put its flags into this one")
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
            meant = "false" if str(value).lower() in _NO else "true"
            rule = f"{name} in the config {path} is true or false, got {value!r}"
            raise InputError(f"{rule}: write {name}: {meant}, without quotes")
        elif isinstance(value, dict) and name == "force":
            argv += [f"--{name}={gate}={reason}" for gate, reason in value.items()]
        elif isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            argv.append(f"--{name}={json.dumps(value, default=str)}")  # Which is YAML too.
        elif isinstance(value, dict):
            argv.append(f"--{name}=" + ",".join(f"{key}={column}" for key, column in value.items()))
        elif isinstance(value, list) and action and not isinstance(action, argparse._AppendAction):
            raise InputError(
                f"{name} in the config {path} takes one value, got a list: {_INSTEAD_OF_LIST.get(name, 'give one')}"
            )
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
