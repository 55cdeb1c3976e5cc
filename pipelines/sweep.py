"""Trains the model with several settings, and ranks them by quality on a slice of the training data."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipelines.cli import logs
from pipelines.cli.command import Output, run_command, this_python
from pipelines.cli.config import parse_command
from pipelines.engine.lease import LeaseHolder
from pipelines.engine.progress import Progress
from pipelines.engine.stage import Chain, run_stage
from pipelines.job import finished
from pipelines.job.prepare import Job, refuse_check
from pipelines.stages import ingest
from pipelines.stages.sweep import plan, read_trials
from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.parquet_files import read_parquet_blocks
from schemas.stage_files import TRIALS, WINNER_FILE
from schemas.storage import check_writable, join, write_file
from schemas.trials import FAILED
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.report.trials_chart import chart_of

_SHOWN_TRIALS = 20


def main(argv: Sequence[str]) -> None:
    """Sweeps, and prints the best trials and what to do with the winner."""
    settings, options = parse_command(argv, str(__doc__))
    logs.configure(settings.verbose)
    refuse_check(settings)
    if settings.reuse_model_from:
        raise InputError("a sweep trains, and --reuse_model_from keeps a model: leave --reuse_model_from out")
    read_trials(settings.sweep, settings.training)  # A mistake in them should not wait for the ratings to be read.
    check_writable(settings.output)
    workspace, progress = Workspace(settings.output), Progress()
    with LeaseHolder(workspace, "sweep") as lease:
        if settings.ingest.ratings:
            done = {"ingest": run_stage(ingest.plan(Chain(settings)), workspace, options, progress, lease)}
        else:
            made = finished.finished_before("train", Job(settings))
            finished.keep_finished(workspace, made, lease)
            done = made.published
        swept = run_stage(plan(Chain(settings, done)), workspace, options, progress, lease)
    show(workspace, swept)


def show(workspace: Workspace, swept: StageManifest) -> None:
    """Draws and prints a finished sweep."""
    console = Output(highlight=False)
    rows = [
        row for path in swept.paths(workspace.root, TRIALS) for block in read_parquet_blocks(path) for row in block.to_pylist()
    ]
    chart = workspace.trials_chart(swept.stage, swept.fingerprint)
    write_file(workspace.root, chart, chart_of(rows).encode())
    console.print(table_of(rows, swept.metrics["seconds"]))
    console.soft_wrap = True
    if len(rows) > _SHOWN_TRIALS:
        console.print(f"and {len(rows) - _SHOWN_TRIALS} more")
    for row in rows:
        if row["status"] == FAILED:
            console.print(f"trial {row['trial']} failed: {escape(row['reason'])}")
    folder = join(workspace.root, swept.folder)
    config = join(folder, WINNER_FILE)
    console.print(f"[bold]trials[/]  {escape(swept.paths(workspace.root, TRIALS)[0])}")
    console.print(f"[bold]chart[/]   {escape(join(workspace.root, chart))}")
    flags = f"--output {shlex.quote(workspace.root)} --config {shlex.quote(config)}"
    console.print(f"[bold]winner[/]  {escape(f'{this_python()} -m pipelines.run {flags}')} --ratings …")


def value_of(setting: Any) -> str:
    """Returns a setting in a few letters; one that was not given is by its default."""
    if setting is None:
        return "default"
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def table_of(rows: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> Table:
    """Returns the best trials as a table, each with those of its settings that are not the same in all.

    Args:
      rows: of the trials, the best first.
      seconds: that each trained, by its number.
    """
    settings = [name for name in rows[0] if name.startswith("setting_") and len({row[name] for row in rows}) > 1]
    table = Table(title=f"{counted(len(rows), 'trial')} by Recall@100 + NDCG@10 on the validation slice", title_justify="left")
    for name in ("trial", "quality", "Recall@100", "NDCG@10", "epochs", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for row in rows[:_SHOWN_TRIALS]:
        if row["status"] == FAILED:
            results = ["failed", "", "", ""]
        else:
            results = [*(f"{row[name]:.4f}" for name in ("quality", "recall_at_100", "ndcg_at_10")), str(row["epochs"])]
        values = [value_of(row[name]) for name in settings]
        said = [f"{name.removeprefix('setting_')} {value}" for name, value in zip(settings, values, strict=True)]
        table.add_row(str(row["trial"]), *results, f"{seconds[str(row['trial'])]:.1f}", escape(", ".join(said)))
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
