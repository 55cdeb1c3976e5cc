"""Writes docs/reference/flags.md, the page of all flags, from the parser itself: `python -m pipelines.cli.flags_page`."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from pipelines.cli.options import NamesDefaults, ShortlistOptions

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "flags.md"

_OPENING = """\
# Flags

Every command that runs stages (`run`, and each stage by itself) takes all of these flags and uses its own, so a scheduler can
give all tasks the same ones. `--config` reads them from a YAML file, in which a flag's name has no dashes: `k: 100`. Flags that
are not in these tables go to Beam, such as `--runner`. `releases`, `lookup` and `report` have a few of their own: see their
`--help`.

The module `pipelines.cli.flags_page` writes this page from the code, and a test compares the two.
"""


def rendered() -> str:
    """Returns the page: a table of flags for each group of the parser, in its order."""
    parser = argparse.ArgumentParser(add_help=False)
    ShortlistOptions._add_argparse_args(parser)
    return "\n".join([_OPENING, *(line for group in parser._action_groups for line in _table_of(group))])


def _table_of(group: argparse._ArgumentGroup) -> Iterator[str]:
    if not group._group_actions:
        return
    yield from (f"## {str(group.title).capitalize()}", "")
    if group.description:
        yield from (f"{group.description[0].upper() + group.description[1:]}.", "")
    yield from ("| flag | what it does |", "|---|---|")
    for action in group._group_actions:
        takes = "" if action.nargs == 0 else f" {action.metavar or _kind_of(action)}"
        yield f"| `{action.option_strings[0]}{takes}` | {_help_of(action)} |"
    yield ""


def _kind_of(action: argparse.Action) -> str:
    return {int: "INTEGER", float: "NUMBER"}.get(action.type, "TEXT")  # type: ignore[call-overload]


def _help_of(action: argparse.Action) -> str:
    return NamesDefaults(prog="")._expand_help(action).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
