"""Trains the two towers on what `ingest` kept for training: `python -m pipelines.train --output DIR`."""

import sys
from collections.abc import Mapping
from dataclasses import asdict

import apache_beam as beam

from pipelines.settings import Settings
from pipelines.stage import Reports, Stage
from schemas.manifest import StageManifest
from schemas.storage import join
from transforms.training import TrainingSettings, TrainTowers


def stage(settings: Settings, done: Mapping[str, StageManifest]) -> Stage:
    """Returns the stage, which reads the training interactions."""
    ingested = done["ingest"]
    paths = ingested.paths(settings.output, "interactions/train")
    return Stage(
        name="train",
        module=__name__,
        settings=asdict(settings.training),
        inputs={"ingest": ingested},
        reads={"ingest": ["interactions/train"]},
        build=lambda root, attempt: build(root, attempt, paths, settings.training),
    )


def build(root: beam.Pipeline, attempt: str, paths: list[str], settings: TrainingSettings) -> Reports:
    """Adds the stage's steps: one element, the list of files, through one worker that trains.

    Checkpoints lie beside the attempt, in the folder of the stage, so that the next attempt at the same stage goes on.
    """
    checkpoints = join(attempt.rpartition("/")[0], "checkpoints")
    trained = root | "TrainTowers" >> TrainTowers(paths, attempt, settings, checkpoints)
    return [
        trained | "Files" >> beam.FlatMap(lambda made: made[0]),
        trained | "Metrics" >> beam.Map(lambda made: {"dim": settings.dim, **made[1]}),
    ]


if __name__ == "__main__":
    from pipelines.run import run_alone

    sys.exit(run_alone("train"))
