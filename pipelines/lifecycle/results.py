"""Prints what a run made: how good it is, what three users get, and how to read the table."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cli.command import GATE_FAILED, OK, this_python
from pipelines.job.publishing import JobStages, Outcome
from pipelines.lifecycle.lookup import Published, list_of, open_release
from schemas.release_manifest import CarriedLists, Gate, Release
from schemas.storage import join
from schemas.words import are, counted
from schemas.workspace import Workspace
from transforms.evaluate.arrivals import Arrivals, arrivals_from, arrivals_of, lines_of
from transforms.evaluate.gates import ways_on
from transforms.evaluate.verdicts import FAILED, FORCED, PASSED, SKIPPED
from transforms.lists.table import read_table

_SHOWN_USERS = 3
_SHOWN_ITEMS = 5


def show(workspace: Workspace, made: JobStages, outcome: Outcome, seconds: float, console: Console) -> None:
    """Prints a run's results.

    Args:
      workspace: the output.
      made: all stages' manifests.
      outcome: what became of the table.
      seconds: how long the run took.
      console: where to.
    """
    metrics = made.published["recommend"].metrics
    console.print(arrivals_table(*arrivals(made, outcome)))
    console.print(quality_table(outcome.evaluated.metrics, made.refitted))
    console.print(counts_line(metrics), soft_wrap=True)
    if outcome.release.base:
        console.print(escape(carried_line(outcome.release.base)), soft_wrap=True)
    if not outcome.failed:  # Nobody knows what is in a table that failed.
        published = open_release(workspace, outcome.latest, outcome.release)
        for user_id in some_users(published):
            show_user(published, user_id, console)
    console.soft_wrap = True
    console.print(f"\n[bold]gates[/]     {escape(gates_line(outcome.release.gates))}")
    what = "failed gates, not published:" if outcome.failed else "published" if outcome.is_new else "already published"
    console.print(f"[bold]{what}[/] {outcome.latest.release} in {seconds:.1f} s")
    if made.published["ingest"].metrics["rows_holdout"]:
        console.print(
            "[bold]note[/]      the holdout is neither learned from nor counted as seen; --refit publishes a table of all"
        )
    rows, files = counted(metrics["pairs"], "row"), counted(len(outcome.latest.topk), "file")
    made_of = f"{counted(metrics['users'], 'user')}, {rows} of lists, in the {files} that the release names"
    console.print(f"[bold]table[/]     {escape(table_folder(workspace, outcome))}  ({made_of})")
    console.print(f"[bold]report[/]    {escape(join(workspace.root, workspace.release_report(outcome.latest.release)))}")
    if outcome.failed:
        console.print(f"[bold]manifest[/]  {escape(join(workspace.root, outcome.latest.manifest))}")
        for line in next_steps(workspace, outcome.release):
            console.print(f"[bold]next[/]      {escape(line)}")
        return
    if "export" in made.published:
        console.print(f"[bold]model[/]     {escape(exported(workspace, made))}")
    look_up = f"{this_python()} -m pipelines.lookup --output {shlex.quote(workspace.root)} --user USER"
    console.print(f"[bold]look up[/]   {escape(look_up)}")
    console.print(f"[bold]DuckDB[/]    {escape(duckdb_line(workspace.root))}")


def arrivals(made: JobStages, outcome: Outcome) -> tuple[Arrivals, Arrivals | None]:
    """Returns what came in, and what had come in for the last release, if there is one.

    Other data can make the very table that is served: then that release is the last one.
    """
    now = arrivals_of(made.published)
    known, last = outcome.release.stages, outcome.release.before
    if known["ingest"].fingerprint != made.published["ingest"].fingerprint:
        return now, arrivals_of(known)
    return now, arrivals_from(last.arrivals) if last else None


def arrivals_table(now: Arrivals, then: Arrivals | None) -> Table:
    """Returns what came in, beside what had come in for the last release."""
    table = Table(title="what came in", title_justify="left", box=None, pad_edge=False)  # Room for words at 80 columns.
    table.add_column("", no_wrap=True)
    table.add_column("this time", justify="right", no_wrap=True)
    table.add_column("last release", justify="right", no_wrap=True)
    table.add_column("")
    for each in lines_of(now, then):
        table.add_row(*map(escape, each))
    return table


def next_steps(workspace: Workspace, release: Release) -> list[str]:
    """Returns what to do about a release that failed its gates, in order."""
    last = release.compared_with.release if release.compared_with else None
    look = [f"{this_python()} -m pipelines.releases diff {last} {release.name} --output {shlex.quote(workspace.root)}"]
    return [
        *(look if last else ()),
        "if the data is wrong, correct it and run the same command again",
        f"if all is as it should be, run the same command again with {' '.join(ways_on(release.gates))}",
    ]


def exported(workspace: Workspace, made: JobStages) -> str:
    """Returns the folder of the SavedModel of a job that made one."""
    return join(workspace.root, made.published["export"].folder, made.published["export"].metrics["path"])


def summary(workspace: Workspace, made: JobStages, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Returns a run's results for programs: what --json prints on one line.

    Args:
      workspace: the output.
      made: all stages' manifests.
      outcome: what became of the table.
      seconds: how long the run took.
    """
    metrics = made.published["recommend"].metrics
    recall = metrics["recall_against_exact"]["mean"]
    return {
        "exit_status": GATE_FAILED if outcome.failed else OK,
        "release": outcome.latest.release,
        "status": outcome.release.status,
        "is_new": outcome.is_new,
        "manifest": join(workspace.root, outcome.latest.manifest),
        "table": [join(workspace.root, path) for path in outcome.latest.topk],
        "counts": {name: metrics[name] for name in ("users", "users_personalised", "users_popular", "pairs", "items_allowed")},
        "metrics": outcome.evaluated.quality["means"] | {"recall_against_exact": recall},
        "base": outcome.release.written.get("base"),
        "report": join(workspace.root, workspace.release_report(outcome.latest.release)),
        "saved_model": exported(workspace, made) if "export" in made.published else None,
        "refitted": made.refitted,
        "gates": outcome.release.written["gates"],
        "came_in": {name: each and asdict(each) for name, each in zip(("now", "last"), arrivals(made, outcome), strict=True)},
        "seconds": round(seconds, 3),
    }


def table_folder(workspace: Workspace, outcome: Outcome) -> str:
    """Returns the folder that holds the table's files."""
    paths = outcome.latest.topk
    return f"{workspace.root.rstrip('/')}/{paths[0].rpartition('/')[0]}" if paths else workspace.root


def gates_line(gates: Mapping[str, Gate]) -> str:
    """Returns how many gates passed, and the names of those that did not."""
    words = []
    for status in (PASSED, FAILED, FORCED, SKIPPED):
        names = [name for name, gate in gates.items() if gate.status == status]
        if names:
            words.append(f"{len(names)} {status}" + ("" if status == PASSED else f" ({', '.join(names)})"))
    return "; ".join(words) or "none"


def duckdb_line(root: str) -> str:
    """Returns the shell line that reads the table that is served with DuckDB: the files that `LATEST` names, and no others."""
    root, quote = root.rstrip("/"), "'"
    name = root.replace(quote, quote * 2)
    files = f"SELECT list('{name}/' || path) FROM (SELECT unnest(topk) AS path FROM read_json('{_no_pattern(name)}/LATEST'))"
    queries = [f"SET VARIABLE files = ({files})", "FROM read_parquet(getvariable('files'))"]
    if re.fullmatch(r"[\w./:=+-]+", root):
        made, read = (f'\\"{query}\\"' for query in queries)
        return f"""{this_python()} -c "import duckdb; duckdb.sql({made}); duckdb.sql({read}).show()\""""
    made, read = map(json.dumps, queries)
    return f"{this_python()} -c {shlex.quote(f'import duckdb; duckdb.sql({made}); duckdb.sql({read}).show()')}"


def _no_pattern(path: str) -> str:
    """Returns a path for DuckDB, to which `*`, `?` and `[` are patterns."""
    return re.sub(r"([*?[])", r"[\1]", path)


def quality_table(metrics: Mapping[str, Any], refitted: bool = False) -> Table:
    """Returns the metrics beside those of popularity, of all time and recent; `refitted`: of a model before the table's."""
    quality, popularity, recent = (metrics[name] for name in ("quality", "popularity", "recent_popularity"))
    users = quality["users"]
    cutoffs = sorted({int(name.partition("@")[2]) for name in quality["means"] if "@" in name})
    table = Table(title=f"held-out quality, mean over {counted(users, 'user')}" if users else "coverage", title_justify="left")
    table.add_column("metric")
    table.add_column("before the refit" if refitted else "this table", justify="right")
    table.add_column("popularity", justify="right")
    table.add_column("recent popularity", justify="right")
    for name, value in quality["means"].items():
        if "@" in name and int(name.partition("@")[2]) not in (cutoffs[0], cutoffs[-1]):
            continue  # The table stays short; the manifest has every cutoff.
        error = quality["standard_errors"].get(name)
        shown = f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
        table.add_row(name, shown, *(f"{baseline['means'][name]:.4f}" for baseline in (popularity, recent)))
    return table


def counts_line(metrics: Mapping[str, Any]) -> str:
    """Returns what was served, and how sure the lists are."""
    words = [f"{counted(metrics['users_personalised'], 'user')} personalised, {metrics['users_popular']:,} popular"]
    recall = metrics["recall_against_exact"]
    if recall["standard_error"] is not None:
        words.append(f"recall of ScaNN against exact search {recall['mean']:.4f} ± {recall['standard_error']:.4f}")
    words.append(f"{counted(metrics['rows_researched'], 'row')} searched again, {metrics['rows_exact']:,} exactly")
    if metrics["lists_short_of_k"]:
        short = metrics["lists_short_of_k"]
        words.append(f"{counted(short, 'list')} {are(short)} shorter than k: no more items are eligible")
    return "; ".join(words)


def carried_line(base: CarriedLists) -> str:
    """Returns how many lists of a reused model were copied."""
    if base.why_nobody:
        return f"model of release {base.release}; all lists are new: {base.why_nobody}"
    why = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in base.new_lists.items() if count)
    return (
        f"model of release {base.release}; {base.carried:,} of {counted(base.users, 'list')} copied "
        f"({base.share_carried:.1%}), {base.compared:,} of them compared with exact search"
        + (f"; new lists: {why}" if why else "")
    )


def some_users(published: Published) -> list[str]:
    """Returns a few users with lists of their own, spread over the first block of the table."""
    for path in published.topk:
        for block in read_table(path, ["user_id", "source", "history_length"]):
            rows = [row for row in block.to_pylist() if row["source"] == "personalised"] or block.to_pylist()
            step = max(1, len(rows) // _SHOWN_USERS)
            return [row["user_id"] for row in rows[step // 2 :: step][:_SHOWN_USERS]]
    return []


def show_user(published: Published, user_id: str, console: Console) -> None:
    """Prints what a user liked, beside what the user gets."""
    row, items = list_of(published, user_id)
    users: pa.Table = published.users_of([user_id])
    liked = users["history"].to_pylist()[0][::-1][:_SHOWN_ITEMS]
    titles = published.titles_of(liked)
    table = Table(title=f"user {escape(user_id)} ({row['source']})", title_justify="left")
    width = max(8, min(34, (console.width - 18) // 2))
    table.add_column(f"latest of {row['history_length']} in the history", max_width=width, no_wrap=True)
    table.add_column("recommended", max_width=width, no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True, min_width=6)
    for at in range(min(_SHOWN_ITEMS, max(len(liked), len(items)))):
        left = titles.get(liked[at], liked[at]) if at < len(liked) else ""
        item, title, score = items[at] if at < len(items) else ("", "", None)
        table.add_row(escape(left), escape(title or item), "" if score is None else f"{score:.2f}")
    console.print(table)
