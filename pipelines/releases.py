"""Looks after the releases of an output: `python -m pipelines.releases COMMAND --output DIR`.

The commands are list, show, verify, diff, rollback, gc and forget.
"""

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import logs
from pipelines.collect import KEEP, MIN_AGE_HOURS, collect
from pipelines.command import OK, Output, run_command, verdict_on
from pipelines.diff import Difference, diff_releases
from pipelines.forget import Forgot, names_of, remember
from pipelines.forget import forget as forget_all
from pipelines.results import carried_line, gates_line, next_steps
from pipelines.rollback import roll_back
from pipelines.settings import OneLineParser, check_root, options_of
from pipelines.still_named import Named
from pipelines.verify import all_stages, verify_release
from schemas.errors import InputError
from schemas.release import FoundRelease, find_releases, find_withdrawals, read_latest, read_named
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.evaluate.arrivals import NOTHING, arrivals_from, arrivals_of, lines_of, moment
from transforms.evaluate.compare import RBO_P
from transforms.evaluate.gates import FAILED, FORCED

LATEST = "LATEST"
"""The name that stands for the release that is served."""

UNREADABLE, WITHDRAWN = "unreadable", "withdrawn"

_SHOWN_IDS = 10

_TABLE_WIDTH = 120
"""A narrower terminal folds the lines, where a table made for it would leave out what a line is about."""


def served(workspace: Workspace) -> str | None:
    """Returns the name of the release that is served, or None before the first one.

    Raises:
      InputError: if the pointer cannot be understood.
    """
    latest = read_latest(workspace)
    return latest.release if latest else None


def resolve(workspace: Workspace, name: str, altered: bool = False) -> dict[str, Any]:
    """Reads the manifest of the release that a user named; with `altered`, though it is not as it was written.

    Raises:
      InputError: if there is none of that name, or it cannot be read.
    """
    if name == LATEST:
        found = served(workspace)
        if found is None:
            raise InputError(
                f"nothing is served below {workspace.root}, there is no {LATEST}: name a release, which "
                "python -m pipelines.releases list shows, or run python -m pipelines.run first"
            )
        name = found
    return read_named(workspace, name, altered)


def describe(found: FoundRelease, latest: str | None, withdrawn: Collection[str] = ()) -> dict[str, Any]:
    """Returns what there is to say of a release on one line.

    Args:
      found: the release.
      latest: the one that is served.
      withdrawn: those that were rolled back.
    """
    line: dict[str, Any] = {"release": found.release, "served": found.release == latest}
    if found.manifest is None:
        return line | {"status": UNREADABLE, "problem": found.problem}
    manifest = found.manifest
    metrics = manifest["metrics"]
    arrivals = arrivals_of(manifest["stages"])
    return line | {
        "status": WITHDRAWN if found.release in withdrawn else manifest["status"],
        "created_at": manifest["created_at"],
        "users": manifest["metrics"]["users"],
        "items": metrics["items_allowed"],
        "ratings": arrivals.ratings,
        "newest_rating": None if arrivals.newest is None else moment(arrivals.newest),
        "k": manifest["stages"]["recommend"]["settings"]["k"],
        "metrics": quality_of(manifest),
        "gates": {name: gate["status"] for name, gate in manifest["gates"].items()},
        "bytes": sum(file["bytes"] for file in manifest["topk"]),
    }


def quality_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Returns a release's metrics, of the model that was evaluated, by their names; and the recall of its search."""
    evaluated = (manifest["evaluated"] or {"metrics": manifest["metrics"]})["metrics"]["quality"]
    recall = manifest["metrics"]["recall_against_exact"].get("mean")
    return dict(evaluated["means"] if evaluated["users"] else {}) | {"recall_against_exact": recall}


def list_releases(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Lists all releases, newest first."""
    problem = ""
    try:
        latest = served(workspace)
    except InputError as error:  # The list is what helps to mend it.
        latest, problem = None, str(error)
    withdrawn = [each.release for each in find_withdrawals(workspace)]
    lines = [describe(found, latest, withdrawn) for found in find_releases(workspace)]
    if latest and latest not in {line["release"] for line in lines}:
        problem = f"{workspace.latest} names release {latest}, which is not there: point it to one that is in the list, with "
        problem += "python -m pipelines.releases rollback RELEASE"
    table = Table(
        title=f"{counted(len(lines), 'release')} below {escape(workspace.root)}", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("release", no_wrap=True, min_width=max((len(line["release"]) for line in lines), default=0))
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for line in lines:
        table.add_row(*_row(line))
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)
    if problem:
        console.print(f"[bold red]problem[/] {escape(problem)}", soft_wrap=True)
    return {"releases": lines, "latest": latest, "problem": problem or None}


_NUMBERS = ("ratings", "newest", "users", "items", "k", "recall@k", "ndcg@10")
"""The columns of a list of releases between the name and the status."""


def _row(line: Mapping[str, Any]) -> list[str]:
    status = "[bold green]served[/]" if line["served"] else escape(line["status"])
    if line["status"] == UNREADABLE:
        return [escape(line["release"]), *([""] * len(_NUMBERS)), f"{status}: {escape(line['problem'])}"]
    k = line["k"]
    shown = [line["metrics"].get(name) for name in (f"recall@{k}", f"ndcg@{min(10, k)}")]
    gates = [f"{name} {verdict}" for name, verdict in line["gates"].items() if verdict in (FAILED, FORCED)]
    came_in = ["" if line["ratings"] is None else f"{line['ratings']:,}", (line["newest_rating"] or "")[:10]]
    numbers = [
        *came_in,
        f"{line['users']:,}",
        f"{line['items']:,}",
        str(k),
        *("" if each is None else f"{each:.4f}" for each in shown),
    ]
    return [escape(line["release"]), *numbers, f"{status}: {escape(', '.join(gates))}" if gates else status]


def show(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Shows one release: what it is made of, how good it is, and what its gates found."""
    manifest = resolve(workspace, flags.release)
    try:
        latest = served(workspace)
    except InputError:
        latest = None
    withdrawals = {each.release: each for each in find_withdrawals(workspace)}
    line = describe(FoundRelease(manifest["release"], manifest), latest, withdrawals)
    console.soft_wrap = True
    evaluated = manifest["evaluated"] or {}
    compared = (manifest["compared_with"] or {}).get("release", "nothing: it was the first")
    facts = {
        "release": f"{line['release']}, {'served' if line['served'] else line['status']}",
        "made": f"{manifest['created_at']}, judged {manifest.get('judged_at', 'never')}",
        "table": f"{counted(line['users'], 'user')}, k {line['k']}, {counted(line['items'], 'item')}, "
        f"{counted(len(manifest['topk']), 'file')}, {counted(line['bytes'], 'byte')}",
        "compared with": compared,
        "evaluated": evaluated.get("model", "the published one"),
        "gates": gates_line(manifest["gates"]),
    }
    if manifest.get("base"):
        facts["kept"] = carried_line(manifest["base"])
    then = arrivals_from((manifest.get("last") or {}).get("arrivals") or {})
    for each in lines_of(arrivals_of(manifest["stages"]), then):
        if each.now != NOTHING or each.then != NOTHING:
            before = f" ({each.then} in the release before)" if each.then != NOTHING else ""
            facts[each.name] = f"{each.now}{before}{f', {each.change}' if each.change else ''}"
    withdrawal = withdrawals.get(line["release"])
    if withdrawal:
        facts["rolled back"] = f"to {withdrawal.replaced_by}, {withdrawal.at}, {withdrawal.reason or 'no reason was given'}"
    for name, value in facts.items():
        console.print(f"[bold]{name:<16}[/] {escape(value)}")
    for name, gate in manifest["gates"].items():
        if gate["status"] in (FAILED, FORCED):
            why = f" ({gate['forced']})" if gate["forced"] else ""
            console.print(f"  {gate['status']} [bold]{escape(name)}[/]{escape(why)}: {escape(gate['reason'])}")
    if line["status"] == FAILED:
        for step in next_steps(workspace, manifest):
            console.print(f"[bold]{'next':<16}[/] {escape(step)}")
    for name, value in line["metrics"].items():
        console.print(f"  {name:<22} {'' if value is None else f'{value:.4f}'}")
    for name, stage in all_stages(manifest):
        console.print(f"[bold]{name:<16}[/] {escape(stage['folder'])}, {stage['finished_at']}")
    return {**line, "manifest": manifest}


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
    result = {"before": before["release"], "after": after["release"], **found.as_json(), "metrics": metrics}
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
    """Serves an earlier release again: the last good one before what is served, or the one that is named."""
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
    """Deletes old releases, and the stages and broken attempts that no release which is kept needs and nobody uses."""
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
        back = remember(workspace, names)
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
        "base": done.manifest["base"] if done.manifest and done.release != done.before else None,
        "sources_changed": done.sources_changed,
        "remains": asdict(done.remains),
    }


def _show_forgotten(workspace: Workspace, names: Named, done: Forgot, console: Console) -> None:
    console.print(f"{_counted(names)} on the list {escape(workspace.forgotten)}: every run leaves them out")
    if done.manifest is None:
        console.print("nothing is served")
    elif done.release == done.before:
        console.print(f"[bold]served[/] {escape(done.release or '')}, which has no row and no list with them: nothing to do")
    else:
        console.print(f"[bold]served[/] {escape(done.release or '')}, [bold]before[/] {escape(done.before or '')}")
        if done.manifest.get("base"):
            console.print(escape(carried_line(done.manifest["base"])))
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
    made["diff"].add_argument("after", nargs="?", default=LATEST, help="the name of another; what is served by default")
    made["diff"].add_argument(
        "--rbo_p", type=float, default=RBO_P, help=f"how much of its weight RBO keeps from rank to rank (default {RBO_P:g})"
    )
    made["gc"].add_argument("--keep", type=int, default=KEEP, help="how many good releases to keep (default %(default)d)")
    made["gc"].add_argument(
        "--min_age_hours",
        type=float,
        default=MIN_AGE_HOURS,
        help="what no release needs is kept until nothing in it has been written for so long (default %(default)g)",
    )
    made["gc"].add_argument("--dry_run", action="store_true", help="say what would be deleted, and delete nothing")
    made["forget"].set_defaults(parser=made["forget"])
    made["forget"].add_argument("--user", action="append", default=[], help="the id of a user; may be repeated")
    made["forget"].add_argument("--item", action="append", default=[], help="the id of an item; may be repeated")
    made["forget"].add_argument("--users_file", help="a text file of users, one id a line")
    made["forget"].add_argument("--items_file", help="a text file of items, one id a line")
    made["forget"].add_argument("--remember", action="store_true", help="take them off the list again")
    made["forget"].add_argument(
        "--force", action="append", default=[], metavar="NAME=REASON", help="publish although this gate fails; may be repeated"
    )
    made["forget"].epilog = "Any Beam option may follow, such as --runner."
    made["rollback"].add_argument("release", nargs="?", help="its name; the last good one before what is served by default")
    made["rollback"].add_argument("--reason", default="", help="why, for whoever looks later")
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
