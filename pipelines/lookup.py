"""Shows users' lists in the latest release, and what they rated recently: `python -m pipelines.lookup --output DIR --user 42`.

`--why ITEM` says why an item is in them or is not; `--json` prints the same on one line, for programs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import zip_longest

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cli.command import OK, Output, run_command, verdict_on
from pipelines.cli.logs import configure
from pipelines.cli.options import OneLineParser
from pipelines.cli.settings import check_root
from pipelines.lifecycle.lookup import FoundUser, look_up, open_latest
from schemas.errors import InputError
from schemas.printable import printable
from schemas.workspace import Workspace

SHOWN = 20
"""Items of a list, and of a history, that are shown where nothing else is said."""


def show(found: FoundUser, top: int, console: Console) -> None:
    """Prints a user's list beside the history, the latest first."""
    row = found.row
    table = Table(
        title=f"user {_shown(row['user_id'])}: {row['source']}, {row['history_length']} in the history", title_justify="left"
    )
    for name, justify in (("rank", "right"), ("item", "left"), ("title", "left"), ("score", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("latest in the history")
    pairs = enumerate(row["recommendations"][:top], 1)
    for pair, liked in zip_longest(pairs, found.history[:top]):
        rank, each = pair or (None, None)
        cells = ["", "", "", ""]
        if each:
            cells = [str(rank), _shown(each["item_id"]), _shown(found.titles.get(each["item_id"], "")), f"{each['score']:.3f}"]
        title = found.titles.get(liked, "") if liked is not None else ""
        table.add_row(*cells, _shown(f"{title} ({liked})" if title else liked or ""))
    console.print(table)
    if found.why:
        console.print(f"[bold]{_shown(found.why.item_id)}[/] {_shown(found.why.sentence)}", soft_wrap=True)


def _shown(text: str) -> str:
    return escape(printable(text))


def main(argv: Sequence[str]) -> None:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", required=True, help="the output root")
    parser.add_argument("--user", required=True, action="append", help="the user's id; give it again for another user")
    parser.add_argument("--why", metavar="ITEM", help="say why this item is in the list, or is not")
    parser.add_argument("--top", type=int, help=f"how many items to show (default {SHOWN}; with --json, all)")
    parser.add_argument("--json", action="store_true", help="print it on one line, for programs")
    flags: argparse.Namespace = parser.parse_args(list(argv))
    try:
        if flags.top is not None and flags.top < 1:
            raise InputError(f"top must be at least 1, got {flags.top}: raise --top")
        check_root(flags.output)
        if flags.why is not None:
            configure(verbose=False)  # TensorFlow, which a score may need, talks.
        published = open_latest(Workspace(flags.output))
        users = look_up(published, flags.user, flags.why)
    except Exception as error:
        if flags.json:
            code, messages = verdict_on(error)
            print(json.dumps({"exit_status": code, "error": " ".join(messages)}), flush=True)
        raise
    if flags.json:
        described = [each.described(flags.top) for each in users]
        print(json.dumps({"exit_status": OK, "release": published.release, "users": described}), flush=True)
        return
    console = Output()
    for each in users:
        show(each, flags.top or SHOWN, console)


if __name__ == "__main__":
    sys.exit(run_command(main))
