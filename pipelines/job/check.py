"""Checks what a run would read, and says what it would do: `python -m pipelines.run --check` with all other flags of the run.

The sources and the lists are really read, as the run reads them: ingest and lists are made and kept, and the run that follows
finds them done. Nothing is trained, judged or published, and `LATEST` stays as it is.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console
from rich.markup import escape

from pipelines.cli.command import OK, Output
from pipelines.engine.lease import LeaseHolder
from pipelines.engine.stage import Chain, Kept
from pipelines.job.chains import STAGES, chains, no_stages_yet
from pipelines.job.prepare import Job
from pipelines.job.publishing import READERS, JobStages
from pipelines.job.runner import run_stages
from pipelines.stages.ingest import rows_forgotten, rows_read
from schemas.manifest import StageManifest, users_of
from schemas.release import read_latest, read_release
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.ingest.join_ids import JOINED, in_words

_EXAMPLES = 3


def check_job(job: Job, options: PipelineOptions) -> None:
    """Reads the sources and the lists, and prints what came in and what would be done.

    Raises:
      InputError: as a run would.
    """
    settings, workspace, started = job.settings, Workspace(job.settings.output), time.monotonic()
    latest = read_latest(workspace)
    if latest:
        read_release(workspace, latest)
    made = no_stages_yet(job)
    with LeaseHolder(workspace, "check") as lease:
        # A job that refits reads all twice, in two splits; the first time tells what came in.
        first = next(chains(job, made))
        once = Job(replace(first.settings, refit=False), job.base, job.last)
        run_stages(READERS, once, JobStages(first.done, first.done, job.base), options, lease)
        plan = {model: dict(stages) for model, stages in plan_of(job, made, workspace)}
    found = what_came_in(first.done)
    found |= {"stages": plan, "compared_with": latest.release if latest else None}
    found["seconds"] = round(time.monotonic() - started, 3)
    show(found, Output(highlight=False, stderr=settings.json))
    if settings.json:
        print(json.dumps({"exit_status": OK, "checked": found}), flush=True)


def plan_of(job: Job, made: JobStages, workspace: Workspace) -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    """Yields, for each model that a run makes or keeps, which stages would run and which are done."""
    for chain in chains(job, made):
        model = "the published table" if chain.done is made.published else "the evaluation before the refit"
        yield model, _plan_of_chain(chain, workspace)


def _plan_of_chain(chain: Chain, workspace: Workspace) -> Iterator[tuple[str, str]]:
    known, done = True, chain.done
    for name, definition in STAGES.items():
        planned = definition.plan(chain) if known and name not in done else None
        if isinstance(planned, Kept):
            done[name] = planned.manifest
            yield name, f"kept from release {planned.release}"
            continue
        if planned:
            found = workspace.read(name, planned.fingerprint)
            known = found is not None
            if found:
                done[name] = found
        yield name, "done" if name in done else "would run"


def what_came_in(done: Mapping[str, StageManifest]) -> dict[str, Any]:
    """Returns what was read, as JSON."""
    ingested = done["ingest"]
    metrics = {name: value for reader in READERS for name, value in done[reader].metrics.items()}
    sources = {}
    for source in (source for reader in READERS for source in done[reader].sources):
        dataset = source["dataset"]
        read = metrics[rows_read(dataset)]
        sources[dataset] = {
            "files": len(source["files"]),
            "rows": read["rows"],
            "rejected": sum(reason["count"] for reason in read["reasons"].values()),
            "reasons": {reason: found["count"] for reason, found in read["reasons"].items()},
            "forgotten": metrics.get(rows_forgotten(dataset), 0),
        }
    newest = metrics["newest_timestamp"]
    return {
        "sources": sources,
        "newest_rating": datetime.fromtimestamp(newest, UTC).isoformat() if newest else None,
        "ratings_repeated": metrics["rows_repeated"],
        "ratings_to_train_on": metrics["rows_train"],
        "ratings_held_out": metrics["rows_holdout"],
        "users": users_of(done).rows("users"),
        "users_without_ratings": metrics.get("users_without_ratings", 0),
        "items": ingested.rows("items"),
        "items_blocked": metrics["items_blocked"],
        JOINED: {name: joined for reader in READERS for name, joined in done[reader].metrics.get(JOINED, {}).items()},
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Prints what came in and what would be done, for people."""
    console.soft_wrap = True
    for dataset, source in found["sources"].items():
        words = f"{counted(source['rows'], 'row')} of {counted(source['files'], 'file')}"
        words += f", {source['rejected']:,} rejected"
        if source["reasons"]:
            common = sorted(source["reasons"].items(), key=lambda each: (-each[1], each[0]))[:_EXAMPLES]
            words += f" ({', '.join(f'{reason}: {count:,}' for reason, count in common)})"
        if source["forgotten"]:
            words += f", {source['forgotten']:,} left out as forgotten"
        _line(console, dataset, words)
    repeated, train, held_out = (found[f"ratings_{name}"] for name in ("repeated", "to_train_on", "held_out"))
    newest = found["newest_rating"] or "unknown, there are no times"
    _line(console, "newest", f"{newest}; {repeated:,} repeated, {train:,} to train on, {held_out:,} held out")
    _line(console, "users", f"{found['users']:,}, {found['users_without_ratings']:,} of them without ratings")
    _line(console, "catalogue", f"{counted(found['items'], 'item')}, {found['items_blocked']:,} of them not to be recommended")
    for name, joined in found[JOINED].items():
        _line(console, name, in_words(joined))
    for model, stages in found["stages"].items():
        words = ", ".join(f"{name} {what}" for name, what in stages.items())
        _line(console, "stages", f"of {model}: {words}")
    last = found["compared_with"]
    _line(console, "compared", f"with release {last}" if last else "with nothing: no release is served yet")
    _line(
        console,
        "checked",
        f"in {found['seconds']:.1f} s; ingest and lists are kept for the run, nothing was trained or published",
    )


def _line(console: Console, name: str, words: str) -> None:
    console.print(f"[bold]{escape(f'{name:<14}')}[/] {escape(words)}")
