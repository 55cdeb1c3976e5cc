"""Lists the releases, and describes one of them."""

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.lifecycle.results import carried_line, gates_line, next_steps
from schemas.errors import InputError
from schemas.release import FoundRelease, find_releases, find_withdrawals, read_latest, read_named
from schemas.release_manifest import Release
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.evaluate.arrivals import NOTHING, arrivals_from, arrivals_of, lines_of, moment
from transforms.evaluate.verdicts import FAILED, FORCED

LATEST = "LATEST"
"""The name that stands for the release that is served."""

UNREADABLE, WITHDRAWN = "unreadable", "withdrawn"

_TABLE_WIDTH = 120
"""A narrower terminal folds the lines, where a table made for it would leave out what a line is about."""


def served(workspace: Workspace) -> str | None:
    """Returns the name of the release that is served, or None before the first one.

    Raises:
      InputError: if the pointer cannot be understood.
    """
    latest = read_latest(workspace)
    return latest.release if latest else None


def resolve(workspace: Workspace, name: str, altered: bool = False) -> Release:
    """Reads the release that a user named; with `altered`, though it is not as it was written.

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
    release = found.manifest
    arrivals = arrivals_of(release.stages)
    return line | {
        "status": WITHDRAWN if found.release in withdrawn else release.status,
        "created_at": release.created_at,
        "users": release.metrics["users"],
        "items": release.metrics["items_allowed"],
        "ratings": arrivals.ratings,
        "newest_rating": None if arrivals.newest is None else moment(arrivals.newest),
        "k": release.stages["recommend"].settings["k"],
        "metrics": quality_of(release),
        "gates": {name: gate.status for name, gate in release.gates.items()},
        "bytes": sum(file.bytes for file in release.topk),
    }


def quality_of(release: Release) -> dict[str, float]:
    """Returns a release's metrics, of the model that was evaluated, by their names; and the recall of its search."""
    evaluated = release.evaluated.quality if release.evaluated else release.metrics["quality"]
    recall = release.metrics["recall_against_exact"].get("mean")
    return dict(evaluated["means"] if evaluated["users"] else {}) | {"recall_against_exact": recall}


def list_releases(workspace: Workspace, flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Lists all releases, newest first."""
    problem = ""
    try:
        latest = served(workspace)
    except InputError as error:  # The list helps to repair it.
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
    release = resolve(workspace, flags.release)
    try:
        latest = served(workspace)
    except InputError:
        latest = None
    withdrawals = {each.release: each for each in find_withdrawals(workspace)}
    line = describe(FoundRelease(release.name, release), latest, withdrawals)
    console.soft_wrap = True
    facts = {
        "release": f"{line['release']}, {'served' if line['served'] else line['status']}",
        "made": f"{release.created_at}, judged {release.judged_at or 'never'}",
        "table": f"{counted(line['users'], 'user')}, k {line['k']}, {counted(line['items'], 'item')}, "
        f"{counted(len(release.topk), 'file')}, {counted(line['bytes'], 'byte')}",
        "compared with": release.compared_with.release if release.compared_with else "nothing: it was the first",
        "evaluated": release.evaluated.model if release.evaluated else "the published one",
        "gates": gates_line(release.gates),
    }
    if release.base:
        facts["kept"] = carried_line(release.base)
    then = arrivals_from(release.before.arrivals if release.before else {})
    for each in lines_of(arrivals_of(release.stages), then):
        if each.now != NOTHING or each.then != NOTHING:
            before = f" ({each.then} in the release before)" if each.then != NOTHING else ""
            facts[each.name] = f"{each.now}{before}{f', {each.change}' if each.change else ''}"
    withdrawal = withdrawals.get(line["release"])
    if withdrawal:
        facts["rolled back"] = f"to {withdrawal.replaced_by}, {withdrawal.at}, {withdrawal.reason or 'no reason was given'}"
    for name, value in facts.items():
        console.print(f"[bold]{name:<16}[/] {escape(value)}")
    for name, gate in release.gates.items():
        if gate.status in (FAILED, FORCED):
            why = f" ({gate.forced})" if gate.forced else ""
            console.print(f"  {gate.status} [bold]{escape(name)}[/]{escape(why)}: {escape(gate.reason)}")
    if line["status"] == FAILED:
        for step in next_steps(workspace, release):
            console.print(f"[bold]{'next':<16}[/] {escape(step)}")
    for name, value in line["metrics"].items():
        console.print(f"  {name:<22} {'' if value is None else f'{value:.4f}'}")
    for name, stage in release.all_stages:
        console.print(f"[bold]{name:<16}[/] {escape(stage.folder)}, {stage.finished_at}")
    return {**line, "manifest": release.written}
