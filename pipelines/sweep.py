"""Tries ways to train and tells which is best: `python -m pipelines.sweep --output DIR [--trials FILE] [--num_trials N]`.

Trials are judged on a slice of the training ratings, never on what is held out. Without --trials, settings are drawn from a
space of its own (see docs/sweep.md); the first trial is always the flags' own. The winner's settings are for `--config`.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError
from rich.markup import escape
from rich.table import Table

from pipelines import ingest, logs, run, train
from pipelines.command import Output, run_command
from pipelines.lease import Held
from pipelines.progress import Progress
from pipelines.results import this_python
from pipelines.settings import Settings, SweepSettings, parse_command
from pipelines.stage import Reports, Stage, code_version, run_stage
from schemas.errors import InputError
from schemas.manifest import StageManifest, fingerprint_of
from schemas.storage import check_writable, exists, join, read_bytes, read_parquet_blocks
from schemas.trials import FAILED
from schemas.words import counted
from schemas.workspace import Workspace
from schemas.yaml_text import read_yaml
from transforms.train.search_space import SPACE, trials_of
from transforms.train.training import TrainingPaths, TrainingSettings
from transforms.train.trials import CHART_FILE, TRIALS, WINNER_FILE, RunTrials, Trial

DEFAULT_NUM_TRIALS = 20
_SHOWN_TRIALS = 20


def stage(settings: Settings, done: Mapping[str, StageManifest]) -> Stage:
    """Returns the stage, which reads what training reads.

    Raises:
      InputError: if the trials will not do, or there is nothing to judge them on.
    """
    ingested = done["ingest"]
    if not settings.training.validation_fraction:
        raise InputError("trials are judged on a validation slice, got --validation_fraction 0: raise it")
    trials_asked = read_trials(settings.sweep, settings.training)
    asked = [train.training_of(replace(settings, training=each), ingested) for each in trials_asked]
    paths = train.paths_of(settings.output, ingested, asked)
    reads = ["interactions/train", *(["items"] if paths.items else [])]
    made_from = [code_version("transforms.train.trials"), ingested.digest_of_datasets(reads)]
    trials = [
        Trial(number, each, Workspace.trial(fingerprint_of([made_from, asdict(each)]))) for number, each in enumerate(asked, 1)
    ]
    return Stage(
        name="sweep",
        module=__name__,
        settings={"trials": [asdict(trial.settings) for trial in trials]},
        inputs={"ingest": ingested},
        reads={"ingest": reads},
        build=lambda root, attempt: build(root, attempt, paths, trials, settings.output),
    )


def build(root: beam.Pipeline, attempt: str, paths: TrainingPaths, trials: Sequence[Trial], output: str) -> Reports:
    """Adds the stage's steps: every trial is an element, and one worker writes what all of them found."""
    written = root | "RunTrials" >> RunTrials(trials, paths, output, attempt)
    return [
        written | "Files" >> beam.FlatMap(lambda made: made[0]),
        written | "Metrics" >> beam.Map(lambda made: made[1]),
    ]


def read_trials(ask: SweepSettings, base: TrainingSettings) -> list[TrainingSettings]:
    """Returns the trials that the flags ask for.

    Args:
      ask: the sweep's own flags.
      base: has every setting that a trial does not name.

    Raises:
      InputError: if --trials cannot be read, or asks for what cannot be.
    """
    path = ask.trials
    if path is None:
        return trials_of(SPACE, base, ask.num_trials or DEFAULT_NUM_TRIALS, "the space of settings")
    if not exists(path):
        raise InputError(f"the trials {path} do not exist: check --trials")
    try:
        text = read_bytes(path)
    except (OSError, BeamIOError) as error:
        raise InputError(f"the trials {path} cannot be read ({error}): check --trials") from error
    declared = read_yaml(text, f"the trials {path}", many=True)
    return trials_of(declared, base, ask.num_trials, PurePath(path).name)


def main(argv: Sequence[str]) -> None:
    """Sweeps, and prints the best trials and what to do with the winner."""
    settings, options = parse_command(argv, str(__doc__))
    logs.configure(settings.verbose)
    if settings.reuse_model_from:
        raise InputError("a sweep trains, and --reuse_model_from keeps a model: leave --reuse_model_from out")
    read_trials(settings.sweep, settings.training)  # A mistake in them should not wait for the ratings to be read.
    check_writable(settings.output)
    workspace, progress = Workspace(settings.output), Progress()
    with Held(workspace, "sweep") as lease:
        if settings.ingest.ratings:
            done = {"ingest": run_stage(ingest.stage(settings, {}), workspace, options, progress, lease)}
        else:
            made = run.finished_before("train", settings)
            run.keep_finished(workspace, made, lease)
            done = made.published
        swept = run_stage(stage(settings, done), workspace, options, progress, lease)
    show(workspace, swept)


def show(workspace: Workspace, swept: StageManifest) -> None:
    """Prints a finished sweep."""
    console = Output(highlight=False)
    rows = [
        row for path in swept.paths(workspace.root, TRIALS) for block in read_parquet_blocks(path) for row in block.to_pylist()
    ]
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
    console.print(f"[bold]chart[/]   {escape(join(folder, CHART_FILE))}")
    flags = f"--output {shlex.quote(workspace.root)} --config {shlex.quote(config)}"
    console.print(f"[bold]winner[/]  {escape(f'{this_python()} -m pipelines.run {flags}')} --ratings …")


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
        values = [f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in settings]
        said = [f"{name.removeprefix('setting_')} {value}" for name, value in zip(settings, values, strict=True)]
        table.add_row(str(row["trial"]), *results, f"{seconds[str(row['trial'])]:.1f}", escape(", ".join(said)))
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
