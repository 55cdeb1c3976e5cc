"""Manages the releases of an output: `python -m pipelines.releases COMMAND --output DIR`.

The commands are list, show, verify, diff, rollback, gc and forget.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cli import logs
from pipelines.cli.command import OK, Output, run_command, verdict_on
from pipelines.cli.config import options_of
from pipelines.cli.options import OneLineParser
from pipelines.cli.settings import check_root
from pipelines.lifecycle.collect import KEEP, MIN_AGE_HOURS, collect
from pipelines.lifecycle.diff import Difference, diff_releases
from pipelines.lifecycle.find_forgotten import Named
from pipelines.lifecycle.forget import Forgot, names_of, take_back
from pipelines.lifecycle.forget import forget as forget_all
from pipelines.lifecycle.results import carried_line
from pipelines.lifecycle.rollback import roll_back
from pipelines.lifecycle.show import LATEST, list_releases, quality_of, resolve, show
from pipelines.lifecycle.verify import verify_release
from schemas.errors import InputError
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.evaluate.compare import RBO_P

_SHOWN_IDS = 10


def verify(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Reads every file of a release, and names those that are not as they were written.

    Raises:
      InputError: if there are any.
    """
    release = resolve(workspace, flags.release, altered=True)
    verdict = verify_release(workspace, release)
    result = {"release": verdict.release, "files": verdict.files, "bytes": verdict.bytes, "problems": list(verdict.problems)}
    if not verdict.problems:
        console.print(
            f"release {verdict.release} is whole: {counted(verdict.files, 'file')}, {counted(verdict.bytes, 'byte')} "
            "read and hashed",
            soft_wrap=True,
        )
        return result
    for problem in verdict.problems:
        console.print(f"[bold red]damaged[/] {escape(problem)}", soft_wrap=True)
    raise DamagedError(
        f"release {verdict.release} is damaged, {len(verdict.problems)} of its files or manifests are not as written, "
        f"such as: {verdict.problems[0]}; restore them from a copy, or delete the folders of those stages and run the command "
        "that made the release again",
        result,
    )


def diff(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compares the tables of two releases, and their metrics side by side."""
    before, after = (resolve(workspace, name) for name in (flags.before, flags.after))
    found = diff_releases(workspace, before, after, flags.rbo_p)
    qualities = [quality_of(release) for release in (before, after)]
    metrics = {
        name: {"before": qualities[0].get(name), "after": qualities[1].get(name)}
        for name in dict.fromkeys([*qualities[0], *qualities[1]])
    }
    result = {"before": before.name, "after": after.name, **found.as_json(), "metrics": metrics}
    _show_diff(result, found, console)
    return result


def _show_diff(result: Mapping[str, Any], found: Difference, console: Console) -> None:
    console.soft_wrap = True
    users, items = result["users"], result["items"]
    console.print(f"[bold]from[/] {escape(result['before'])} [bold]to[/] {escape(result['after'])}")
    console.print(
        f"users  {users['in_both']:,} in both, {users['changed']:,} of them with another list; "
        f"{users['gained']:,} gained, {users['lost']:,} lost"
    )
    if users["in_both"]:
        console.print(
            f"lists  mean Jaccard@{result['k']} {found.jaccard:.4f}, mean RBO {found.rbo:.4f} (p = {result['rbo_p']:g})"
        )
    console.print(f"items  {items['gained']:,} gained, {items['lost']:,} lost, in lists of any user")
    for what in ("gained", "lost"):
        shown = ", ".join(f"{each['item_id']} ({each['lists']:,})" for each in items[f"most_{what}"])
        if shown:
            console.print(f"       {what}: {escape(shown)}{', …' if items[what] > len(items[f'most_{what}']) else ''}")
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, values in result["metrics"].items():
        pair = [values["before"], values["after"]]
        change = f"{pair[1] - pair[0]:+.4f}" if None not in pair else ""
        table.add_row(name, *("" if each is None else f"{each:.4f}" for each in pair), change)
    console.print(table)


def rollback(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Serves an earlier release again: the newest good one before the served one, or the one that you name."""
    done = roll_back(workspace, flags.release, flags.reason)
    console.soft_wrap = True
    console.print(f"[bold]served[/] {escape(done.release)}, [bold]before[/] {escape(done.before or 'nothing')}")
    if done.withdrawn:
        console.print(
            f"release {escape(done.withdrawn)} is withdrawn: a run that comes to the same table again ends with exit code 3, "
            "and LATEST stays"
        )
    return {"latest": done.release, "before": done.before, "withdrawn": done.withdrawn}


def gc(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Deletes old releases, and stages and interrupted attempts that no kept release needs and no command uses."""
    found = collect(workspace, flags.keep, flags.min_age_hours, flags.dry_run)
    console.soft_wrap = True
    for each in found:
        console.print(f"{each.kind:<8} {escape(each.folder)}, {counted(each.files, 'file')}, {counted(each.bytes, 'byte')}")
    size = sum(each.bytes for each in found)
    console.print(
        f"[bold]{'would delete' if flags.dry_run else 'deleted'}[/] {counted(len(found), 'folder')}, {counted(size, 'byte')}"
    )
    return {"dry_run": flags.dry_run, "deleted": [asdict(each) for each in found], "bytes": size}


def forget(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Publishes a release without some users and items, which every later run leaves out too; or takes that back.

    Raises:
      InputError: if nobody is named, or the served release cannot be made again.
      GatesFailed: if the release without them must not be published.
    """
    options = options_of(flags.others, flags.parser)
    names = Named(names_of(flags.user, flags.users_file, "user"), names_of(flags.item, flags.items_file, "item"))
    if not names:
        raise InputError("nobody is named: give --user ID or --item ID, as often as need be, or --users_file or --items_file")
    console.soft_wrap = True
    if flags.remember:
        back = take_back(workspace, names)
        console.print(f"{_counted(back)} taken off the list, and in the next run again if the sources still have them")
        _warn(console, Named(names.users - back.users, names.items - back.items), "not on the list")
        return {"remembered": _as_json(back)}
    logs.configure(verbose=False)
    done = forget_all(workspace, names, flags.force, options)
    _show_forgotten(workspace, names, done, console)
    return {
        "latest": done.release,
        "before": done.before,
        "forgotten": _as_json(names),
        "unknown": _as_json(done.unknown),
        "base": done.served.written.get("base") if done.served and done.release != done.before else None,
        "sources_changed": done.sources_changed,
        "remains": asdict(done.remains),
    }


def _show_forgotten(workspace: Workspace, names: Named, done: Forgot, console: Console) -> None:
    console.print(f"{_counted(names)} on the list {escape(workspace.forgotten)}: every run leaves them out")
    if done.served is None:
        console.print("nothing is served")
    elif done.release == done.before:
        console.print(f"[bold]served[/] {escape(done.release or '')}, which has no row and no list with them: nothing to do")
    else:
        console.print(f"[bold]served[/] {escape(done.release or '')}, [bold]before[/] {escape(done.before or '')}")
        if done.served.base:
            console.print(escape(carried_line(done.served.base)))
    _warn(console, done.unknown, "in nothing that was served: check the id")
    if done.sources_changed:
        console.print("the sources have changed since the release before was made: this one is of what they hold now")
    for folder in done.remains.towers:
        console.print(f"[bold]remains[/] {escape(folder)} has learned from them, until the next training")
    for release in done.remains.releases:
        console.print(f"[bold]remains[/] release {escape(release)} has rows or lists of them")
    if done.remains.releases:
        command = f"python -m pipelines.releases gc --keep 1 --min_age_hours 0 --output {workspace.root}"
        console.print(f"{escape(command)} deletes those, and everything else that the served release does not need")
    console.print("the sources themselves are as they were")


def _counted(names: Named) -> str:
    return f"{counted(len(names.users), 'user')} and {counted(len(names.items), 'item')}"


def _warn(console: Console, names: Named, what: str) -> None:
    for kind, ids in (("user", names.users), ("item", names.items)):
        for each in sorted(ids)[:_SHOWN_IDS]:
            console.print(f"[bold yellow]warning[/] {kind} {escape(repr(each))} is {what}")
        if len(ids) > _SHOWN_IDS:
            console.print(f"[bold yellow]warning[/] and {len(ids) - _SHOWN_IDS:,} more {kind}s")


def _as_json(names: Named) -> dict[str, list[str]]:
    return {"users": sorted(names.users), "items": sorted(names.items)}


class DamagedError(InputError):
    """A release that is not as it was written, and everything that is wrong with it."""

    def __init__(self, message: str, result: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.result = result


COMMANDS = {
    "list": list_releases,
    "show": show,
    "verify": verify,
    "diff": diff,
    "rollback": rollback,
    "gc": gc,
    "forget": forget,
}


def parser() -> argparse.ArgumentParser:
    """Returns the flags of all commands."""
    whole = OneLineParser(description=__doc__, allow_abbrev=False)
    commands = whole.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    made = {}
    for name, function in COMMANDS.items():
        words = str(function.__doc__).partition("\n")[0]
        made[name] = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        made[name].add_argument("--output", required=True, help="the output root")
        made[name].add_argument("--json", action="store_true", help="print the results on one line of standard output")
    for name in ("show", "verify"):
        made[name].add_argument("release", nargs="?", default=LATEST, help="its name; what is served by default")
    made["diff"].add_argument("before", help="the name of a release, or LATEST")
    made["diff"].add_argument("after", nargs="?", default=LATEST, help="the name of another; the served release by default")
    made["diff"].add_argument(
        "--rbo_p", type=float, default=RBO_P, help=f"how much of its weight RBO keeps from rank to rank (default {RBO_P:g})"
    )
    made["gc"].add_argument("--keep", type=int, default=KEEP, help="how many good releases to keep (default %(default)d)")
    made["gc"].add_argument(
        "--min_age_hours",
        type=float,
        default=MIN_AGE_HOURS,
        help="keep even what no release needs until nothing was written to it for so long (default %(default)g)",
    )
    made["gc"].add_argument("--dry_run", action="store_true", help="say what would be deleted, and delete nothing")
    made["forget"].set_defaults(parser=made["forget"])
    made["forget"].add_argument("--user", action="append", default=[], help="the id of a user; may be repeated")
    made["forget"].add_argument("--item", action="append", default=[], help="the id of an item; may be repeated")
    made["forget"].add_argument("--users_file", help="a text file of users, one id on each line")
    made["forget"].add_argument("--items_file", help="a text file of items, one id on each line")
    made["forget"].add_argument("--remember", action="store_true", help="stop forgetting them: take them off the list")
    made["forget"].add_argument(
        "--force", action="append", default=[], metavar="NAME=REASON", help="publish although this gate fails; may be repeated"
    )
    made["forget"].epilog = "Any Beam option may follow, such as --runner."
    made["rollback"].add_argument("release", nargs="?", help="its name; by default the newest good one before the served one")
    made["rollback"].add_argument("--reason", default="", help="the reason, which is kept with the withdrawal")
    return whole


def main(argv: Sequence[str]) -> None:
    """Runs one of the commands.

    Raises:
      InputError: for a mistake in the flags, a release that is not there, or one that is damaged.
      GatesFailed: if a table that `forget` made must not be published.
    """
    flags, flags_of_beam = parser().parse_known_args(list(argv))
    if flags_of_beam and flags.command != "forget":
        raise InputError(f"unrecognized arguments: {' '.join(flags_of_beam)}: see --help")
    flags.others = flags_of_beam
    check_root(flags.output)
    try:
        result = COMMANDS[flags.command](Workspace(flags.output), flags, Output(highlight=False, stderr=flags.json))
    except Exception as error:
        if flags.json:
            code, messages = verdict_on(error)
            found = error.result if isinstance(error, DamagedError) else {}
            print(json.dumps({"exit_status": code, "error": " ".join(messages), **found}), flush=True)
        raise
    if flags.json:
        print(json.dumps({"exit_status": OK, **result}), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
