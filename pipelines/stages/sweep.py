"""Tries ways to train and tells which is best: `python -m pipelines.sweep --output DIR [--trials FILE] [--num_trials N]`.

Trials are judged on a slice of the training ratings, never on what is held out. Without --trials, settings are drawn from a
space of its own (see docs/guides/sweep.md); the first trial is always the flags' own. The winner's settings are for `--config`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath

import apache_beam as beam

from pipelines.cli.given_yaml import read_given_yaml
from pipelines.cli.settings import SweepSettings
from pipelines.engine.fingerprint import code_version
from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages import train
from schemas.errors import InputError
from schemas.manifest import fingerprint_of
from schemas.workspace import Workspace
from transforms.train.rows import TrainingPaths
from transforms.train.search_space import SPACE, trials_of
from transforms.train.settings import TrainingSettings
from transforms.train.trials import RunTrials, Trial

DEFAULT_NUM_TRIALS = 20


def plan(chain: Chain) -> "Stage[SweepJob]":
    """Returns the stage, which reads what training reads.

    Raises:
      InputError: if the trials will not do, or there is nothing to judge them on.
    """
    settings, ingested = chain.settings, chain.done["ingest"]
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
        STAGE,
        settings={"trials": [asdict(trial.settings) for trial in trials]},
        inputs={"ingest": ingested},
        reads={"ingest": reads},
        job=SweepJob(paths, trials, settings.output),
    )


@dataclass(frozen=True)
class SweepJob:
    """Which trials to run, on what."""

    paths: TrainingPaths
    trials: Sequence[Trial]
    output: str


def build(root: beam.Pipeline, attempt: str, job: SweepJob) -> Reports:
    """Adds the stage's steps: every trial is an element, and one worker writes what all of them found."""
    written = root | "RunTrials" >> RunTrials(job.trials, job.paths, job.output, attempt)
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
    declared = read_given_yaml("--trials", "the trials", path, many=True)
    return trials_of(declared, base, ask.num_trials, PurePath(path).name)


STAGE = StageDefinition("sweep", __name__, plan, build)
